from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from fakes import FakeRun, FakeSlots, make_adapter, make_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import SchedulerConfig
from server.core import Batch, Sample, SampleOutput
from server.errors import (
    AdapterdError,
    DeadlineExceeded,
    DeviceFault,
    Internal,
    OutOfDeviceMemory,
    Overloaded,
    Quarantined,
    Unavailable,
)
from server.ledger import Pace
from server.metrics import Metrics
from server.scheduler.quarantine import FREE
from server.scheduler.scheduler import Scheduler


class Bench:
    """A scheduler between fake slots and a fake runner."""

    def __init__(self, num_slots: int = 1000, **limits: float) -> None:
        self.slots = FakeSlots(num_slots)
        self.run = FakeRun()
        self.metrics = Metrics()
        self.scheduler = Scheduler(SchedulerConfig(**limits), self.slots.acquire, self.run, self.metrics)  # type: ignore[arg-type]
        self.slots.on_room = self.scheduler.notify

    def submit(self, *samples: Sample) -> list[asyncio.Task[SampleOutput]]:
        return [asyncio.create_task(self.scheduler.submit(sample)) for sample in samples]

    def batch(self, index: int) -> list[Sample]:
        return self.run.batches[index].samples

    def value(self, series: str) -> float:
        lines = self.metrics.render().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"adapterd_{series} "))

    async def settle(self) -> None:
        """Let everything happen that needs no new event."""
        for _ in range(10):
            await asyncio.sleep(0)

    def check(self) -> None:
        self.scheduler.check_integrity()
        assert self.slots.num_leased == 0
        assert self.value("queue_samples") == 0
        assert self.value("queue_tokens") == 0


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.scheduler.start()
    yield bench
    bench.run.gate.set()
    await bench.scheduler.stop()
    bench.check()


async def busy(bench: Bench) -> list[asyncio.Task[SampleOutput]]:
    """Give the runner the two batches it takes, and let it hold them."""
    bench.run.gate.clear()
    tasks = []
    for num_batches in (1, 2):
        tasks += bench.submit(make_sample(make_adapter("busy")))
        await bench.run.started(num_batches)
    return tasks


async def errors_of(tasks: Iterable[asyncio.Task[SampleOutput]]) -> list[type[BaseException] | None]:
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(result) if isinstance(result, BaseException) else None for result in results]


async def test_idle_runner_gets_a_sample_at_once(bench: Bench) -> None:
    output = await bench.scheduler.submit(make_sample(num_tokens=7))
    assert output.values.tolist() == [7]


async def test_samples_that_arrive_together_ride_together(bench: Bench) -> None:
    samples = [make_sample(make_adapter(name), i + 1) for i, name in enumerate("abca")]
    outputs = await asyncio.gather(*bench.submit(*samples))
    assert len(bench.run.batches) == 1
    assert set(bench.run.batches[0].leases) == {"digest-a", "digest-b", "digest-c"}
    assert [output.values[0] for output in outputs] == [1, 2, 3, 4]


async def test_at_most_two_batches_are_with_the_runner(bench: Bench) -> None:
    tasks = await busy(bench)
    tasks += bench.submit(*(make_sample() for _ in range(20)))
    await bench.settle()
    bench.run.gate.set()
    await asyncio.gather(*tasks)
    assert bench.run.max_running == 2
    assert [len(batch.samples) for batch in bench.run.batches] == [1, 1, 20]


async def test_the_next_batch_is_formed_shortly_before_the_one_that_computes_ends() -> None:
    bench = Bench(max_batch_tokens=100)
    await bench.scheduler.start()
    bench.run.compute_s = 0.2
    await bench.scheduler.submit(make_sample(num_tokens=100))  # fills the device, and tells its pace
    bench.run.gate.clear()
    tasks = bench.submit(make_sample(num_tokens=100))
    await bench.run.started(2)
    tasks += bench.submit(make_sample(num_tokens=50))
    await asyncio.sleep(0.1)
    tasks += bench.submit(make_sample(num_tokens=50))
    await bench.settle()
    assert len(bench.run.batches) == 2
    async with asyncio.timeout(5):
        await bench.run.started(3)  # while the second one still computes
    assert len(bench.batch(2)) == 2
    bench.run.gate.set()
    await asyncio.gather(*tasks)


async def test_a_batch_that_ends_early_is_followed_at_once() -> None:
    bench = Bench(max_batch_tokens=100)
    await bench.scheduler.start()
    bench.run.compute_s = 1000.0
    await bench.scheduler.submit(make_sample(num_tokens=100))
    async with asyncio.timeout(5):
        await asyncio.gather(*bench.submit(*(make_sample(num_tokens=100) for _ in range(5))))
    assert len(bench.run.batches) == 6


