"""A running server on a small base, in a thread of its own, for tests that are not coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from make_adapters import make_adapter
from make_bases import save_base
from make_tokenizer import save_tokenizer

from adapterd import Client
from server.app import App
from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig, ServerConfig
from server.model.base import load_base

T = TypeVar("T")
HEAD = {"head_type": "classification", "num_labels": 3}
NAMES = ("intent", "other")
UNANSWERED = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)  # what no caller may ever bring about


class Served:
    """The server, and what a neighbour asks it."""

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self.app, self._loop = app, loop
        self.port = app.grpc_port
        self.answer = self.ask()

    def ask(self) -> bytes:
        """What an ordinary call on a connection of its own is answered."""
        with Client(f"127.0.0.1:{self.port}", max_retries=0) as client:
            reply = client.predict("intent", "a neighbour asks", return_logits=True, timeout=5)
        return reply.results[0].logits.SerializeToString()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """On the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


@contextmanager
def served(folder: Path, **api: Any) -> Iterator[Served]:
    """Afterwards nothing may be left: no request inside, no lease."""
    base = save_tokenizer(save_base(folder / "base"))
    info = load_base(ModelConfig(base=str(base), device="cpu")).info
    for seed, name in enumerate(NAMES):
        make_adapter(folder / "adapters" / name, info, config="seq_bn[reduction_factor=4]", head=HEAD, seed=seed)
    config = ServerConfig(
        model=ModelConfig(base=str(base), device="cpu", num_threads=1),
        cache=CacheConfig(adapters=(folder / "adapters",)),
        scheduler=SchedulerConfig(max_batch_tokens=1024),
        api=ApiConfig(port=0, http_port=0, lame_duck_s=0, drain_timeout_s=10, **api),
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        app = App(config)
        asyncio.run_coroutine_threadsafe(app.start(), loop).result(60)
        server = Served(app, loop)
        yield server
        server.run(_stop(app))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _stop(app: App) -> None:
    async with asyncio.timeout(20):
        for status in app.adapters.list(limit=1000)[0]:
            await app.adapters.unload(status.name)  # waits for every lease
        app.adapters.check_integrity()
        app.scheduler.check_integrity()
        await app.stop()
    assert app.admission.num_in_flight == 0
