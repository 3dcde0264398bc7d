"""`tests/faults/README.md` names a test for every fault, and every test that it names exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (\w+) \| .*? \| (.*) \|$", (TESTS / "faults" / "README.md").read_text("utf-8"), re.M
)
ROWS = [row for row in ROWS if row[0] != "fault"]
COUNTS = {"A": 12, "B": 8, "C": 5, "D": 5, "E": 15, "P": 3}


def test_every_fault_has_a_row() -> None:
    labels = {label for label, _ in ROWS}
    assert {f"{kind}{i}" for kind, n in COUNTS.items() for i in range(1, n + 1)} <= labels


@pytest.mark.parametrize(("label", "cell"), ROWS, ids=[label for label, _ in ROWS])
def test_a_fault_names_tests_that_exist(label: str, cell: str) -> None:
    names = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
    assert names, label
    for file, name in names:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text("utf-8"), re.M), name
