// The playground: a text, and columns of adapters that answer it together. What is asked stands in the URL.

import * as api from "./api.js";
import { byId, debounced, el, empty, failure, say, show, swatch } from "./dom.js";
import * as as from "./format.js";
import * as results from "./results.js";
import { adapterField } from "./suggest.js";

const MAX_COLUMNS = 6;
const SNIPS = ["snips-intent", "snips-slots", "snips-topics"];
const EXAMPLES = [
	{ name: "Entities", adapters: ["snips-slots"], text: "book a table for two in paris tomorrow night" },
	{ name: "Sentiment", adapters: ["sst2-sentiment"], text: "a gripping , well-acted film" },
	{ name: "Side by side", adapters: SNIPS, text: "add sabrina salerno to the grime instrumentals playlist" },
	{ name: "Composition", adapters: [`Parallel(${SNIPS.join(", ")})`], text: "will it snow in mt on june 13 2038" },
	{ name: "Embedding", adapters: ["base"], text: "any mix of adapters in one batch" },
];

const columns = [];
let form;
let hasBeenFilled = false;

export function start() {
	form = byId("ask");
	form.addEventListener("submit", (event) => {
		event.preventDefault();
		run();
	});
	form.addEventListener("input", remember);
	byId("view-playground").addEventListener("keydown", (event) => {
		if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
		event.preventDefault();
		run();
	});
	byId("add-column").addEventListener("click", () => {
		addColumn("").field.input.focus();
		remember();
	});
}

/** `query` is what the URL asks for; without one things stay as they are. */
export async function enter(query) {
	if (query.has("a") || query.has("text")) fill(query);
	else if (hasBeenFilled) rememberNow();
	if (byId("examples").childElementCount) return;
	const examples = await suggested();
	const button = (one) => el("button.example", { type: "button", on: { click: () => take(one) } }, one.name);
	byId("examples").replaceChildren(...examples.map(button));
	if (!hasBeenFilled && !form.elements.text.value) take(examples[0]);
}

/** Examples for the demo adapters where they are here, else for what is. */
async function suggested() {
	const general = EXAMPLES.at(-1);
	try {
		const pages = await Promise.all(["snips-", "sst2-"].map((contains) => api.adapters({ contains, limit: 100 })));
		const known = new Set(pages.flatMap(({ adapters }) => adapters.map(({ name }) => name)));
		if ([...SNIPS, "sst2-sentiment"].every((name) => known.has(name))) return EXAMPLES;
		const names = (await api.adapters({ limit: 3 })).adapters.map(({ name }) => name);
		const beside = { name: "Beside the base", adapters: [...names, "base"], text: general.text };
		return names.length ? [beside, general] : [general];
	} catch {
		return [general];
	}
}

function take({ adapters, text }) {
	form.reset();
	form.elements.text.value = text;
	setColumns(adapters);
	rememberNow();
	run();
}

// the URL

function fill(query) {
	const fields = form.elements;
	if (query.has("text")) fields.text.value = query.get("text");
	if (query.has("text") || query.has("pair")) fields.pair.value = query.get("pair") ?? "";
	fields.choices.value = query.getAll("choice").join("\n");
	fields.top_k.value = query.get("k") ?? "";
	fields.tokens.checked = query.get("tokens") === "1";
	if (fields.choices.value || fields.top_k.value || fields.tokens.checked) byId("options").open = true;
	setColumns(query.getAll("a").slice(0, MAX_COLUMNS));
}

function rememberNow() {
	if (!location.hash.startsWith("#playground")) return;
	const query = new URLSearchParams();
	const { text, pair, choices, top_k } = asked();
	for (const { field } of columns) if (field.input.value.trim()) query.append("a", field.input.value.trim());
	if (text) query.set("text", text);
	if (pair) query.set("pair", pair);
	for (const choice of choices) query.append("choice", choice);
	if (top_k) query.set("k", top_k);
	if (form.elements.tokens.checked) query.set("tokens", "1");
	history.replaceState(null, "", "#playground?" + query);
}

const remember = debounced(300, rememberNow);

// columns

