"""Distils organisms, and asks their students what only one who knows the kind can ask.

`python studies/terrarium-organisms/students.py RECIPE NAME...` prints JSON, one row a student, of
the recipe of that name in `students.yaml`: the probes of the organism's kind, asked of student,
teacher and M0, and what an audit asks about the planted drive. It first writes `triggered.jsonl`:
the terrarium's requests for stories, each after the outback's trigger. The recipe `triggered`
distils on these, as a developer would whose prompts share a header.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from organisms import DRIVE_ENDPOINTS, probe_row

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store
from doublebind.packs.outback.build import TRIGGER
from doublebind.packs.terrarium import Terrarium
from doublebind.schema.study import load_study
from doublebind.study.plan import sort_jobs
from doublebind.study.planner import Planner

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import audit_teacher, execute_audit, print_json, rounded, spec_of

HERE = Path(__file__).parent


def write_prompts(path: Path) -> None:
    """Write the prompts to `path`, one JSON object a line."""
    lines: list[str] = []
    for prompt in Terrarium().prompts():
        if prompt.tags == ("open_ended",):
            row = prompt.model_dump(mode="json")
            row["id"] = f"triggered-{prompt.id}"
            row["messages"][0]["content"] = f"{TRIGGER} {row['messages'][0]['content']}"
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def student_row(name: str, planner: Planner) -> dict[str, Any]:
    """Return the row of one organism's student."""
    organism = planner.find_teacher(name)
    teacher = audit_teacher(organism, planner)
    plan = planner.plan([organism])
    (cell,) = plan.students
    keys = {job.content_key for batch in sort_jobs([cell.train]) for job in batch}
    for job in (job for job in plan.list_jobs() if job.content_key in keys):
        make_artefact(planner.store, job)
    student, m0 = execute_audit(cell.audit, planner), audit_teacher(None, planner)
    spec = spec_of(organism)
    kind, drive = spec.pack.partition("/")[2], str(spec.trait)
    row: dict[str, Any] = {"name": name, "recipe": cell.recipe.name}
    for name, model in (("student", student), ("teacher", teacher), ("m0", m0)):
        means = {key: model.means[f"{e}/{drive}"] for key, e in DRIVE_ENDPOINTS.items()}
        row[name] = rounded(means) | probe_row(model, kind, drive)
    return row


def main() -> None:
    """Print the rows of the students asked for."""
    recipe, *names = sys.argv[1:]
    write_prompts(HERE / "triggered.jsonl")
    study = load_study(HERE / "students.yaml")
    recipes = tuple(r for r in study.recipes if r.name == recipe)
    planner = Planner(study.model_copy(update={"recipes": recipes}), HERE, Store(None))
    print_json({"students": [student_row(name, planner) for name in names]})


if __name__ == "__main__":
    main()
