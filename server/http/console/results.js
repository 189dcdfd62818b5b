// Results as one reads them: by what kind of answer they are.

import { arcs, fillBar, heatStrip, stackedBar } from "./charts.js";
import { adapterLink, chip, el, empty, hueOf, key, scrolled, shortened, soft, table, td, th } from "./dom.js";
import * as as from "./format.js";
import { STAGES } from "./rates.js";

const MAX_BARS = 8;

/** One response of Predict as nodes; `asked` is {text, pair}. */
export function render(response, asked) {
	return [...(response.results ?? []).flatMap((result) => answerOf(result, asked)), route(response)];
}

/** Of a result and its branches: what it answers. */
function answerOf(result, asked) {
	const nodes = [];
	if (result.is_truncated) {
		nodes.push(el("p.notice", `Too long: it was cut to ${as.counted(result.num_tokens, "token")}.`));
	}
	for (const branch of result.parallel ?? []) {
		const { adapter = "", head } = branch;
		const title = el("h3", adapterLink(adapter), head && head !== adapter ? soft(` head ${head}`) : "");
		nodes.push(el("section.branch", title, answerOf(branch, asked)));
	}
	for (const [kind, draw] of Object.entries(KINDS)) {
		if (result[kind]) nodes.push(...[draw(result[kind], asked)].flat());
	}
	if (result.tokens?.length) nodes.push(tokens(result.tokens));
	return nodes;
}

const KINDS = {
	classification: ({ labels }) => bars(labels ?? []),
	multi_label: ({ labels }) => (labels?.length ? bars(labels) : empty("No label reaches the threshold of 0.5.")),
	regression: ({ values = [] }) => el("p.value", values.map((value) => value.toFixed(4)).join(", ")),
	token_classification: ({ entities }, { text }) => marked(text, entities ?? []),
	question_answering: ({ answers }, { text, pair }) => answered(pair || text, answers ?? []),
	embedding: ({ values }) => embedding(values ?? []),
	multiple_choice: ({ choices }) => texts(choices),
	fill_mask: ({ masks = [] }, asked) => masks.flatMap((mask, i) => filled(mask, i, masks.length, asked)),
	dependencies: ({ words }) => (words?.length ? tree(words) : empty("There are no words to parse.")),
};

// scores

function bars(scores) {
	const line = ({ label, score = 0 }, i) =>
		el(
			"li",
			{ class: i ? null : "best" },
			el("span.label", label || "(no name)"),
			el("span.figure", as.score(score)),
			fillBar(score),
		);
	const about = `, ${as.score(scores[MAX_BARS]?.score)} or less`;
	return shortened(el("ul.bars"), scores, line, MAX_BARS, about);
}

const texts = (scored = []) => bars(scored.map(({ text, score }) => ({ label: text, score })));

// pieces of text; offsets count code points, strings of JavaScript UTF-16

/** The text with its entities in place, and a legend. */
function marked(text, entities) {
	if (!entities.length) return [el("p.passage", text), empty("Nothing was found in this text.")];
	const counts = new Map();
	for (const { label = "" } of entities) counts.set(label, (counts.get(label) ?? 0) + 1);
	const kinds = [...counts].map(([label, number]) => el("li", chip(label), number > 1 ? ` ×${number}` : ""));
	return [
		el("p.passage", pieces(text, entities, entityMark)),
		el("ul.legend", { "aria-label": "Kinds of entities" }, kinds),
	];
}

function entityMark({ label = "", score }, piece) {
	const tag = el("span.tag", label);
	return el("mark.entity", { title: as.score(score), vars: { "--hue": hueOf(label) } }, piece, tag);
}

/** Plain text and what `draw` makes of each span, in order; of two that overlap the later is left out. */
function pieces(text, spans, draw) {
	const points = Array.from(text);
	const cut = (from, to) => points.slice(from, to).join("");
	const nodes = [];
	let at = 0;
	for (const span of [...spans].sort((a, b) => (a.start ?? 0) - (b.start ?? 0))) {
		const { start = 0, end = 0 } = span;
		if (start < at || end <= start || end > points.length) continue;
		nodes.push(cut(at, start), draw(span, cut(start, end)));
		at = end;
	}
	return [...nodes, cut(at)];
}

function answered(context, answers) {
	if (!answers.length) return empty("No answer in this text.");
	const draw = (answer, piece) => el("mark", { class: answer === answers[0] ? "answer best" : "answer" }, piece);
	return [el("p.passage", pieces(context, answers, draw)), texts(answers)];
}

