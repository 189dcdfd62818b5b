"""What stands for the hub: small random models and adapters under the names of real ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1] / "adapters_cache"))

from hub_server import Repository, hub_server
from make_adapters import make_adapter
from make_bases import save_base
from make_tokenizer import save_tokenizer

from server.config import ModelConfig
from server.model.base import load_base

ROBERTA = "FacebookAI/roberta-base"
IMDB = "AdapterHub/roberta-base-pf-imdb"


@contextmanager
def hub_address() -> Iterator[str]:
    with TemporaryDirectory() as folder, hub_server() as hub:
        base = save_tokenizer(save_base(Path(folder) / "base", "roberta"))
        info = load_base(ModelConfig(base=str(base), device="cpu")).info
        head = {"head_type": "classification", "num_labels": 2, "label2id": {"positive": 0, "negative": 1}}
        make_adapter(Path(folder) / "imdb", info, config="seq_bn[reduction_factor=4]", head=head)
        for name, files in ((ROBERTA, base), (IMDB, Path(folder) / "imdb")):
            hub.repositories[name] = Repository()
            hub.repositories[name].commit({path.name: path.read_bytes() for path in files.iterdir()})
        yield hub.address
