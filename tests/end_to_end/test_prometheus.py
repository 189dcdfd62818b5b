"""A real Prometheus scrapes a real server under load, and answers every expression that is shipped.

What a healthy server has no data for is the condition of an alert. Of those each selector has to find series; that they
fire and are silent when they should is for the cases in deploy/prometheus/tests.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import grpc.aio
import pytest
from components import component
from make_adapters import random_checkpoint
from shipped import OPERATIONS, Rule, autoscaled, configuration, family, queries, rules, variables

from adapterd import AsyncClient, Error, calls, predict_request
from adapterd.v1 import inference_pb2 as v1
from adapters_cache.formats.adapterhub import write_checkpoint
from loadtest.children import served
from server.core import BaseInfo
from server.tenants import digest_of

DEADLINE_S = 45.0
LOOK_S = 0.5
NUM_ADAPTERS = 8
HEAD = {"head_type": "classification", "num_labels": 2}
TENANTS = """
[acme]
credentials = ["sha256:{acme}"]
adapters = ["acme-*"]
can_load = true

[beta]
credentials = ["sha256:{beta}"]
shared = ["base", "acme-0"]
max_requests_per_s = 2.0

[operator]
credentials = ["sha256:{operator}"]
adapters = ["*"]
can_observe = true
"""
# What the load is made for: more than 0, by the selectors.
REACHED = (
    'adapterd_requests_total{outcome="OK"}',
    'adapterd_requests_total{outcome="INVALID_ARGUMENT"}',
    'adapterd_requests_total{outcome="NOT_FOUND"}',
    'adapterd_requests_total{outcome="FAILED_PRECONDITION"}',
    'adapterd_requests_total{outcome="RESOURCE_EXHAUSTED"}',
    'adapterd_requests_total{outcome="DEADLINE_EXCEEDED"}',
    'adapterd_requests_total{outcome="UNAVAILABLE"}',
    'adapterd_requests_total{method="PredictBatch"}',
    'adapterd_expired_total{stage="admit"}',
    'adapterd_refused_total{reason="rate"}',
    'adapterd_tenant_requests_total{tenant="acme",outcome="answered"}',
    'adapterd_tenant_requests_total{tenant="acme",outcome="failed"}',
    'adapterd_tenant_requests_total{tenant="beta",outcome="answered"}',
    'adapterd_tenant_requests_total{tenant="beta",outcome="refused"}',
    "adapterd_unauthenticated_total",
    'adapterd_reloads_total{what="tenants"}',
    'adapterd_canaries_total{outcome="same"}',
    *(f'adapterd_evictions_total{{tier="{tier}"}}' for tier in ("device", "host", "disk")),
    *(f'adapterd_loads_total{{tier="{tier}",outcome="ok"}}' for tier in ("device", "host", "disk")),
    'adapterd_loads_total{tier="host",outcome="WRONG_BASE"}',
    'adapterd_hits_total{tier="disk"}',
    "adapterd_version_failures_total",
)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One that runs. `values` are the variables of dashboards, as Grafana puts them into expressions."""

    url: str
    values: dict[str, str]

    def get(self, path: str, **parameters: str) -> Any:
        """Raises ValueError with what Prometheus says of a query that it cannot answer."""
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as reply:
                return json.load(reply)["data"]
        except HTTPError as error:
            raise ValueError(json.load(error)["error"]) from None

    def ask(self, query: str) -> list[Any]:
        for name, value in self.values.items():
            query = query.replace(f"${name}", value)
        assert "$" not in query, query
        found: list[Any] = self.get("query", query=query)["result"]
        return found

    def fill(self, name: str, query: str) -> None:
        """All values of a variable."""
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert match, query
        found = {series["metric"][match[2]] for series in self.ask(match[1]) if match[2] in series["metric"]}
        choice = "|".join(re.escape(value).replace("\\", "\\\\") for value in sorted(found))
        self.values[name] = f"({choice})" if found else ".*"


def has_data(series: list[Any]) -> bool:
    """A number for something, not only what came of dividing nothing by nothing."""
    return any(math.isfinite(float(one["value"][1])) for one in series)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base_info: BaseInfo) -> Path:
    """Adapters that answer, one for another base, and two contents of one name, of which the second overflows."""
    folder = tmp_path_factory.mktemp("observed")
    for seed in range(NUM_ADAPTERS):
        _write(folder / "adapters" / f"acme-{seed}", base_info, seed)
    _write(folder / "adapters" / "acme-shared", base_info, 100)
    _write(folder / "next" / "acme-shared", base_info, 101, factor=1e30)
    _write(folder / "adapters" / "acme-foreign", replace(base_info, hidden_size=48), 102)
    return folder