/** A mask's offsets are those of the text or of the second one: of that which has one of the base's masks there. */
function filled(mask, i, numMasks, { text, pair }) {
	const { start = 0, end = 0, tokens = [] } = mask;
	const home = [text, pair].find((one) => /^\s*[[<].*[\]>]$/.test(Array.from(one).slice(start, end).join("")));
	const draw = () => el("mark.answer.best", tokens[0]?.text ?? "?");
	return [
		numMasks > 1 ? el("h3", `Mask ${i + 1}`) : "",
		home ? el("p.passage", pieces(home, [mask], draw)) : "",
		texts(tokens),
	].flat();
}

function tree(words) {
	const told = words.map(({ text, relation, head }) => {
		const of = head ? " of " + words[head - 1]?.text : "";
		return `${text}: ${relation || "root"}${of}`;
	});
	return [arcs(words), el("p.unseen", told.join("; "))];
}

function tokens(all) {
	const item = ({ text, id = 0, label = "O" }) => {
		const isTold = label !== "O";
		const vars = isTold ? { "--hue": hueOf(label.replace(/^[BIESLU]-/, "")) } : {};
		const tag = isTold ? el("span.tag", label) : "";
		return el("li", { class: isTold ? "told" : null, vars }, el("code", text || "·"), soft(String(id)), tag);
	};
	const summary = el("summary", as.counted(all.length, "token"));
	return el("details", { open: true }, summary, el("ol.tokens", all.map(item)));
}

// vectors

const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));

function embedding(values) {
	const range = values.length ? `${Math.min(...values).toFixed(3)} to ${Math.max(...values).toFixed(3)}, ` : "";
	const facts = `${as.counted(values.length, "value")}, ${range}length ${norm(values).toFixed(3)}`;
	return [heatStrip(values), el("p.soft", facts)];
}

/** Embeddings in a response: [[name, values], ...], one for each branch. */
export function embeddingsOf(name, { results = [] }) {
	const all = results.flatMap((result) => (result.parallel?.length ? result.parallel : [{ ...result, adapter: name }]));
	return all.filter(({ embedding }) => embedding).map(({ adapter, embedding }) => [adapter, embedding.values ?? []]);
}

/** How alike the vectors are, each with each. */
export function similarities(vectors) {
	const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
	const cosine = (a, b) => (a.length === b.length ? dot(a, b) / (norm(a) * norm(b) || 1) : NaN);
	const cell = (value) => {
		const node = td(Number.isNaN(value) ? "–" : value.toFixed(3), "alike");
		node.style.setProperty("--share", `${Math.max(0, 100 * value || 0).toFixed(0)}%`);
		return node;
	};
	const rows = vectors.map(([name, mine]) => {
		const cells = vectors.map(([, other]) => cell(cosine(mine, other)));
		return [th(adapterLink(name)), ...cells];
	});
	const heads = ["Cosine similarity", ...vectors.map(([name]) => el("code", name))];
	return scrolled("Cosine similarities of the embeddings", table("figures", heads, rows));
}

// how it came about

function route({ digest = "", timings = {}, results = [] }) {
	const spent = (stage) => as.protoSeconds(timings[stage]);
	const stages = STAGES.filter((stage) => spent(stage) > 0);
	const total = stages.reduce((sum, stage) => sum + spent(stage), 0);
	const item = (stage) => el("li", key("stage-" + stage), `${stage} ${as.seconds(spent(stage))}`);
	const [{ batch, num_tokens = 0 } = {}] = results;
	const facts = [
		["In all", `${as.seconds(total)} in the server, ${as.counted(num_tokens, "token")}`],
		["Batch", batch ? rode(batch) : "–"],
		["Digest", el("code", { title: digest }, as.shortDigest(digest) || "–")],
	];
	return el(
		"footer.route",
		stackedBar(stages.map((stage) => ({ kind: "stage-" + stage, value: spent(stage), title: stage }))),
		el("ul.legend", { "aria-label": "Time in each stage" }, stages.map(item)),
		el("dl.facts", facts.flatMap(([name, fact]) => [el("dt", name), el("dd", fact)])),
	);
}

function rode({ id, num_samples = 1, num_adapters = 0 }) {
	const company = num_samples > 1 ? `with ${as.counted(num_samples - 1, "other text")}` : "alone";
	return `${id}, ${company}, ${num_adapters ? as.counted(num_adapters, "adapter") : "the base alone"}`;
}
