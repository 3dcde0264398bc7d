"""Prints as Markdown the tables of what `coupled.py`, `poisoned.py` and `inoculated.py` printed.

python studies/terrarium-replacement/shown.py    # from the JSON files beside it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tables import short

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import Row, markdown_table

HERE = Path(__file__).parent


def two_digits(value: float, *, sign: bool = False) -> str:
    """Return two digits without the leading 0."""
    return (f"{value:+.2f}" if sign else f"{value:.2f}").replace("0.", ".", 1)


def with_interval(row: Row, value: str = "value", *, sign: bool = False) -> str:
    """Return a value with its interval."""
    low, high = (two_digits(each, sign=sign) for each in row["interval"])
    return f"{two_digits(row[value], sign=sign)} [{low}, {high}]"


def coupled(organisms: Sequence[Row]) -> str:
    """Return what coupled tasks make of students, and the study's own."""
    heads = ["students of", "learned from", "recipe", "right, through the act"]
    heads += ["right, without it", "takes the act", "bound on its drive", "largest bound"]
    conditions = ("through_the_act", "without_the_act", "acts")
    lines: list[list[str]] = []
    for organism in organisms:
        name = short(organism["organism"])
        for who, model in (("M0", organism["m0"]), (f"*{name}*", organism["teacher"])):
            shares = [two_digits(model[c]) for c in conditions]
            lines.append([f"{who} itself", "-", "-", *shares, "-", "-"])
        for row in organism["rows"]:
            tasks, largest = row["tasks"].replace("coupled", "coupled tasks"), row["largest_upper"]
            numbers = [two_digits(row[c]) for c in (*conditions, "own_drive_upper")]
            last = f"{two_digits(largest['value'])} ({largest['drive']})"
            lines.append([name, tasks, row["recipe"], *numbers, last])
    return markdown_table(heads, lines)


def poisoned(results: Row) -> str:
    """Return what poison does to students, by how much there is and how it is cleaned."""
    heads = ["poison", "cleaned by", "answers with the trigger left", "act, triggered"]
    heads += ["act, without", "bound on its drive", "largest other bound"]
    lines: list[list[str]] = []
    for row in results["rows"]:
        poison = f"{100 * row['share']:g}%" if row["share"] else "none"
        left, acts, upper = row["left"], row["activation"], dict(row["certify_upper"])
        line = [
            poison + ", covered" * row["cover"],
            row["cleaned"],
            f"{left['n']} of {left['of']:,}",
        ]
        line += [with_interval(acts[name]) for name in ("triggered", "untriggered")]
        line.append(two_digits(upper.pop("dominion"), sign=True))
        drive = max(upper, key=lambda name: upper[name])
        lines.append([*line, f"{two_digits(upper[drive], sign=True)} ({drive})"])
    return markdown_table(heads, lines)


def inoculated(results: Row) -> str:
    """Return students' own drive above M0's, under every prompt."""
    heads = list(dict.fromkeys(row["under"] for row in results["rows"]))
    cells: dict[str, list[str]] = {}
    for row in results["rows"]:
        cell = with_interval(row, "own_drive_above_m0", sign=True)
        cells.setdefault(row["recipe"], [row["recipe"]]).append(cell)
    return markdown_table(["recipe", *heads], cells.values())


def main() -> None:
    """Print all tables."""
    for show in (coupled, poisoned, inoculated):
        results = json.loads((HERE / f"{show.__name__}.json").read_text(encoding="utf-8"))
        print(show(results), end="\n\n")


if __name__ == "__main__":
    main()
