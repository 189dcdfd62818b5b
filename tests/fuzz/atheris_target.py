"""Fuzzing guided by coverage, for as long as one likes: the functions of `targets.py` under libFuzzer.

    python tests/fuzz/atheris_target.py expression [-max_total_time=60] [-runs=N] [CORPUS_FOLDER]

Needs the package atheris (`pip install adapterd[fuzz]`). What follows the target's name is libFuzzer's.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ENTRY = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
SEEDS = {  # to begin with: what is valid takes long to come upon
    "expression": (
        b"a",
        b"Stack(a, b)",
        b"Average(a, b; 0.3, normalize=false)",
        b"Split(a, b; 3, 5)",
        b"Fuse(a, b; a,b)",
    ),
    "config": (
        b'{"config":{"mh_adapter":true,"output_adapter":true,"reduction_factor":4,"non_linearity":"relu"}}',
        b'{"config":"seq_bn[reduction_factor=2]|lora[r=4]","version":"adapters.1.0"}',
        b'{"config":{"architecture":"lora","r":2,"alpha":1.5},"version":"adapters.1.0.1"}',
        b'{"config":{"head_type":"classification","num_labels":2,"label2id":{"a":0,"b":1}}}',
        b'{"peft_type":"LORA","target_modules":["query"],"r":2,"rank_pattern":{"x.*":3}}',
        b'{"adapter_setup":{"type":"Stack","children":["a","b"],"kwargs":{}},"head_setup":null}',
    ),
    "safetensors": (b"\x00" * 8, b"\x36\0\0\0\0\0\0\0" + b'{"a":' + _ENTRY + b"}" + bytes(8)),
    "tenants": (b"[a]\nsubjects = ['x']\nadapters = ['a-*']\nweight = 2.0\ncan_load = true\nmax_pins = 1\n",),
    "settings": (b"[api]\nport = 0\nhost = 'x'\n[cache]\nadapters = ['x']\nwatch_s = 1.0\n",),
    "message": (b"\n\x06intent\x12\x05\n\x03\n\x01x\x1a\x02\x08\x03",),
}
TARGETS = tuple(SEEDS)
# Whose branches lead the way. Libraries are left out: they would be slow, and are not ours.
INSTRUMENTED = ("adapters_cache", "server")


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in TARGETS:
        asked = arguments[:1] in (["-h"], ["--help"])
        print(f"{__doc__}\nTargets: {', '.join(TARGETS)}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        atheris = import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install 'adapterd[fuzz]'", file=sys.stderr)
        return 2
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    target = _target(arguments[0], atheris)
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[arguments[0]]):
            Path(folder, str(number)).write_bytes(seed)
        own = [argument for argument in arguments[1:] if not argument.startswith("-")]
        rest = [argument for argument in arguments[1:] if argument.startswith("-")]
        atheris.Setup([sys.argv[0], *rest, *own, folder], target)  # what is found goes to the first folder
        atheris.Fuzz()
    return 0


def _target(name: str, atheris: object) -> Callable[[bytes], None]:
    import_module("torch")  # and what else is large, before anything is instrumented
    import_module("transformers")
    with atheris.instrument_imports(include=list(INSTRUMENTED)):  # type: ignore[attr-defined]
        targets = import_module("targets")
    found: dict[str, Callable[[bytes], None]] = {
        "expression": targets.decoded(targets.expression),
        "config": targets.configuration,
        "safetensors": targets.tensors,
        "tenants": targets.tenants,
        "settings": targets.settings,
        "message": targets.message,
    }
    return found[name]


if __name__ == "__main__":
    sys.exit(main())
