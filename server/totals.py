"""One exposition for several processes: this one's series plus what the others told of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from server.metrics import Metrics

Key = tuple[str, str, tuple[tuple[str, str], ...]]  # of a sample: its family, its name, its labels in order
Snapshot = dict[Key, float]


def snapshot(metrics: Metrics) -> Snapshot:
    """Every sample that adds up and is not 0, as plain data."""
    return {
        (family.name, sample.name, _labels(sample)): sample.value
        for family in metrics.registry.collect()
        if family.type != "info"
        for sample in family.samples
        if sample.value and not sample.name.endswith("_created")
    }


class Totals(Collector):
    """Sums, sample by sample. `registry` is what to scrape; the other methods belong to the event loop's thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge"}
        self._latest: dict[int, Snapshot] = {}
        self._ended: Snapshot = {}  # what processes had counted that are gone
        self._others: Snapshot = {}  # the sum of both; replaced, never changed: a scrape may be reading it
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def put(self, process: int, latest: Snapshot) -> None:
        """What `process` has counted since it started."""
        self._latest[process] = latest
        self._add_up()

    def retire(self, process: int) -> None:
        """It is gone: what it had counted stays, what it had in hand does not."""
        gone = self._latest.pop(process, {})
        _add(self._ended, {key: value for key, value in gone.items() if key[0] not in self._gauges})
        self._add_up()

    def collect(self) -> Iterator[Metric]:
        others: dict[str, dict[Key, float]] = {}
        for key, value in self._others.items():
            others.setdefault(key[0], {})[key] = value
        for family in self._metrics.registry.collect():
            yield _added(family, others.get(family.name, {}))

    def _add_up(self) -> None:
        others = dict(self._ended)
        for latest in self._latest.values():
            _add(others, latest)
        self._others = others


def _add(to: Snapshot, more: Mapping[Key, float]) -> None:
    for key, value in more.items():
        to[key] = to.get(key, 0.0) + value


def _added(family: Metric, others: dict[Key, float]) -> Metric:
    """`family` with the samples of other processes, which may have labels that do not occur here."""
    samples = []
    for sample in family.samples:
        samples.append(sample._replace(value=sample.value + others.pop((family.name, sample.name, _labels(sample)), 0)))
    samples += [Sample(name, dict(labels), value) for (_, name, labels), value in others.items()]
    family.samples = samples
    return family


def _labels(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(sample.labels.items()))
