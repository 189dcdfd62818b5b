"""Schedules: rates, popularity, churn, cold adapters, tenants; all of it repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.arrivals import Catalog, Popularity, Schedule, Traffic, schedule, shares

CATALOG = Catalog(num_adapters=20, num_cold=4, num_texts=50)


def drawn(*traffics: Traffic, rate: float = 500.0, seconds: float = 40.0, seed: int = 1) -> Schedule:
    return schedule(traffics, rate, seconds, CATALOG, seed)


def counts(found: Schedule) -> list[int]:
    return np.bincount(found.adapter, minlength=CATALOG.num_adapters).tolist()


def test_same_arguments_give_the_same_schedule() -> None:
    bursts = Traffic(arrivals="bursts", churn_every_s=1.0, cold=0.1)
    first, again, other = drawn(bursts), drawn(bursts), drawn(bursts, seed=2)
    for column in ("at_s", "adapter", "text", "tenant"):
        assert np.array_equal(getattr(first, column), getattr(again, column))
    assert not np.array_equal(first.at_s, other.at_s)


@pytest.mark.parametrize("arrivals", ["poisson", "bursts"])
def test_requests_are_in_order_as_many_as_the_rate_says_and_spread_over_the_time(arrivals: str) -> None:
    found = drawn(Traffic(arrivals="bursts" if arrivals == "bursts" else "poisson"))
    assert len(found) == 500 * 40 and (np.diff(found.at_s) >= 0).all()
    halves, _ = np.histogram(found.at_s, [0, 20, 40])
    assert halves.sum() == len(found) and halves == pytest.approx([10_000, 10_000], rel=0.1)
    assert set(found.text.tolist()) == set(range(50))


def test_poisson_arrivals_have_exponential_gaps() -> None:
    gaps = np.diff(drawn(Traffic()).at_s)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.02) and gaps.std() == pytest.approx(1 / 500, rel=0.05)


def test_bursts_arrive_at_once_and_have_the_mean_size() -> None:
    _, sizes = np.unique(drawn(Traffic(arrivals="bursts", burst_size=8.0)).at_s, return_counts=True)
    assert sizes.mean() == pytest.approx(8.0, rel=0.1) and sizes.max() > 24


def test_zipf_asks_for_each_rank_in_proportion() -> None:
    found = counts(drawn(Traffic(popularity="zipf", exponent=1.0)))
    assert found[0] / found[3] == pytest.approx(4.0, rel=0.15) and found[0] / found[1] == pytest.approx(2.0, rel=0.15)
    steeper = counts(drawn(Traffic(popularity="zipf", exponent=2.0)))
    assert steeper[0] / steeper[1] == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize(
    ("popularity", "least", "most"),
    [("uniform", 900, 1100), ("distinct", 1000, 1000), ("identical", 0, 20_000), ("skewed", 50, 18_400)],
)
def test_popularity_is_what_its_name_says(popularity: Popularity, least: int, most: int) -> None:
    found = counts(drawn(Traffic(popularity=popularity)))
    assert min(found) >= least and max(found) <= most and sum(found) == 20_000
    assert shares(Traffic(popularity=popularity), 1).tolist() == [1.0]
    if popularity in ("identical", "skewed"):
        assert found[0] >= 17_600


def test_churn_changes_which_adapter_is_popular() -> None:
    found = drawn(Traffic(churn_every_s=10.0, churn_share=0.1))
    most = [
        np.bincount(found.adapter[(found.at_s >= start) & (found.at_s < start + 10)]).argmax()
        for start in range(0, 40, 10)
    ]
    assert most[0] == 0 and all(a != b for a, b in zip(most, most[1:], strict=False))


def test_churn_of_a_single_adapter_changes_nothing() -> None:
    found = schedule([Traffic(churn_every_s=1.0)], 10.0, 5.0, Catalog(1, 0, 1), seed=1)
    assert set(found.adapter.tolist()) == {0}


def test_cold_adapters_are_asked_for_in_turn_and_by_nobody_else() -> None:
    cold = [adapter for adapter in drawn(Traffic(cold=0.02)).adapter.tolist() if adapter >= CATALOG.num_adapters]
    assert len(cold) == pytest.approx(400, rel=0.2)
    assert cold == [20 + i % 4 for i in range(len(cold))]
    nobody = schedule([Traffic(cold=0.5)], 100.0, 5.0, Catalog(3, 0, 5), seed=1)
    assert nobody.adapter.max() == 2


def test_tenants_get_their_share_each_in_its_own_way() -> None:
    found = drawn(Traffic("steady", share=3.0), Traffic("bursting", share=1.0, arrivals="bursts"))
    assert found.tenants == ("steady", "bursting") and np.bincount(found.tenant).tolist() == [15_000, 5_000]
    assert len(np.unique(found.at_s[found.tenant == 0])) == 15_000
    assert len(np.unique(found.at_s[found.tenant == 1])) < 1_000


def test_parts_make_up_the_whole() -> None:
    whole = drawn(Traffic(), seconds=1.0)
    parts = [whole.part(index, 3) for index in range(3)]
    assert sorted(np.concatenate([part.at_s for part in parts]).tolist()) == whole.at_s.tolist()
