"""Adapter folders that somebody wrote to do harm. Each function writes one; none of them may be served.

All begin as a good adapter with a head, of which one thing is broken.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from make_adapters import make_adapter, random_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from adapters_cache.formats.adapterhub import ADAPTER_CONFIG, ADAPTER_FILES, HEAD_CONFIG, HEAD_FILES, write_checkpoint
from server.core import BaseInfo

MAX_BYTES = 8 << 20  # what a server that is given these should take per file
WEIGHTS, PICKLE = ADAPTER_FILES
HEAD_WEIGHTS = HEAD_FILES[0]
CONFIG = "seq_bn[reduction_factor=4]"
HEAD = {"head_type": "classification", "num_labels": 3}
MARKER = "executed"  # beside the folder of adapters, should code have run
SECRET = "/etc/passwd"

Write = Callable[[Path, BaseInfo], None]
Break = Callable[[Path], None]
KINDS: dict[str, Write] = {}
ABSENT: set[str] = set()  # kinds that are no adapter's folder at all


def kind(break_it: Break) -> Break:
    """Register what breaks a good folder."""

    @functools.wraps(break_it)
    def write(folder: Path, base: BaseInfo) -> None:
        make_adapter(folder, base, config=CONFIG, head=HEAD)
        break_it(folder)

    KINDS[break_it.__name__] = write
    return break_it


def absent(break_it: Break) -> Break:
    """Register what leaves no adapter's folder behind."""
    ABSENT.add(break_it.__name__)
    return kind(break_it)


def of_base(write: Write) -> Write:
    """Register what needs to know the base."""
    KINDS[write.__name__] = write
    return write


def place(name: str, folder: Path, base: BaseInfo) -> None:
    """Put a folder of that kind where a server may be looking: at once, for it was good for a moment."""
    aside = folder.parent.parent / "aside" / folder.name
    KINDS[name](aside, base)
    aside.rename(folder)


# pickles


class _Runs:
    def __init__(self, folder: Path) -> None:
        self.marker = folder.parent.parent / MARKER

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def _state(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / WEIGHTS)


def _pickled(folder: Path, state: object, **options: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / PICKLE, **options)


@kind
def pickle_runs_code(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).write_bytes(pickle.dumps(_Runs(folder)))


@kind
def pickle_runs_code_among_tensors(folder: Path) -> None:
    _pickled(folder, _state(folder) | {"nested": {"deeper": _Runs(folder)}})


@kind
def pickle_runs_code_in_the_legacy_format(folder: Path) -> None:
    _pickled(folder, {"weight": _Runs(folder)}, _use_new_zipfile_serialization=False)


@kind
def pickle_runs_code_in_a_zip_with_more_members(folder: Path) -> None:
    _pickled(folder, {"weight": _Runs(folder)})
    with zipfile.ZipFile(folder / PICKLE, "a") as file:
        file.writestr("archive/../../../escaped", "x")
        file.writestr("pytorch_adapter/code/__torch__.py", "raise SystemExit")


