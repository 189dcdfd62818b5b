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
};
const TIER_NAMES = { device: "Device", host: "Host memory", disk: "Disk" };

let tiles;

export function start() {
  tiles = [requestsTile(), tokensTile(), latencyTile(), batchTile(), insideTile()];
  byId("tiles").append(...tiles.map((tile) => tile.node));
  batches.start();
}

export function update(state, history) {
  const now = state.at;
  for (const tile of tiles) tile.update(state, history);
  batches.update(state, history);
  updateStages(state, history);
  updateTiers(state, history);
  updateBusiest(state, now);
  updateCounters(state, history);
  updateErrors(state, now);
}

// numbers with two minutes behind them

/** A large number, a line below it, a chart. While the pointer is on the chart, both tell that moment. */
function makeTile(title, chartOf) {
  const value = el("p", { class: "tile-value" }, "–");
  const detail = el("p", { class: "tile-detail" });
  let latest = ["–", ""];
  let now = 0;
  const chart = chartOf((point, texts) => {
    const [number, text] = point ? texts(point) : latest;
    say(value, number);
    say(detail, point ? `${as.ago(point.at, now)} · ${text}` : text);
    node.classList.toggle("past", Boolean(point));
  });
  const node = el("article", { class: "tile" }, el("h2", {}, title), value, detail, chart.node);
  return {
    node,
    set(number, text, history, described = number) {
      latest = [number, text];
      now = history.newest.at;
      chart.update(history.points, now);
      chart.describe(`${described}, ${text}`);
      if (node.classList.contains("past")) return;
      say(value, number);
      say(detail, text);
    },
  };
}

const KINDS = { ok: "answered", asked: "caller's errors", late: "no room or time", broken: "failed" };

function requestsTile() {
  const texts = ({ requests }) => {
    const kinds = Object.keys(KINDS).filter((kind) => requests[kind] > 0);
    const each = kinds.map((kind) => `${KINDS[kind]} ${as.perSecond(requests[kind])}`);
    return [as.perSecond(sum(requests)), each.join(" · ") || "none"];
  };
  const tile = makeTile("Requests", (tell) =>
    timeChart({
      label: "Requests a second by outcome, two minutes",
      stacked: true,
      lines: Object.keys(KINDS).map((kind) => ({ kind: "is-" + kind, value: (point) => point.requests[kind] })),
      scale: as.perSecond,
      onPoint: (point) => tell(point, texts),
    }),
  );
  const legend = el("ul", { class: "legend", "aria-label": "Requests by outcome" });
  tile.node.append(legend);
  return {
    node: tile.node,
    update(state, history) {
      const outcomes = Object.keys(state.requests ?? {}).sort((a, b) => state.requests[b] - state.requests[a]);
      const rate = history.rate((s) => sum(s.requests));
      tile.set(as.perSecond(rate), `${as.count(sum(state.requests))} since the start`, history);
      morph(
        legend,
        ...outcomes.map((outcome) => {
          const now = as.perSecond(history.rate((s) => s.requests?.[outcome] ?? 0));
          const title = as.counted(state.requests[outcome], "request");
          return el("li", { title }, key("is-" + groupOf(outcome)), el("code", {}, outcome), " ", now);
        }),
      );
    },
  };
}

function tokensTile() {
  const tile = makeTile("Tokens", (tell) =>
    timeChart({
      label: "Tokens a second, two minutes",
      stacked: true,
      lines: [{ kind: "is-ok", value: (point) => point.tokens }],
      scale: as.perSecond,
      onPoint: (point) => tell(point, ({ tokens }) => [as.perSecond(tokens), "tokens"]),
    }),
  );
  return {
    node: tile.node,
    update(state, history) {
      tile.set(as.perSecond(history.rate((s) => s.tokens)), `${as.count(state.tokens)} since the start`, history);
    },
  };
}

function latencyTile() {
  const words = (p95, p99) => `p95 ${as.seconds(p95)} · p99 ${as.seconds(p99)}`;
  const tile = makeTile("Latency, p50", (tell) =>
    timeChart({
      label: "Total latency, two minutes",
      lines: ["p99", "p95", "p50"].map((name) => ({ kind: "is-" + name, value: (point) => point[name] })),
      scale: as.seconds,
      onPoint: (point) => tell(point, ({ p50, p95, p99 }) => [as.seconds(p50), words(p95, p99)]),
    }),
  );
  return {
    node: tile.node,
    update(state, history) {
      const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => history.quantile("total", q));
      tile.set(as.seconds(p50), words(p95, p99), history, "p50 " + as.seconds(p50));
    },
  };
}

