"""Who asks for how much, gets how much, and is refused."""

from __future__ import annotations

from panels import SERVERS, Query, graph, grown, now, rate, ratio, table

NAME, TITLE = "tenants", "tenants"
TEXT = "Requests, tokens and refusals of each tenant of the tenants file."
REQUESTS, TOKENS = "adapterd_tenant_requests_total", "adapterd_tenant_tokens_total"
VARIABLES = {
    "instance": "label_values(adapterd_build_info, instance)",
    "tenant": f"label_values({REQUESTS}{{{SERVERS}}}, tenant)",
}
TENANTS = 'tenant=~"$tenant"'


def outcome(name: str) -> str:
    return f'{TENANTS}, outcome="{name}"'


ROWS = {
    "In the time shown": [
        table(
            "Tenants",
            "Sums over the time that is shown. A request that failed was let in; one that was refused was not.",
            [
                ("Answered", grown(REQUESTS, "tenant", outcome("answered"))),
                ("Failed", grown(REQUESTS, "tenant", outcome("failed"))),
                ("Refused", grown(REQUESTS, "tenant", outcome("refused"))),
                ("Tokens", grown(TOKENS, "tenant", TENANTS)),
            ],
        ),
    ],
    "Over time": [
        graph(
            "Answered",
            "Requests that were answered in a second.",
            [Query(rate(REQUESTS, "tenant", outcome("answered")), "{{tenant}}")],
            "reqps",
        ),
        graph(
            "Tokens",
            "Of answered requests, in a second. This is what turns and weights are counted in.",
            [Query(rate(TOKENS, "tenant", TENANTS), "{{tenant}}")],
            "short",
            stacking="normal",
        ),
        graph(
            "Shares",
            "Of all tokens. Among tenants that all want more these are their weights.",
            [Query(rate(TOKENS, "tenant", TENANTS), "{{tenant}}")],
            "short",
            stacking="percent",
        ),
        graph(
            "Refused",
            "Requests that were turned away in a second, by limits of the tenant or of the server.",
            [Query(rate(REQUESTS, "tenant", outcome("refused")), "{{tenant}}")],
            "reqps",
        ),
        graph(
            "Share refused",
            "Of a tenant's requests. Where the line is crossed for half an hour, an alert says so.",
            [
                Query(
                    ratio(rate(REQUESTS, "tenant", outcome("refused")), rate(REQUESTS, "tenant", TENANTS)),
                    "{{tenant}}",
                )
            ],
            "percentunit",
            limit=0.1,
            most=1.0,
        ),
        graph(
            "Failed",
            "Requests that were let in and got an error, in a second: the caller's own mistakes count too.",
            [Query(rate(REQUESTS, "tenant", outcome("failed")), "{{tenant}}")],
            "reqps",
        ),
    ],
    "At the door": [
        graph(
            "Refused by limit",
            "Of all tenants. tenant and rate are the limits of the tenants file, the others the server's.",
            [Query(rate("adapterd_refused_total", "reason"), "{{reason}}")],
            "reqps",
            stacking="normal",
        ),
        graph(
            "Without credentials",
            "Calls in a second that nobody known made. The audit log has where from.",
            [Query(rate("adapterd_unauthenticated_total", "instance"), "{{instance}}")],
            "reqps",
            limit=1.0,
        ),
        graph(
            "Files read again",
            "Changes of the tenants file and the certificates that were taken over, and those that are broken now.",
            [
                Query(f"sum by (what) (increase(adapterd_reloads_total{{{SERVERS}}}[$__rate_interval]))", "{{what}}"),
                Query(now("adapterd_reload_failed", "what"), "{{what}} broken"),
            ],
            "short",
        ),
    ],
}
