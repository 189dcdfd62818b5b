// The live view: what the server does now, from two polls or more.

import { fillBar, stackedBar, timeChart } from "./charts.js";
import { adapterLink, byId, el, empty, key, morph, say, soft, stripes, table, td, th } from "./dom.js";
import * as as from "./format.js";
import { groupOf, quantile, STAGES, sum, WINDOW_S } from "./rates.js";

const MAX_BATCHES = 40;
const MAX_IN_MIX = 48;
const STAGE_DUTIES = {
	admit: "credentials and limits",
	tokenize: "text to token ids",
	ready: "weights in host memory",
	queue: "waiting for a batch",
	compute: "the forward pass",
	total: "refusals too",
};
const TIER_NAMES = { device: "Device", host: "Host memory", disk: "Disk" };

const outcomeList = el("ul.legend", { "aria-label": "Requests by outcome" });
let tiles;

export function start() {
	tiles = TILES.map(makeTile);
	tiles[0].node.append(outcomeList);
	byId("tiles").append(...tiles.map((tile) => tile.node));
	batches.start();
}

export function update(state, history) {
	const now = state.at;
	for (const tile of tiles) tile.update(state, history);
	updateOutcomes(state, history);
	batches.update(state, history);
	updateStages(state, history);
	updateTiers(state, history);
	updateBusiest(state, now);
	updateCounters(state, history);
	updateErrors(state, now);
}

// numbers with two minutes behind them

const KINDS = { ok: "answered", asked: "caller's errors", late: "no room or time", broken: "failed" };
const tail = (p95, p99) => `p95 ${as.seconds(p95)} · p99 ${as.seconds(p99)}`;
const mean = (value) => (value === null ? "–" : value.toFixed(value >= 100 ? 0 : 1));

// title, the chart's lines as [class, value of a point], how values are written, and [number, detail] now and then
const TILES = [
	{
		title: "Requests",
		stacked: true,
		lines: Object.keys(KINDS).map((kind) => ["is-" + kind, ({ requests }) => requests[kind]]),
		scale: as.perSecond,
		now: (state, history) => [
			as.perSecond(history.rate((s) => sum(s.requests))),
			`${as.count(sum(state.requests))} since the start`,
		],
		then({ requests }) {
			const kinds = Object.keys(KINDS).filter((kind) => requests[kind] > 0);
			const each = kinds.map((kind) => `${KINDS[kind]} ${as.perSecond(requests[kind])}`);
			return [as.perSecond(sum(requests)), each.join(" · ") || "none"];
		},
	},
	{
		title: "Tokens",
		stacked: true,
		lines: [["is-ok", (point) => point.tokens]],
		scale: as.perSecond,
		now: (state, history) => [as.perSecond(history.rate((s) => s.tokens)), `${as.count(state.tokens)} since the start`],
		then: ({ tokens }) => [as.perSecond(tokens), "tokens"],
	},
	{
		title: "Latency, p50",
		lines: ["p99", "p95", "p50"].map((name) => ["is-" + name, (point) => point[name]]),
		scale: as.seconds,
		now(_, history) {
			const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => history.quantile("total", q));
			return [as.seconds(p50), tail(p95, p99)];
		},
		then: ({ p50, p95, p99 }) => [as.seconds(p50), tail(p95, p99)],
	},
	{
		title: "Adapters a batch",
		lines: [["is-p50", (point) => point.adapters]],
		scale: as.count,
		now(_, history) {
			const num = history.growth((s) => s.batches.count);
			if (!num) return ["–", "no batch in the last seconds"];
			const [adapters, samples] = ["adapters", "samples"].map((one) => history.growth((s) => s.batches[one]) / num);
			return [mean(adapters), `with ${mean(samples)} texts, on average`];
		},
		then: ({ adapters }) => [mean(adapters), "on average"],
	},
	{
		title: "In flight",
		lines: [
			["is-late", (point) => point.waiting],
			["is-p50", (point) => point.inFlight],
		],
		scale: as.count,
		now: ({ in_flight, queue: { samples, tokens } }) => [
			as.count(in_flight),
			`${as.counted(samples, "text")}, ${as.counted(tokens, "token")} waiting`,
		],
		then: ({ inFlight, waiting }) => [as.count(inFlight), `${as.counted(waiting, "text")} waiting`],
	},
];