@kind
def pickle_imports_by_name(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    command = f"touch {folder.parent.parent / MARKER}"
    (folder / PICKLE).write_bytes(b"cposix\nsystem\n(V" + command.encode() + b"\ntR.")


@kind
def zip_bomb(folder: Path) -> None:
    """The storage's 64 MiB of zeros are 64 KiB in the file."""
    numel = 16 << 20
    _pickled(folder, {"weight": torch.zeros(numel)})
    plain, packed = folder / PICKLE, folder / "packed"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    packed.replace(plain)
    assert plain.stat().st_size < 1 << 20


@kind
def pickled_tensor_declares_more_than_its_storage(folder: Path) -> None:
    _pickled(folder, {"weight": torch.zeros(2, 3)})
    path = folder / PICKLE
    whole = path.read_bytes()  # sizes stand in the pickle as small integers: K\x02K\x03
    path.write_bytes(whole.replace(b"K\x02K\x03\x86", b"K\xffK\xff\x86"))


@kind
def pickled_tensor_of_stride_zero(folder: Path) -> None:
    _pickled(folder, {"weight": torch.zeros(1).expand(1 << 40)})


@kind
def pickle_of_nested_lists(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).write_bytes(b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")


@kind
def pickle_that_doubles_its_stack(folder: Path) -> None:
    """Each step makes a tuple that holds the one before twice: 2**60 leaves to whoever walks it."""
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).write_bytes(b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x00.")


# safetensors


def _raw(folder: Path, header: object, data: bytes = b"", header_bytes: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + text + data)


def _parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of the good file."""
    whole = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _with_entry(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """One tensor of the good file described otherwise."""
    header, data = _parts(folder)
    key = min(name for name in header if name != "__metadata__")
    _raw(folder, header | {key: header[key] | change(header[key])}, data)


@kind
def header_of_more_than_a_mebibyte(folder: Path) -> None:
    header, data = _parts(folder)
    _raw(folder, json.dumps(header).encode() + b" " * (2 << 20), data)


@kind
def header_of_2_to_63_bytes(folder: Path) -> None:
    _raw(folder, *_parts(folder), header_bytes=1 << 63)


@kind
def header_longer_than_the_file(folder: Path) -> None:
    _raw(folder, {}, header_bytes=1 << 19)


@kind
def overlapping_tensors(folder: Path) -> None:
    _raw(folder, {"a": _entry("F32", [2], 0, 8), "b": _entry("F32", [2], 4, 12)}, bytes(12))


@kind
def hole_between_tensors(folder: Path) -> None:
    _raw(folder, {"a": _entry("F32", [1], 0, 4), "b": _entry("F32", [1], 8, 12)}, bytes(12))


@kind
def trailing_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more")


@kind
def truncated_data(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


@kind
def tensor_twice_in_the_header(folder: Path) -> None:
    header, data = _parts(folder)
    key = json.dumps(min(header))
    text = json.dumps(header)
    _raw(folder, f"{{{key}: {json.dumps(_entry('F32', [0], 0, 0))}, {text[1:]}".encode(), data)


@kind
def deeply_nested_header(folder: Path) -> None:
    _raw(folder, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@kind
def two_hundred_thousand_tensors_of_size_zero(folder: Path) -> None:
    header, data = _parts(folder)
    _raw(folder, header | {f"t{index}": _entry("F32", [0], 0, 0) for index in range(200_000)}, data)


@kind
def as_many_small_tensors_as_a_header_holds(folder: Path) -> None:
    header, data = _parts(folder)
    _raw(folder, header | {f"{index}": _entry("F32", [0], 0, 0) for index in range(16_000)}, data)


@kind
def integers_for_weights(folder: Path) -> None:
    save_file({key: tensor.to(torch.int32) for key, tensor in _state(folder).items()}, folder / WEIGHTS)


@kind
def dtype_that_does_not_exist(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"dtype": "F31"})


@kind
def dtype_that_is_a_list(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"dtype": [["F32"]]})


@kind
def shape_whose_product_overflows(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"shape": [1 << 33, 1 << 31, *entry["shape"]]})


@kind
def shape_that_overflows_to_nothing(folder: Path) -> None:
    """2**64 elements of which a machine word holds 0, and no bytes."""
    header, data = _parts(folder)
    _raw(folder, header | {"wide": _entry("F32", [1 << 32, 1 << 32], 0, 0)}, data)


@kind
def negative_shape(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"shape": [-size for size in entry["shape"]]})


@kind
def offsets_beyond_the_file(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"data_offsets": [at + (1 << 40) for at in entry["data_offsets"]]})


@kind
def offsets_that_run_backwards(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"data_offsets": entry["data_offsets"][::-1]})


@kind
def shape_of_ten_thousand_dimensions(folder: Path) -> None:
    _with_entry(folder, lambda entry: {"shape": [1] * 10_000 + entry["shape"]})


def _rewritten(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    save_file(dict(change(_state(folder))), folder / WEIGHTS)


def _with_value(folder: Path, value: float) -> None:
    state = _state(folder)
    state[max(state)].view(-1)[-1] = value
    save_file(state, folder / WEIGHTS)


@kind
def nan_among_the_weights(folder: Path) -> None:
    _with_value(folder, float("nan"))


@kind
def infinity_among_the_weights(folder: Path) -> None:
    _with_value(folder, float("-inf"))


@kind
def double_beyond_the_range_of_floats(folder: Path) -> None:
    """Finite in the file, infinite where it would be served."""
    _rewritten(folder, lambda state: {key: tensor.double() + 1e300 for key, tensor in state.items()})


@kind
def missing_tensor(folder: Path) -> None:
    _rewritten(folder, lambda state: {key: state[key] for key in sorted(state)[1:]})


@kind
def surplus_tensor(folder: Path) -> None:
    _rewritten(folder, lambda state: state | {"encoder.layer.0.attention.self.query.weight": torch.zeros(2, 2)})


@kind
def tensor_named_like_a_path(folder: Path) -> None:
    _rewritten(folder, lambda state: state | {"../../../escaped": torch.zeros(2)})


@kind
def tensor_of_another_adapter(folder: Path) -> None:
    own = f".{folder.name}."
    _rewritten(folder, lambda state: {key.replace(own, ".intent."): tensor for key, tensor in state.items()})


@kind
def layer_number_of_five_thousand_digits(folder: Path) -> None:
    _rewritten(folder, lambda state: state | {f"encoder.layer.{'9' * 5000}.x": torch.zeros(2)})


@kind
def tensor_name_that_is_no_unicode(folder: Path) -> None:
    header, data = _parts(folder)
    _raw(folder, header | {"\ud800": _entry("F32", [0], 0, 0)}, data)


@of_base
def wider_than_its_configuration_says(folder: Path, base: BaseInfo) -> None:
    make_adapter(folder, base, config="seq_bn[reduction_factor=2]", head=HEAD)
    _configured(folder, reduction_factor=4)


@of_base
def tensors_of_a_wider_base(folder: Path, base: BaseInfo) -> None:
    """Each size agrees with the others, and none with the base."""
    checkpoint = random_checkpoint(base, config=CONFIG, head=HEAD, name=folder.name)
    wide = {
        key: torch.nn.functional.pad(tensor, [0, base.hidden_size]) if "down" in key and tensor.ndim == 2 else tensor
        for key, tensor in checkpoint.tensors.items()
    }
    assert isinstance(checkpoint.tensors, dict)
    checkpoint.tensors.update(wide)
    write_checkpoint(folder, checkpoint, base)


# configurations


def _changed(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def _configured(folder: Path, **values: Any) -> None:
    _changed(folder, ADAPTER_CONFIG, lambda content: content["config"].update(values))


def _headed(folder: Path, **values: Any) -> None:
    _changed(folder, HEAD_CONFIG, lambda content: content["config"].update(values))


def _text(folder: Path, change: Callable[[str], str]) -> None:
    (folder / ADAPTER_CONFIG).write_text(change((folder / ADAPTER_CONFIG).read_text()))


@kind
def configuration_that_is_not_json(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_bytes(b"\x00\xff{!r}" + os.urandom(64))


@kind
def configuration_too_deep_to_parse(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_text('{"config":' + "[" * 100_000 + "]" * 100_000 + "}")


@kind
def configuration_just_deep_enough_to_parse(folder: Path) -> None:
    """What parses it has more stack left than what shows its value."""
    deep: object = "x"
    for _ in range(900):
        deep = [deep]
    _configured(folder, reduction_factor=deep)


@kind
def configuration_with_one_key_twice(folder: Path) -> None:
    _text(folder, lambda text: text.replace('"hidden_size"', '"hidden_size": 1, "hidden_size"'))


@kind
def configuration_of_ten_megabytes(folder: Path) -> None:
    _text(folder, lambda text: text + " " * (10 << 20))


@kind
def nan_in_the_configuration(folder: Path) -> None:
    _configured(folder, scaling=float("nan"))


@kind
def infinity_in_the_configuration(folder: Path) -> None:
    _configured(folder, reduction_factor=float("inf"))


@kind
def number_that_becomes_infinite(folder: Path) -> None:
    _text(folder, lambda text: text.replace('"scaling": 1.0', '"scaling": 1e999'))


@kind
def number_of_five_thousand_digits(folder: Path) -> None:
    _text(folder, lambda text: text.replace('"scaling": 1.0', f'"scaling": {"9" * 5000}'))


@kind
def version_of_five_thousand_digits(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["version"] = f"adapters.{'9' * 5000}.0"
        content["config"] = {"architecture": "lora"}

    _changed(folder, ADAPTER_CONFIG, change)


@kind
def unknown_architecture(folder: Path) -> None:
    _configured(folder, architecture="os.system")


@kind
def architecture_that_is_an_object(folder: Path) -> None:
    _configured(folder, architecture={"lora": []})


@kind
def union_of_itself(folder: Path) -> None:
    _configured(folder, architecture="union", configs=[{"architecture": "union", "configs": []}] * 1000)


@kind
def reduction_factor_of_zero(folder: Path) -> None:
    _configured(folder, reduction_factor=0)


@kind
def negative_reduction_factor(folder: Path) -> None:
    _configured(folder, reduction_factor=-4)


@kind
def huge_reduction_factor(folder: Path) -> None:
    _configured(folder, reduction_factor=1e300)


@kind
def tiny_reduction_factor(folder: Path) -> None:
    _configured(folder, reduction_factor=1e-300)


@kind
def reduction_factor_that_is_text(folder: Path) -> None:
    _configured(folder, reduction_factor="4")


@kind
def configuration_that_is_a_list(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_text("[]")


@kind
def method_that_is_a_list(folder: Path) -> None:
    _changed(folder, ADAPTER_CONFIG, lambda content: content.update(config=[1, 2, 3]))


@kind
def field_name_that_is_no_unicode(folder: Path) -> None:
    _configured(folder, **{"\ud800": 1})


@kind
def value_that_is_no_unicode(folder: Path) -> None:
    _changed(folder, ADAPTER_CONFIG, lambda content: content.update(model_type="\udfff"))


@kind
def peft_pattern_that_never_ends(folder: Path) -> None:
    peft = {"peft_type": "LORA", "target_modules": "((a+)+)+$", "r": 2, "lora_alpha": 2}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(peft))
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")


# heads


@kind
def negative_number_of_labels(folder: Path) -> None:
    _headed(folder, num_labels=-3)


@kind
def huge_number_of_labels(folder: Path) -> None:
    """Names for all of them would fill the memory of any machine."""
    _headed(folder, num_labels=10**12, label2id=None)


@kind
def huge_number_of_choices(folder: Path) -> None:
    _changed(folder, HEAD_CONFIG, lambda content: content.update(config=_choices(10**12)))


def _choices(number: int) -> dict[str, Any]:
    return {"head_type": "multiple_choice", "num_choices": number}


@kind
def huge_number_of_head_layers(folder: Path) -> None:
    _headed(folder, layers=10**12)


@kind
def labels_that_share_an_index(folder: Path) -> None:
    _headed(folder, label2id={"a": 0, "b": 0, "c": 1})


@kind
def label_beyond_the_last(folder: Path) -> None:
    _headed(folder, label2id={"a": 0, "b": 1, "c": 3})


@kind
def label_that_is_no_unicode(folder: Path) -> None:
    _headed(folder, label2id={"\ud800": 0, "b": 1, "c": 2})


@kind
def unknown_kind_of_head(folder: Path) -> None:
    _headed(folder, head_type="eval")


@kind
def head_in_a_folder_whose_name_cannot_be_read(folder: Path) -> None:
    odd = os.path.join(os.fsencode(folder), b"\xff\xfe\n")
    os.mkdir(odd)
    with open(os.path.join(odd, HEAD_CONFIG.encode()), "wb") as file:
        file.write(b"{")


# files that are none


def _instead(folder: Path, file: str) -> Path:
    (folder / file).unlink()
    return folder / file


@kind
def configuration_links_to_a_secret(folder: Path) -> None:
    _instead(folder, ADAPTER_CONFIG).symlink_to(SECRET)


@kind
def head_configuration_links_to_a_secret(folder: Path) -> None:
    _instead(folder, HEAD_CONFIG).symlink_to(SECRET)


@kind
def weights_link_to_a_secret(folder: Path) -> None:
    _instead(folder, WEIGHTS).symlink_to(SECRET)


@kind
def pickle_links_to_a_secret(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).symlink_to(SECRET)


@kind
def weights_link_to_themselves(folder: Path) -> None:
    _instead(folder, WEIGHTS).symlink_to(WEIGHTS)


@kind
def weights_link_to_endless_zeros(folder: Path) -> None:
    _instead(folder, WEIGHTS).symlink_to("/dev/zero")


@kind
def weights_are_a_pipe(folder: Path) -> None:
    os.mkfifo(_instead(folder, WEIGHTS))


@kind
def pickle_is_a_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / PICKLE)


@kind
def weights_are_a_folder(folder: Path) -> None:
    _instead(folder, WEIGHTS).mkdir()


@kind
def head_weights_are_a_pipe(folder: Path) -> None:
    os.mkfifo(_instead(folder, HEAD_WEIGHTS))


@kind
def weights_of_no_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@kind
def sparse_weights_of_a_terabyte(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 1 << 40)


@absent
def configurations_are_pipes(folder: Path) -> None:
    for file in (ADAPTER_CONFIG, HEAD_CONFIG):
        os.mkfifo(_instead(folder, file))


@absent
def configurations_are_folders(folder: Path) -> None:
    for file in (ADAPTER_CONFIG, HEAD_CONFIG):
        _instead(folder, file).mkdir()


@absent
def configurations_link_to_endless_zeros(folder: Path) -> None:
    for file in (ADAPTER_CONFIG, HEAD_CONFIG):
        _instead(folder, file).symlink_to("/dev/zero")


@absent
def folder_is_a_pipe(folder: Path) -> None:
    shutil.rmtree(folder)
    os.mkfifo(folder)


@absent
def folder_links_to_itself(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


# Names that folders may have and adapters may not.
NAMES = (
    "-leading",
    ".hidden",
    "base",
    "has space",
    "new\nline",
    "ünïcode",
    "x" * 200,
    "semi;colon",
    "$(touch executed)",
    "back\\slash",
    "trailing,",
    "intent(",
)
