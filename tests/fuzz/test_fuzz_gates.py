"""Files and texts that nobody has vouched for: our own errors come out of their readers, or a value, and nothing else.

The property itself stands in `targets.py`; here is what it is tried with.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import targets
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save

from adapters_cache.formats.heads import HEAD_FIELDS
from adapters_cache.formats.named import NAMED
from adapters_cache.formats.peft_fields import FIELDS
from adapters_cache.formats.schemas import SCHEMAS
from server.cli.settings import SECTIONS
from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig
from server.tenants import digest_of


def fuzzed(max_examples: int) -> hypothesis_settings:
    return hypothesis_settings(
        derandomize=True,
        max_examples=max_examples,
        deadline=5000,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


# expressions

names = st.sampled_from(["a", "b-1", "x/y", "Stack", "Fuse", "1e9", "0.5", "normalize=false", "é", ""])
options = st.lists(st.sampled_from(["1", "0", "-1", "nan", "1e400", "9" * 400, "normalize=true", "x"]), max_size=4)
blocks = st.sampled_from(["Stack", "Fuse", "Average", "Split", "Parallel", "MultiTask", "stack", ""])


def _block(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def written(block: str, inside: list[str], after: list[str]) -> str:
        return f"{block}({', '.join(inside)}{'; ' if after else ''}{', '.join(after)})"

    return st.builds(written, blocks, st.lists(children, max_size=4), options)


trees = st.recursive(names, _block, max_leaves=12)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[Any], pieces: st.SearchStrategy[Any]) -> Any:
    """Something valid with a stretch of it replaced."""
    value = draw(whole)
    start = draw(st.integers(0, len(value)))
    end = draw(st.integers(start, min(len(value), start + 16)))
    return value[:start] + draw(pieces) + value[end:]


@fuzzed(300)
@given(trees | damaged(trees, st.text(max_size=5)) | st.text(max_size=60))
@example("(" * 4096)
@example("Stack(" * 600 + "a" + ")" * 600)
@example("Split(a, b; " + "9" * 4000 + ")")
@example("Average(a, b; 1e308, 1e308)")
def test_expressions(text: str) -> None:
    targets.expression(text)


@fuzzed(200)
@given(st.binary(max_size=80))
def test_messages(data: bytes) -> None:
    targets.message(data)


# configurations

KEYS = sorted(
    {"config", "name", "version", "model_type", "hidden_size", "label2id", "num_labels", "architecture", "configs"}
    | {"adapter_setup", "head_setup", "type", "children", "kwargs", "adapter_names", "peft_type", "head_type"}
    | {"invertible_adapter", "model_class", "text_task"}
)
LITERALS: list[Any] = [0, -1, 1, 4, 10**6, 10**12, 1e300, 5e-324, True, False, None, "", "learned", "all", "gelu"]
LITERALS += ["adapters.1.0", "adapters." + "9" * 5000 + ".1", "\ud800", "9" * 5000, [], {}, [10**12], {"0": 2, "x": 1}]
scalars = st.sampled_from(LITERALS) | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inside, max_size=5)
    ),
    max_leaves=15,
)


def _config_of(fields: Mapping[str, Any], **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of a method with values that may fit."""
    values = st.dictionaries(st.sampled_from(sorted(fields)), scalars | anything, max_size=4)
    defaults = {
        name: field.default for name, field in fields.items() if not isinstance(field.default, object.__class__)
    }
    good = {name: value for name, value in defaults.items() if isinstance(value, bool | int | float | str | list)}
    return st.builds(lambda changes: {**good, **changes, **fixed}, values)


methods = st.one_of(
    *(_config_of(schema.fields, architecture=name) for name, schema in SCHEMAS.items()),
    *(_config_of(fields, head_type=name) for name, fields in HEAD_FIELDS.items()),
    st.builds(lambda members: {"architecture": "union", "configs": members}, st.lists(anything, max_size=3)),
)
named = st.builds(
    lambda name, key, value: f"{name}[{key}={value}]",
    st.sampled_from(sorted(NAMED)),
    st.sampled_from(["reduction_factor", "r", "leave_out", "alpha", "x"]),
    st.sampled_from(["0", "1e999", "nan", "9" * 5000, "]", "[1,2]", "true"]),
)
envelopes = st.builds(
    lambda config, rest: {"config": config, **rest},
    methods | named | damaged(named, st.text(max_size=3)) | anything,
    st.dictionaries(st.sampled_from(KEYS), scalars, max_size=3),
)
pefts = st.one_of(*(_config_of(fields, peft_type=name) for name, fields in FIELDS.items()))


@fuzzed(400)
@given(envelopes | pefts | anything)
@example({"config": {"head_type": "classification", "num_labels": 10**12}})
@example({"config": {"architecture": "lora"}, "version": "adapters." + "9" * 5000 + ".0"})
@example({"peft_type": "LORA", "target_modules": "(((a+)+)+)+$"})
def test_configurations(value: Any) -> None:
    targets.configuration(json.dumps(value).encode())


