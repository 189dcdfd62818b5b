// A model card: Markdown to nodes. The text is a stranger's: nodes are built one by one, nothing is parsed as HTML,
// links lead to http and https only, pictures become links.

import { el } from "./dom.js";

const MAX_CHARS = 200000;
const MAX_DEPTH = 8;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+-]*)/;
const RULER = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const DELIMITERS = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

/** `title` is told already, so that a first heading of the same words is left out. */
export function render(markdown, title = "") {
  const [front, body] = splitFront(markdown.slice(0, MAX_CHARS).replace(/\r\n?/g, "\n").replace(/\t/g, "    "));
  const nodes = blocks(body.split("\n"), 0);
  if (nodes[0]?.matches(".level-1") && nodes[0].textContent.trim() === title) nodes.shift();
  return el("div", { class: "card" }, front, nodes);
}

// YAML front matter: keys and values as they stand there, lists in one line

function splitFront(text) {
  const match = /^---\n([\s\S]*?)\n(?:---|\.\.\.)(?:\n|$)/.exec(text);
  if (!match) return [null, text];
  const rows = [];
  for (const line of match[1].split("\n")) {
    if (!line.trim() || line.trimStart().startsWith("#")) continue;
    const pair = /^([\w.-]+) *:(?: +(.*)|$)/.exec(line);
    if (pair) rows.push([pair[1], unquoted(pair[2] ?? "")]);
    else if (rows.length) rows.at(-1)[1] += (rows.at(-1)[1] ? ", " : "") + unquoted(line.trim().replace(/^- +/, ""));
  }
  const table = el("table", {}, el("tbody", {}, rows.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, value)))));
  return [rows.length ? el("div", { class: "scroll front" }, table) : null, text.slice(match[0].length)];
}

const unquoted = (text) => text.trim().replace(/^(["'])(.*)\1$/, "$2").replace(/^\[(.*)\]$/, "$1");

// blocks

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) at++;
    else if ((match = FENCE.exec(line))) at = fenced(lines, at, match[1], nodes);
    else if (/^ {0,3}<!--/.test(line)) at = comment(lines, at);
    else if ((match = /^ {0,3}(#{1,6})(?: +(.*?))?(?: +#+)? *$/.exec(line))) {
      nodes.push(heading(match[1].length, match[2] ?? ""));
      at++;
    } else if (RULER.test(line)) {
      nodes.push(el("hr"));
      at++;
    } else if (/^ {0,3}>/.test(line) && depth < MAX_DEPTH) at = quoted(lines, at, nodes, depth);
    else if (ITEM.test(line) && depth < MAX_DEPTH) at = listed(lines, at, nodes, depth);
    else if (isTable(lines, at)) at = tabled(lines, at, nodes);
    else if (/^ {4}/.test(line)) at = indented(lines, at, nodes);
    else at = paragraph(lines, at, nodes, depth);
  }
  return nodes;
}

const heading = (level, text) => el("h" + Math.min(6, level + 3), { class: "level-" + level }, inline(text));

function fenced(lines, at, fence, nodes) {
  const isEnd = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end++;
  nodes.push(el("pre", { tabindex: "0" }, el("code", {}, lines.slice(at + 1, end).join("\n"))));
  return end + 1;
}

function comment(lines, at) {
  while (at < lines.length && !lines[at].includes("-->")) at++;
  return at + 1;
}

function quoted(lines, at, nodes, depth) {
  const inner = [];
  while (at < lines.length && /^ {0,3}>/.test(lines[at])) inner.push(lines[at++].replace(/^ {0,3}> ?/, ""));
  nodes.push(el("blockquote", {}, blocks(inner, depth + 1)));
  return at;
}

function listed(lines, at, nodes, depth) {
  const [, margin, marker] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(marker);
  const items = [];
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length > margin.length + 1 || match[1].length < margin.length || /\d/.test(match[2]) !== isOrdered || RULER.test(lines[at])) break;
    const inset = match[0].length;
    const item = [lines[at++].slice(inset)];
    while (at < lines.length) {
      const indent = lines[at].search(/\S/);
      const isBlank = indent < 0;
      const continues = isBlank ? lines[at + 1]?.search(/\S/) > match[1].length : indent > match[1].length || (!ITEM.test(lines[at]) && item.at(-1).trim() && !startsBlock(lines, at));
      if (!continues) break;
      item.push(lines[at++].slice(Math.min(inset, Math.max(0, indent))));
    }
    items.push(el("li", {}, unwrapped(blocks(item, depth + 1))));
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at++;
  }
  nodes.push(el(isOrdered ? "ol" : "ul", isOrdered && marker.slice(0, -1) !== "1" ? { start: marker.slice(0, -1) } : {}, items));
  return at;
}

/** A single paragraph in an item needs no margins of its own. */
function unwrapped(nodes) {
  return nodes[0]?.matches("p") ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DELIMITERS.test(lines[at + 1]) && cells(lines[at]).length === cells(lines[at + 1]).length;

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  const found = [""];
  let isCode = false;
  for (let i = 0; i < inner.length; i++) {
    if (inner[i] === "\\" && inner[i + 1] === "|") found[found.length - 1] += inner[++i];
    else if (inner[i] === "|" && !isCode) found.push("");
    else {
      if (inner[i] === "`") isCode = !isCode;
      found[found.length - 1] += inner[i];
    }
  }
  return found.map((text) => text.trim());
}

