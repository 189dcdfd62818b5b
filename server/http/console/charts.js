// Small charts, drawn as SVG paths. Shapes only: every number beside them is text of the page.

import { el, say, scrolled, svg } from "./dom.js";
import { KEPT_S } from "./rates.js";

const WIDTH = 240;
const HEIGHT = 60;
const GAP_S = 4; // a longer pause between two polls breaks the line

/**
 * A chart of the last two minutes.
 *
 * lines    [[class, value(point)], ...]; a value of null breaks the line
 * stacked  areas on top of each other instead of lines
 * scale    writes the largest value, shown at the top
 * onPoint  called with the point under the pointer, and with null when it leaves
 */
export function timeChart({ label, lines, stacked = false, scale, onPoint }) {
	const paths = lines.map(([kind]) => svg("path", { class: `${stacked ? "area" : "line"} ${kind}` }));
	const rule = svg("path.rule");
	const picture = svg(
		"svg",
		{ viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
		svg("path.floor", { d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }),
		paths,
		rule,
	);
	const top = el("span.chart-top", { "aria-hidden": "true" });
	const node = el("div.chart", picture, top);
	let points = [];
	let now = 0;

	const x = (at) => WIDTH - ((now - at) / KEPT_S) * WIDTH;
	node.addEventListener("pointermove", (event) => {
		const box = node.getBoundingClientRect();
		const at = now - (1 - (event.clientX - box.left) / box.width) * KEPT_S;
		if (!points.length) return;
		const nearest = points.reduce((best, one) => (Math.abs(one.at - at) < Math.abs(best.at - at) ? one : best));
		rule.setAttribute("d", `M${x(nearest.at).toFixed(1)} 0V${HEIGHT}`);
		onPoint?.(nearest);
	});
	node.addEventListener("pointerleave", () => {
		rule.removeAttribute("d");
		onPoint?.(null);
	});

	function update(newPoints, newNow) {
		[points, now] = [newPoints.filter((one) => one.at >= newNow - KEPT_S), newNow];
		const rows = points.map((point) => (stacked ? heaped(lines, point) : lines.map(([, value]) => value(point))));
		const most = Math.max(0, ...rows.flat().filter((value) => value !== null));
		const ceiling = niceCeiling(most);
		const y = (value) => HEIGHT - 1 - (value / ceiling) * (HEIGHT - 4);
		paths.forEach((path, i) => path.setAttribute("d", stacked ? area(rows, i, x, y) : line(rows, i, x, y)));
		say(top, most > 0 ? scale(ceiling) : "");
	}

	function line(rows, i, x, y) {
		let d = "";
		rows.forEach((row, k) => {
			if (row[i] === null) return;
			const isJoined = k > 0 && rows[k - 1][i] !== null && points[k].passed < GAP_S;
			d += `${isJoined ? "L" : "M"}${x(points[k].at).toFixed(1)} ${y(row[i]).toFixed(1)}`;
			if (!isJoined) d += "h.01"; // a lone point shows as a dot
		});
		return d;
	}

	function area(rows, i, x, y) {
		let d = "";
		for (let from = 0; from < rows.length; ) {
			let to = from;
			while (to + 1 < rows.length && points[to + 1].passed < GAP_S) to++;
			const upper = [];
			const lower = [];
			for (let k = from; k <= to; k++) {
				upper.push(`${x(points[k].at).toFixed(1)} ${y(rows[k][i]).toFixed(1)}`);
				lower.unshift(`${x(points[k].at).toFixed(1)} ${y(i ? rows[k][i - 1] : 0).toFixed(1)}`);
			}
			d += `M${upper.join("L")}L${lower.join("L")}Z`;
			from = to + 1;
		}
		return d;
	}

	return { node, update, describe: (text) => picture.setAttribute("aria-label", `${label}: ${text}`) };
}

function heaped(lines, point) {
	let total = 0;
	return lines.map(([, value]) => (total += value(point) ?? 0));
}

/** The least of 1, 2, 5 times a power of ten that is not below. */
function niceCeiling(value) {
	if (!(value > 0)) return 1;
	const power = 10 ** Math.floor(Math.log10(value));
	return [1, 2, 5, 10].find((step) => step * power >= value * 0.9999) * power;
}

/** Parts of a whole in one bar: [{kind, value, title}]. */
export function stackedBar(parts) {
	const total = parts.reduce((sum, { value }) => sum + value, 0);
	const part = ({ kind, value, title }) =>
		el("span", { class: `part ${kind}`, title, vars: { "flex-grow": (value / total).toFixed(4) } });
	return el("div.stacked", { "aria-hidden": "true" }, parts.filter(({ value }) => value > 0).map(part));
}

/** A bar filled to `share`, for which the text beside it stands. */
export function fillBar(share, kind = "") {
	const vars = { "--share": `${(100 * Math.min(1, Math.max(0, share || 0))).toFixed(2)}%` };
	return el("span", { class: "fill " + kind, "aria-hidden": "true" }, el("span.filled", { vars }));
}

/** A vector as a strip: cold below zero, warm above, pale near it. */
export function heatStrip(values) {
	const canvas = el("canvas.heat", { width: String(values.length), height: "1", "aria-hidden": "true" });
	const context = canvas.getContext("2d");
	const image = context.createImageData(values.length, 1);
	const sorted = values.map(Math.abs).sort((a, b) => a - b);
	const most = sorted[Math.floor(0.98 * (sorted.length - 1))] || 1; // a few outliers do not pale the rest
	values.forEach((value, i) => {
		image.data.set(value < 0 ? [38, 118, 196] : [222, 124, 36], 4 * i);
		image.data[4 * i + 3] = Math.round(255 * Math.min(1, Math.abs(value) / most));
	});
	context.putImageData(image, 0, 0);
	return canvas;
}

const WORD_GAP = 18;
const ARC_STEP = 22;

/** A dependency tree as arcs over its words; `words` are [{text, head, relation}], heads counted from 1. */
export function arcs(words) {
	const measure = el("canvas").getContext("2d");
	measure.font = "15px system-ui, sans-serif";
	const width = (text = "") => measure.measureText(text).width;
	let right = 8;
	const middles = words.map((word) => {
		const own = Math.max(width(word.text), 0.8 * width(word.relation) + 6);
		const middle = right + own / 2;
		right += own + WORD_GAP;
		return middle;
	});
	const spans = words
		.map(({ head = 0 }, i) => ({ i, head: head - 1, from: Math.min(i, head - 1), to: Math.max(i, head - 1) }))
		.filter(({ head }) => words[head]);
	const levels = levelsOf(spans);
	const floor = 20 + ARC_STEP * Math.max(1, ...levels.values());
	const label = (x, y, text) => svg("text.relation", { x, y }, text);
	const drawn = spans.flatMap((span) => {
		const [from, to] = [middles[span.head], middles[span.i]];
		const top = floor - ARC_STEP * levels.get(span);
		const name = label((from + to) / 2, top - 4, words[span.i].relation ?? "");
		return [...arc(from + Math.sign(to - from) * 4, to, top, floor), name];
	});
	words.forEach(({ head = 0, relation }, i) => {
		const x = middles[i];
		if (!head) drawn.push(svg("path.arc", { d: `M${x} 14V${floor - 2}` }), label(x, 10, relation || "root"));
		drawn.push(svg("text.word", { x, y: floor + 18 }, words[i].text ?? ""));
	});
	const [wide, tall] = [Math.ceil(right), floor + 28];
	const picture = { class: "tree", width: wide, height: tall, viewBox: `0 0 ${wide} ${tall}`, "aria-hidden": "true" };
	return scrolled("Dependency tree", svg("svg", picture, drawn));
}

/** Shorter arcs lie below those that span them. */
function levelsOf(spans) {
	const levels = new Map();
	for (const span of [...spans].sort((a, b) => a.to - a.from - (b.to - b.from))) {
		const below = [...levels].filter(([other]) => other.from < span.to && other.to > span.from);
		levels.set(span, 1 + Math.max(0, ...below.map(([, level]) => level)));
	}
	return levels;
}

function arc(from, to, top, floor) {
	const bend = Math.sign(to - from) * Math.min(10, Math.abs(to - from) / 2);
	const side = Math.abs(bend);
	const rise = `M${from} ${floor}V${top + side}Q${from} ${top} ${from + bend} ${top}`;
	const fall = `H${to - bend}Q${to} ${top} ${to} ${top + side}V${floor - 2}`;
	const arrow = `M${to - 3.5} ${floor - 7}L${to} ${floor}L${to + 3.5} ${floor - 7}Z`;
	return [svg("path.arc", { d: rise + fall }), svg("path.arrow", { d: arrow })];
}
