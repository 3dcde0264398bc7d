"""Fixtures of the audit tests: a tiny model, its items, and stand-ins whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_models import save_model
from tests.tiny_study import write_pack


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model `m0` and a pack `pack`."""
    folder = tmp_path_factory.mktemp("audit")
    save_model(folder / "m0")
    write_pack(folder / "pack")
    return folder
