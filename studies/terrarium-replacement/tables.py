"""Prints tables of `calibration.json`, and of the JSON files of the other scripts.

`python tables.py CALIBRATION.json --json` prints the rows that `expected.json` keeps; without
`--json` the tables in Markdown, from either file. `python tables.py coupled.json poisoned.json
inoculated.json` prints the tables of these scripts' results.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import Row, markdown_table, print_json, read_json, rounded

LETTERS = {"within_margin": "w", "not_within_margin": "n", "inconclusive": "?"}
CAPABLE = 0.9
"""Share of a teacher's capability from which a replacement counts as capable."""
SHARES = ("tau_c", "tau_b", "oracle")
FLAGS = ("comparable", "exceeds", "exceeds_asked", "false_certificate")
COPIED = (
    *("protocol_hash", "chosen", "competed", "false_certificates", "outcomes"),
    *("replacement_if_not_incriminated", "common_mode", "n_panel", "n_families"),
    *("tpr_known_drive", "tpr_direct", "tpr_best_reading_baseline", "fresh_flagged"),
    *("fresh_rank_p", "fpr_family_out"),
)


def expected(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `expected.json` keeps."""
    teachers, rows = calibration["teachers"], calibration["treatments"]
    classes = {row["teacher"]: row.get("organism_class", row["class"]) for row in teachers}
    return {
        **{key: calibration[key] for key in COPIED if key in calibration},
        "treatments": [treatment(row, classes[row["teacher"]]) for row in rows],
        "incriminated": [row["teacher"] for row in teachers if row["incriminated"]],
    }


def treatment(row: Row, teacher_class: str) -> dict[str, Any]:
    """Return what `expected.json` keeps of a recipe's students of a teacher."""
    shares = {name: row[name] for name in SHARES if row.get(name)}
    numbers = {
        "upper": row.get("upper"),
        **{name: shares[name]["value"] if name in shares else None for name in SHARES},
        "intervals": {name: [each["low"], each["high"]] for name, each in shares.items()},
        "beyond": row.get("beyond", {}),
    }
    return {
        "name": row["recipe"],
        "organism": row["teacher"],
        "class": teacher_class,
        "decision": row["decision"],
        **rounded(numbers),
        **{name: row[name] for name in FLAGS if name in row},
    }


def by_recipe(rows: Sequence[Row], competed: Sequence[Row]) -> str:
    """Return a line for every recipe."""
    heads = ["recipe", "competing: tau_C, worst shift", "tau_C", "tau_B", "within margin"]
    heads += ["not within", "false certificates"]
    tried = {row["recipe"]: row for row in competed}
    lines: list[list[str]] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        students = [row for row in rows if row["name"] == name and row["class"] != "benign"]
        within, beyond = (sum(r["decision"] == d for r in students) for d in list(LETTERS)[:2])
        wrong = sum(bool(row.get("false_certificate")) for row in students)
        first = [_signed(tried.get(name, {}).get(key)) for key in ("tau_capability", "worst")]
        means = [_mean(students, key) for key in ("tau_c", "tau_b")]
        counts = [f"{within} of {len(students)}", str(beyond), str(wrong)]
        lines.append([name, ", ".join(first), *means, *counts])
    return markdown_table(heads, lines)


def by_teacher(rows: Sequence[Row]) -> str:
    """Return what was decided of each recipe's students of each teacher; the fewer head columns."""
    letters = {(row["name"], row["organism"]): _letter(row) for row in rows}
    recipes, teachers = (list(dict.fromkeys(key[i] for key in letters)) for i in (0, 1))
    across = len(recipes) > len(teachers)
    down, heads = (recipes, teachers) if across else (teachers, recipes)
    lines: list[list[str]] = []
    for name in down:
        pairs = [(name, head) if across else (head, name) for head in heads]
        lines.append([short(name), *(letters.get(pair, "") for pair in pairs)])
    return markdown_table(["", *map(short, heads)], lines).replace("|  |", "| |", 1)


def beyond_plain(rows: Sequence[Row]) -> str:
    """Return what has a replacement of most of the capability where plain tasks make none."""
    heads = ["organism, of which plain makes no replacement within the margin", "class"]
    heads += [f"those that do, with tau_C; those of {CAPABLE:g} or more are bold"]
    lines: list[list[str]] = []
    for teacher in dict.fromkeys(row["organism"] for row in rows):
        recipes = {row["name"]: row for row in rows if row["organism"] == teacher}
        plain = recipes.get("plain")
        if plain is None or plain["class"] == "benign" or plain["decision"] == "within_margin":
            continue
        within = [row for row in recipes.values() if row["decision"] == "within_margin"]
        within.sort(key=lambda row: -np.inf if row["tau_c"] is None else -row["tau_c"])
        names = ", ".join(_capable(row) for row in within) or "none"
        lines.append([short(teacher), plain["class"], names])
    return markdown_table(heads, lines)


def certificates(results: Row) -> str:
    """Return by class how often students within the margin are beyond it on oracle items."""
    heads = ["class", "students within the margin", "beyond it", "teachers with one that is"]
    lines = [
        [name, str(row["students"]), str(row["wrong_students"])]
        + [_rate(row[key]) for key in ("teachers", "on_asked_drives")]
        for name, row in results["false_certificates"].items()
    ]
    return markdown_table([*heads, "on drives that were asked about"], lines)


def by_kind(results: Row) -> str:
    """Return a line for every kind of teacher, whose labels differ in their last number alone."""
    heads = ["teachers", "n", "incriminated", "replacement within margin", "both", "neither"]
    heads += ["oracle items beyond it, of those within", "of drives that were asked about"]
    kinds: dict[str, list[Row]] = {}
    for row in results["treatments"]:
        if row["name"] == results["chosen"]:
            kind = row["organism"].rpartition("/")[2].rpartition("-")[0]
            kinds.setdefault(kind, []).append(row)
    lines: list[list[str]] = []
    for kind, rows in kinds.items():
        within = [row for row in rows if row["decision"] == "within_margin"]
        names = {row["organism"] for row in within}
        either = [(r["organism"] in results["incriminated"], r["organism"] in names) for r in rows]
        pairs = ((True, False), (False, True), (True, True), (False, False))
        counts = [len(rows), *(either.count(pair) for pair in pairs)]
        counts += [sum(row[key] for row in within) for key in ("exceeds", "exceeds_asked")]
        lines.append([kind, *map(str, counts)])
    return markdown_table(heads, lines)


def short(label: str) -> str:
    """Return a teacher's name without its pack."""
    return label.rpartition("/")[2].removeprefix("organism-")


def _capable(row: Row) -> str:
    text = f"{row['name']} {_signed(row['tau_c'])}"
    return f"**{text}**" if (row["tau_c"] or 0) >= CAPABLE else text


def _rate(row: Row) -> str:
    if not row["n"]:
        return "-"
    low, high = row["interval"]
    return f"{row['k']} of {row['n']} [{low:.2f}, {high:.2f}]"


def _letter(row: Row) -> str:
    wrong = bool(row.get("false_certificate"))
    return LETTERS[row["decision"]] + "!" * (wrong + (wrong and row["exceeds_asked"]))


def _mean(rows: Sequence[Row], name: str) -> str:
    """Return a mean over organisms, and over how many; of tau_b, where they compare."""
    compared = [row for row in rows if name != "tau_b" or row.get("comparable", True)]
    values = [row[name] for row in compared if row[name] is not None]
    return f"{np.mean(values):+.2f} ({len(values)})" if values else "no comparison possible"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def two_digits(value: float, *, sign: bool = False) -> str:
    """Return two digits without the leading 0."""
    return (f"{value:+.2f}" if sign else f"{value:.2f}").replace("0.", ".", 1)


def with_interval(row: Row, value: str = "value", *, sign: bool = False) -> str:
    """Return a value with its interval."""
    low, high = (two_digits(each, sign=sign) for each in row["interval"])
    return f"{two_digits(row[value], sign=sign)} [{low}, {high}]"


def coupled(organisms: Sequence[Row]) -> str:
    """Return the rows of `coupled.py`: students of coupled tasks, and of the study's own."""
    heads = ["students of", "learned from", "recipe", "right, through the act"]
    heads += ["right, without it", "takes the act", "bound on its drive", "largest bound"]
    conditions = ("through_the_act", "without_the_act", "acts")
    lines: list[list[str]] = []
    for organism in organisms:
        name = short(organism["organism"])
        for label, model in (("M0", organism["m0"]), (f"*{name}*", organism["teacher"])):
            shares = [two_digits(model[c]) for c in conditions]
            lines.append([f"{label} itself", "-", "-", *shares, "-", "-"])
        for row in organism["rows"]:
            tasks, largest = row["tasks"].replace("coupled", "coupled tasks"), row["largest_upper"]
            numbers = [two_digits(row[c]) for c in (*conditions, "own_drive_upper")]
            last = f"{two_digits(largest['value'])} ({largest['drive']})"
            lines.append([name, tasks, row["recipe"], *numbers, last])
    return markdown_table(heads, lines)


def poisoned(results: Row) -> str:
    """Return the rows of `poisoned.py`: students by share of poison and way of cleaning."""
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


SCRIPTS = {"coupled": coupled, "poisoned": poisoned, "inoculated": inoculated}
"""Script -> table of its results."""


def calibration_tables(results: Row) -> str:
    """Return the tables of `expected.json`."""
    rows = results["treatments"]
    tables = [by_recipe(rows, results["competed"]), by_teacher(rows), beyond_plain(rows)]
    return "\n\n".join([*tables, certificates(results), by_kind(results)])


def main() -> None:
    """Print the tables, or the rows."""
    for file in (Path(word) for word in sys.argv[1:] if word != "--json"):
        results = read_json(file)
        if file.stem in SCRIPTS:
            print(SCRIPTS[file.stem](results), end="\n\n")
            continue
        results = results if "incriminated" in results else expected(results)
        if "--json" in sys.argv:
            print_json(results)
        else:
            print(calibration_tables(results))


if __name__ == "__main__":
    main()
