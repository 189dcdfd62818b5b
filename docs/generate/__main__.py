"""Writes docs/reference from what it describes: protos, the HTTP port's schema, settings, the command line."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reference import generated
from reference_text import ROOT

for path, text in generated():
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(ROOT))