@pytest.mark.parametrize("limits", [{"max_batch_tokens": 10}, {"max_batch_samples": 2}])
async def test_batch_closes_at_its_budget(limits: dict[str, int]) -> None:
    bench = Bench(**limits)
    await bench.scheduler.start()
    await asyncio.gather(*bench.submit(*(make_sample(num_tokens=4) for _ in range(5))))
    assert [len(batch.samples) for batch in bench.run.batches] == [2, 2, 1]


async def test_sample_beyond_the_token_budget_runs_alone() -> None:
    bench = Bench(max_batch_tokens=10)
    await bench.scheduler.start()
    sizes = (4, 50, 4)
    await asyncio.gather(*bench.submit(*(make_sample(num_tokens=size) for size in sizes)))
    assert [[s.num_tokens for s in batch.samples] for batch in bench.run.batches] == [[4], [50], [4]]


async def test_each_branch_of_a_sample_counts_against_the_token_budget() -> None:
    bench = Bench(max_batch_tokens=10)
    await bench.scheduler.start()
    samples = [make_sample(num_tokens=4) for _ in range(3)]
    samples[0].target = replace(samples[0].target, branches=samples[0].target.branches * 2)
    await asyncio.gather(*bench.submit(*samples))
    assert [len(batch.samples) for batch in bench.run.batches] == [1, 2]


async def test_cancelled_sample_never_reaches_the_runner(bench: Bench) -> None:
    tasks = await busy(bench)
    gone = make_sample()
    (task,) = bench.submit(gone)
    await bench.settle()
    task.cancel()
    assert await errors_of([task]) == [asyncio.CancelledError]
    bench.run.gate.set()
    await asyncio.gather(*tasks)
    assert len(bench.run.batches) == 2
    assert bench.value("cancelled_total") == 1


async def test_sample_cancelled_in_its_batch_leaves_the_others_alone(bench: Bench) -> None:
    bench.run.gate.clear()
    gone, kept = bench.submit(make_sample(num_tokens=1), make_sample(num_tokens=2))
    await bench.run.started(1)
    gone.cancel()
    bench.run.gate.set()
    assert (await kept).values.tolist() == [2]
    assert await errors_of([gone]) == [asyncio.CancelledError]


async def test_expired_sample_is_refused_before_it_queues(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded):
        await bench.scheduler.submit(make_sample(deadline=time.monotonic() - 1))
    assert bench.run.batches == []
    assert bench.value('expired_total{stage="queue"}') == 1


async def test_sample_that_expires_in_the_queue_is_told_while_the_runner_is_busy(bench: Bench) -> None:
    tasks = await busy(bench)
    with pytest.raises(DeadlineExceeded):
        await bench.scheduler.submit(make_sample(deadline=time.monotonic() + 0.02))
    assert bench.run.num_running == 2
    bench.run.gate.set()
    await asyncio.gather(*tasks)
    assert len(bench.run.batches) == 2
    assert bench.value('expired_total{stage="queue"}') == 1


async def test_sample_that_the_runner_left_out_counts_as_expired(bench: Bench) -> None:
    bench.run.error_of = lambda sample: DeadlineExceeded("late")
    with pytest.raises(DeadlineExceeded):
        await bench.scheduler.submit(make_sample(deadline=time.monotonic() + 60))
    assert bench.value('expired_total{stage="queue"}') == 1


async def test_batch_closes_at_the_first_sample_without_a_slot() -> None:
    bench = Bench(num_slots=1)
    await bench.scheduler.start()
    samples = [make_sample(make_adapter(name)) for name in ("a", "b", "a", "c", "a")]
    await asyncio.gather(*bench.submit(*samples))
    ridden = [
        "".join(part.manifest.name for sample in b.samples for part in sample.target.parts) for b in bench.run.batches
    ]
    assert ridden == ["aaa", "b", "c"]
    bench.check()


async def test_nobody_overtakes_a_sample_that_waits_for_a_slot() -> None:
    bench = Bench(num_slots=1)
    await bench.scheduler.start()
    bench.run.gate.clear()
    tasks = bench.submit(make_sample(make_adapter("a")))
    await bench.run.started(1)
    tasks += bench.submit(make_sample(make_adapter("b")), make_sample(make_adapter("a")), make_sample(None))
    await bench.settle()
    assert len(bench.run.batches) == 1
    bench.run.gate.set()
    await asyncio.gather(*tasks)
    assert bench.batch(1)[0].digest == "digest-b"


