"""Settings and fixtures shared by every test."""

import os

# Before anything imports torch: idle OpenMP threads must not spin beside worker processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import sys
from pathlib import Path

import pytest

N_THREADS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="Rewrite the golden files instead of comparing with them.",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    for item in items:
        if offline and item.get_closest_marker("network"):
            item.add_marker(pytest.mark.skip(reason="HF_HUB_OFFLINE=1"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


def pytest_runtest_setup() -> None:
    """Caps torch's threads once something has imported it; never imports it itself."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != N_THREADS:
        torch.set_num_threads(N_THREADS)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when this run should rewrite the golden files."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def store_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, also set as `$DOUBLEBIND_STORE`, so that no test touches the user's own."""
    path = tmp_path / "store"
    path.mkdir()
    monkeypatch.setenv("DOUBLEBIND_STORE", str(path))
    return path


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
