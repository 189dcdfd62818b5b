// The adapters view: a filtered table, a page at a time, and a drawer with one adapter's facts and its card.

import * as api from "./api.js";
import * as card from "./card.js";
import { fillBar } from "./charts.js";
import { adapterLink, byId, chip, debounced, el, empty, failure, morph, notice, say } from "./dom.js";
import { shortened, show, soft, swatch, table, td, th } from "./dom.js";
import * as as from "./format.js";

const PAGE = 100;
const REFRESH_MS = 5000;
const MAX_LABELS = 40;
const TASKS = (
	"embedding classification multi_label regression token_classification question_answering " +
	"multiple_choice fill_mask causal_lm dependency_parsing"
).split(" ");
const TIERS = ["device", "host", "disk", "origin"];
const size = (field) => (one) => as.number(one[field]);
const bytesOf = (field) => (one) => (as.number(one[field]) ? as.bytes(as.number(one[field])) : "");

// name, what it is sorted by, how it is written, class
const COLUMNS = [
	["Adapter", (one) => one.name, nameCell, ""],
	["Task", (one) => as.task(one.task), (one) => as.task(one.task), "wide"],
	["Method", (one) => one.method ?? "", (one) => one.method ?? "–", "wider"],
	["Where", (one) => TIERS.indexOf(as.tier(one.tier)), placeCell, ""],
	["Device", size("device_bytes"), bytesOf("device_bytes"), "wide number"],
	["Host", size("host_bytes"), bytesOf("host_bytes"), "wide number"],
	["Disk", size("disk_bytes"), bytesOf("disk_bytes"), "wider number"],
	["Versions", (one) => one.versions?.length ?? 0, versionsCell, "wider number"],
	["Last used", (one) => as.unix(one.last_used_at), (one) => as.ago(as.unix(one.last_used_at)), "number"],
];

const shown = { adapters: [], next: "", total: 0, rows: new Map(), sort: 0, isRising: true };
let asked = null;
let timer = 0;
let lastFocus = null;

export function start() {
	const form = byId("adapters-filter");
	const option = (name) => el("option", { value: name.toUpperCase() }, name.replaceAll("_", " "));
	form.elements.task.append(el("option", { value: "" }, "any"), ...TASKS.map(option));
	form.elements.tier.append(el("option", { value: "" }, "any"), ...TIERS.map(option));
	form.addEventListener("submit", (event) => {
		event.preventDefault();
		load();
	});
	form.elements.contains.addEventListener("input", debounced(200, () => load()));
	for (const field of [form.elements.task, form.elements.tier]) field.addEventListener("change", () => load());
	byId("adapters-more").addEventListener("click", () => load({ isMore: true }));
	const sorter = (name, i) => el("button.sort", { on: { click: () => sortBy(i) } }, name);
	const heads = COLUMNS.map(([name, , , kind], i) => el("th", { scope: "col", class: kind }, sorter(name, i)));
	byId("adapters-table").tHead.rows[0].append(...heads);
	byId("adapters-table").tBodies[0].addEventListener("click", (event) => {
		if (event.target.closest("a")) return;
		event.target.closest("tr")?.querySelector("a")?.click();
	});
	const drawer = byId("drawer");
	byId("drawer-close").addEventListener("click", () => drawer.close());
	drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
	drawer.addEventListener("close", () => {
		if (location.hash.startsWith("#adapters/")) history.replaceState(null, "", "#adapters");
		lastFocus?.focus();
		lastFocus = null;
	});
}

/** `name` opens that adapter. */
export function enter(name) {
	if (!shown.adapters.length) load();
	clearInterval(timer);
	timer = setInterval(refresh, REFRESH_MS);
	if (name) open(name);
	else if (byId("drawer").open) byId("drawer").close();
}

export function leave() {
	clearInterval(timer);
	asked?.abort();
	asked = null;
	if (byId("drawer").open) {
		lastFocus = null;
		byId("drawer").close();
	}
}

/** What is shown may have moved between tiers; only the first page is asked for again by itself. */
function refresh() {
	if (!document.hidden && !asked && shown.adapters.length <= PAGE) load({ isQuiet: true });
}

function filter() {
	const { contains, task, tier } = byId("adapters-filter").elements;
	const whole = (prefix, { value }) => value && prefix + value;
	return { contains: contains.value.trim(), task: whole("TASK_", task), tier: whole("TIER_", tier) };
}

async function load({ isMore = false, isQuiet = false } = {}) {
	asked?.abort();
	const mine = (asked = new AbortController());
	const table = byId("adapters-table");
	if (!isQuiet) table.setAttribute("aria-busy", "true");
	try {
		const page = await api.adapters({ ...filter(), after: isMore ? shown.next : "", limit: PAGE }, mine.signal);
		if (asked !== mine) return;
		shown.adapters = isMore ? [...shown.adapters, ...page.adapters] : page.adapters;
		shown.next = page.next ?? "";
		shown.total = page.total ?? shown.adapters.length;
		notice(byId("adapters-notice"), null);
		draw();
	} catch (error) {
		if (asked !== mine) return;
		if (!isQuiet) notice(byId("adapters-notice"), `${error.reason ?? ""} ${error.message}`.trim());
	} finally {
		if (asked === mine) {
			asked = null;
			table.removeAttribute("aria-busy");
		}
	}
}

function sortBy(column) {
	if (shown.sort === column) shown.isRising = !shown.isRising;
	else [shown.sort, shown.isRising] = [column, column < 3];
	draw();
}

