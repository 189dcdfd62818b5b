// Numbers as people read them, with their units. Missing ones are a dash.

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** int64 comes as text. */
export const number = (value) => Number(value ?? 0);

function digits(value) {
	const size = Math.abs(value);
	return size >= 100 || Number.isInteger(value) ? whole.format(value) : value.toFixed(size >= 10 ? 1 : 2);
}

export function count(value) {
	if (!isNumber(value)) return NONE;
	if (value >= 1e7) return digits(value / 1e6) + " M";
	return Number.isInteger(value) ? whole.format(value) : digits(value);
}

/** Of things, with the noun in the right number. */
export const counted = (value, one, many = one + "s") => `${count(value)} ${value === 1 ? one : many}`;

export function perSecond(value) {
	if (!isNumber(value)) return NONE;
	if (value >= 1e6) return digits(value / 1e6) + " M/s";
	if (value >= 1e5) return digits(value / 1e3) + " k/s";
	if (value >= 100) return whole.format(value) + "/s";
	return (value === 0 ? "0" : value >= 10 ? value.toFixed(1) : value.toFixed(2)) + "/s";
}

export function bytes(value) {
	if (!isNumber(value)) return NONE;
	if (value < 1024) return value + " B";
	const units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
	let size = value / 1024;
	let unit = 0;
	while (size >= 1024 && unit < units.length - 1) {
		size /= 1024;
		unit++;
	}
	return `${size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(2)} ${units[unit]}`;
}

/** A latency. */
export function seconds(value) {
	if (!isNumber(value)) return NONE;
	if (value === 0) return "0 ms";
	if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
	if (value < 1) return `${threeDigits(value * 1000)} ms`;
	return `${threeDigits(value)} s`;
}

const threeDigits = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** A stretch of time: "2 h 13 min". */
export function duration(value) {
	if (!isNumber(value)) return NONE;
	const s = Math.max(0, Math.floor(value));
	if (s < 60) return `${s} s`;
	if (s < 3600) return `${Math.floor(s / 60)} min`;
	if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
	return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** How long ago `at` (Unix seconds) was; `now` is the server's clock where it is known. */
export function ago(at, now = Date.now() / 1000) {
	if (!at) return NONE;
	const passed = now - at;
	return passed < 1 ? "now" : duration(passed) + " ago";
}

/** RFC 3339 to Unix seconds, 0 where there is none. */
export const unix = (text) => (text ? Date.parse(text) / 1000 || 0 : 0);

const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
export const moment = (at) => (at ? dates.format(at * 1000) : NONE);
const isRound = (share) => share === 0 || share >= 0.9995;
export const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(isRound(share) ? 0 : 1)} %` : NONE);
export const score = (value) => (value ?? 0).toFixed(3);

/** "0.0012s", as durations are written in JSON, to seconds. */
export const protoSeconds = (text) => parseFloat(text ?? "0") || 0;

export const shortDigest = (digest) => (digest ?? "").slice(0, 12);

/** "TASK_TOKEN_CLASSIFICATION" to "token classification". */
export const plain = (name, prefix) => (name ?? "").replace(prefix, "").replaceAll("_", " ").toLowerCase();
export const task = (name) => (!name || name === "TASK_UNSPECIFIED" ? NONE : plain(name, "TASK_"));
export const tier = (name) => (!name || name === "TIER_UNSPECIFIED" ? NONE : plain(name, "TIER_"));
