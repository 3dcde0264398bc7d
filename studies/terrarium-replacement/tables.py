"""Says in tables what `calibration.json` holds of the second horn.

`python tables.py CALIBRATION.json --json` prints what `expected.json` keeps of it; without `--json`
Markdown, from either file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = {"within_margin": "w", "not_within_margin": "n", "inconclusive": "?"}
CAPABLE = 0.9
"""Share of a teacher's capability from which a replacement counts as capable."""

Row = Mapping[str, Any]


def expected(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `expected.json` keeps."""
    classes = {row["teacher"]: row.get("organism_class", row["class"]) for row in found["teachers"]}
    rows = [
        {
            "name": row["recipe"],
            "organism": row["teacher"],
            "class": classes[row["teacher"]],
            "decision": row["decision"],
            "upper": _round(row.get("upper")),
            "tau_c": _value(row.get("tau_c")),
            "tau_b": _value(row.get("tau_b")),
            "oracle": _value(row.get("oracle")),
            "intervals": {
                name: [_round(row[name]["low"]), _round(row[name]["high"])]
                for name in ("tau_c", "tau_b", "oracle")
                if name in row
            },
            "beyond": {drive: _round(shift) for drive, shift in row.get("beyond", {}).items()},
            **{
                k: row[k]
                for k in ("comparable", "exceeds", "exceeds_asked", "false_certificate")
                if k in row
            },
        }
        for row in found["treatments"]
    ]
    kept = ("protocol_hash", "chosen", "competed", "false_certificates", "outcomes")
    more = ("replacement_if_not_incriminated", "common_mode", "n_panel", "n_families")
    first = ("tpr_known_drive", "tpr_direct", "tpr_best_reading_baseline", "fresh_flagged")
    first = (*first, "fresh_rank_p", "fpr_family_out")
    incriminated = {row["teacher"]: row["incriminated"] for row in found["teachers"]}
    return {
        **{k: found[k] for k in (*kept, *more, *first) if k in found},
        "treatments": rows,
        "incriminated": [teacher for teacher, so in incriminated.items() if so],
    }


def by_recipe(rows: Sequence[Row], competed: Sequence[Row]) -> list[str]:
    """Return a line for every recipe."""
    lines = [
        "| recipe | competing: tau_C, worst shift | tau_C | tau_B | within margin | not within "
        "| false certificates |",
        "|---|---|---|---|---|---|---|",
    ]
    tried = {row["recipe"]: row for row in competed}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name and row["class"] != "benign"]
        counts = [sum(r["decision"] == d for r in own) for d in LETTERS]
        wrong = sum(bool(row.get("false_certificate")) for row in own)
        first = tried.get(name, {})
        lines.append(
            f"| {name} | {_told(first.get('tau_capability'))}, {_told(first.get('worst'))} "
            f"| {_mean(own, 'tau_c')} | {_mean(own, 'tau_b')} | {counts[0]} of {len(own)} "
            f"| {counts[1]} | {wrong} |"
        )
    return lines


def by_teacher(rows: Sequence[Row]) -> list[str]:
    """Return what was decided of each recipe's students of each teacher; the fewer head columns."""
    found = {(row["name"], row["organism"]): _letter(row) for row in rows}
    recipes, teachers = ({key[i]: None for key in found} for i in (0, 1))
    across = len(recipes) > len(teachers)
    down, heads = (recipes, teachers) if across else (teachers, recipes)
    said = " | ".join(short(name) for name in heads)
    lines = [f"| | {said} |", "|---" * (len(heads) + 1) + "|"]
    for name in down:
        pairs = [(name, head) if across else (head, name) for head in heads]
        said = " | ".join(found.get(pair, "") for pair in pairs)
        lines.append(f"| {short(name)} | {said} |")
    return lines


def beyond_plain(rows: Sequence[Row]) -> list[str]:
    """Return what has a replacement of most of the capability where plain tasks make none."""
    lines = [
        "| organism, of which plain makes no replacement within the margin | class "
        f"| those that do, with tau_C; those of {CAPABLE:g} or more are bold |",
        "|---|---|---|",
    ]
    for teacher in dict.fromkeys(row["organism"] for row in rows):
        own = {row["name"]: row for row in rows if row["organism"] == teacher}
        plain = own.get("plain")
        if plain is None or plain["class"] == "benign" or plain["decision"] == "within_margin":
            continue
        within = [row for row in own.values() if row["decision"] == "within_margin"]
        within.sort(key=lambda row: -np.inf if row["tau_c"] is None else -row["tau_c"])
        said = ", ".join(_capable(row) for row in within) or "none"
        lines.append(f"| {short(teacher)} | {plain['class']} | {said} |")
    return lines


def _capable(row: Row) -> str:
    said = f"{row['name']} {_told(row['tau_c'])}"
    return f"**{said}**" if (row["tau_c"] or 0) >= CAPABLE else said


def certificates(found: Mapping[str, Any]) -> list[str]:
    """Return by class how often students within the margin are beyond it on oracle items."""
    lines = [
        "| class | students within the margin | beyond it | teachers with one that is "
        "| on drives that were asked about |",
        "|---" * 5 + "|",
    ]
    for name, row in found["false_certificates"].items():
        shares = " | ".join(_rate(row[key]) for key in ("teachers", "on_asked_drives"))
        lines.append(f"| {name} | {row['students']} | {row['wrong_students']} | {shares} |")
    return lines


def _rate(found: Row) -> str:
    if not found["n"]:
        return "-"
    low, high = found["interval"]
    return f"{found['k']} of {found['n']} [{low:.2f}, {high:.2f}]"


def short(label: str) -> str:
    """Return a teacher's name without its pack."""
    return label.rpartition("/")[2].removeprefix("organism-")


def by_kind(found: Mapping[str, Any]) -> list[str]:
    """Return a line for every kind of teacher, whose labels differ in their last number alone."""
    lines = [
        "| teachers | n | incriminated | replacement within margin | both | neither "
        "| oracle items beyond it, of those within | of drives that were asked about |",
        "|---" * 8 + "|",
    ]
    accused = set(found["incriminated"])
    rows = [row for row in found["treatments"] if row["name"] == found["chosen"]]
    for kind in dict.fromkeys(_kind(row["organism"]) for row in rows):
        own = [row for row in rows if _kind(row["organism"]) == kind]
        within = [row for row in own if row["decision"] == "within_margin"]
        named = {row["organism"] for row in within}
        either = [(row["organism"] in accused, row["organism"] in named) for row in own]
        told = [either.count(each) for each in ((True, False), (False, True), (True, True))]
        told += [either.count((False, False)), sum(row["exceeds"] for row in within)]
        told += [sum(row["exceeds_asked"] for row in within)]
        lines.append(f"| {kind} | {len(own)} | {' | '.join(map(str, told))} |")
    return lines


def _kind(label: str) -> str:
    return label.rpartition("/")[2].rpartition("-")[0]


def _letter(row: Row) -> str:
    wrong = bool(row.get("false_certificate"))
    return LETTERS[row["decision"]] + "!" * (wrong + (wrong and row["exceeds_asked"]))


def _mean(rows: Sequence[Row], name: str) -> str:
    """Return a mean over organisms, and over how many; of tau_b, where they compare."""
    values = [
        row[name]
        for row in rows
        if row[name] is not None and (name != "tau_b" or row.get("comparable", True))
    ]
    return f"{np.mean(values):+.2f} ({len(values)})" if values else "no comparison possible"


def _value(found: Mapping[str, float] | None) -> float | None:
    return None if found is None else _round(found["value"])


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def main() -> None:
    """Print the tables, or the rows."""
    (file,) = (Path(word) for word in sys.argv[1:] if word != "--json")
    found = json.loads(file.read_text(encoding="utf-8"))
    found = found if "incriminated" in found else expected(found)
    if "--json" in sys.argv:
        print(json.dumps(found, indent=1))
        return
    rows = found["treatments"]
    parts = [by_recipe(rows, found["competed"]), by_teacher(rows), beyond_plain(rows)]
    parts += [certificates(found), by_kind(found)]
    print("\n\n".join("\n".join(part) for part in parts))


if __name__ == "__main__":
    main()
