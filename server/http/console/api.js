// Calls to the server: one function, with the token of this tab and errors as the server words them.

const KEY = "adapterd-token";
const TIMEOUT_MS = 60000;
const PAGE = 200;
const MAX_PAGES = 5;

export class ApiError extends Error {
	constructor(status, reason, message) {
		super(message);
		this.status = status; // 0: no answer came at all
		this.reason = reason;
	}
}

let token = read();
let asking = null; // one prompt, whoever needs it
let ask = () => Promise.reject(new Error("nobody to ask"));

function read() {
	try {
		return sessionStorage.getItem(KEY) ?? "";
	} catch {
		return ""; // storage is blocked: the token lives as long as the page
	}
}

export const hasToken = () => token !== "";

export function setToken(value) {
	token = value.trim();
	try {
		if (token) sessionStorage.setItem(KEY, token);
		else sessionStorage.removeItem(KEY);
	} catch {
		// as above
	}
}

/** `prompt(error)` resolves to a token, or rejects where the person declines. */
export function onTokenNeeded(prompt) {
	ask = prompt;
}

/** Asks for a token, once for all who need one now. */
export function askForToken(error) {
	asking ??= ask(error)
		.then(setToken)
		.finally(() => (asking = null));
	return asking;
}

/** The JSON that `path` answers with. Raises ApiError. Waits for a token where one is needed. */
export async function call(path, { body, signal, timeoutMs = TIMEOUT_MS } = {}) {
	for (;;) {
		const used = token;
		const response = await send(path, used, body, signal, timeoutMs);
		const answer = await parsed(response);
		if (response.ok) return answer;
		const error = new ApiError(
			response.status,
			answer?.reason ?? "HTTP_" + response.status,
			answer?.error ?? `the server answered ${response.status} ${response.statusText}`.trim(),
		);
		if (response.status !== 401) throw error;
		if (used === token) {
			await askForToken(error).catch(() => {
				throw error;
			});
		}
	}
}

async function send(path, used, body, signal, timeoutMs) {
	const headers = { Accept: "application/json" };
	if (used) headers.Authorization = "Bearer " + used;
	if (body !== undefined) headers["Content-Type"] = "application/json";
	const late = new AbortController();
	const timer = setTimeout(() => late.abort(), timeoutMs);
	const leave = () => late.abort();
	signal?.addEventListener("abort", leave);
	try {
		return await fetch(path, {
			method: body === undefined ? "GET" : "POST",
			headers,
			body: body === undefined ? undefined : JSON.stringify(body),
			signal: late.signal,
			cache: "no-store",
		});
	} catch (error) {
		if (signal?.aborted) throw error; // whoever asked has left
		if (late.signal.aborted) throw new ApiError(0, "NO_ANSWER", `no answer within ${timeoutMs / 1000} s`);
		throw new ApiError(0, "UNREACHABLE", "the server cannot be reached");
	} finally {
		clearTimeout(timer);
		signal?.removeEventListener("abort", leave);
	}
}

async function parsed(response) {
	try {
		return await response.json();
	} catch {
		if (response.ok) throw new ApiError(response.status, "NOT_JSON", "the server answered with something else");
		return null;
	}
}

export const session = () => call("console/session");
export const state = (signal) => call("console/state", { signal, timeoutMs: 5000 });
export const card = (name, signal) => call(`console/adapters/${encodeURIComponent(name)}/card`, { signal });
export const predict = (body, signal) => call("console/predict", { body, signal });

/** A page of adapters; empty parameters are left out. */
export function adapters(parameters, signal) {
	const query = new URLSearchParams();
	for (const [key, value] of Object.entries(parameters)) if (value) query.set(key, value);
	return call("console/adapters?" + query, { signal });
}

/** The adapter of exactly this name, or null. */
export async function adapter(name, signal) {
	let after = "";
	for (let page = 0; page < MAX_PAGES; page++) {
		const answer = await adapters({ contains: name, limit: PAGE, after }, signal);
		const found = answer.adapters.find((one) => one.name === name);
		if (found || !answer.next) return found ?? null;
		after = answer.next;
	}
	return null;
}