function tabled(lines, at, nodes) {
  const head = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "middle" : "right") : null));
  const body = [];
  for (at += 2; at < lines.length && lines[at].trim() && lines[at].includes("|"); at++) body.push(cells(lines[at]));
  const row = (tag, texts) => el("tr", {}, head.map((_, i) => el(tag, { class: sides[i] }, inline(texts[i] ?? ""))));
  nodes.push(
    el(
      "div",
      { class: "scroll", tabindex: "0" },
      el("table", {}, head.some(Boolean) ? el("thead", {}, row("th", head)) : null, el("tbody", {}, body.map((texts) => row("td", texts)))),
    ),
  );
  return at;
}

function indented(lines, at, nodes) {
  const code = [];
  while (at < lines.length && (/^ {4}/.test(lines[at]) || !lines[at].trim())) code.push(lines[at++].slice(4));
  nodes.push(el("pre", { tabindex: "0" }, el("code", {}, code.join("\n").trimEnd())));
  return at;
}

function paragraph(lines, at, nodes) {
  const text = [];
  while (at < lines.length && lines[at].trim() && !(text.length && startsBlock(lines, at))) {
    const under = text.length ? /^ {0,3}(=+|-+) *$/.exec(lines[at]) : null;
    if (under) {
      nodes.push(heading(under[1][0] === "=" ? 1 : 2, text.join("\n")));
      return at + 1;
    }
    text.push(lines[at++].trimStart());
  }
  nodes.push(el("p", {}, inline(text.join("\n"))));
  return at;
}

const startsBlock = (lines, at) => FENCE.test(lines[at]) || /^ {0,3}(#{1,6} |>|<!--)/.test(lines[at]) || (RULER.test(lines[at]) && !/^ {0,3}-+ *$/.test(lines[at])) || ITEM.test(lines[at]) || isTable(lines, at);

// inside of a block

const SPANS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const LINK = /!?\[((?:[^\[\]\\]|\\.){0,1000})\]\(\s*<?([^\s<>()]{1,2000}(?:\([^\s()]*\))?[^\s<>()]*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const BARE = /<?(https?:\/\/[^\s<>"'`]{1,2000})>?/y;

function inline(text, depth = 0) {
  const nodes = [];
  const absent = new Set(); // delimiters that do not occur any more
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  const push = (node, next) => {
    flush();
    nodes.push(node);
    at = next;
  };
  while (at < text.length) {
    const char = text[at];
    if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (char === "\\" && text[at + 1] === "\n") push(el("br"), at + 2);
    else if (char === "\n") {
      if (plain.endsWith("  ")) {
        plain = plain.trimEnd();
        push(el("br"), at + 1);
      } else {
        plain += "\n";
        at++;
      }
    } else if (char === "`") {
      const ticks = /`+/y;
      ticks.lastIndex = at;
      const run = ticks.exec(text)[0];
      const end = absent.has(run) ? -1 : closing(text, run, at + run.length);
      if (end < 0) {
        absent.add(run);
        plain += run;
        at += run.length;
      } else push(el("code", {}, text.slice(at + run.length, end).replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1")), end + run.length);
    } else if ((char === "[" || char === "!") && depth < MAX_DEPTH) {
      LINK.lastIndex = at;
      const match = LINK.exec(text);
      if (match) push(link(match[2], inline(match[1] || match[2], depth + 1)), LINK.lastIndex);
      else {
        plain += char;
        at++;
      }
    } else if (char === "<" || (char === "h" && !/\w$/.test(plain))) {
      BARE.lastIndex = at;
      const match = BARE.exec(text);
      if (match) {
        const url = char === "<" ? match[1] : match[1].replace(/[.,;:!?)*_]+$/, "");
        push(link(url, [url]), at + (char === "<" ? match[0].length : url.length));
      } else {
        plain += char;
        at++;
      }
    } else {
      const span = depth < MAX_DEPTH && SPANS.find(([mark]) => text.startsWith(mark, at) && !absent.has(mark) && opens(text, at, mark));
      const end = span ? closer(text, at + span[0].length, span[0]) : -1;
      if (end >= 0) push(el(span[1], {}, inline(text.slice(at + span[0].length, end), depth + 1)), end + span[0].length);
      else {
        if (span) absent.add(span[0]);
        plain += span ? span[0] : char;
        at += span ? span[0].length : 1;
      }
    }
  }
  flush();
  return nodes;
}

/** A run of exactly these backticks. */
function closing(text, run, from) {
  for (let at = text.indexOf(run, from); at >= 0; at = text.indexOf(run, at + 1)) {
    let end = at + run.length;
    while (text[end] === "`") end++;
    if (end - at === run.length) return at;
    at = end;
  }
  return -1;
}

const opens = (text, at, mark) => /\S/.test(text[at + mark.length] ?? " ") && !(mark[0] === "_" && /\w/.test(text[at - 1] ?? ""));

function closer(text, from, mark) {
  for (let at = text.indexOf(mark, from + 1); at >= 0; at = text.indexOf(mark, at + 1)) {
    const isOther = mark.length === 1 && (text[at + 1] === mark || text[at - 1] === mark); // part of a longer one
    if (!isOther && /\S/.test(text[at - 1]) && text[at - 1] !== "\\" && !(mark[0] === "_" && /\w/.test(text[at + mark.length] ?? ""))) return at;
  }
  return -1;
}

/** Only where it leads to a page of the web; other links are their words. */
function link(target, words) {
  let url = null;
  try {
    url = new URL(target);
  } catch {
    // relative: to nothing that is here
  }
  if (url?.protocol !== "http:" && url?.protocol !== "https:") return el("span", {}, words);
  return el("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, words);
}
