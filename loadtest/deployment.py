"""A server to load: a child process with adapters made for the purpose, or one that runs already."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapterd import AsyncClient
from adapters_cache.formats.adapterhub import write_checkpoint
from loadtest import workload
from loadtest.bench import random_checkpoint, save_bert_base
from loadtest.children import serving
from loadtest.offline import Offline
from loadtest.scenarios import Plan
from loadtest.texts import load_tokenizer, make_texts
from server.config import ModelConfig
from server.model.base import Base, load_base, locate

BERT_BASE = "bert-base"
NUM_COLD = 16  # taken in turn; each is unloaded as soon as it has answered
NUM_TEXTS = 512
SATURATION_TOKENS = 32  # of a text, special tokens included
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where requests go, and what they may ask for.

    names        adapters; `cold` ones are asked for once in a while and unloaded again
    digests      of `names`
    mixed_texts  of log-normal length; `equal_texts` have 32 tokens each
    offline      the same engine, adapters and equal texts, without a server; None if the server is somebody else's
    """

    server: str
    is_cuda: bool
    names: tuple[str, ...]
    cold: tuple[str, ...]
    digests: tuple[str, ...]
    mixed_texts: tuple[str, ...]
    equal_texts: tuple[str, ...]
    offline: Offline | None


@contextmanager
def deploy(plan: Plan) -> Iterator[Deployment]:
    """The server of a plan, which ends with the context if it was started here."""
    with _running(plan) if plan.server else _started(plan) as deployment:
        yield deployment


@contextmanager
def _running(plan: Plan) -> Iterator[Deployment]:
    names, device = asyncio.run(_look(plan.server))
    if not names:
        raise RuntimeError(f"{plan.server} has no adapters to ask for; start it with --adapters FOLDER")
    names = names[: plan.num_adapters]
    mixed, equal = _texts(Path(locate(plan.base)), workload.MAX_LENGTH, plan.seed)
    yield Deployment(plan.server, device.startswith("cuda"), names, (), (), mixed, equal[0], None)


@contextmanager
def _started(plan: Plan) -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        model = ModelConfig(base=base_source(plan.base, folder), device=plan.device, dtype=plan.dtype)
        base = load_base(model)
        if base.tokenizer_path is None:
            raise RuntimeError(f"base {plan.base} has no tokenizer; serving is measured on text")
        mixed, (equal, token_ids) = _texts(base.tokenizer_path, base.info.max_tokens, plan.seed)
        folders = publish(base, folder / "adapters", plan.num_adapters + NUM_COLD)
        warm = folders[: plan.num_adapters]
        names = tuple(path.name for path in warm)
        options = ["--base", model.base, "--adapters", str(folder / "adapters"), "--device", model.device]
        options += ["--dtype", model.dtype, *(part for setting in plan.settings for part in ("--set", setting))]
        with serving(*options) as (server, _):
            digests = load_all(server, names)
            cold = tuple(path.name for path in folders[plan.num_adapters :])
            offline = Offline(model, warm, token_ids)
            is_cuda = base.device.type == "cuda"
            yield Deployment(server, is_cuda, names, cold, digests, mixed, equal, offline)


def _texts(
    tokenizer_path: Path, max_tokens: int, seed: int
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]]:
    """Texts of mixed length, and texts of equal length with their token ids."""
    tokenizer = load_tokenizer(tokenizer_path)
    drawn = workload.encodings(NUM_TEXTS * workload.MEDIAN_LENGTH, len(tokenizer), seed)
    mixed = make_texts(tokenizer, [min(text.num_tokens, max_tokens) for text in drawn], seed)
    equal = make_texts(tokenizer, [min(SATURATION_TOKENS, max_tokens)] * NUM_TEXTS, seed + 1)
    return tuple(mixed), (tuple(equal), tuple(tuple(tokenizer(text)["input_ids"]) for text in equal))


def base_source(name: str, folder: Path) -> str:
    """What to load for a base's name. "bert-base" is made in `folder`, with minilm's tokenizer: the same vocabulary."""
    if name != BERT_BASE:
        return name
    path = folder / BERT_BASE
    save_bert_base(path)
    for file in TOKENIZER_FILES:
        if (source := Path(locate("minilm")) / file).exists():
            shutil.copy(source, path / file)
    return str(path)


def publish(base: Base, folder: Path, num: int) -> tuple[Path, ...]:
    """Write `num` random adapters as anyone would publish them. No two have one digest."""
    paths = []
    for seed in range(num):
        checkpoint = random_checkpoint(base, seed)
        paths.append(folder / checkpoint.name)
        write_checkpoint(paths[-1], checkpoint, base.info)
    return tuple(paths)


def load_all(server: str, names: Sequence[str]) -> tuple[str, ...]:
    """Have every adapter read into host memory; their digests."""
    return asyncio.run(_load_all(server, names))


async def _load_all(server: str, names: Sequence[str]) -> tuple[str, ...]:
    async with AsyncClient(server) as client:
        return tuple([(await client.load(name)).adapter.digest for name in names])


async def _look(server: str) -> tuple[tuple[str, ...], str]:
    """Names of a server's adapters, and its device."""
    async with AsyncClient(server) as client:
        return tuple([adapter.name async for adapter in client.list()]), (await client.base()).device
