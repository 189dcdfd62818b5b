"""What callers feel, and whether every server is well."""

from __future__ import annotations

from panels import Query, graph, mean, now, of, quantile, rate, ratio, stat, table

NAME, TITLE = "overview", "overview"
TEXT = "Requests, errors, latency and refusals of all servers, and what runs on them."
VARIABLES = {"instance": "label_values(adapterd_build_info, instance)"}

REQUESTS = "adapterd_requests_total"
DURATION = "adapterd_request_duration_seconds"
TOTAL = 'stage="total"'
FAILED = 'outcome=~"INTERNAL|UNAVAILABLE"'
OTHER_STAGES = 'stage!="total"'

ROWS = {
    "Now": [
        stat(
            "Servers",
            "Those that Prometheus reaches.",
            now("up"),
            "none",
            ((1, "green"),),
            below="red",
        ),
        stat(
            "Alerts",
            "That fire now, of the rules in deploy/prometheus. docs/dashboards.md says what to do about each.",
            'count(ALERTS{alertname=~"Adapterd.+", alertstate="firing"}) or vector(0)',
            "none",
            ((1, "red"),),
        ),
        stat("Requests", "Answered in a second, whatever the answer was.", rate(REQUESTS), "reqps"),
        stat(
            "Errors",
            "Requests that ended with INTERNAL or UNAVAILABLE: the server's own failures, not a caller's.",
            ratio(f"({rate(REQUESTS, where=FAILED)} or vector(0))", rate(REQUESTS)),
            "percentunit",
            ((0.005, "orange"), (0.02, "red")),
        ),
        stat(
            "p99",
            "One request in a hundred takes longer, from its arrival to the answer.",
            quantile(0.99, DURATION, where=TOTAL),
            "s",
            ((0.512, "orange"), (1.024, "red")),
        ),
        stat(
            "Refused",
            "Requests turned away for lack of room, by a limit of the server or of a tenant.",
            ratio(rate("adapterd_refused_total"), rate(REQUESTS)),
            "percentunit",
            ((0.01, "orange"), (0.05, "red")),
        ),
    ],
    "Requests": [
        graph(
            "Requests by status",
            "OK, and why the others were not.",
            [Query(rate(REQUESTS, "outcome"), "{{outcome}}")],
            "reqps",
            width=12,
            stacking="normal",
        ),
        graph(
            "Latency",
            "From a request's arrival to its answer, refusals included. Dots are single requests with a trace.",
            [Query(quantile(q, DURATION, where=TOTAL), f"p{round(100 * q)}", True) for q in (0.5, 0.9, 0.99)],
            "s",
            width=12,
            limit=1.024,
        ),
        graph(
            "Requests by method",
            "A batch or a stream counts each of its requests.",
            [Query(rate(REQUESTS, "method"), "{{method}}")],
            "reqps",
        ),
        graph(
            "Inside",
            "Requests that were accepted and have no answer yet, and samples that wait for a batch.",
            [
                Query(now("adapterd_in_flight_requests"), "requests in flight"),
                Query(now("adapterd_queue_samples"), "samples waiting"),
            ],
            "short",
        ),
        graph(
            "Refused by limit",
            "docs/operations.md says what each limit is. tenant and rate are the tenants' own.",
            [Query(rate("adapterd_refused_total", "reason"), "{{reason}}")],
            "reqps",
            stacking="normal",
        ),
        graph(
            "Dropped before the device",
            "Work whose time was up, by the stage it was in, and work whose caller had left.",
            [
                Query(rate("adapterd_expired_total", "stage"), "late in {{stage}}"),
                Query(rate("adapterd_cancelled_total"), "caller left"),
            ],
            "ops",
        ),
        graph(
            "Time of a refusal",
            "Who is refused should hear so at once, most of all in an overload.",
            [Query(quantile(0.99, "adapterd_refusal_duration_seconds"), "p99")],
            "s",
            limit=0.01,
        ),
        graph(
            "Tokens",
            "Computed in a second, by server.",
            [Query(rate("adapterd_batch_tokens_sum", "instance"), "{{instance}}")],
            "short",
            stacking="normal",
        ),
    ],
    "Where the time goes": [
        graph(
            "Mean of each stage",
            "admit and tokenize are the processor's, ready is loading, queue is waiting, compute is the device.",
            [Query(mean(DURATION, "stage", OTHER_STAGES), "{{stage}}")],
            "s",
            width=12,
            stacking="normal",
        ),
        graph(
            "p99 of each stage",
            "One request in a hundred spends longer there. They do not add up.",
            [Query(quantile(0.99, DURATION, "stage", OTHER_STAGES), "{{stage}}", True)],
            "s",
            width=12,
        ),
    ],
    "Servers": [
        graph(
            "Device busy",
            "Seconds of computing in a second. At 1 the device never rests, and what comes on top waits.",
            [Query(rate("adapterd_compute_seconds_total", "instance"), "{{instance}}")],
            "percentunit",
            limit=1.0,
        ),
        graph(
            "Starts and faults",
            "Processes that began anew, devices that stopped answering, front processes that ended by themselves.",
            [
                Query(f"sum (resets({of('adapterd_compute_seconds_total')}[$__rate_interval]))", "starts"),
                Query(f"sum (increase({of('adapterd_device_faults_total')}[$__rate_interval]))", "device faults"),
                Query(f"sum (increase({of('adapterd_front_restarts_total')}[$__rate_interval]))", "fronts"),
            ],
            "short",
        ),
        table("What runs", "Version, base and device of each server.", [("", of("adapterd_build_info"))], width=8),
    ],
}
