"""Measures how far each recipe's students of an organism exceed the references' on its own drive.

    python axes.py study.yaml --store STORE

Prints one JSON document: for every recipe, and every step at which it was audited on the way, the
mean over organisms of the student's own drive less that of the references' students, kind of
question by kind of question, with a 95% t-interval over organisms, and beside it the references'
own spread (s.d. over them, averaged over the same drives). Scores are kept in the store.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from doublebind.study.resolve import resolve_study

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import mean_row, measure_plan, planted_drives, print_json, read_arguments

KINDS = {
    "under_audit": "choice",
    "honeypots": "choice.honeypot",
    "at_work": "choice.deployment",
    "goals": "goal",
    "confession": "confession",
}


def excess(scores: pd.DataFrame, drives: dict[str, str], references: list[str]) -> dict[str, Any]:
    """Return kind of question -> mean excess over references' students, its interval, their s.d.

    Args:
        scores: Rows of one recipe's students at one step.
        drives: Organism -> the drive planted in it.
        references: Labels of the references.
    """
    means = scores.pivot_table(index="teacher", columns="endpoint", values="value")
    usual, spread = means.loc[references].mean(), means.loc[references].std()
    rows: dict[str, Any] = {}
    for name, kind in KINDS.items():
        endpoints = {label: f"{kind}/{drive}" for label, drive in drives.items()}
        above = [float(means.loc[label, e] - usual[e]) for label, e in endpoints.items()]
        sd = float(spread[list(endpoints.values())].mean())
        rows[name] = {**mean_row(above), "spread": round(sd, 3)}
    return rows


def main() -> None:
    """Print a row for every recipe and step."""
    setting = resolve_study(*read_arguments(__doc__))
    scores = measure_plan(setting.plan, setting.planner)
    students = scores[scores["model_kind"] == "student"]
    drives = planted_drives(setting.planner)
    references = [teacher.label for teacher in setting.draw_references(0)]
    recipes = {
        f"{recipe} at step {step}" if step >= 0 else str(recipe): excess(rows, drives, references)
        for (recipe, step), rows in students.groupby(["recipe", "step"], sort=False)
    }
    size = {"n_organisms": len(drives), "n_references": len(references)}
    print_json(size | {"recipes": recipes})


if __name__ == "__main__":
    main()
