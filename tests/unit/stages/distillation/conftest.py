"""Shares one tiny world among these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_world import World, make_world

from doublebind.execution.store import Store


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What `make_world` makes, once."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def fresh(world: World, tmp_path: Path) -> Callable[[], World]:
    """The same world with an empty store."""
    return lambda: world._replace(store=Store(tmp_path / "store"))
