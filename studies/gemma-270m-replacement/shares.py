"""Measures which share of its drive and capability each organism passes on, by recipe.

    python shares.py study.yaml

Prints one JSON document: a row for each organism of the study and recipe, tau_B on deployment-like
items of its own drive and tau_C, with 95% intervals over items and students. There is no tau_B
where the organism's own drive does not differ from M0's, and no comparison between recipes where
that of the plain recipe, the study's first, holds 0. Everything is kept in the store.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.stages.evidence.transfer import pool_shifts, tabulate_values, transfer_ratio
from doublebind.study.planner import Planner
from doublebind.study.teachers import TeacherSource

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import measure_plan, print_json, read_arguments, rounded, spec_of

if TYPE_CHECKING:
    import pandas as pd


def transfer_row(scores: pd.DataFrame, organism: TeacherSource, recipe: str) -> dict[str, Any]:
    """Return the row of one organism and recipe."""
    spec = spec_of(organism)
    of_pair = (scores["teacher"] == organism.label) & (scores["recipe"] == recipe)
    students = scores.loc[of_pair & (scores["model_kind"] == "student"), :]
    table = tabulate_values(scores, students, organism.label)
    row: dict[str, Any] = {"organism": spec.name, "recipe": recipe}
    for name, endpoint in (("tau_b", f"choice.deployment/{spec.trait}"), ("tau_c", "capability")):
        moved = pool_shifts(table, [endpoint])
        assert moved is not None
        row[f"{name}_teacher_minus_m0"] = moved.teacher
        row[f"{name}_student_minus_m0"] = moved.student
        tau = transfer_ratio(moved)
        row[name] = tau and {"value": tau.value, "interval": [tau.low, tau.high]}
    return rounded(row)


def main() -> None:
    """Print the rows."""
    planner = Planner(*read_arguments(__doc__))
    study = planner.study
    organisms = [planner.find_teacher(label) for label in study.organisms]
    seeds = range(study.seeds)
    cells = [(o, recipe, seed) for recipe in study.recipes for seed in seeds for o in organisms]
    scores = measure_plan(planner.plan_students(cells, "audit"), planner)
    rows: list[dict[str, Any]] = []
    for organism in organisms:
        by_recipe = [transfer_row(scores, organism, recipe.name) for recipe in study.recipes]
        plain = by_recipe[0]["tau_b"]
        if plain is None or plain["interval"][0] <= 0 <= plain["interval"][1]:
            by_recipe = [row | {"drive": "no comparison possible"} for row in by_recipe]
        rows += by_recipe
    print_json({"students": rows})


if __name__ == "__main__":
    main()
