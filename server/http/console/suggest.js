// Suggestions for an adapter field: names the server knows, for the part of an expression at the caret.

import * as api from "./api.js";
import { debounced, el, show, swatch } from "./dom.js";
import * as as from "./format.js";

const BLOCKS = {
	Stack: "one after the other",
	Fuse: "by a trained fusion",
	Average: "of their weights",
	Split: "each its part of the text",
	Parallel: "one result for each",
};
const MAX_SHOWN = 8;
const PART = /[\w./+=-]*$/;
let numFields = 0;

/** An input with a list below it, as a combobox. `onChange(value)` hears every change, `onEnter()` a plain Enter. */
export function adapterField({ value = "", label, onChange, onEnter }) {
	const id = `suggested-${++numFields}`;
	const list = el("ul.suggested", { id, role: "listbox", "aria-label": "Suggestions", hidden: true });
	const input = el("input.mono", {
		type: "text",
		role: "combobox",
		"aria-label": label,
		"aria-autocomplete": "list",
		"aria-expanded": "false",
		"aria-controls": id,
		autocomplete: "off",
		autocapitalize: "off",
		spellcheck: "false",
		placeholder: "adapter or composition",
	});
	input.value = value;
	const node = el("div.suggesting", input, list);
	let asked = null; // the call whose answer is waited for
	let active = -1;

	const close = () => {
		asked?.abort();
		asked = null;
		active = -1;
		show(list, false);
		input.setAttribute("aria-expanded", "false");
		input.removeAttribute("aria-activedescendant");
	};

	const fragment = () => {
		const before = input.value.slice(0, input.selectionStart ?? input.value.length);
		const isOption = before.lastIndexOf(";") > Math.max(before.lastIndexOf("("), before.lastIndexOf(")"));
		return isOption ? null : PART.exec(before)[0];
	};

	const suggest = async () => {
		const part = fragment();
		asked?.abort();
		if (part === null) return close();
		const mine = (asked = new AbortController());
		try {
			const { adapters } = await api.adapters({ contains: part, limit: MAX_SHOWN }, mine.signal);
			if (asked !== mine || document.activeElement !== input) return;
			fill(part, adapters);
		} catch {
			if (asked === mine) close(); // suggestions are a help, no more
		}
	};
	const suggestSoon = debounced(120, suggest);

	const fill = (part, adapters) => {
		const begins = (block) => part && block.toLowerCase().startsWith(part.toLowerCase());
		const blocks = Object.keys(BLOCKS).filter(begins);
		const options = [
			...(part && "base".startsWith(part) ? [["base", "base", "the base model alone"]] : []),
			...adapters.map(({ name, task, composition }) => [name, name, composition || as.task(task)]),
			...blocks.map((block) => [block + "(", `${block}(…)`, BLOCKS[block]]),
		];
		if (!options.length || (options.length === 1 && options[0][0] === part)) return close();
		active = -1;
		list.replaceChildren(
			...options.map(([insert, name, about], i) =>
				el(
					"li",
					{ id: `${id}-${i}`, role: "option", "aria-selected": "false", "data-insert": insert },
					insert.endsWith("(") ? el("span.swatch.none") : swatch(name),
					el("code", name),
					el("span.soft", about),
				),
			),
		);
		show(list, true);
		input.setAttribute("aria-expanded", "true");
	};

	const choose = (option) => {
		const caret = input.selectionStart ?? input.value.length;
		const start = caret - PART.exec(input.value.slice(0, caret))[0].length;
		const rest = input.value.slice(caret).replace(/^[\w./+=-]+/, "");
		input.value = input.value.slice(0, start) + option.dataset.insert + rest;
		const end = start + option.dataset.insert.length;
		input.setSelectionRange(end, end);
		close();
		onChange(input.value);
		if (option.dataset.insert.endsWith("(")) suggest();
	};

	const move = (way) => {
		const options = [...list.children];
		options[active]?.setAttribute("aria-selected", "false");
		active = (active + way + options.length + (active < 0 && way < 0 ? 1 : 0)) % options.length;
		options[active].setAttribute("aria-selected", "true");
		options[active].scrollIntoView({ block: "nearest" });
		input.setAttribute("aria-activedescendant", options[active].id);
	};

	input.addEventListener("input", () => {
		onChange(input.value);
		suggestSoon();
	});
	input.addEventListener("blur", close);
	input.addEventListener("keydown", (event) => {
		const isOpen = !list.hidden;
		if (event.key === "ArrowDown" || event.key === "ArrowUp") {
			event.preventDefault();
			if (isOpen) move(event.key === "ArrowDown" ? 1 : -1);
			else suggest();
		} else if (event.key === "Escape" && isOpen) {
			event.preventDefault();
			close();
		} else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
			event.preventDefault();
			if (isOpen && active >= 0) choose(list.children[active]);
			else {
				close();
				onEnter?.();
			}
		} else if (event.key === "Tab" && isOpen && active >= 0) choose(list.children[active]);
	});
	list.addEventListener("pointerdown", (event) => {
		event.preventDefault(); // the field keeps the focus
		const option = event.target.closest("[role=option]");
		if (option) choose(option);
	});

	return {
		node,
		input,
		set(value) {
			input.value = value;
			close();
		},
	};
}
