"""Fixtures of the audit tests: a tiny model with a pack, and an environment without Inspect."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
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


@pytest.fixture
def without_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make imports that need Inspect fail, as where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "inspect_ai.util", None)
    monkeypatch.setitem(sys.modules, "doublebind.stages.audits.harness.inspect_provider", None)


@pytest.fixture
def collect_garbage() -> Iterator[None]:
    """Let what Inspect leaves open warn at the end of its test, where the warning is ignored."""
    yield
    gc.collect()