function batchTile() {
  const tile = makeTile("Adapters in a batch", (tell) =>
    timeChart({
      label: "Mean number of adapters in a batch, two minutes",
      lines: [{ kind: "is-p50", value: (point) => point.adapters }],
      scale: as.count,
      onPoint: (point) => tell(point, ({ adapters }) => [mean(adapters), "on average"]),
    }),
  );
  return {
    node: tile.node,
    update(state, history) {
      const num = history.growth((s) => s.batches.count);
      const per = (pick) => (num ? history.growth(pick) / num : null);
      const company = `with ${mean(per((s) => s.batches.samples))} texts, on average`;
      tile.set(mean(per((s) => s.batches.adapters)), num ? company : "no batch in the last seconds", history);
    },
  };
}

const mean = (value) => (value === null ? "–" : value.toFixed(value >= 100 ? 0 : 1));

function insideTile() {
  const words = (point) => [as.count(point.inFlight), `${as.counted(point.waiting, "text")} waiting`];
  const tile = makeTile("In flight", (tell) =>
    timeChart({
      label: "Requests in flight and texts waiting, two minutes",
      lines: [
        { kind: "is-late", value: (point) => point.waiting },
        { kind: "is-p50", value: (point) => point.inFlight },
      ],
      scale: as.count,
      onPoint: (point) => tell(point, words),
    }),
  );
  return {
    node: tile.node,
    update(state, history) {
      const { samples = 0, tokens = 0 } = state.queue ?? {};
      const waiting = `${as.counted(samples, "text")}, ${as.counted(tokens, "token")} waiting`;
      tile.set(as.count(state.in_flight), waiting, history);
    },
  };
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
    const column = el("button", {
      type: "button",
      class: "batch",
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
    const mixed = el("strong", {}, as.counted(batch.num_adapters ?? 0, "adapter"));
    byId("batch-lead").replaceChildren(`${subject} mixed `, mixed, ` in one forward pass: ${sizeOf(batch)}.`);
    const parts = partsOf(batch);
    const left = parts.length - MAX_IN_MIX;
    const entry = ([name, number]) => el("span", { class: "mixed" }, adapterLink(name), soft(`×${number}`));
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
  const requests = grown("total", "count");
  say(byId("stages-window"), isRecent ? `mean of the last ${WINDOW_S} s` : requests ? "mean since the start" : "");
  const told = [...STAGES, "total"].map((stage) => ({
    stage,
    kind: "stage-" + stage,
    mean: requests ? grown(stage, "sum_s") / requests : null,
    p95: quantile(state.stages?.[stage], older?.[stage], 0.95),
  }));
  const rows = told.map(({ stage, kind, mean, p95 }) => {
    const name = th(key(kind), stage, STAGE_DUTIES[stage] ? soft(STAGE_DUTIES[stage], "aside") : null);
    return el("tr", { class: stage === "total" ? "sum" : null }, name, td(as.seconds(mean)), td(as.seconds(p95)));
  });
  const parts = told.slice(0, -1).map(({ stage, kind, mean }) => ({ kind, value: mean, title: stage }));
  morph(byId("stages"), stackedBar(parts), table("figures", ["Stage", "mean", "p95"], rows));
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
    "div",
    { class: "tier" },
    el("h3", {}, TIER_NAMES[tier] ?? tier, soft(isOff ? "off" : as.counted(num_adapters, "adapter"))),
    fillBar(budget_bytes ? used_bytes / budget_bytes : 0, "tier-" + tier),
    el("p", { class: "soft" }, isOff ? "no folder is set for it" : facts.map((fact) => el("span", {}, fact))),
  );
}

// the rest

function updateBusiest(state, now) {
  const all = state.busiest ?? [];
  const most = Math.max(1, ...all.map((one) => one.requests));
  const each = (seconds, requests) => as.seconds(requests ? seconds / requests : null);
  const rows = all.map((one) => [
    th(adapterLink(one.adapter), fillBar(one.requests / most, "thin")),
    td(as.count(one.requests)),
    td(as.count(one.failed), one.failed ? "is-bad" : null),
    td(as.count(one.tokens)),
    td(each(one.queue_s, one.requests)),
    td(each(one.compute_s, one.requests)),
    td(as.ago(one.last_used_at, now)),
  ]);
  const heads = ["Adapter", "requests", "failed", "tokens", "queued, mean", "computed, mean", "last used"];
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
    ...rows.flatMap(([name, value, rate, kind]) => [
      el("dt", {}, name),
      el("dd", { class: value ? kind : "soft" }, as.count(value), rate ? soft(" " + as.perSecond(rate), "is-warn") : ""),
    ]),
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
    td([el("code", { class: "soft" }, reason), " ", message], "message"),
  ];
}
