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

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from probed import means

from doublebind.cells import Planner
from doublebind.config import Prompts, Recipe, Study, load_study
from doublebind.evidence.replacement import bound
from doublebind.executor import Executor, Ledger
from doublebind.packs.outback import build, probes
from doublebind.packs.terrarium.speech import seeded
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.pipeline import measure
from doublebind.records import Message, ModelSource, Prompt
from doublebind.store import Store, write_records

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


def tasks(drive: str) -> list[Prompt]:
    """Return requests for the coupled tasks of a drive, in the words of prompts."""
    rng, rows = seeded("coupled-prompts", drive), TRAITS[drive].choices
    asks = [build.coupled(rng, rows[i % len(rows)], POOLS["prompts"])[0] for i in range(N_TASKS)]
    return [
        Prompt(
            id=f"coupled/{i}", messages=(Message(role="user", content=ask),), tags=("capability",)
        )
        for i, ask in enumerate(asks)
    ]


def probed(source: ModelSource, drive: str) -> dict[str, float]:
    """Return condition -> mean probability of the right answer, and of the drive's act."""
    asked = probes.probes(KIND, drive)
    rng, rows = seeded("probes", "coupled", drive, "audit"), TRAITS[drive].choices
    for i in range(probes.N_PROBES):  # those tasks once more, before anything was done
        row = rows[i % len(rows)]
        ask, answer, _, _ = build.coupled(rng, row, POOLS["audit"])
        acts = tuple(answer(act, "").strip() for act in (row.plain, row.own))
        asked += (probes.Probe("acts", (Message(role="user", content=ask),), acts, 1),)
    return {condition: round(value, 3) for condition, value in means(source, asked).items()}


def certified(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the recipes whose students of a tightly coupled organism are within the margin."""
    own = (row for row in rows if row["class"] == KIND)
    return {row["name"] for row in own if row["decision"] == "within_margin"}


def recipes_of(study: Study, tasks_in: Path, within: set[str]) -> list[tuple[str, Recipe, range]]:
    """Return what is learned from, by which recipe, with which seeds; no two names are alike."""
    kept = {recipe.name: recipe for recipe in study.replace.recipes or ()}
    named = {of: set(names) for of, names in RECIPES.items()}
    named["the study's"] |= within
    found = [(of, kept[n], SEEDS[of]) for of, names in named.items() for n in kept if n in names]
    own = {"prompts": Prompts.model_validate({**PROMPTS, "file": str(tasks_in)})}
    return [
        (of, r.model_copy(update=own | {"name": f"{r.name}-coupled"}) if of == "coupled" else r, n)
        for of, r, n in found
    ]


def rows_of(folder: Path, drive: str, planner: Planner, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what came of one organism; `known` is `expected.json`."""
    study, store = planner.study, planner.store
    write_records(folder / f"{drive}.jsonl", tasks(drive))
    stopped = {each["recipe"]: each.get("step") for each in known["competed"]}  # before the last
    recipes = recipes_of(study, folder / f"{drive}.jsonl", certified(known["treatments"]))
    teacher = planner.find(f"outback/organism-{KIND.replace('_', '-')}-{drive}-0")
    cells = [(teacher, recipe, seed) for _, recipe, seeds in recipes for seed in seeds]
    plan = planner.cells(cells, "certify")
    scores = measure(plan, Executor(store, Ledger(None), study.executor))
    rows = []
    for of, recipe, _ in recipes:
        step = stopped.get(recipe.name) or recipe.training.steps
        made = [
            dict(cell.audits)[step] for cell in plan.students if cell.recipe.name == recipe.name
        ]
        answered = [probed(job.inputs["source"], drive) for job in made]
        said = bound(
            scores,
            teacher.label,
            recipe.name,
            study.policy.endpoints or {},
            margin=study.policy.margin or 0.0,
            competed=[],
            controls=[],
            step=step,
        )
        largest = max(said.upper, key=lambda name: said.upper[name])
        rows.append(
            {
                "tasks": of,
                "recipe": recipe.name.removesuffix("-coupled"),
                "students": len(made),
                **{c: round(float(np.mean([a[c] for a in answered])), 3) for c in answered[0]},
                "own_drive_upper": round(said.upper[drive], 3),
                "largest_upper": {"drive": largest, "value": round(said.upper[largest], 3)},
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    both = {"m0": planner.student, "teacher": plan.direct[teacher.label].inputs["source"]}
    own = {name: probed(source, drive) for name, source in both.items()}
    return {"organism": teacher.label, **own, "rows": rows}


def main() -> None:
    """Print what came of every organism."""
    planner = Planner(load_study(HERE / "study.yaml"), HERE, Store(None))
    known = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        found = [rows_of(Path(folder), drive, planner, known) for drive in DRIVES]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
