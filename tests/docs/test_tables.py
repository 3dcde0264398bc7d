"""Tables in a study's README are what the command beside them prints of what it keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "terrarium-replacement"


@pytest.mark.parametrize(
    "command",
    [
        ("tables.py", "expected.json"),
        ("tables.py", "coupled.json", "poisoned.json", "inoculated.json"),
    ],
)
def test_a_readme_shows_what_its_commands_print(command: tuple[str, ...]) -> None:
    printed = subprocess.run(
        [sys.executable, *command], cwd=STUDY, capture_output=True, text=True, check=True
    )
    tables = printed.stdout.strip().split("\n\n")
    assert len(tables) >= 3
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    for table in tables:
        assert table in readme