/** A large number, a line below it, a chart. While the pointer is on the chart, both tell of that moment. */
function makeTile({ title, lines, stacked, scale, now, then }) {
	const value = el("p.tile-value", "–");
	const detail = el("p.tile-detail");
	let latest = ["–", ""];
	let at = 0;
	const tell = (point) => {
		const [number, text] = point ? then(point) : latest;
		say(value, number);
		say(detail, point ? `${as.ago(point.at, at)} · ${text}` : text);
		node.classList.toggle("past", Boolean(point));
	};
	const chart = timeChart({ label: title + ", two minutes", lines, stacked, scale, onPoint: tell });
	const node = el("article.tile", el("h2", title), value, detail, chart.node);
	return {
		node,
		update(state, history) {
			latest = now(state, history);
			at = state.at;
			chart.update(history.points, at);
			chart.describe(latest.join(", "));
			if (!node.matches(".past")) tell(null);
		},
	};
}

function updateOutcomes(state, history) {
	const outcomes = Object.keys(state.requests ?? {}).sort((a, b) => state.requests[b] - state.requests[a]);
	const entries = outcomes.map((outcome) => {
		const now = as.perSecond(history.rate((s) => s.requests?.[outcome] ?? 0));
		const title = as.counted(state.requests[outcome], "request");
		return el("li", { title }, key("is-" + groupOf(outcome)), el("code", outcome), " ", now);
	});
	morph(outcomeList, ...entries);
}

// batches: each a column of its adapters' colours

const batches = {
	columns: new Map(), // id -> column
	shown: null, // the batch whose mix is told
	isHeld: false, // somebody looks at one: nothing moves until they leave

	start() {
		const strip = byId("batches");
		const hold = () => (this.isHeld = true);
		const release = () => {
			if (!strip.matches(":hover, :focus-within")) this.isHeld = false;
		};
		strip.addEventListener("pointerenter", hold);
		strip.addEventListener("pointerleave", release);
		strip.addEventListener("focusin", hold);
		strip.addEventListener("focusout", () => setTimeout(release));
		strip.addEventListener("keydown", (event) => {
			const way = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
			if (!way) return;
			event.preventDefault();
			const all = [...strip.children];
			const at = all.indexOf(document.activeElement) + way;
			all[Math.min(all.length - 1, Math.max(0, at))]?.focus();
		});
	},

	update(state, history) {
		const rate = history.rate((s) => s.batches.count);
		const busy = history.rate((s) => s.batches.compute_s);
		const text = `${as.perSecond(rate).replace("/s", " batches/s")} · device busy ${as.percent(Math.min(1, busy))}`;
		say(byId("batches-rate"), rate === null ? "" : text);
		if (this.isHeld) return;
		const recent = (state.recent_batches ?? []).slice(0, MAX_BATCHES).reverse();
		const most = Math.max(1, ...recent.map((batch) => batch.num_samples));
		const kept = new Map();
		for (const batch of recent) {
			const column = this.columns.get(batch.id) ?? this.make(batch);
			column.style.setProperty("--tall", `${Math.max(6, (100 * batch.num_samples) / most).toFixed(1)}%`);
			kept.set(batch.id, column);
		}
		const strip = byId("batches");
		for (const [id, column] of this.columns) if (!kept.has(id)) column.remove();
		const isSame = strip.children.length === kept.size && strip.lastElementChild === [...kept.values()].at(-1);
		if (!isSame) strip.append(...kept.values());
		this.columns = kept;
		const newest = recent.at(-1);
		if (newest) this.tell(newest, "The last batch");
	},

	make(batch) {
		const column = el("button.batch", {
			tabindex: "-1",
			title: mixOf(batch),
			"aria-label": `Batch ${batch.id}: ${mixOf(batch)}`,
			vars: { "--mix": stripes(partsOf(batch), "to top", "1px") },
		});
		const tell = () => this.tell(batch, `Batch ${batch.id}`);
		for (const type of ["pointerenter", "focus"]) column.addEventListener(type, tell);
		return column;
	},

	tell(batch, subject) {
		for (const [id, column] of this.columns) {
			column.classList.toggle("told", id === batch.id);
			column.tabIndex = id === batch.id ? 0 : -1;
		}
		if (this.shown === batch.id && this.subject === subject) return;
		[this.shown, this.subject] = [batch.id, subject];
		const mixed = el("strong", as.counted(batch.num_adapters ?? 0, "adapter"));
		byId("batch-lead").replaceChildren(`${subject} mixed `, mixed, ` in one forward pass: ${sizeOf(batch)}.`);
		const parts = partsOf(batch);
		const left = parts.length - MAX_IN_MIX;
		const entry = ([name, number]) => el("span.mixed", adapterLink(name), soft(`×${number}`));
		byId("batch-mix").replaceChildren(
			...parts.slice(0, MAX_IN_MIX).map(entry),
			left > 0 ? soft(`and ${left} more`) : "",
		);
	},
};