def _write(path: Path, base: BaseInfo, seed: int, factor: float = 1.0) -> None:
    checkpoint = random_checkpoint(base, config="seq_bn[reduction_factor=4]", head=HEAD, seed=seed, name=path.name)
    for tensor in checkpoint.tensors.values():
        tensor *= factor
    write_checkpoint(path, checkpoint, base)


@pytest.fixture(scope="module")
def prometheus(base_path: Path, folder: Path) -> Iterator[Prometheus]:
    tenants = folder / "tenants.toml"
    tenants.write_text(_tenants(0))
    options = ["--base", str(base_path), "--adapters", str(folder / "adapters"), "--tenants", str(tenants)]
    settings = {
        "cache.disk_path": json.dumps(str(folder / "disk")),
        "cache.device_bytes": 30_000,
        "cache.host_bytes": 40_000,
        "cache.disk_bytes": 90_000,
        "api.publish_folder": json.dumps(str(folder / "adapters")),
        "api.reload_s": 0.2,
        "scheduler.max_batch_tokens": 1024,
        "scheduler.canary_share": 1.0,
    }
    options += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with served(*options) as server, _asking(server.address, folder), _scraping(folder, server.http_port) as url:
        yield Prometheus(url, {"__rate_interval": "10s", "__range": "60s"})


def _tenants(number: int) -> str:
    tokens = {name: digest_of(f"token-of-{name}") for name in ("acme", "beta", "operator")}
    return TENANTS.format(**tokens) + f"# {number}\n"


@contextmanager
def _scraping(folder: Path, port: int) -> Iterator[str]:
    """Prometheus with the shipped configuration, on a port that the system chose."""
    config = configuration(folder, f"127.0.0.1:{port}", token="token-of-operator")
    command = [component("prometheus", "prometheus"), f"--config.file={config}", "--web.listen-address=127.0.0.1:0"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", "--enable-feature=exemplar-storage"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if "ready to receive web requests" in line:
                break
        found = re.search(r'msg="Listening on" address=(\S+)', log)
        if found is None:
            raise RuntimeError("Prometheus ended before it answered:\n" + log)
        rest = threading.Thread(target=process.stderr.read)  # or it would wait for its reader
        rest.start()
        try:
            yield f"http://{found[1]}"
        finally:
            process.terminate()
            rest.join()


@contextmanager
def _asking(address: str, folder: Path) -> Iterator[None]:
    """The load, until the end."""
    has_ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: asyncio.run(_load(address, folder, has_ended)))
        try:
            yield
        finally:
            has_ended.set()
            asking.result()


async def _load(address: str, folder: Path, has_ended: threading.Event) -> None:
    async with AsyncExitStack() as stack:
        acme, beta, nobody = [
            await stack.enter_async_context(AsyncClient(address, token=f"token-of-{name}", max_retries=0))
            for name in ("acme", "beta", "nobody")
        ]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        await acme.predict("acme-shared", "hello")
        await acme.publish(folder / "next" / "acme-shared", percent=50)
        for number in range(1_000_000):
            if has_ended.is_set():
                return
            (folder / "tenants.toml").write_text(_tenants(number))
            asked = [
                *(acme.predict(f"acme-{index}", "hello") for index in range(NUM_ADAPTERS)),
                acme.predict_batch([predict_request("acme-0", "one"), predict_request("acme-1", ["two", "three"])]),
                *(acme.predict("acme-shared", "hello") for _ in range(4)),
                acme.predict("acme-foreign", "hello"),
                acme.predict("acme-unknown", "hello"),
                acme.predict("acme-0", "too long " * 100),
                *(beta.predict("acme-0", "hello") for _ in range(3)),
                nobody.predict("acme-0", "hello"),
                _late(channel),
            ]
            for outcome in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, Error):
                    raise outcome
            await asyncio.sleep(0.05)