async def test_blocked_sample_runs_after_notify() -> None:
    bench = Bench()
    await bench.scheduler.start()
    room, bench.scheduler._acquire = bench.scheduler._acquire, lambda adapter: None
    (task,) = bench.submit(make_sample(make_adapter()))
    await bench.settle()
    assert bench.run.batches == []
    bench.scheduler._acquire = room
    bench.scheduler.notify()
    await task


async def test_sample_behind_a_blocked_one_runs_when_that_one_leaves() -> None:
    bench = Bench()
    await bench.scheduler.start()
    room = bench.scheduler._acquire
    bench.scheduler._acquire = lambda adapter: None if adapter and adapter.manifest.name == "b" else room(adapter)
    bench.run.gate.clear()
    first, blocked, behind = bench.submit(*(make_sample(make_adapter(name)) for name in "abc"))
    await bench.run.started(1)
    await bench.settle()
    assert len(bench.run.batches) == 1
    blocked.cancel()
    await bench.run.started(2)
    assert bench.batch(1)[0].digest == "digest-c"
    bench.run.gate.set()
    await asyncio.gather(first, behind)


async def test_base_joins_a_batch_past_a_blocked_sample() -> None:
    bench = Bench(num_slots=1)
    await bench.scheduler.start()
    tasks = bench.submit(make_sample(make_adapter("a")), make_sample(make_adapter("b")), make_sample(None))
    await asyncio.gather(*tasks)
    assert [sample.digest for sample in bench.batch(0)] == ["digest-a", "base"]


async def test_adapter_that_cannot_be_placed_fails_its_own_samples_only(bench: Bench) -> None:
    bench.slots.refused["huge"] = Overloaded("no room for 9 bytes, the budget is 8", retry_after_s=3)
    tasks = bench.submit(*(make_sample(make_adapter(name)) for name in ("huge", "a", "huge", "b")))
    assert await errors_of(tasks) == [Overloaded, None, Overloaded, None]
    first, second = tasks[0].exception(), tasks[2].exception()
    assert isinstance(first, Overloaded)
    assert first.retry_after_s == 3
    assert first is not second, "each caller raises its own"


async def test_surprise_while_placing_is_told_as_internal(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.slots.refused["odd"] = KeyError("/secret/path")
    with pytest.raises(Internal) as error:
        await bench.scheduler.submit(make_sample(make_adapter("odd")))
    assert "secret" not in error.value.message
    assert "secret" in caplog.text


async def test_failed_batch_is_told_as_internal_and_the_next_one_runs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.run.error = RuntimeError("CUDA error at 0xdeadbeef")
    tasks = bench.submit(make_sample(make_adapter("a")), make_sample(make_adapter("b")))
    assert await errors_of(tasks) == [Internal, Internal]
    assert "0xdeadbeef" not in str(tasks[0].exception())
    assert sorted(bench.slots.failed) == ["digest-a", "digest-b"]
    bench.run.error = None
    await bench.scheduler.submit(make_sample(make_adapter("a")))
    assert "0xdeadbeef" in caplog.text


async def test_error_of_one_sample_leaves_its_batch_alone(bench: Bench) -> None:
    bench.run.error_of = lambda sample: Internal("bad") if sample.num_tokens == 1 else None
    tasks = bench.submit(make_sample(num_tokens=1), make_sample(num_tokens=2))
    assert await errors_of(tasks) == [Internal, None]
    assert len(bench.run.batches) == 1


async def test_batch_that_shares_a_slot_never_filled_is_run_again_and_fills_it(bench: Bench) -> None:
    """The first batch was to write the slot and failed: what the second one computed is not this adapter's."""
    bench.run.gate.clear()
    (first,) = bench.submit(make_sample(make_adapter("a")))
    await bench.run.started(1)
    second, other = bench.submit(make_sample(make_adapter("a")), make_sample(make_adapter("b")))
    await bench.run.started(2)
    bench.run.errors[0] = Unavailable("device gone")
    bench.run.gate.set()
    assert await errors_of([first, second, other]) == [Unavailable, None, None]
    assert bench.slots.failed.count("digest-a") == 1
    assert bench.run.batches[-1].unwritten == {"digest-a", "digest-b"}


async def test_batch_that_shares_a_filled_slot_with_a_failed_one_is_answered(bench: Bench) -> None:
    await bench.scheduler.submit(make_sample(make_adapter("a")))
    bench.run.gate.clear()
    (first,) = bench.submit(make_sample(make_adapter("a")))
    await bench.run.started(2)
    (second,) = bench.submit(make_sample(make_adapter("a")))
    await bench.run.started(3)
    bench.run.errors[1] = Unavailable("device gone")
    bench.run.gate.set()
    assert await errors_of([first, second]) == [Unavailable, None]


async def test_stop_answers_what_is_queued() -> None:
    bench = Bench()
    await bench.scheduler.start()
    tasks = await busy(bench)
    tasks += bench.submit(make_sample(), make_sample())
    await bench.settle()
    stopping = asyncio.create_task(bench.scheduler.stop())
    await bench.settle()
    assert not stopping.done()
    with pytest.raises(Unavailable):
        await bench.scheduler.submit(make_sample())
    bench.run.gate.set()
    await stopping
    assert await errors_of(tasks) == [None] * 4
    bench.check()


async def test_stop_does_not_wait_for_a_slot_that_cannot_come() -> None:
    bench = Bench()
    await bench.scheduler.start()
    bench.scheduler._acquire = lambda adapter: None
    (task,) = bench.submit(make_sample(make_adapter()))
    await bench.settle()
    await bench.scheduler.stop()
    assert await errors_of([task]) == [Unavailable]


async def test_batch_metrics_tell_what_ran(bench: Bench) -> None:
    await asyncio.gather(*bench.submit(make_sample(make_adapter("a"), 3), make_sample(None, 5)))
    assert bench.value("batch_samples_sum") == 2
    assert bench.value("batch_tokens_sum") == 8
    assert bench.value("batch_adapters_sum") == 1
    assert bench.value("compute_seconds_total") == 0.002


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), num_slots=st.integers(1, 4))
def test_everybody_is_answered_once_and_the_books_balance(seed: int, num_slots: int) -> None:
    asyncio.run(_storm(random.Random(seed), num_slots))