const partsOf = ({ adapters = [] }) => [...adapters].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
const sizeOf = ({ num_samples, num_tokens, compute_s }) =>
	`${as.counted(num_samples, "text")}, ${as.counted(num_tokens, "token")}, ${as.seconds(compute_s)}`;
const mixOf = (batch) => `mixed ${as.counted(batch.num_adapters ?? 0, "adapter")}: ${sizeOf(batch)}`;

// stages

function updateStages(state, history) {
	const isRecent = history.growth((s) => s.stages?.total?.count ?? 0) > 0;
	const older = isRecent ? history.before()?.stages : null;
	const grown = (stage, field) => (state.stages?.[stage]?.[field] ?? 0) - (older?.[stage]?.[field] ?? 0);
	say(byId("stages-window"), isRecent ? `of calls that reached it, last ${WINDOW_S} s` : "since the start");
	const told = [...STAGES, "total"].map((stage) => ({
		stage,
		kind: "stage-" + stage,
		mean: grown(stage, "count") ? grown(stage, "sum_s") / grown(stage, "count") : null,
		p95: quantile(state.stages?.[stage], older?.[stage], 0.95),
	}));
	const rows = told.map(({ stage, kind, mean, p95 }) => {
		const name = th(key(kind), stage, soft(STAGE_DUTIES[stage], "aside"));
		return el("tr", { class: stage === "total" ? "sum" : null }, name, td(as.seconds(mean)), td(as.seconds(p95)));
	});
	const parts = told.slice(0, -1).map(({ stage, kind, mean }) => ({ kind, value: mean, title: stage }));
	morph(byId("stages"), stackedBar(parts), table("figures", ["Stage", "Mean", "p95"], rows));
}

// tiers

function updateTiers(state, history) {
	const { leased = 0, idle = 0 } = state.slots ?? {};
	say(byId("slots"), `device slots: ${as.count(leased)} in use, ${as.count(idle)} idle`);
	morph(byId("tiers"), ...(state.tiers ?? []).map((tier) => tierBar(tier, history)));
}

function tierBar({ tier, used_bytes, budget_bytes, num_adapters, hits, misses }, history) {
	const pick = (field) => (s) => s.tiers?.find((one) => one.tier === tier)?.[field] ?? 0;
	const [newHits, newMisses] = [history.growth(pick("hits")), history.growth(pick("misses"))];
	const [found, asked] = newHits + newMisses ? [newHits, newHits + newMisses] : [hits, hits + misses];
	const isOff = !budget_bytes && !used_bytes;
	const facts = [
		as.bytes(used_bytes) + (budget_bytes ? ` of ${as.bytes(budget_bytes)}` : ""),
		`hits ${asked ? as.percent(found / asked) : "–"}`,
		`evictions ${as.perSecond(history.rate(pick("evictions")))}`,
	];
	return el(
		"div.tier",
		el("h3", TIER_NAMES[tier] ?? tier, soft(isOff ? "off" : as.counted(num_adapters, "adapter"))),
		fillBar(budget_bytes ? used_bytes / budget_bytes : 0, "tier-" + tier),
		el("p.soft", isOff ? "no folder is set for it" : facts.map((fact) => el("span", fact))),
	);
}

