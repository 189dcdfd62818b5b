"""A small random base of each family, loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from make_bases import MODELS, save_base

from server.config import ModelConfig
from server.model.base import Base, load_base


@pytest.fixture(params=list(MODELS))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Base]:
    yield load_base(ModelConfig(base=str(save_base(tmp_path, request.param)), device="cpu"))
