from __future__ import annotations

import pytest
from fakes import make_base

from server.core import BaseInfo
from server.metrics import Metrics


@pytest.fixture
def base() -> BaseInfo:
    return make_base(hidden_size=32, num_layers=3)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()
