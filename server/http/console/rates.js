// Rates and percentiles: differences between what the server told at two moments. No nodes here.

export const KEPT_S = 120;
export const WINDOW_S = 10;
export const STAGES = ["admit", "tokenize", "ready", "queue", "compute"];

const GROUPS = {
	OK: "ok",
	RESOURCE_EXHAUSTED: "late",
	DEADLINE_EXCEEDED: "late",
	UNAVAILABLE: "late",
	CANCELLED: "late",
	INTERNAL: "broken",
	UNKNOWN: "broken",
	DATA_LOSS: "broken",
	ABORTED: "broken",
};

/** Whose matter an outcome is: "ok", "late" (no room or no time), "broken" (the server's), "asked" (the caller's). */
export const groupOf = (outcome) => GROUPS[outcome] ?? "asked";

export const sum = (counts) => Object.values(counts ?? {}).reduce((total, one) => total + one, 0);

export class History {
	constructor() {
		this.samples = []; // what was told, oldest first
		this.points = []; // what follows from each two, for charts
	}

	push(state) {
		const last = this.samples.at(-1);
		if (last && hasRestarted(last, state)) this.samples = this.points = [];
		else if (last && state.at <= last.at) return;
		const { recent_batches, errors, busiest, ...counters } = state; // lists are not kept
		this.samples = [...this.samples.filter((one) => one.at > state.at - KEPT_S - 5), counters];
		this.points = this.points.filter((one) => one.at > state.at - KEPT_S - 5);
		if (this.samples.length > 1) this.points.push(this.#point());
	}

	get newest() {
		return this.samples.at(-1);
	}

	/** The sample that is `span` seconds older than the newest, or the nearest to that. */
	before(span = WINDOW_S) {
		const { at } = this.newest;
		const older = this.samples.slice(0, -1);
		return older.findLast((one) => one.at <= at - span + 0.05) ?? older[0] ?? null;
	}

	/** What `pick` counts, a second; null before there are two samples. */
	rate(pick, span = WINDOW_S) {
		const older = this.before(span);
		return older ? Math.max(0, pick(this.newest) - pick(older)) / (this.newest.at - older.at) : null;
	}

	/** How much `pick` grew. */
	growth(pick, span = WINDOW_S) {
		const older = this.before(span);
		return older ? Math.max(0, pick(this.newest) - pick(older)) : 0;
	}

	/** Percentile of a stage over the last seconds; null where nothing passed it. */
	quantile(stage, q, span = WINDOW_S) {
		return this.samples.length ? quantile(this.newest.stages?.[stage], this.before(span)?.stages?.[stage], q) : null;
	}

	#point() {
		const [older, newer] = this.samples.slice(-2);
		const passed = newer.at - older.at;
		const point = { at: newer.at, passed, requests: { ok: 0, asked: 0, late: 0, broken: 0 } };
		for (const [outcome, total] of Object.entries(newer.requests ?? {})) {
			point.requests[groupOf(outcome)] += Math.max(0, total - (older.requests?.[outcome] ?? 0)) / passed;
		}
		point.tokens = Math.max(0, newer.tokens - older.tokens) / passed;
		for (const [name, q] of [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]]) {
			point[name] = this.quantile("total", q, 5);
		}
		const batches = newer.batches.count - older.batches.count;
		point.adapters = batches > 0 ? (newer.batches.adapters - older.batches.adapters) / batches : null;
		point.inFlight = newer.in_flight;
		point.waiting = newer.queue?.samples ?? 0;
		return point;
	}
}

function hasRestarted(last, state) {
	return state.uptime_s < last.uptime_s - 1 || state.tokens < last.tokens || sum(state.requests) < sum(last.requests);
}

/** Percentile from cumulative buckets [[upper bound or null, count], ...], less those of an earlier moment. */
export function quantile(stage, older, q) {
	if (!stage) return null;
	const before = new Map((older?.buckets ?? []).map(([bound, count]) => [bound, count]));
	const buckets = stage.buckets.map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]);
	const total = buckets.at(-1)?.[1] ?? 0;
	if (total <= 0) return null;
	const rank = q * total;
	let below = 0;
	let from = 0;
	for (const [bound, count] of buckets) {
		if (count >= rank) {
			if (bound === null) return from; // beyond the last bound nothing more is known
			return count > below ? from + ((bound - from) * (rank - below)) / (count - below) : bound;
		}
		below = count;
		from = bound;
	}
	return from;
}