async def _late(channel: grpc.aio.Channel) -> None:
    """A request whose time is up before it comes in."""
    stream = channel.stream_stream(**calls.PREDICT_STREAM.arguments())
    call = stream(metadata=(("authorization", "Bearer token-of-acme"),))
    message = v1.PredictStreamRequest(id="late", request=predict_request("acme-0", "hello"))
    message.timeout.FromNanoseconds(1)
    await call.write(message)
    await call.done_writing()
    await call.read()


def _without_data(prometheus: Prometheus, asked: dict[str, str]) -> dict[str, str]:
    """Queries by what they are of, but for those that have data before the time is up. Asked until they have."""
    until, missing = time.monotonic() + DEADLINE_S, dict(asked)
    while missing and time.monotonic() < until:
        for name, query in variables().items():
            prometheus.fill(name, query)
        missing = {where: query for where, query in missing.items() if not has_data(prometheus.ask(query))}
        if missing:
            time.sleep(LOOK_S)
    return missing


def test_the_load_reaches_every_outcome(prometheus: Prometheus) -> None:
    assert _without_data(prometheus, {selector: f"{selector} > 0" for selector in REACHED}) == {}


def test_the_server_is_scraped_without_errors(prometheus: Prometheus) -> None:
    assert _without_data(prometheus, {"up": "up == 1"}) == {}
    [target] = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_every_documented_metric_has_series(prometheus: Prometheus) -> None:
    named = sorted(set(re.findall(r"`(adapterd_\w+)", OPERATIONS.read_text())))
    known = {family(name) for name in prometheus.get("label/__name__/values")}
    assert len(named) > 30 and [name for name in named if name not in known] == []


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    asked = list(queries())
    assert len(asked) > 60
    assert _without_data(prometheus, {f"{query.where}: {query.text}": query.text for query in asked}) == {}


def test_the_autoscaler_has_a_number_for_each_server(prometheus: Prometheus) -> None:
    asked = list(autoscaled("instance", 'job="adapterd"'))
    assert len(asked) == 2
    assert _without_data(prometheus, {query.where: f"{query.text} > 0" for query in asked}) == {}
    assert all(len(prometheus.ask(query.text)) == 1 for query in asked)


def test_every_recorded_series_has_data(prometheus: Prometheus) -> None:
    recorded = [rule for rule in rules() if not rule.is_alert]
    assert _without_data(prometheus, {rule.where: rule.name for rule in recorded}) == {}


def test_every_recorded_series_has_the_labels_of_its_level(prometheus: Prometheus) -> None:
    for rule in rules():
        if not rule.is_alert:
            labels = {"__name__", "job", *rule.name.partition(":")[0].split("_")}
            assert all(series["metric"].keys() == labels for series in prometheus.ask(rule.name)), rule.name


def test_prometheus_evaluates_every_rule(prometheus: Prometheus) -> None:
    until, wanted = time.monotonic() + DEADLINE_S, {rule.name: ("ok", "") for rule in rules()}
    while (found := _health(prometheus)) != wanted and time.monotonic() < until:
        time.sleep(LOOK_S)
    assert found == wanted


def _health(prometheus: Prometheus) -> dict[str, tuple[str, str]]:
    listed = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    return {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in listed}


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule.is_alert], ids=lambda rule: rule.name)
def test_every_selector_of_an_alert_finds_series(prometheus: Prometheus, rule: Rule) -> None:
    prometheus.ask(rule.text)  # raises where it cannot be evaluated
    assert _without_data(prometheus, {selector: selector for selector in rule.selectors}) == {}


def test_every_panel_takes_the_names_that_its_legend_shows(prometheus: Prometheus) -> None:
    for query in queries():
        for series in prometheus.ask(query.text):
            assert series["metric"].keys() >= set(query.shown), query


def test_labels_that_are_matched_or_grouped_by_exist(prometheus: Prometheus) -> None:
    known = {*prometheus.get("labels"), "adapter", "alertname", "alertstate"}
    for expression in (*queries(), *rules()):
        assert expression.labels <= known, expression
    for rule in rules():
        assert {*rule.shown} <= known, rule


@pytest.mark.parametrize("misspelt", ["adapterd_request_total", 'adapterd_hits_total{teir="disk"}'])
def test_what_is_misspelt_has_no_data(prometheus: Prometheus, misspelt: str) -> None:
    assert not has_data(prometheus.ask(f"sum(rate({misspelt}[10s]))"))