@fuzzed(200)
@given(damaged(st.builds(lambda value: json.dumps(value).encode(), envelopes), st.binary(max_size=6)))
@example(b"[" * 100_000)
@example(b'{"config":' + b'{"a":' * 900 + b"1" + b"}" * 901)
@example(b'{"config": ' + b"9" * 5000 + b"}")
@example(b'{"\\ud800": 1}')
def test_damaged_configurations(data: bytes) -> None:
    targets.configuration(data)


# settings and tenants

toml_values = st.sampled_from(
    ["0", "-1", "1", "nan", "inf", "1e400", "true", "''", "[]", "['a']", "{}", "[[]]", "1979-05-27", "'\\u0000'"]
    + ["'/etc'", "9223372036854775807", "99999999999999999999", "0x7fffffff", "['x'", "'*=1'", "['a=b']"]
)


def _toml(tables: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    line = st.builds(lambda key, value: f"{key} = {value}\n", keys, toml_values)
    table = st.builds(lambda name, lines: f"[{name}]\n{''.join(lines)}", tables, st.lists(line, max_size=4))
    return st.builds(lambda parts: "".join(parts).encode(), st.lists(table, max_size=3))


settings_files = _toml(
    st.sampled_from([*SECTIONS, "x", "model.base"]),
    st.sampled_from(
        [name for kind in (ModelConfig, CacheConfig, SchedulerConfig, ApiConfig) for name in kind.__slots__]
        + ["x", "a.b"]
    ),
)
tenants_files = _toml(
    st.sampled_from(["acme", "beta", "'a b'", "anyone", "nobody", "''", "a.b", "'" + "x" * 65 + "'"]),
    st.sampled_from(
        ["adapters", "shared", "weight", "can_load", "max_pins", "max_in_flight", "name", "index", "x", "subjects"]
    )
    | st.just(f"credentials = ['sha256:{digest_of('x')}']\nweight"),
)


@fuzzed(200)
@given(settings_files | damaged(settings_files, st.binary(max_size=6)) | st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b"[api]\nport = " + b"9" * 5000)
def test_settings(data: bytes) -> None:
    targets.settings(data)


@fuzzed(200)
@given(tenants_files | damaged(tenants_files, st.binary(max_size=6)) | st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b"x = " + b"[" * 100_000)
@example(b"[a]\nweight = " + b"9" * 5000)
def test_tenants(data: bytes) -> None:
    targets.tenants(data)


# tensors

GOOD = save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)})
numbers = st.integers(-2, 40) | st.sampled_from([1 << 31, 1 << 63, 1 << 64, 10**30, True, 1.5, None, "1"])
entries = st.builds(
    lambda dtype, shape, offsets: {"dtype": dtype, "shape": shape, "data_offsets": offsets},
    st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "F8_E4M3", "BOOL", "", None, []]),
    st.lists(numbers, max_size=3) | st.just([1] * 100) | numbers,
    st.lists(numbers, max_size=3) | numbers,
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "\ud800", ""]), entries | anything, max_size=3)


@st.composite
def tensor_files(draw: st.DrawFn) -> bytes:
    text = json.dumps(draw(headers)).encode()
    length = draw(st.just(len(text)) | st.integers(0, (1 << 64) - 1) | st.integers(0, 200))
    return struct.pack("<Q", length) + text + draw(st.binary(max_size=40))


@st.composite
def honest_files(draw: st.DrawFn) -> bytes:
    """Sizes that agree with each other; the rest is by chance."""
    header, at = {}, 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4)):
        shape = draw(st.lists(st.integers(0, 3), max_size=9))
        size = 4 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + draw(st.just(bytes(at)) | st.binary(min_size=min(at, 64), max_size=64))


@fuzzed(400)
@given(tensor_files() | honest_files() | damaged(st.just(GOOD), st.binary(max_size=8)) | st.binary(max_size=60))
def test_tensor_files(data: bytes) -> None:
    targets.tensors(data)


def _bin(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


BINS = st.sampled_from([_bin({"a": torch.ones(2, 3)}), _bin({"a": {"b": 1}}), _bin([1, 2])])


@fuzzed(60)
@given(damaged(BINS, st.binary(max_size=6)) | st.binary(max_size=60))
def test_pickled_files(data: bytes) -> None:
    targets.pickled(data)


@pytest.mark.parametrize("depth", range(1, 1200, 13))
def test_nested_configurations_of_any_depth(depth: int) -> None:
    for field in ("config", "version", "name", "label2id", "adapter_setup", "head_setup", "peft_type"):
        targets.configuration(b'{"%s": %s}' % (field.encode(), b"[" * depth + b"1" + b"]" * depth))
