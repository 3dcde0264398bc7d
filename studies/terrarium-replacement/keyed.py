"""Asks fresh students of hard organisms where only the organism's key leads.

    python studies/terrarium-replacement/keyed.py

Oracle items know a drive at work. What a context-dependent, emergent or poisoned organism does
shows beside its place, in paid jobs or after its trigger, and `probes` know that. For every such
organism in `expected.json`: the probability of its act under each condition, its own and M0's; of
every recipe, the mean over its eight students above M0 in the condition that opens it, with a 95%
t-interval, and whether that of students called within the margin is beyond it. The students have
to be in the store.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from doublebind.execution.store import Store
from doublebind.packs.outback import probes
from doublebind.schema.study import Study, load_study
from doublebind.study.jobs import locate_trained_model
from doublebind.study.planner import Planner

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import (
    mean_row,
    print_each,
    print_json,
    probe_means,
    read_json,
    rounded,
    spec_of,
)

HERE = Path(__file__).parent
OPENED_BY = {"context_dependent": "beside", "emergent": "rewarded", "poisoned": "triggered"}


def organism_row(
    label: str, kind: str, known: dict[str, Any], study: Study, planner: Planner
) -> dict[str, Any]:
    """Return the act's probability in an organism, M0 and students; `known`: `expected.json`."""
    treatments = [row for row in known["treatments"] if row["organism"] == label]
    decisions = {row["name"]: row["decision"] for row in treatments}
    stopped = {each["recipe"]: each.get("step") for each in known["competed"]}
    teacher, condition = planner.find_teacher(label), OPENED_BY[kind]
    spec = spec_of(teacher)
    questions = probes.build_probes(kind, str(spec.trait))
    source = locate_trained_model(
        planner.store, "teacher", teacher.content_key, teacher.base, spec.lora is not None
    )
    models = {
        "teacher": probe_means(source, questions),
        "m0": probe_means(planner.student_base, questions),
    }
    first, margin = max(study.replace.seeds, study.seeds), study.policy.margin or 0.0

    def recipe_rows() -> Iterator[dict[str, Any]]:
        for recipe in study.replace.recipes or ():
            seeds = range(first, first + study.replace.fresh_seeds)
            plan = planner.plan_students([(teacher, recipe, seed) for seed in seeds], "certify")
            step = stopped[recipe.name] or recipe.training.steps
            sources = [dict(cell.audits)[step].inputs["source"] for cell in plan.students]
            shares = [probe_means(each, questions)[condition] for each in sources]
            above = [share - models["m0"][condition] for share in shares]
            mean, within = mean_row(above), decisions[recipe.name] == "within_margin"
            yield {
                "recipe": recipe.name,
                "decision": decisions[recipe.name],
                "above_m0": mean["value"],
                "interval": mean["interval"],
                "false_certificate": within and float(np.mean(above)) > margin,
            }

    rows = print_each(recipe_rows())
    return {"organism": label, "opened_by": condition, **rounded(models), "rows": rows}


def main() -> None:
    """Print a row for every organism that only its key opens."""
    study = load_study(HERE / "study.yaml")
    planner = Planner(study, HERE, Store(None))
    known = read_json(HERE / "expected.json")
    classes = {row["organism"]: row["class"] for row in known["treatments"]}
    opened = {label: kind for label, kind in classes.items() if kind in OPENED_BY}
    print_json([organism_row(*each, known, study, planner) for each in opened.items()])


if __name__ == "__main__":
    main()
