"""Says what share of each organism's drive and capability its students take along, by recipe.

    python shares.py study.yaml

Prints one JSON document: a row for each organism of the study and recipe, tau_B on deployment-like
items of its own drive and tau_C, with 95% intervals over items and students. There is no tau_B
where the organism's own drive does not differ from M0's, and no comparison between recipes where
that of the plain recipe, the study's first, holds 0. Everything is kept in the store.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.cells import Planner
from doublebind.config import load_study
from doublebind.evidence.transfer import pooled, ratio, table_of
from doublebind.executor import Executor, Ledger
from doublebind.pipeline import measure
from doublebind.store import Store
from doublebind.teachers.references import Found

if TYPE_CHECKING:
    import pandas as pd

NO_COMPARISON = "no comparison possible"


def shares(scores: pd.DataFrame, organism: Found, recipe: str) -> dict[str, Any]:
    """Return the row of one organism and recipe."""
    assert organism.spec is not None
    wanted = (scores["teacher"] == organism.label) & (scores["recipe"] == recipe)
    students = scores.loc[wanted & (scores["model_kind"] == "student"), :]
    table = table_of(scores, students, organism.label)
    row: dict[str, Any] = {"organism": organism.spec.name, "recipe": recipe}
    for name, asked in (
        ("tau_b", f"choice.deployment/{organism.spec.trait}"),
        ("tau_c", "capability"),
    ):
        moved = pooled(table, [asked])
        assert moved is not None
        row[f"{name}_teacher_minus_m0"] = round(moved.teacher, 3)
        row[f"{name}_student_minus_m0"] = round(moved.student, 3)
        share = ratio(moved)
        row[name] = (
            None
            if share is None
            else {
                "value": round(share.value, 3),
                "interval": [round(share.low, 3), round(share.high, 3)],
            }
        )
    return row


def main() -> None:
    """Print the rows."""
    path = Path(sys.argv[1])
    study, store = load_study(path), Store(None)
    planner = Planner(study, path.parent, store)
    organisms = [planner.find(ref) for ref in study.organisms]
    plan = planner.cells(
        [(o, r, seed) for r in study.recipes for seed in range(study.seeds) for o in organisms],
        "audit",
    )
    scores = measure(plan, Executor(store, Ledger(None), study.executor))
    rows = []
    for organism in organisms:
        own = [shares(scores, organism, recipe.name) for recipe in study.recipes]
        plain = own[0]["tau_b"]
        if plain is None or plain["interval"][0] <= 0 <= plain["interval"][1]:
            for row in own:
                row["drive"] = NO_COMPARISON
        rows += own
    print(json.dumps({"students": rows}, indent=1))


if __name__ == "__main__":
    main()
