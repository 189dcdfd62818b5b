"""The batch budget: measured at start unless it is given."""

from __future__ import annotations

from dataclasses import replace

from adapterd import AsyncClient
from server.app import App
from server.config import SchedulerConfig, ServerConfig
from server.model.calibration import LARGEST, SMALLEST


def _budget(app: App) -> float:
    value = app.metrics.registry.get_sample_value("adapterd_batch_budget_tokens")
    assert value is not None
    return value


async def test_a_server_finds_its_budget_and_serves(config: ServerConfig) -> None:
    app = App(replace(config, scheduler=SchedulerConfig()))
    await app.start()
    try:
        assert SMALLEST <= _budget(app) <= LARGEST
        async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
            response = await client.predict("intent", ["w1 w2 w3"])
        assert len(response.results) == 1
    finally:
        await app.stop()


async def test_a_given_budget_is_kept(app: App) -> None:
    assert _budget(app) == 1024