// the rest

function updateBusiest(state, now) {
	const all = state.busiest ?? [];
	const most = Math.max(1, ...all.map((one) => one.requests));
	const each = (seconds, requests) => as.seconds(requests ? seconds / requests : null);
	const rows = all.map((one) => [
		th(adapterLink(one.adapter)),
		td(fillBar(one.requests / most), "share"),
		td(as.count(one.requests)),
		td(as.count(one.failed), one.failed ? "is-bad" : null),
		td(as.count(one.tokens)),
		td(each(one.queue_s, one.requests)),
		td(each(one.compute_s, one.requests)),
		td(as.ago(one.last_used_at, now)),
	]);
	const heads = ["Adapter", "", "Requests", "Failed", "Tokens", "Queued, mean", "Computed, mean", "Last used"];
	morph(byId("busiest"), rows.length ? table("figures", heads, rows) : empty("Nothing was asked for yet."));
}

const REFUSALS = {
	requests: "too many requests inside",
	tokens: "too many tokens inside",
	bytes: "too many bytes inside",
	queue: "the queue is too long",
	deadline: "no time left before the deadline",
	tenant: "the tenant's own limit",
	rate: "the tenant's rate",
};

function updateCounters(state, history) {
	const now = (pick) => (history.samples.length > 1 ? history.rate(pick) : 0);
	const rows = Object.entries(state.refused ?? {}).map(([reason, value]) => [
		`Refused: ${REFUSALS[reason] ?? reason}`,
		value,
		now((s) => s.refused?.[reason] ?? 0),
	]);
	const { same = 0, different = 0, failed = 0 } = state.canaries ?? {};
	rows.push(
		["Out of time before the device", state.expired ?? 0, now((s) => s.expired ?? 0)],
		["Caller left before the device", state.cancelled ?? 0, now((s) => s.cancelled ?? 0)],
		["Computed again: the same", same],
		["Computed again: different", different, 0, "is-bad"],
		["Computed again: failed", failed, 0, "is-bad"],
	);
	morph(
		byId("counters"),
		...rows.flatMap(([name, value, rate, kind]) => {
			const now = rate ? soft(` ${as.perSecond(rate)}`, "is-warn") : "";
			return [el("dt", name), el("dd", { class: value ? kind : "soft" }, as.count(value), now)];
		}),
	);
}

function updateErrors({ errors = [] }, now) {
	const groups = [];
	for (const error of errors) {
		const last = groups.at(-1);
		if (last && WORDS.every((field) => last.error[field] === error[field])) last.times++;
		else groups.push({ error, times: 1 });
	}
	const list = byId("errors");
	const drawn = JSON.stringify(groups.map(({ error, times }) => [error.at, times]));
	if (list.dataset.drawn !== drawn) {
		list.dataset.drawn = drawn;
		const rows = groups.map(errorRow);
		list.replaceChildren(rows.length ? table("list errors", ERROR_HEADS, rows) : empty("None so far."));
	}
	for (const cell of list.querySelectorAll("time")) say(cell, as.ago(Number(cell.dataset.at), now));
	say(byId("errors-count"), groups.length ? `the last ${errors.length}` : "");
}

const WORDS = ["adapter", "tenant", "code", "reason", "message"];
const ERROR_HEADS = ["When", "Code", "Adapter", "Tenant", "Message"];

function errorRow({ error: { at, code, adapter, tenant, reason, message }, times }) {
	return [
		td(el("time", { datetime: new Date(at * 1000).toISOString(), title: as.moment(at), "data-at": at })),
		td([el("code", { class: "badge is-" + groupOf(code) }, code), times > 1 ? soft(` ×${times}`) : ""]),
		td(adapterLink(adapter)),
		td(tenant || "–"),
		td([el("code.soft", reason), " ", message], "message"),
	];
}
