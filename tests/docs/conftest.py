"""A folder that looks like a checkout to whoever reads the docs, with a store of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; what its readers make is shared, so that each teacher is built once."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("studies", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "store").mkdir()
    return folder


@pytest.fixture
def here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout, as the current folder."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("DOUBLEBIND_STORE", str(checkout / "store"))
    return checkout
