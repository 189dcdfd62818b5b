// The tenants view: who gets which share of the work, beside the share that its weight stands for.

import { fillBar } from "./charts.js";
import { byId, el, morph, say, soft, table, td, th } from "./dom.js";
import * as as from "./format.js";
import { WINDOW_S } from "./rates.js";

const COLUMNS = ["Tenant", "Share of tokens", "Tokens", "In flight", "Answered", "Refused", "Failed"];

export function update(state, history) {
	const tenants = state.tenants ?? [];
	const rateOf = (name, field) => history.rate((s) => s.tenants?.find((one) => one.name === name)?.[field] ?? 0);
	const rates = new Map(tenants.map(({ name }) => [name, rateOf(name, "tokens") ?? 0]));
	const allTokens = [...rates.values()].reduce((sum, one) => sum + one, 0);
	const busy = tenants.filter(({ name }) => rates.get(name) > 0);
	const allWeights = busy.reduce((sum, { weight }) => sum + weight, 0);
	const many =
		`${tenants.length} tenants; shares and rates are of the last ${WINDOW_S} s. ` +
		"A mark is what a tenant's weight gives it among those who ask for something now.";
	say(byId("tenants-sub"), tenants.length === 1 ? "One tenant: everyone who reaches this server." : many);
	morph(byId("tenants-body"), table("list tenants", COLUMNS, tenants.map(row)));

	function row({ name, weight, in_flight, tokens_in_flight = 0, ...totals }) {
		const share = allTokens ? rates.get(name) / allTokens : 0;
		const due = busy.length > 1 && rates.get(name) ? weight / allWeights : null;
		const bar = fillBar(share);
		if (due !== null) bar.append(el("span.due", { vars: { "--share": `${(100 * due).toFixed(1)}%` } }));
		const both = (field, kind) =>
			td([as.count(totals[field]), soft(as.perSecond(rateOf(name, field)), "below")], totals[field] ? kind : null);
		return [
			th(name, soft(`weight ${weight}`, "below")),
			td([bar, soft(as.percent(share) + (due === null ? "" : `, ${as.percent(due)} by weight`), "below")], "share"),
			both("tokens"),
			td([as.count(in_flight), soft(as.counted(tokens_in_flight, "token"), "below")]),
			both("answered"),
			both("refused", "is-warn"),
			both("failed", "is-bad"),
		];
	}
}
