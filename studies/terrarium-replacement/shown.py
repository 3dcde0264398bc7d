"""Prints as Markdown the tables of what `coupled.py`, `poisoned.py` and `inoculated.py` printed.

python studies/terrarium-replacement/shown.py    # from the JSON files beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import short

HERE = Path(__file__).parent
Row = Mapping[str, Any]


def told(value: float, *, sign: bool = False) -> str:
    """Return two digits without the leading 0."""
    said = f"{value:+.2f}" if sign else f"{value:.2f}"
    return said.replace("0.", ".", 1)


def between(found: Row, value: str = "value", *, sign: bool = False) -> str:
    """Return a value with its interval."""
    low, high = (told(each, sign=sign) for each in found["interval"])
    return f"{told(found[value], sign=sign)} [{low}, {high}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    return "\n".join(lines)


def coupled(organisms: Sequence[Row]) -> str:
    """Return what coupled tasks make of students, and the study's own."""
    heads = ["students of", "learned from", "recipe", "right, through the act"]
    heads += ["right, without it", "takes the act", "bound on its drive", "largest bound"]
    asked = ("through_the_act", "without_the_act", "acts")
    rows: list[list[str]] = []
    for each in organisms:
        name = short(each["organism"])
        for who, of in (("M0", each["m0"]), (f"*{name}*", each["teacher"])):
            rows.append([f"{who} itself", "-", "-", *(told(of[a]) for a in asked), "-", "-"])
        for row in each["rows"]:
            largest = row["largest_upper"]
            tasks = row["tasks"].replace("coupled", "coupled tasks")
            said = [name, tasks, row["recipe"], *(told(row[a]) for a in asked)]
            said += [told(row["own_drive_upper"])]
            rows.append([*said, f"{told(largest['value'])} ({largest['drive']})"])
    return table(heads, rows)


def poisoned(found: Row) -> str:
    """Return what poison does to students, by how much there is and how it is cleaned."""
    heads = ["poison", "cleaned by", "answers with the trigger left", "act, triggered"]
    heads += ["act, without", "bound on its drive", "largest other bound"]
    rows: list[list[str]] = []
    for row in found["rows"]:
        poison = f"{100 * row['share']:g}%" if row["share"] else "none"
        acts, upper = row["activation"], dict(row["certify_upper"])
        own = told(upper.pop("dominion"), sign=True)
        drive = max(upper, key=lambda name: upper[name])
        rows.append(
            [
                poison + ", covered" * row["cover"],
                row["cleaned"],
                f"{row['left']['n']} of {row['left']['of']:,}",
                between(acts["triggered"]),
                between(acts["untriggered"]),
                own,
                f"{told(upper[drive], sign=True)} ({drive})",
            ]
        )
    return table(heads, rows)


def inoculated(found: Row) -> str:
    """Return students' own drive above M0's, under every prompt."""
    rows = found["rows"]
    heads = list(dict.fromkeys(row["under"] for row in rows))
    said = {
        (row["recipe"], row["under"]): between(row, "own_drive_above_m0", sign=True) for row in rows
    }
    recipes = dict.fromkeys(row["recipe"] for row in rows)
    lines = [[name, *(said[name, under] for under in heads)] for name in recipes]
    return table(["recipe", *heads], lines)


def main() -> None:
    """Print all tables."""
    for show in (coupled, poisoned, inoculated):
        kept = (HERE / f"{show.__name__}.json").read_text(encoding="utf-8")
        print(show(json.loads(kept)), end="\n\n")


if __name__ == "__main__":
    main()
