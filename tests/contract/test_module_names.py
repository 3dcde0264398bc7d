"""No public name hides a package or module of the same dotted path."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

import doublebind

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(doublebind.__path__, "doublebind.")
    if not module.name.endswith("__main__")  # it would run
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported_by_its_path(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("doublebind"):
            raise
        pytest.skip(f"needs {error.name}")
    names: dict[str, object] = {}
    exec(f"import {name} as module", names)
    assert names["module"] is module is sys.modules[name]
    package, _, last = name.rpartition(".")
    exec(f"from {package} import {last} as attribute", names)
    assert names["attribute"] is module