async def _storm(rng: random.Random, num_slots: int) -> None:
    """Arrivals, cancellations, deadlines, refusals and failing batches in random order."""
    bench = Bench(num_slots, max_batch_tokens=30, max_batch_samples=4)
    bench.slots.refused["huge"] = Overloaded("no room")
    bench.run.error_of = lambda sample: Internal("bad") if rng.random() < 0.1 else None
    await bench.scheduler.start()
    samples: list[Sample] = []
    tasks: list[asyncio.Task[SampleOutput]] = []
    for _ in range(60):
        event = rng.random()
        if event < 0.6:
            adapter = rng.choice([None, *(make_adapter(name) for name in ("a", "b", "c", "d", "huge"))])
            deadline = time.monotonic() + rng.choice([-1, 0.002, 0.004, 60]) if rng.random() < 0.4 else None
            samples.append(make_sample(adapter, rng.randint(1, 12), deadline=deadline, tenant=rng.choice("xy")))
            tasks += bench.submit(samples[-1])
        elif event < 0.75 and tasks:
            rng.choice(tasks).cancel()
        elif event < 0.85:
            bench.run.gate.clear() if rng.random() < 0.5 else bench.run.gate.set()
        elif event < 0.9:
            bench.run.error = rng.choice([None, Unavailable("device gone")])
        else:
            await bench.settle()
        bench.scheduler.check_integrity()
    bench.run.gate.set()
    await bench.settle()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, SampleOutput):
            assert result.values.tolist() == [sample.num_tokens]
        else:
            assert isinstance(result, AdapterdError | asyncio.CancelledError)
    await bench.scheduler.stop()
    bench.check()


class Guilty:
    """Fails every batch that holds one of the named adapters."""

    def __init__(self, run: FakeRun, *names: str, error: Exception | None = None) -> None:
        self._run, self._names = run, {f"digest-{name}" for name in names}
        self._error = error or ValueError("bad weights")
        self.sizes: list[int] = []

    async def __call__(self, batch: Batch) -> list[SampleOutput | AdapterdError]:
        self.sizes.append(len(batch.samples))
        if self._names & {sample.digest for sample in batch.samples}:
            raise self._error
        return await self._run(batch)


