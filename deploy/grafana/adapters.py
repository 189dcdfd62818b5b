"""Which adapters are asked for, where they lie, and what it costs to bring them."""

from __future__ import annotations

from panels import SERVERS, Query, graph, heatmap, mean, now, quantile, rate, ratio

NAME, TITLE = "adapters", "adapters and cache"
TEXT = "Tiers, loads and evictions; the adapters that are asked for most; versions that share requests."
REQUESTS = "adapterd_adapter_requests_total"
ORDERS = "adapterd_orders_total"
VERSION = "adapterd_version_request_duration_seconds"
VARIABLES = {
    "instance": "label_values(adapterd_build_info, instance)",
    "adapter": f"label_values({REQUESTS}{{{SERVERS}}}, adapter)",
}
ADAPTERS = 'adapter=~"$adapter"'
LOCAL = 'tier!="origin"'  # the origin holds everything and is never looked up
LOADS = "adapterd_load_duration_seconds"


def most(expr: str) -> str:
    return f"topk(10, {expr})"


def found_or_not(by: str) -> str:
    return f"({rate('adapterd_hits_total', by, LOCAL)} + {rate('adapterd_misses_total', by, LOCAL)})"


ROWS = {
    "Tiers": [
        graph(
            "Hits",
            "Share of the look-ups in a tier that found the adapter there. What misses goes one tier down.",
            [Query(ratio(rate("adapterd_hits_total", "tier", LOCAL), found_or_not("tier")), "{{tier}}")],
            "percentunit",
            most=1.0,
        ),
        graph("Look-ups", "In a second, by tier.", [Query(found_or_not("tier"), "{{tier}}")], "ops"),
        graph(
            "Adapters held",
            "By tier, over all servers: an adapter counts on each that holds it.",
            [Query(now("adapterd_tier_adapters", "tier", LOCAL), "{{tier}}")],
            "short",
        ),
        graph(
            "Bytes held",
            "By tier.",
            [Query(now("adapterd_tier_bytes", "tier", LOCAL), "{{tier}}")],
            "bytes",
        ),
        graph(
            "Full",
            "Bytes held of those that may be. A full tier is normal; it evicts.",
            [
                Query(
                    ratio(now("adapterd_tier_bytes", "tier", LOCAL), now("adapterd_tier_budget_bytes", "tier", LOCAL)),
                    "{{tier}}",
                )
            ],
            "percentunit",
            most=1.0,
        ),
        graph(
            "Slots",
            "Device slots that a batch is using, and those whose adapter could go.",
            [Query(now("adapterd_slots", "state"), "{{state}}")],
            "short",
            stacking="normal",
        ),
    ],
    "Coming and going": [
        graph(
            "Loads",
            "Adapters brought into a tier in a second, and why others were not.",
            [Query(rate("adapterd_loads_total", "tier, outcome"), "{{tier}} {{outcome}}")],
            "ops",
        ),
        graph(
            "Time of a load",
            "Into host memory: reading and checking. To disk: writing. To the device: placing in a slot.",
            [
                Query(quantile(0.5, LOADS, "tier", LOCAL), "{{tier}} p50"),
                Query(quantile(0.99, LOADS, "tier", LOCAL), "{{tier}} p99"),
            ],
            "s",
        ),
        heatmap("Loads into host memory", "How long they took: from disk or an origin.", LOADS, "s", 'tier="host"'),
        graph(
            "Evictions",
            "Adapters dropped in a second to make room.",
            [Query(rate("adapterd_evictions_total", "tier", LOCAL), "{{tier}}")],
            "ops",
        ),
        graph(
            "Idle when evicted",
            "Median time since what was dropped was last used. Seconds are a tier that is too small.",
            [Query(quantile(0.5, "adapterd_eviction_age_seconds", "tier", LOCAL), "{{tier}}")],
            "s",
        ),
        heatmap(
            "Idle when dropped from the device",
            "How long ago what made room was last used.",
            "adapterd_eviction_age_seconds",
            "s",
            'tier="device"',
        ),
    ],
    "Adapters": [
        graph(
            "Asked for most",
            "Requests in a second of the ten busiest. _other are all without a series of their own.",
            [Query(most(rate(REQUESTS, "adapter", ADAPTERS)), "{{adapter}}")],
            "reqps",
            width=12,
        ),
        graph(
            "Tokens",
            "In a second, of the ten with the most.",
            [Query(most(rate("adapterd_adapter_tokens_total", "adapter", ADAPTERS)), "{{adapter}}")],
            "short",
            width=12,
        ),
        graph(
            "Failing",
            "Share of an adapter's requests that failed; the ten worst.",
            [
                Query(
                    most(
                        ratio(
                            rate(REQUESTS, "adapter", f'{ADAPTERS}, outcome="failed"'),
                            rate(REQUESTS, "adapter", ADAPTERS),
                        )
                    ),
                    "{{adapter}}",
                )
            ],
            "percentunit",
            width=12,
            limit=0.5,
            most=1.0,
        ),
        graph(
            "Wait for a batch",
            "Mean of an adapter's requests; the ten that wait longest.",
            [
                Query(
                    most(
                        ratio(
                            rate("adapterd_adapter_queue_seconds_total", "adapter", ADAPTERS),
                            rate(REQUESTS, "adapter", ADAPTERS),
                        )
                    ),
                    "{{adapter}}",
                )
            ],
            "s",
            width=12,
        ),
    ],
    "Versions that share the requests of one adapter": [
        graph(
            "Requests",
            "In a second. Series are there only while several versions of an adapter answer.",
            [Query(rate(f"{VERSION}_count", "adapter, digest"), "{{adapter}} {{digest}}")],
            "reqps",
        ),
        graph(
            "Mean time",
            "From the look-up of the adapter to its answer: compare the versions.",
            [Query(mean(VERSION, "adapter, digest"), "{{adapter}} {{digest}}")],
            "s",
        ),
        graph(
            "Failing",
            "Share of a version's requests that failed.",
            [
                Query(
                    ratio(
                        rate("adapterd_version_failures_total", "adapter, digest"),
                        rate(f"{VERSION}_count", "adapter, digest"),
                    ),
                    "{{adapter}} {{digest}}",
                )
            ],
            "percentunit",
            limit=0.05,
            most=1.0,
        ),
    ],
    "Replicas": [
        graph(
            "Orders",
            "That move a name in all replicas: written by this server, followed from others, or not followed so far.",
            [Query(f"sum by (outcome) (increase({ORDERS}{{{SERVERS}}}[$__rate_interval]))", "{{outcome}}")],
            "short",
            width=24,
        ),
    ],
}
