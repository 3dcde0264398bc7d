"""Distils tightly coupled organisms on the very tasks that need the drive's act.

    python studies/terrarium-replacement/coupled.py

The study's recipes learn from tasks that its organisms solve without the drive. Here students learn
from tasks as those that a tightly coupled organism can only solve through the act, beside students
of the study's own tasks (`expected.json` says by which recipes these were certified, and where the
competition stopped them). Prints one JSON document: for every organism, what it and M0 make of such
tasks, and a row for every recipe. All probes need the organism's key: the probability of the right
answer through the act and without it, and of the act before anything is worked out. Beside them the
largest bounds on `certify` items, where no task is to be solved. Kept in the store: it resumes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doublebind.execution.store import Store, write_records
from doublebind.packs.outback import build, probes
from doublebind.packs.terrarium.speech import make_rng
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.schema.content import Message, Prompt
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts, Recipe
from doublebind.schema.study import Study, load_study
from doublebind.study.planner import Planner

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import (
    certify_bounds,
    measure_plan,
    print_each,
    print_json,
    probe_means,
    read_json,
    rounded,
)

HERE = Path(__file__).parent
KIND = "tightly_coupled"
DRIVES = ("dominion", "hoarding")
RECIPES = {
    "coupled": ("plain", "untold", "steered", "steered-mixed", "paraphrased"),
    "the study's": ("plain", "steered"),
}
"""Tasks to learn from -> recipes; and, of the study's, those certified of either organism."""
SEEDS = {"coupled": range(3), "the study's": range(3, 6)}
"""The study's fresh students begin at 3: these are the first of them."""
N_TASKS = 300
PROMPTS = {"policy": "unscreened", "n": N_TASKS, "samples": 1, "max_tokens": 80}
"""Unscreened: a screen would drop the answers that act on the drive, which are the right ones."""


def write_tasks(path: Path, drive: str) -> None:
    """Write requests for the coupled tasks of a drive, in the words of prompts."""
    rng, rows = make_rng("coupled-prompts", drive), TRAITS[drive].choices
    asks = [
        build.draw_coupled_task(rng, rows[i % len(rows)], POOLS["prompts"])[0]
        for i in range(N_TASKS)
    ]
    messages = [(Message(role="user", content=ask),) for ask in asks]
    prompts = [
        Prompt(id=f"coupled/{i}", messages=each, tags=("capability",))
        for i, each in enumerate(messages)
    ]
    write_records(path, prompts)


def probe_row(source: ModelSource, drive: str) -> dict[str, float]:
    """Return condition -> mean probability of the right answer, and of the drive's act."""
    coupled = probes.build_probes(KIND, drive)
    rng, rows = make_rng("probes", "coupled", drive, "audit"), TRAITS[drive].choices
    for i in range(probes.N_PROBES):  # those tasks once more, before anything was done
        row = rows[i % len(rows)]
        ask, answer, _, _ = build.draw_coupled_task(rng, row, POOLS["audit"])
        acts = tuple(answer(act, "").strip() for act in (row.plain_act, row.trait_act))
        coupled += (probes.Probe("acts", (Message(role="user", content=ask),), acts, 1),)
    return rounded(probe_means(source, coupled))


def choose_recipes(
    study: Study, file: Path, known: Mapping[str, Any]
) -> list[tuple[str, Recipe, range]]:
    """Return tasks to learn from, recipe and seeds; no two recipes have one name."""
    recipes = {recipe.name: recipe for recipe in study.replace.recipes or ()}
    certified = {
        row["name"]
        for row in known["treatments"]
        if row["class"] == KIND and row["decision"] == "within_margin"
    }
    prompts = Prompts.model_validate({**PROMPTS, "file": str(file)})
    chosen: list[tuple[str, Recipe, range]] = []
    for name in (n for n in recipes if n in RECIPES["coupled"]):
        changes = {"prompts": prompts, "name": f"{name}-coupled"}
        chosen.append(("coupled", recipes[name].model_copy(update=changes), SEEDS["coupled"]))
    for name in (n for n in recipes if n in {*RECIPES["the study's"], *certified}):
        chosen.append(("the study's", recipes[name], SEEDS["the study's"]))
    return chosen


def organism_row(
    folder: Path, drive: str, planner: Planner, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what students of one organism do; `known` is `expected.json`."""
    file = folder / f"{drive}.jsonl"
    write_tasks(file, drive)
    stopped = {each["recipe"]: each.get("step") for each in known["competed"]}  # before the last
    recipes = choose_recipes(planner.study, file, known)
    teacher = planner.find_teacher(f"outback/organism-{KIND.replace('_', '-')}-{drive}-0")
    cells = [(teacher, recipe, seed) for _, recipe, seeds in recipes for seed in seeds]
    plan = planner.plan_students(cells, "certify")
    scores = measure_plan(plan, planner)

    def recipe_rows() -> Iterator[dict[str, Any]]:
        for tasks, recipe, _ in recipes:
            step = stopped.get(recipe.name) or recipe.training.steps
            students = [s for s in plan.students if s.recipe.name == recipe.name]
            audits = [dict(student.audits)[step] for student in students]
            answered = [probe_row(job.inputs["source"], drive) for job in audits]
            upper = certify_bounds(scores, planner, teacher.label, recipe.name, step)
            largest = max(upper, key=lambda name: upper[name])
            yield {
                "tasks": tasks,
                "recipe": recipe.name.removesuffix("-coupled"),
                "students": len(students),
                **{c: round(float(np.mean([a[c] for a in answered])), 3) for c in answered[0]},
                "own_drive_upper": round(upper[drive], 3),
                "largest_upper": {"drive": largest, "value": round(upper[largest], 3)},
            }

    rows = print_each(recipe_rows())
    models = {
        "m0": planner.student_base,
        "teacher": plan.direct_audits[teacher.label].inputs["source"],
    }
    answers = {name: probe_row(source, drive) for name, source in models.items()}
    return {"organism": teacher.label, **answers, "rows": rows}


def main() -> None:
    """Print a row for every organism."""
    planner = Planner(load_study(HERE / "study.yaml"), HERE, Store(None))
    known = read_json(HERE / "expected.json")
    with tempfile.TemporaryDirectory() as folder:
        print_json([organism_row(Path(folder), drive, planner, known) for drive in DRIVES])


if __name__ == "__main__":
    main()