@pytest.mark.parametrize("guilty", [(), ("a3",), ("a0", "a15"), tuple(f"a{i}" for i in range(16))])
async def test_a_batch_that_fails_is_halved_until_the_guilty_are_alone(bench: Bench, guilty: tuple[str, ...]) -> None:
    bench.scheduler._run = run = Guilty(bench.run, *guilty)
    samples = [make_sample(make_adapter(f"a{i}"), i + 1) for i in range(16)]
    results = await asyncio.gather(*bench.submit(*samples), return_exceptions=True)
    for number, result in enumerate(results):
        if f"a{number}" in guilty:
            assert isinstance(result, Internal)
        else:
            assert isinstance(result, SampleOutput) and result.values.tolist() == [number + 1]
    assert sorted(bench.slots.failed) == sorted(f"digest-{name}" for name in guilty)
    assert len(run.sizes) <= 1 + 2 * 4 * max(1, len(guilty)) if guilty else run.sizes == [16]


async def test_an_adapter_that_keeps_failing_batches_is_left_alone_and_costs_no_more(bench: Bench) -> None:
    bench.scheduler._run = run = Guilty(bench.run, "bad")
    for _ in range(FREE + 1):
        with pytest.raises(Internal):
            await bench.scheduler.submit(make_sample(make_adapter("bad")))
    num_runs = len(run.sizes)
    with pytest.raises(Quarantined, match="tried again in"):
        await bench.scheduler.submit(make_sample(make_adapter("bad")))
    assert len(run.sizes) == num_runs
    await bench.scheduler.submit(make_sample(make_adapter("good")))


async def test_out_of_memory_halves_the_batch_and_the_budget_which_grows_back() -> None:
    bench = Bench(max_batch_tokens=1000)
    await bench.scheduler.start()
    most = 200

    async def run(batch: Batch) -> list[SampleOutput | AdapterdError]:
        if batch.num_tokens > most:
            raise OutOfDeviceMemory("no memory")
        return await bench.run(batch)

    bench.scheduler._run = run
    outputs = await asyncio.gather(*bench.submit(*(make_sample(num_tokens=50) for _ in range(16))))
    assert [output.values[0] for output in outputs] == [50] * 16
    assert bench.scheduler._budget.tokens < 1000
    for _ in range(100):
        await bench.scheduler.submit(make_sample())
    assert bench.scheduler._budget.tokens == 1000
    await bench.scheduler.stop()
    bench.check()


async def test_an_input_that_never_fits_the_memory_fails_alone(bench: Bench) -> None:
    bench.run.error_of = lambda sample: OutOfDeviceMemory("no memory") if sample.num_tokens == 9 else None
    tasks = bench.submit(make_sample(num_tokens=9), make_sample())
    assert await errors_of(tasks) == [OutOfDeviceMemory, None]


async def test_a_device_fault_fails_what_is_in_the_air_and_is_told_once() -> None:
    faults: list[DeviceFault] = []
    bench = Bench(max_batch_samples=1)
    bench.scheduler._on_fault = faults.append
    await bench.scheduler.start()
    bench.run.gate.clear()
    tasks = bench.submit(*(make_sample(make_adapter(f"a{i}")) for i in range(6)))
    await bench.run.started(2)
    bench.run.error = DeviceFault("gone")
    bench.run.gate.set()
    assert await errors_of(tasks) == [DeviceFault] * 6
    assert len(faults) == 1 and len(bench.run.batches) == 2
    with pytest.raises(DeviceFault):
        await bench.scheduler.submit(make_sample())
    await bench.scheduler.stop()
    bench.check()


async def test_a_device_that_hangs_is_a_fault() -> None:
    faults: list[DeviceFault] = []
    bench = Bench(batch_timeout_s=0.01)
    bench.scheduler._on_fault = faults.append
    await bench.scheduler.start()
    bench.run.gate.clear()
    with pytest.raises(DeviceFault, match=r"batch_timeout_s 0\.01"):
        await bench.scheduler.submit(make_sample())
    assert len(faults) == 1
    bench.run.gate.set()
    await bench.scheduler.stop()


async def test_one_that_rides_alone_shares_no_batch(bench: Bench) -> None:
    samples = [make_sample() for _ in range(5)]
    samples[2].rides_alone = True
    await asyncio.gather(*bench.submit(*samples))
    assert [len(batch.samples) for batch in bench.run.batches] == [2, 1, 2]


async def test_the_pace_of_the_device_is_told_after_every_batch_and_known_from_full_ones() -> None:
    told: list[Pace] = []
    bench = Bench(max_batch_tokens=100)
    bench.scheduler._on_pace = told.append
    await bench.scheduler.start()
    for num_tokens in (10, 80, 10):
        await bench.scheduler.submit(make_sample(num_tokens=num_tokens))
    assert told == [Pace(rate, weights=0.0, busy_tokens=200) for rate in (0, 40_000, 40_000)]
    await bench.scheduler.stop()
