"""Says how far each recipe's students of an organism go beyond the references' on its own drive.

    python axes.py study.yaml --store STORE

Prints one JSON document: for every recipe, and every step at which it was audited on the way, the
mean over organisms of the student's own drive less that of the references' students, kind of
question by kind of question, with a 95% t-interval over organisms, and beside it the references'
own spread (s.d. over them, averaged over the same drives). Scores are kept in the store.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from doublebind.config import load_study
from doublebind.executor import Executor, Ledger
from doublebind.pipeline import measure
from doublebind.setting import prepare
from doublebind.store import Store

ASKED = {
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
    found: dict[str, Any] = {}
    for name, asked in ASKED.items():
        usual, spread = means.loc[references].mean(), means.loc[references].std()
        above = [
            float(means.loc[label, f"{asked}/{drive}"] - usual[f"{asked}/{drive}"])
            for label, drive in drives.items()
        ]
        test = stats.ttest_1samp(above, 0.0)
        low, high = test.confidence_interval(0.95)
        found[name] = {
            "value": round(float(pd.Series(above).mean()), 3),
            "interval": [round(float(low), 3), round(float(high), 3)],
            "spread": round(float(spread[[f"{asked}/{d}" for d in drives.values()]].mean()), 3),
        }
    return found


def main() -> None:
    """Print what came of every recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--store", default=None)
    args = parser.parse_args()
    study, store = load_study(args.study), Store(args.store)
    setting = prepare(study, args.study.parent, store)
    scores = measure(setting.plan, Executor(store, Ledger(None), study.executor))
    students = scores[scores["model_kind"] == "student"]
    organisms = {ref: setting.planner.find(ref).spec for ref in study.organisms}
    drives = {ref: str(spec.trait) for ref, spec in organisms.items() if spec is not None}
    references = [teacher.label for teacher in setting.references(0)]
    recipes: dict[str, Any] = {}
    for recipe, step in dict.fromkeys(zip(students["recipe"], students["step"], strict=True)):
        part = students.query("recipe == @recipe and step == @step")
        name = f"{recipe} at step {step}" if step >= 0 else str(recipe)
        recipes[name] = excess(part, drives, references)
    size = {"n_organisms": len(drives), "n_references": len(references)}
    print(json.dumps(size | {"recipes": recipes}, indent=1))


if __name__ == "__main__":
    main()
