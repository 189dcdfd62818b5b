// Building nodes, and the colour that belongs to a name. What the server sends only ever becomes text.

const SVG = "http://www.w3.org/2000/svg";

/** el("p.soft", {on: {click}, vars: {"--share": 0.5}}, "text", node, [node, null], ...); without properties none. */
export const el = (tag, ...given) => build(tag, (name) => document.createElement(name), given);
export const svg = (tag, ...given) => build(tag, (name) => document.createElementNS(SVG, name), given);
export const byId = (id) => document.getElementById(id);

const isNothing = (value) => value === undefined || value === null || value === false;
const isProperties = (value) => value && Object.getPrototypeOf(value) === Object.prototype;

function build(tag, make, given) {
	const [name, ...classes] = tag.split(".");
	const node = make(name);
	if (classes.length) node.setAttribute("class", classes.join(" "));
	const { on = {}, vars = {}, ...attributes } = isProperties(given[0]) ? given.shift() : {};
	for (const [type, listener] of Object.entries(on)) node.addEventListener(type, listener);
	for (const [key, value] of Object.entries(vars)) node.style.setProperty(key, value);
	for (const [key, value] of Object.entries(attributes)) {
		if (!isNothing(value)) node.setAttribute(key, value === true ? "" : value);
	}
	node.append(...given.flat(2).filter((child) => !isNothing(child)));
	return node;
}

/** Makes the children of `parent` look like `wanted`, node by node: focus, selections and presses survive. */
export function morph(parent, ...wanted) {
	const had = [...parent.childNodes];
	wanted.forEach((node, i) => {
		const old = had[i];
		if (typeof node === "string") node = document.createTextNode(node);
		if (!old) parent.append(node);
		else if (old.nodeName !== node.nodeName) old.replaceWith(node);
		else if (node.nodeType === Node.TEXT_NODE) say(old, node.data);
		else alike(old, node);
	});
	for (const old of had.slice(wanted.length)) old.remove();
}

function alike(old, node) {
	for (const { name } of [...old.attributes]) if (!node.hasAttribute(name)) old.removeAttribute(name);
	for (const { name, value } of node.attributes) {
		if (old.getAttribute(name) === value) continue;
		if (name === "style") old.style.cssText = value; // the attribute itself is what the policy forbids
		else old.setAttribute(name, value);
	}
	morph(old, ...node.childNodes);
}

/** Sets text only where it differs, so that nothing is laid out again and no selection is lost. */
export function say(node, text) {
	if (node.textContent !== text) node.textContent = text;
}

export function show(node, isShown) {
	if (node.hidden === isShown) node.hidden = !isShown;
}

/** `rows` are lists of cells, or rows already. */
export function table(kind, heads, rows) {
	const head = el("tr", heads.map((name) => el("th", { scope: "col" }, name)));
	const body = rows.map((cells) => (cells instanceof Node ? cells : el("tr", cells)));
	return el("table", { class: kind }, el("thead", head), el("tbody", body));
}

export const th = (...content) => el("th", { scope: "row" }, content);
export const td = (content, kind) => el("td", { class: kind }, content);
export const soft = (text, kind = "") => el("span", { class: "soft " + kind }, text);
export const empty = (text) => el("p.empty", text);
export const key = (kind) => el("span", { class: "key " + kind, "aria-hidden": "true" });
export const chip = (name) => el("span.chip", { vars: { "--hue": hueOf(name) } }, name);
export const scrolled = (label, ...content) =>
	el("div.scroll", { tabindex: "0", role: "region", "aria-label": label }, content);

/** A list of which only the first are shown, until somebody wants them all. */
export function shortened(list, all, draw, max, about = "") {
	list.append(...all.slice(0, max).map(draw));
	if (all.length <= max) return list;
	const more = el("button.plain.small", `and ${all.length - max} more${about}`);
	more.addEventListener("click", () => {
		list.append(...all.slice(max).map((one, i) => draw(one, max + i)));
		more.remove();
	});
	return [list, more];
}

/** A message in a notice, or none. */
export function notice(node, message) {
	say(node, message ?? "");
	show(node, Boolean(message));
}

/** What went wrong as two pieces of text: the reason, and the server's words. */
export const failure = (error) =>
	el("p.notice.bad", { role: "alert" }, el("code", error.reason ?? "ERROR"), " ", error.message);

export function debounced(wait_ms, call) {
	let timer = 0;
	return (...given) => {
		clearTimeout(timer);
		timer = setTimeout(() => call(...given), wait_ms);
	};
}

// colours: a name has the same one everywhere

function hash(name) {
	let value = 0x811c9dc5;
	for (let i = 0; i < name.length; i++) value = Math.imul(value ^ name.charCodeAt(i), 0x01000193);
	value = Math.imul(value ^ (value >>> 15), 0x2c1b3c6d); // or alike names have alike colours
	return (value ^ (value >>> 12)) >>> 0;
}

/** A CSS colour that follows light and dark. The base has none of its own. */
export function paint(name) {
	if (name === "base") return "var(--base-paint)";
	const value = hash(name);
	return `oklch(var(--tone-${(value >>> 12) % 3}) var(--chroma) ${value % 360})`;
}

export const hueOf = (name) => hash(name) % 360;

/** Names of the adapters in an expression, in order. */
export function leaves(expression) {
	const found = [];
	for (const [, name, bracket] of expression.replace(/;[^)]*/g, "").matchAll(/([\w./+=-]+)\s*(\()?/g)) {
		if (!bracket) found.push(name);
	}
	return found;
}

/** A patch in the adapter's colour; a composition has the stripes of its members. */
export function swatch(expression) {
	const names = leaves(expression).slice(0, 8);
	const background = stripes(names.map((name) => [name, 1]), "to right");
	return el("span.swatch", { "aria-hidden": "true", vars: { background } });
}

/** A gradient of hard-edged segments: [[name, weight], ...]. */
export function stripes(parts, direction, gap = "0px") {
	const total = parts.reduce((sum, [, weight]) => sum + weight, 0) || 1;
	let at = 0;
	const stops = parts.map(([name, weight], i) => {
		const from = at;
		at += (100 * weight) / total;
		const to = i + 1 < parts.length ? `calc(${at.toFixed(2)}% - ${gap})` : "100%";
		const seam = i + 1 < parts.length && gap !== "0px" ? `, var(--card) ${to} ${at.toFixed(2)}%` : "";
		return `${paint(name)} ${from.toFixed(2)}% ${to}${seam}`;
	});
	return stops.length ? `linear-gradient(${direction}, ${stops.join(", ")})` : "var(--base-paint)";
}

/** Swatch and name, which leads to the adapter's facts unless it is a composition or the base. */
export function adapterLink(name) {
	const isPlain = name && name !== "base" && !/[(),;\s]/.test(name);
	const label = el("code", name || "–");
	return el(
		"span.adapter",
		name ? swatch(name) : null,
		isPlain ? el("a", { href: "#adapters/" + encodeURIComponent(name) }, label) : label,
	);
}
