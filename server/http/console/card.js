// A model card: Markdown to nodes. The text is a stranger's: nodes are built one by one, nothing is parsed as HTML,
// links lead to http and https only, pictures become links.

import { el, scrolled, th } from "./dom.js";

const MAX_CHARS = 200000;
const MAX_DEPTH = 8;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const RULER = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*?))?(?: +#+)? *$/;
const QUOTE = /^ {0,3}> ?/;
const COMMENT = /^ {0,3}<!--/;
const DELIMITERS = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

/** `title` is told already, so that a first heading of the same words is left out. */
export function render(markdown, title = "") {
	const text = markdown.slice(0, MAX_CHARS).replace(/\r\n?/g, "\n").replace(/\t/g, "    ");
	const [front, body] = splitFront(text);
	const nodes = blocks(body.split("\n"), 0);
	if (nodes[0]?.matches(".level-1") && nodes[0].textContent.trim() === title) nodes.shift();
	return el("div.card", front, nodes);
}

// YAML front matter: keys and values as they stand there, lists in one line

function splitFront(text) {
	const match = /^---\n([\s\S]*?)\n(?:---|\.\.\.)(?:\n|$)/.exec(text);
	if (!match) return [null, text];
	const rows = [];
	for (const line of match[1].split("\n")) {
		const pair = /^([\w.-]+) *:(?: +(.*)|$)/.exec(line);
		if (pair) rows.push([pair[1], unquoted(pair[2] ?? "")]);
		else if (rows.length && line.trim()) {
			rows.at(-1)[1] += (rows.at(-1)[1] && ", ") + unquoted(line.trim().replace(/^- +/, ""));
		}
	}
	const body = el("tbody", rows.map(([key, value]) => el("tr", th(key), el("td", value))));
	const table = scrolled("Front matter", el("table", body));
	table.classList.add("front");
	return [rows.length ? table : null, text.slice(match[0].length)];
}

const unquoted = (text) => text.trim().replace(/^(["'])(.*)\1$/, "$2").replace(/^\[(.*)\]$/, "$1");

// blocks: each reader takes lines from `at` on, pushes nodes and gives where it ended

function blocks(lines, depth) {
	const nodes = [];
	for (let at = 0; at < lines.length; ) at = readerOf(lines, at, depth)(lines, at, nodes, depth);
	return nodes;
}

function readerOf(lines, at, depth) {
	const line = lines[at];
	if (!line.trim()) return (_, at) => at + 1;
	if (FENCE.test(line)) return fenced;
	if (COMMENT.test(line)) return comment;
	if (HEADING.test(line)) return headed;
	if (RULER.test(line)) return ruled;
	if (QUOTE.test(line) && depth < MAX_DEPTH) return quoted;
	if (ITEM.test(line) && depth < MAX_DEPTH) return listed;
	if (isTable(lines, at)) return tabled;
	return paragraph;
}

function startsBlock(lines, at) {
	return [FENCE, COMMENT, HEADING, QUOTE, ITEM].some((begin) => begin.test(lines[at])) || isTable(lines, at);
}

function fenced(lines, at, nodes) {
	const [, fence] = FENCE.exec(lines[at]);
	const isEnd = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
	let end = at + 1;
	while (end < lines.length && !isEnd(lines[end])) end++;
	nodes.push(el("pre", { tabindex: "0" }, el("code", lines.slice(at + 1, end).join("\n"))));
	return end + 1;
}

function comment(lines, at) {
	while (at < lines.length && !lines[at].includes("-->")) at++;
	return at + 1;
}

const heading = (level, text) => el("h" + Math.min(6, level + 3), { class: "level-" + level }, inline(text));

function headed(lines, at, nodes) {
	const [, marks, text = ""] = HEADING.exec(lines[at]);
	nodes.push(heading(marks.length, text));
	return at + 1;
}

function ruled(lines, at, nodes) {
	nodes.push(el("hr"));
	return at + 1;
}

function quoted(lines, at, nodes, depth) {
	const inner = [];
	while (at < lines.length && QUOTE.test(lines[at])) inner.push(lines[at++].replace(QUOTE, ""));
	nodes.push(el("blockquote", blocks(inner, depth + 1)));
	return at;
}

const isNumbered = (marker) => /\d/.test(marker);
const indentOf = (line = "") => line.search(/\S/); // -1: blank

function listed(lines, at, nodes, depth) {
	const [, margin, marker] = ITEM.exec(lines[at]);
	const belongs = (line) => {
		const match = ITEM.exec(line);
		return match?.[1].length === margin.length && isNumbered(match[2]) === isNumbered(marker) && !RULER.test(line);
	};
	const items = [];
	while (at < lines.length && belongs(lines[at])) {
		const inset = ITEM.exec(lines[at])[0].length;
		const item = [lines[at++].slice(inset)];
		while (at < lines.length && goesOn(lines, at, margin.length, item.at(-1))) {
			item.push(lines[at].slice(Math.min(inset, Math.max(0, indentOf(lines[at])))));
			at++;
		}
		const inner = blocks(item, depth + 1);
		const isTight = inner[0]?.matches("p"); // its first paragraph needs no margins
		items.push(el("li", isTight ? [...inner[0].childNodes, ...inner.slice(1)] : inner));
		if (at + 1 < lines.length && !lines[at].trim() && belongs(lines[at + 1])) at++;
	}
	const start = isNumbered(marker) ? parseInt(marker) : null;
	nodes.push(el(start === null ? "ul" : "ol", { start: start === 1 ? null : start }, items));
	return at;
}

/** Whether a line is part of the item before it: deeper than its marker, or the rest of its paragraph. */
function goesOn(lines, at, margin, before) {
	const indent = indentOf(lines[at]);
	if (indent < 0) return indentOf(lines[at + 1]) > margin;
	return indent > margin || (Boolean(before.trim()) && !startsBlock(lines, at) && !RULER.test(lines[at]));
}

function isTable(lines, at) {
	const rule = lines[at + 1] ?? "";
	if (!lines[at].includes("|") || !rule.includes("-") || !DELIMITERS.test(rule)) return false;
	return cells(lines[at]).length === cells(rule).length;
}

function cells(line) {
	const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
	const found = [""];
	let isCode = false;
	for (let i = 0; i < inner.length; i++) {
		const isEscaped = inner[i] === "\\" && inner[i + 1] === "|";
		if (inner[i] === "|" && !isCode) found.push("");
		else found[found.length - 1] += inner[isEscaped ? ++i : i];
		if (inner[i] === "`") isCode = !isCode;
	}
	return found.map((text) => text.trim());
}

function tabled(lines, at, nodes) {
	const sideOf = (rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "middle" : "right") : null);
	const sides = cells(lines[at + 1]).map(sideOf);
	const row = (tag, texts) => el("tr", sides.map((side, i) => el(tag, { class: side }, inline(texts[i] ?? ""))));
	const head = cells(lines[at]);
	const body = [];
	for (at += 2; lines[at]?.includes("|"); at++) body.push(row("td", cells(lines[at])));
	const top = head.some(Boolean) ? el("thead", row("th", head)) : null;
	nodes.push(scrolled("Table", el("table", top, el("tbody", body))));
	return at;
}

function paragraph(lines, at, nodes) {
	const text = [];
	while (lines[at]?.trim() && !(text.length && startsBlock(lines, at))) {
		const under = text.length ? /^ {0,3}(=+|-+) *$/.exec(lines[at]) : null;
		if (under) {
			nodes.push(heading(under[1][0] === "=" ? 1 : 2, text.join("\n")));
			return at + 1;
		}
		if (text.length && RULER.test(lines[at])) break;
		text.push(lines[at++].trimStart());
	}
	nodes.push(el("p", inline(text.join("\n"))));
	return at;
}

// inside of a block: each reader gives a node and where it ended, or nothing

const SPANS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };
const LINK =
	/!?\[((?:[^[\]\\]|\\.){0,1000})\]\(\s*<?([^\s<>()]{1,2000}(?:\([^\s()]*\))?[^\s<>()]*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const BARE = /https?:\/\/[^\s<>"'`]{1,2000}/y;

function inline(text, depth = 0) {
	const nodes = [];
	const absent = new Set(); // marks that nothing closes any more
	let plain = "";
	for (let at = 0; at < text.length; ) {
		const [node, end] = piece(text, at, depth, absent) ?? [null, at + 1];
		if (node === null) plain += text.slice(at, end);
		else if (typeof node === "string") plain += node;
		else {
			nodes.push(plain.replace(/ +$/, node.nodeName === "BR" ? "" : "$&"), node);
			plain = "";
		}
		at = end;
	}
	return [...nodes, plain];
}

function piece(text, at, depth, absent) {
	const next = text[at + 1] ?? "";
	switch (text[at]) {
		case "\\":
			if (next === "\n") return [el("br"), at + 2];
			return /[!-/:-@[-`{-~]/.test(next) ? [next, at + 2] : null;
		case "\n":
			return text.slice(at - 2, at) === "  " ? [el("br"), at + 1] : null;
		case "`":
			return coded(text, at, absent);
		case "[":
		case "!":
			return depth < MAX_DEPTH ? linked(text, at, depth) : null;
		case "<":
		case "h":
			return bare(text, at);
		default:
			return spanned(text, at, depth, absent);
	}
}

function coded(text, at, absent) {
	const [run] = /^`+/.exec(text.slice(at, at + 100));
	const from = at + run.length;
	let end = absent.has(run) ? -1 : text.indexOf(run, from);
	while (end >= 0 && (text[end - 1] === "`" || text[end + run.length] === "`")) end = text.indexOf(run, end + 1);
	if (end < 0) {
		absent.add(run);
		return [run, from];
	}
	const code = text.slice(from, end).replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1");
	return [el("code", code), end + run.length];
}

function linked(text, at, depth) {
	LINK.lastIndex = at;
	const match = LINK.exec(text);
	return match && [link(match[2], inline(match[1] || match[2], depth + 1)), at + match[0].length];
}

function bare(text, at) {
	const isBracketed = text[at] === "<";
	if (!isBracketed && /\w/.test(text[at - 1] ?? "")) return null;
	BARE.lastIndex = at + isBracketed;
	const url = BARE.exec(text)?.[0].replace(isBracketed ? "" : /[.,;:!?)*_]+$/, "");
	if (!url) return null;
	const end = at + isBracketed + url.length;
	return [link(url, [url]), end + (isBracketed && text[end] === ">")];
}

function spanned(text, at, depth, absent) {
	const mark = depth < MAX_DEPTH && Object.keys(SPANS).find((mark) => text.startsWith(mark, at));
	if (!mark || absent.has(mark)) return null;
	const from = at + mark.length;
	const isWord = (place) => mark[0] === "_" && /\w/.test(text[place] ?? "");
	if (isWord(at - 1) || !/\S/.test(text[from] ?? " ")) return [mark, from];
	const closes = (end) => {
		const isLonger = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
		return !isLonger && /[^\s\\]/.test(text[end - 1]) && !isWord(end + mark.length);
	};
	let end = text.indexOf(mark, from + 1);
	while (end >= 0 && !closes(end)) end = text.indexOf(mark, end + 1);
	if (end < 0) {
		absent.add(mark);
		return [mark, from];
	}
	return [el(SPANS[mark], {}, inline(text.slice(from, end), depth + 1)), end + mark.length];
}

/** Only where it leads to a page of the web; other links are their words. */
function link(target, words) {
	const url = URL.canParse(target) ? new URL(target) : null; // relative ones lead to nothing that is here
	if (url?.protocol !== "http:" && url?.protocol !== "https:") return el("span", words);
	return el("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, words);
}