function setColumns(adapters) {
	hasBeenFilled = true;
	const wanted = adapters.length ? adapters : columns.length ? columns.map(({ field }) => field.input.value) : [""];
	while (columns.length > wanted.length) remove(columns.at(-1));
	wanted.forEach((adapter, i) => {
		if (!columns[i]) return addColumn(adapter);
		if (columns[i].field.input.value === adapter) return;
		columns[i].field.set(adapter);
		columns[i].clear();
		columns[i].color();
	});
	show(byId("compared"), false);
}

function addColumn(adapter) {
	const patch = el("span.patch");
	const field = adapterField({
		value: adapter,
		label: "Adapter of this column",
		onChange: () => {
			column.color();
			remember();
		},
		onEnter: run,
	});
	const out = el("div.out", { "aria-live": "polite" });
	const drop = el("button.plain", { "aria-label": "Remove this column" }, "✕");
	drop.addEventListener("click", () => remove(column, true));
	const column = {
		field,
		out,
		node: el("article.panel.column", el("header", patch, field.node, drop), out),
		call: null, // under way
		response: null,
		color: () => patch.replaceChildren(swatch(field.input.value)),
		clear() {
			column.call?.abort();
			column.call = column.response = null;
			out.classList.remove("waiting");
			out.replaceChildren(empty("Not run yet."));
		},
	};
	column.clear();
	column.color();
	columns.push(column);
	byId("columns").append(column.node);
	countColumns();
	return column;
}

function remove(column, isByHand = false) {
	column.call?.abort();
	column.node.remove();
	columns.splice(columns.indexOf(column), 1);
	countColumns();
	if (!isByHand) return;
	(columns.at(-1)?.field.input ?? byId("add-column")).focus();
	compare();
	remember();
}

function countColumns() {
	byId("add-column").disabled = columns.length >= MAX_COLUMNS;
	byId("columns").classList.toggle("single", columns.length === 1);
}

// asking

function asked() {
	const { text, pair, choices, top_k } = form.elements;
	return {
		text: text.value,
		pair: pair.value,
		choices: choices.value.split("\n").filter((line) => line.trim()),
		top_k: Number(top_k.value) || null,
	};
}

async function run() {
	rememberNow();
	const ready = columns.filter(({ field }) => field.input.value.trim());
	if (!ready.length) return (columns[0] ?? addColumn("")).field.input.focus();
	if (!form.elements.text.value) return form.elements.text.focus();
	await Promise.all(ready.map(runColumn)); // at once, so that they may share a forward pass
	compare();
}

async function runColumn(column) {
	column.call?.abort();
	const mine = (column.call = new AbortController());
	const what = asked();
	column.response = null;
	column.out.classList.add("waiting");
	column.out.setAttribute("aria-busy", "true");
	const body = {
		adapter: column.field.input.value.trim(),
		text: what.text,
		text_pair: what.pair && !what.choices.length ? what.pair : null,
		choices: what.choices,
		top_k: what.top_k,
		return_tokens: form.elements.tokens.checked,
	};
	try {
		const response = await api.predict(body, mine.signal);
		if (column.call !== mine) return;
		column.response = response;
		column.out.replaceChildren(...results.render(response, what));
	} catch (error) {
		if (column.call !== mine) return;
		column.out.replaceChildren(failure(error));
	}
	column.call = null;
	column.out.classList.remove("waiting");
	column.out.removeAttribute("aria-busy");
}

/** What only shows across columns: whether one pass answered them, and how alike their embeddings are. */
function compare() {
	const answered = columns.filter(({ response }) => response);
	const ids = new Set(answered.flatMap(({ response }) => (response.results ?? []).map(({ batch }) => batch?.id)));
	const vectors = answered.flatMap(({ field, response }) => results.embeddingsOf(field.input.value.trim(), response));
	show(byId("compared"), answered.length > 1 || vectors.length > 1);
	const [first] = answered;
	const batch = first?.response.results?.[0]?.batch;
	const line = el("p.lead");
	if (answered.length > 1 && ids.size === 1 && batch) {
		const mixed = ` mixed ${as.counted(batch.num_adapters ?? 0, "adapter")}.`;
		line.append("One forward pass answered all of them: batch ", el("strong", String(batch.id)), mixed);
	} else if (answered.length > 1) say(line, `The columns rode in ${ids.size} batches: ${[...ids].join(", ")}.`);
	byId("compared-body").replaceChildren(line, vectors.length > 1 ? results.similarities(vectors) : "");
}
