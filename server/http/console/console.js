// The console: which view is open, who is signed in, and the poll that feeds the live views.

import * as adapters from "./adapters.js";
import * as api from "./api.js";
import { byId, el, notice, say, show } from "./dom.js";
import * as as from "./format.js";
import * as live from "./live.js";
import * as playground from "./playground.js";
import { History } from "./rates.js";
import * as tenants from "./tenants.js";

const POLL_MS = 1000;
const MAX_WAIT_MS = 15000;
const VIEWS = { live: "Live", adapters: "Adapters", tenants: "Tenants", playground: "Playground" };

let session = null;
let view = null;
let obstacle = null;

// views

function route() {
	const [path, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
	const [name, ...rest] = path.split("/");
	const next = VIEWS[name] ? name : session?.can_observe === false ? "playground" : "live";
	if (view === "adapters" && next !== "adapters") adapters.leave();
	const hasMoved = view !== null && view !== next;
	view = next;
	for (const one of Object.keys(VIEWS)) show(byId("view-" + one), one === view);
	for (const link of document.querySelectorAll("nav a")) {
		if (link.hash === "#" + view) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
	document.title = `${VIEWS[view]} · adapterd`;
	if (hasMoved) {
		window.scrollTo(0, 0);
		if (!document.activeElement?.closest("nav")) byId("main").focus({ preventScroll: true });
	}
	explain(obstacle);
	if (!session) return;
	if (view === "adapters") adapters.enter(decoded(rest.join("/")));
	if (view === "playground") playground.enter(new URLSearchParams(query));
	if (poll.last) draw(poll.last);
}

function decoded(text) {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}

// who is here

async function open() {
	try {
		session = await api.session();
	} catch (error) {
		session = null;
		const isAway = error.status !== 401;
		tell("bad", isAway ? "server away" : "no token");
		explain(isAway ? `${error.message}; trying again` : "Without a token this server tells nothing.");
		if (isAway) setTimeout(open, (poll.wait_ms = Math.min(MAX_WAIT_MS, 2 * poll.wait_ms)));
		else offerToken("");
		return;
	}
	poll.wait_ms = POLL_MS;
	describe(session);
	route();
	if (session.can_observe) {
		explain(null);
		poll.start();
	} else {
		explain(`Tenant ${session.tenant} may not watch the server: that takes can_observe in the tenants file.`);
		tell("ok", "connected");
	}
}

/** Why the live views, and without a session all, have nothing to show; null where they have. */
function explain(message) {
	obstacle = message;
	const isLive = view === "live" || view === "tenants";
	notice(byId("notice"), isLive || !session ? message : null);
	for (const one of ["live-body", "tenants-body"]) show(byId(one), !message);
}

function describe({ tenant, needs_token, base, version }) {
	const { name, model_type, num_layers, hidden_size, dtype, device, max_tokens_per_input, fingerprint = "" } = base;
	const shape = ` stays resident: ${model_type}, ${num_layers} layers of ${hidden_size}, ${dtype} on ${device}`;
	byId("live-base").replaceChildren("One ", el("code", name), shape, el("span", { id: "uptime" }));
	if (needs_token || api.hasToken()) offerToken(tenant);
	byId("foot").replaceChildren(
		el("span", `adapterd ${version}`),
		el("span", `${as.count(max_tokens_per_input)} tokens an input`),
		el("span", { title: fingerprint }, "base ", el("code", as.shortDigest(fingerprint))),
		el("a", { href: "metrics" }, "metrics"),
	);
}

function offerToken(tenant) {
	const has = api.hasToken();
	const button = el("button.plain.small", has ? "Forget token" : "Use a token");
	const change = async () => (has ? api.setToken("") : api.askForToken(null));
	button.addEventListener("click", () => change().then(() => location.reload(), () => {}));
	byId("who").replaceChildren(tenant, button);
}

function prompt(error) {
	const dialog = byId("token");
	const form = byId("token-form");
	form.reset();
	const isRefused = api.hasToken() && error;
	notice(byId("token-error"), isRefused ? `That token was refused. ${error.reason}: ${error.message}` : null);
	dialog.returnValue = "";
	dialog.showModal();
	return new Promise((resolve, reject) => {
		const settle = () => {
			if (dialog.returnValue === "use") resolve(form.elements.token.value);
			else reject(error ?? new Error("no token"));
		};
		dialog.addEventListener("close", settle, { once: true });
	});
}

// the poll

function tell(kind, text) {
	const status = byId("status");
	if (status.dataset.kind !== kind) status.dataset.kind = kind;
	say(byId("status-text"), text);
}

const poll = {
	history: new History(),
	last: null,
	timer: 0,
	wait_ms: POLL_MS,
	isRunning: false,

	start() {
		this.isRunning = true;
		this.now();
	},

	later(wait_ms) {
		clearTimeout(this.timer);
		this.timer = setTimeout(() => this.now(), wait_ms);
	},

	async now() {
		clearTimeout(this.timer);
		if (!this.isRunning || this.isAsking) return;
		if (document.hidden) return tell("wait", "paused");
		const begun = performance.now();
		this.isAsking = true;
		let state;
		try {
			state = await api.state();
		} catch (error) {
			return this.failed(error);
		} finally {
			this.isAsking = false;
		}
		this.history.push(state);
		this.last = state;
		this.wait_ms = POLL_MS;
		this.later(Math.max(200, POLL_MS - (performance.now() - begun)));
		tell(state.is_draining ? "warn" : "ok", state.is_draining ? "draining" : "live");
		explain(null);
		draw(state);
	},

	failed(error) {
		if (error.status === 401 || error.status === 403) {
			this.isRunning = false;
			tell("bad", error.status === 401 ? "no token" : "not allowed");
			return explain(`${error.reason}: ${error.message}`);
		}
		this.wait_ms = Math.min(MAX_WAIT_MS, 2 * this.wait_ms);
		const what = error.status ? error.reason : "server away";
		tell("bad", `${what}, next try in ${this.wait_ms / 1000} s`);
		if (!this.last) explain(error.message);
		this.later(this.wait_ms);
	},
};

function draw(state) {
	if (view === "live") {
		live.update(state, poll.history);
		const uptime = byId("uptime");
		if (uptime) say(uptime, `, up for ${as.duration(state.uptime_s)}`);
	}
	if (view === "tenants") tenants.update(state, poll.history);
}

document.addEventListener("visibilitychange", () => poll.now());
window.addEventListener("hashchange", route);
byId("token-cancel").addEventListener("click", () => byId("token").close());
api.onTokenNeeded(prompt);
live.start();
adapters.start();
playground.start();
route();
open();