function draw() {
	const table = byId("adapters-table");
	const key = COLUMNS[shown.sort][1];
	const way = shown.isRising ? 1 : -1;
	const sorted = [...shown.adapters].sort((a, b) => {
		const [x, y] = [key(a), key(b)];
		return (x < y ? -way : x > y ? way : 0) || (a.name < b.name ? -1 : 1);
	});
	const rows = new Map();
	for (const one of sorted) {
		const row = shown.rows.get(one.name) ?? el("tr");
		const cells = COLUMNS.map(([, , write, kind], i) => (i ? td(write(one), kind) : th(write(one))));
		morph(row, ...cells);
		rows.set(one.name, row);
	}
	shown.rows = rows;
	const body = table.tBodies[0];
	const wanted = [...rows.values()];
	const isSame = wanted.length === body.rows.length && wanted.every((row, i) => body.rows[i] === row);
	if (!isSame) body.replaceChildren(...wanted);
	const direction = shown.isRising ? "ascending" : "descending";
	const heads = [...table.tHead.rows[0].cells];
	heads.forEach((head, i) => head.setAttribute("aria-sort", i === shown.sort ? direction : "none"));
	const isFiltered = Object.values(filter()).some(Boolean);
	const { length } = shown.adapters;
	const part = length < shown.total ? `${as.count(length)} of ` : "";
	say(byId("adapters-count"), part + as.counted(shown.total, "adapter") + (isFiltered ? " found" : ""));
	show(byId("adapters-more"), Boolean(shown.next));
	say(byId("adapters-sorted"), shown.next && shown.sort ? `Sorted among the ${as.count(length)} shown.` : "");
	show(byId("adapters-empty"), !length);
	say(byId("adapters-empty"), isFiltered ? NONE_FITS : NONE_THERE);
}

const NONE_FITS = "No adapter fits. A task is known once an adapter has been read.";
const NONE_THERE = "No adapter is registered. Put one into a folder that the server reads.";

function nameCell(one) {
	const error = one.error ? [" ", el("span.badge.is-bad", { title: one.error }, "cannot be read")] : [];
	return [adapterLink(one.name), ...error, soft(as.task(one.task), "below narrow")];
}

function placeCell({ tier, is_pinned }) {
	const name = as.tier(tier);
	return [el("span", { class: "badge at-" + name }, name), is_pinned ? el("span.pinned", " pinned") : ""];
}

function versionsCell({ versions = [] }) {
	const answering = versions.filter(({ percent }) => percent).map(({ percent }) => percent);
	return answering.length > 1 ? answering.join(" / ") + " %" : versions.length ? String(versions.length) : "";
}

// one adapter

async function open(name) {
	const drawer = byId("drawer");
	lastFocus ??= document.activeElement === document.body ? null : document.activeElement;
	byId("drawer-title").replaceChildren(swatch(name), el("code", name));
	const facts = el("section", { "aria-label": "Facts" }, empty("Reading…"));
	const told = el("section.told-card", { "aria-label": "Card" });
	byId("drawer-body").replaceChildren(facts, told);
	byId("drawer-body").scrollTop = 0;
	if (!drawer.open) drawer.showModal();
	byId("drawer-title").focus();
	facts.replaceChildren(...(await factsNodes(name)));
	told.replaceChildren(el("h3", "Card"), await cardNode(name));
}

async function factsNodes(name) {
	try {
		const one = shown.adapters.find((one) => one.name === name) ?? (await api.adapter(name));
		return one ? factsOf(one) : [el("p.notice.bad", "There is no adapter of this name.")];
	} catch (error) {
		return [failure(error)];
	}
}

async function cardNode(name) {
	try {
		return card.render((await api.card(name)).markdown ?? "", name);
	} catch (error) {
		return error.status === 404 ? empty("It has none. A README.md beside its weights is shown here.") : failure(error);
	}
}

function factsOf(one) {
	const held = [
		["the device", as.number(one.device_bytes)],
		["the host", as.number(one.host_bytes)],
		["disk", as.number(one.disk_bytes)],
	];
	const used = as.unix(one.last_used_at);
	const facts = [
		["Task", as.task(one.task)],
		["Method", one.method],
		["Composition", one.composition && el("code", one.composition)],
		["Where", placeCell(one)],
		["Bytes", held.filter(([, size]) => size).map(([place, size]) => `${as.bytes(size)} on ${place}`).join(", ")],
		["Parameters", as.number(one.num_parameters) ? as.count(as.number(one.num_parameters)) : ""],
		["Heads", one.heads?.length && chips(one.heads)],
		["Labels", one.labels?.length && chips(one.labels)],
		["Loaded", one.loaded_at && as.moment(as.unix(one.loaded_at))],
		["Last used", used && `${as.ago(used)}, ${as.moment(used)}`],
		["Digest", one.digest && el("code", one.digest)],
	];
	const rows = facts.filter(([, fact]) => fact).flatMap(([name, fact]) => [el("dt", name), el("dd", fact)]);
	const href = "#playground?a=" + encodeURIComponent(one.name);
	return [
		one.error ? el("p.notice.bad", one.error) : "",
		el("p.run", el("a.button", { href }, "Try it in the playground")),
		el("dl.facts", rows),
		...(one.versions?.length ? [el("h3", "Versions"), versions(one.versions)] : []),
	];
}

const versions = (all) =>
	table(
		"figures",
		["Digest", "Share of requests", "", "Tier"],
		all.map(({ digest, percent = 0, tier }) => [
			td(el("code", { title: digest }, as.shortDigest(digest))),
			td(fillBar(percent / 100), "share"),
			td(`${percent} %`),
			td(as.tier(tier)),
		]),
	);

const chips = (names) => shortened(el("span.chips"), names, chip, MAX_LABELS);
