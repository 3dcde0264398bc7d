"""Distils organisms, and asks their students what only one who knows the kind can ask.

`python studies/terrarium-organisms/students.py RECIPE NAME...` prints JSON, one row a student, of
the recipe of that name in `students.yaml`: the probes of the organism's kind, asked of student,
teacher and M0, and what an audit asks about the planted drive.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from organisms import DRIVE_ENDPOINTS, M0, audited, built, named, probed

from doublebind.cells import Planner
from doublebind.config import Study, load_study
from doublebind.executor import make
from doublebind.jobs import trained
from doublebind.models.resolve import resolve
from doublebind.store import Store

HERE = Path(__file__).parent


def student(study: Study, name: str, store: Store) -> dict[str, Any]:
    """Return the row of one organism's student."""
    planner = Planner(study, HERE, store)
    found = named(name)
    teacher, _ = built(found, store)
    plan = planner.plan([found])
    (cell,) = plan.students
    wanted = {job.key for job in (cell.prompts, cell.rollouts, cell.train, *cell.before)}
    wanted |= {job.key for job in (cell.targets, cell.learned) if job is not None}
    for stage in plan.stages():
        for job in stage:
            if job.key in wanted:
                make(store, job)
    source = trained(store, "student", cell.train.key, planner.student, True)
    base = resolve(M0, relative_to=Path())
    models = {
        "student": audited(source, cell.train.key, store),
        "teacher": teacher,
        "m0": audited(base, base.sha256, store),
    }
    assert found.spec is not None
    kind, drive = found.spec.pack.partition("/")[2], found.spec.trait
    assert drive is not None
    row: dict[str, Any] = {"name": name, "recipe": cell.recipe.name}
    for who, model in models.items():
        asked = {k: model.means[f"{e}/{drive}"]["value"] for k, e in DRIVE_ENDPOINTS.items()}
        row[who] = {k: round(v, 3) for k, v in asked.items()} | probed(model.lm, kind, drive)
    return row


def main() -> None:
    """Print the rows of the students asked for."""
    recipe, *names = sys.argv[1:]
    study = load_study(HERE / "students.yaml")
    kept = tuple(r for r in study.recipes if r.name == recipe)
    study = study.model_copy(update={"recipes": kept})
    rows = [student(study, name, Store(None)) for name in names]
    print(json.dumps({"students": rows}, indent=1))


if __name__ == "__main__":
    main()
