"""What strangers' bytes are read by, each as a function that raises nothing but our own errors, or is wrong.

Shared by the fuzzing in the suite and the longer one, `atheris_target.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from fakes import make_base
from google.protobuf.message import DecodeError

from adapterd.v1 import inference_pb2 as v1
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.fusions import fusion_config
from adapters_cache.formats.heads import canonical_head, read_head
from adapters_cache.formats.peft import is_peft
from adapters_cache.formats.peft_fields import canonical_peft
from adapters_cache.formats.pickles import read_pickle
from adapters_cache.formats.safe_file import parse_json, read_safetensors
from adapters_cache.formats.settle import settled
from adapters_cache.formats.setups import SETUP_CONFIG, read_setup
from adapters_cache.lowering import lower
from server.api.convert import to_request
from server.cli.settings import load_config
from server.composition import leaves, text_of
from server.config import ApiConfig
from server.errors import AdapterdError
from server.expression import parse
from server.tenants import read_tenants

BASE = make_base()
MAX_BYTES = 1 << 20


def expression(text: str) -> None:
    """One that is read is written as what can be read, and names the same adapters."""
    with suppress(AdapterdError):
        tree = parse(text)
        names = [leaf.adapter for leaf in leaves(tree)]
        assert [leaf.adapter for leaf in leaves(parse(text_of(tree)))] == names


def message(data: bytes) -> None:
    """A request off the wire, as far as it goes without a server."""
    with suppress(AdapterdError, DecodeError):
        to_request(v1.PredictRequest.FromString(data), ApiConfig(), None)


def configuration(data: bytes) -> None:
    """Every file of JSON that a folder may hold."""
    try:
        envelope = parse_json(data, "adapter_config.json")
    except AdapterdError:
        return
    for read in (_adapter, _peft, _head, fusion_config, _setup):
        with suppress(AdapterdError):
            read(envelope)


def _adapter(envelope: dict[str, Any]) -> None:
    canonical_config(envelope, has_invertible=True)
    config = settled(canonical_config(envelope, has_invertible=False), {})
    _lower(config)


def _peft(envelope: dict[str, Any]) -> None:
    config = canonical_peft(envelope)
    assert is_peft(envelope)
    _lower(config)


def _lower(config: dict[str, Any]) -> None:
    tensors = {"encoder.layer.0.attention.self.query.lora_A.weight": torch.zeros(2, BASE.hidden_size)}
    for found in ({}, tensors):
        with suppress(AdapterdError):
            lower(Checkpoint("x", BASE.model_type, BASE.hidden_size, config, found), BASE)


def _head(envelope: dict[str, Any]) -> None:
    read_head(envelope, {}, "x")
    config = canonical_head(envelope["config"])
    head = HeadCheckpoint("x", config, {})
    lower(Checkpoint("x", BASE.model_type, BASE.hidden_size, None, {}, head), BASE)


def _setup(envelope: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, SETUP_CONFIG).write_text(json.dumps(envelope))
        read_setup(Path(folder))


def tensors(data: bytes) -> None:
    """What is read can be used: finite, and no larger than the file."""
    with _file(data) as path, suppress(AdapterdError):
        found = read_safetensors(path, MAX_BYTES)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
        assert sum(tensor.numel() * tensor.element_size() for tensor in found.values()) <= len(data)


def pickled(data: bytes) -> None:
    with _file(data) as path, suppress(AdapterdError):
        found = read_pickle(path, MAX_BYTES, 10.0)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())


def settings(data: bytes) -> None:
    with _file(data) as path, suppress(AdapterdError):
        load_config(path, {})


def tenants(data: bytes) -> None:
    with _file(data) as path, suppress(AdapterdError):
        assert read_tenants(path)


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        yield path


def decoded(read: Callable[[str], None]) -> Callable[[bytes], None]:
    """A target for text, of bytes: those that are none are left out."""

    def of_bytes(data: bytes) -> None:
        with suppress(UnicodeDecodeError):
            read(data.decode())

    return of_bytes
