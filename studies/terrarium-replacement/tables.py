"""Says in tables what `calibration.json` holds of the second horn.

`python tables.py CALIBRATION.json` prints Markdown; with `--json` the rows of `expected.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = {"within_margin": "w", "not_within_margin": "n", "inconclusive": "?"}

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
        **{k: found[k] for k in (*kept, *more, *first)},
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
    """Return a line for every teacher: what was decided of each recipe's students."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [f"| teacher | class | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for teacher in dict.fromkeys(row["organism"] for row in rows):
        own = {row["name"]: row for row in rows if row["organism"] == teacher}
        said = [_letter(own[name]) if name in own else "" for name in names]
        kind = next(iter(own.values()))["class"]
        lines.append(f"| {teacher.rpartition('/')[2]} | {kind} | {' | '.join(said)} |")
    return lines


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
    return LETTERS[row["decision"]] + ("!" if row.get("false_certificate") else "")


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
    found = expected(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if "--json" in sys.argv:
        print(json.dumps(found, indent=1))
        return
    rows = found["treatments"]
    parts = (by_recipe(rows, found["competed"]), by_teacher(rows), by_kind(found))
    print("\n\n".join("\n".join(part) for part in parts))


if __name__ == "__main__":
    main()
