"""docs/method.md and the code name each other: every equation has its function and its source."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[4] / "docs" / "method.md").read_text(encoding="utf-8")
EQUATIONS = {
    int(number): text
    for number, text in re.findall(
        r"^\*\*\((\d+)\)\*\* (.*?)(?=^\*\*\(|^## |\Z)", PAGE, re.M | re.S
    )
}


def test_equations_are_numbered_without_gaps() -> None:
    assert list(EQUATIONS) == list(range(1, len(EQUATIONS) + 1))
    assert len(EQUATIONS) >= 39


@pytest.mark.parametrize("number", EQUATIONS)
def test_equation_has_a_source_and_a_function_that_names_it(number: int) -> None:
    text = EQUATIONS[number]
    head = text.partition(":")[0]
    names = re.findall(r"`(\w+)\.(\w+)`", head)
    assert names, "no function"
    for module, name in names:
        stage = "verdict" if module in ("matching", "shift_size") else "evidence"
        function = getattr(importlib.import_module(f"doublebind.stages.{stage}.{module}"), name)
        carried = re.findall(r"\. \[([\d, ]+)\]\.", function.__doc__)
        numbers = [int(part) for group in carried for part in group.split(",")]
        assert number in numbers, f"{module}.{name} does not carry [{number}]"
    if number not in (4, 6, 8):  # counting needs no source
        assert re.search(r"Sources?: ", text), "no source"
