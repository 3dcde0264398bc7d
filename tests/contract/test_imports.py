"""The import contracts hold, and the light entry points stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_LIGHT = """
import sys
{action}
heavy = sorted({{"pandas", "peft", "torch", "transformers"}} & set(sys.modules))
assert not heavy, f"imported: {{heavy}}"
"""
_IMPORT = "import doublebind"
_HELP = """
from doublebind.cli import main
try:
    code = main(["--help"])
except SystemExit as stop:
    code = stop.code
assert code in (None, 0), code
"""


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("action", [_IMPORT, _HELP], ids=["import", "help"])
def test_no_model_library_is_loaded(action: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT.format(action=action)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
