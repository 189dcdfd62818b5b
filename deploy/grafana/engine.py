"""Batches, the queue before them, the device, and whether answers are right."""

from __future__ import annotations

from panels import Query, graph, heatmap, mean, now, of, quantile, rate, ratio

NAME, TITLE = "engine", "engine"
TEXT = "How full batches are, what waits for them, how busy the device is, and what goes wrong there."
VARIABLES = {"instance": "label_values(adapterd_build_info, instance)"}
DURATION = "adapterd_request_duration_seconds"
SAMPLES, TOKENS, ADAPTERS = "adapterd_batch_samples", "adapterd_batch_tokens", "adapterd_batch_adapters"
COMPUTE = "adapterd_compute_seconds_total"
PASSES = rate(f"{SAMPLES}_count")


def in_stage(name: str) -> list[Query]:
    return [Query(quantile(q, DURATION, where=f'stage="{name}"'), f"p{round(100 * q)}", True) for q in (0.5, 0.9, 0.99)]


def grown(name: str, by: str) -> str:
    return f"sum by ({by}) (increase({of(name)}[$__rate_interval]))"


ROWS = {
    "Device": [
        graph(
            "Busy",
            "Seconds of computing in a second. At 1 the device never rests, and what comes on top waits.",
            [Query(rate(COMPUTE, "instance"), "{{instance}}")],
            "percentunit",
            limit=1.0,
        ),
        graph(
            "Tokens",
            "Computed in a second.",
            [Query(rate(f"{TOKENS}_sum", "instance"), "{{instance}}")],
            "short",
        ),
        graph(
            "Forward passes",
            "In a second. Many with few tokens each are a server with time to spare.",
            [Query(rate(f"{SAMPLES}_count", "instance"), "{{instance}}")],
            "ops",
        ),
        graph("Compute", "Of a request: its batch's forward pass. Dots have a trace.", in_stage("compute"), "s"),
        graph(
            "Time of a pass",
            "Mean of all passes; larger batches take longer and give more.",
            [Query(ratio(rate(COMPUTE, "instance"), rate(f"{SAMPLES}_count", "instance")), "{{instance}}")],
            "s",
        ),
        graph(
            "Microseconds for a token",
            "Of the device's time. It falls while batches grow, until they are large enough.",
            [Query(f"1e6 * {ratio(rate(COMPUTE, 'instance'), rate(f'{TOKENS}_sum', 'instance'))}", "{{instance}}")],
            "µs",
        ),
    ],
    "Process": [
        graph(
            "Serving",
            "1 while health checks are told so; 0 while it starts, drains, or after a device fault.",
            [Query(now("adapterd_serving", "instance"), "{{instance}}")],
            "short",
        ),
        graph(
            "Heap",
            "Of the C library: what is in use, and what is free and kept for the next batch.",
            [Query(now("adapterd_heap_bytes", "instance, state"), "{{instance}} {{state}}")],
            "bytes",
        ),
        graph(
            "Inside",
            "Requests that were admitted and are not answered.",
            [Query(now("adapterd_in_flight_requests", "instance"), "{{instance}}")],
            "short",
        ),
    ],
    "Batches": [
        heatmap("Samples", "Texts of one forward pass.", SAMPLES, "short"),
        heatmap("Tokens", "Of one forward pass; at most the budget.", TOKENS, "short"),
        heatmap("Adapters", "Different ones in one forward pass; 0 is the base alone.", ADAPTERS, "short"),
        graph(
            "Filled",
            "Mean tokens of a batch, of those it may have. Little is a server with time to spare; much is a crowd.",
            [Query(f"{mean(TOKENS, 'instance')} / {now('adapterd_batch_budget_tokens', 'instance')}", "{{instance}}")],
            "percentunit",
            most=1.0,
        ),
        graph(
            "In a batch",
            "Means over all passes.",
            [Query(mean(SAMPLES), "samples"), Query(mean(ADAPTERS), "adapters")],
            "short",
        ),
        graph(
            "Budget",
            "The most tokens of a batch, as given or as measured at the start.",
            [Query(now("adapterd_batch_budget_tokens", "instance"), "{{instance}}")],
            "short",
        ),
    ],
    "Queue": [
        graph(
            "Waiting",
            "Samples that no batch has taken yet.",
            [Query(now("adapterd_queue_samples", "instance"), "{{instance}}")],
            "short",
        ),
        graph(
            "Tokens waiting",
            "Over the tokens in a second this is the wait in seconds.",
            [Query(now("adapterd_queue_tokens", "instance"), "{{instance}}")],
            "short",
        ),
        graph("Wait for a batch", "Of a request. Dots have a trace.", in_stage("queue"), "s", limit=0.512),
    ],
    "What goes wrong": [
        graph(
            "Canaries",
            "Served samples that were computed again, alone. A different one is a wrong answer that somebody got.",
            [Query(grown("adapterd_canaries_total", "outcome"), "{{outcome}}")],
            "short",
        ),
        graph(
            "Batches in halves",
            "Share of the passes that failed and were run again: out of memory, or a sample that fails all others.",
            [Query(ratio(rate("adapterd_batch_splits_total"), PASSES), "batches")],
            "percentunit",
            limit=0.01,
        ),
        graph(
            "Faults",
            "Devices that stopped answering, and front processes that ended by themselves.",
            [
                Query(grown("adapterd_device_faults_total", "instance"), "{{instance}} device"),
                Query(grown("adapterd_front_restarts_total", "instance"), "{{instance}} front"),
            ],
            "short",
        ),
    ],
}
