"""The import contracts hold, no modules import each other in a circle, entry points stay light."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
_LOADED = """
import sys
{action}
heavy = {heavy} & set(sys.modules)
assert not heavy, f"imported: {{sorted(heavy)}}"
"""
_HELP = """
from doublebind.cli.main import main
try:
    code = main(["--help"])
except SystemExit as stop:
    code = stop.code
assert code in (None, 0), code
"""
_MODEL_LIBRARIES = {"pandas", "peft", "torch", "transformers"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_contracts_hold() -> None:
    result = run(Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("doublebind", cache_dir=None)
    # A package imports names from its own modules; only imports of other modules count.
    imports = {
        module: {
            other
            for other in graph.find_modules_directly_imported_by(module)
            if not module.startswith(f"{other}.")
        }
        for module in graph.modules
    }
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("action", "heavy"),
    [
        ("import doublebind", {*_MODEL_LIBRARIES, "scipy"}),
        (_HELP, _MODEL_LIBRARIES),
    ],
    ids=["import", "help"],
)
def test_no_heavy_library_is_loaded(action: str, heavy: set[str]) -> None:
    result = run(sys.executable, "-c", _LOADED.format(action=action, heavy=heavy))
    assert result.returncode == 0, result.stderr


def test_the_command_line_is_a_module() -> None:
    result = run(sys.executable, "-m", "doublebind.cli", "--version")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("doublebind ")
