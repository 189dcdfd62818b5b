"""A real server as a child."""

from __future__ import annotations

import pytest
from make_bases import save_base
from make_tokenizer import save_tokenizer

from adapterd import Client
from server.config import ServerConfig
from server.ray.child import Child, Health, advertised
from server.ray.plan import Plan
from server.ray.scaling import BUSY, COMPUTE, NUM_WAITED, TOKENS, TOKENS_PER_S, WAITED, load_between


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(save_base(tmp_path_factory.mktemp("base") / "tiny")))


def test_a_child_serves_tells_its_metrics_and_answers_before_it_ends(base: str) -> None:
    plan = Plan({"model.base": base, "model.device": "cpu", "scheduler.max_batch_tokens": 1024})
    child = Child(plan.config(), plan.child_settings())
    try:
        before = child.metrics()
        with Client(f"127.0.0.1:{child.port}") as client:
            client.predict("base", "a text")
        after = child.metrics()
        assert {COMPUTE, TOKENS, WAITED, NUM_WAITED} <= after.keys()  # the names that scaling looks for
        load = load_between(before, after, 1.0)
        assert load[BUSY] > 0 and load[TOKENS_PER_S] > 0
        assert child.health() is Health.SERVING
    finally:
        child.stop(30)
    assert child.health() is Health.GONE and child.exit_code == 0


def test_a_server_that_cannot_start_tells_why() -> None:
    with pytest.raises(RuntimeError, match="ended with code 1 before it served:\n(.|\n)*no-such-base"):
        Child(ServerConfig(), {"model.base": "/no-such-base", "model.device": "cpu"})


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "10.0.0.7"), ("[::]", "10.0.0.7"), ("10.0.0.9", "10.0.0.9")],
)
def test_callers_are_told_an_address_that_they_reach(host: str, address: str) -> None:
    assert advertised(host, "10.0.0.7") == address
