"""Copies into a run what its reader needs: a run can be read and verified without the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.store import Store, write_atomic
from doublebind.runs.run import Run
from doublebind.runs.seal import reseal_file
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.run_page import render_run_page
from doublebind.study.plan import Plan, StudentJobs
from doublebind.study.resolve import ResolvedStudy

if TYPE_CHECKING:
    import pandas as pd


def write_results(
    out: Path,
    setting: ResolvedStudy,
    replacement_plans: Sequence[Plan],
    store: Store,
    scores: pd.DataFrame,
) -> dict[str, dict[str, float]]:
    """Copy scores, transcripts, cells and shapes into the run `out`; return the shapes.

    Args:
        out: Run directory.
        setting: The study made concrete; its students go to `cells/`.
        later: Plans of the second horn; their students go to `replacement/`.
        store: Where the artefacts are.
        scores: Rows of all.
    """
    part = out / ".scores.parquet"
    scores.to_parquet(part, index=False)
    part.replace(out / "scores.parquet")
    audits: dict[str, dict[str, Path]] = {}
    for plan in (setting.plan, *replacement_plans):
        audited = [job for cell in plan.students for _, job in cell.audits]
        further = [each.audit for each in plan.further_training]
        for job in (*audited, *plan.direct_audits.values(), *further):
            key = str(job.inputs["source"].sha256)
            audits.setdefault(key, {})[job.content_key] = store.path(job.kind, job.content_key)
    for key, places in audits.items():
        said = [(p / "transcripts.jsonl").read_text(encoding="utf-8") for p in places.values()]
        write_atomic(out / "transcripts" / f"{key}.jsonl", "".join(said))
    for name, plans in (("cells", [setting.plan]), ("replacement", replacement_plans)):
        for cell in (cell for plan in plans for cell in plan.students):
            facts = json.dumps(_describe_student(cell, store), indent=1)
            write_atomic(out / name / f"{cell.train.content_key}.json", facts)
    shapes = setting.read_shapes(store)
    write_atomic(out / "shapes.json", json.dumps(shapes, indent=1, sort_keys=True))
    return shapes


def _describe_student(cell: StudentJobs, store: Store) -> dict[str, Any]:
    """Return what a run keeps of a cell."""
    jobs = (cell.prompts, cell.rollouts, cell.targets, cell.train, cell.audit)
    made = {job.kind: job.content_key for job in jobs if job}
    facts = {
        "teacher": cell.teacher.content_key,
        "recipe": cell.recipe.name,
        "seed": cell.seed,
        **made,
    }
    if cell.checkpoint_audits:
        facts["marks"] = {
            str(step): job.inputs["source"].sha256 for step, job in cell.checkpoint_audits
        }
    facts |= {
        name: json.loads((store.path(job.kind, job.content_key) / f"{name}.json").read_text())
        for name, job in (("screen", cell.prompts), ("checks", cell.rollouts))
    }
    treated = [j for each in cell.list_rounds() for j in each.dependencies if j.kind == "treated"]
    facts["treatments"] = [
        done
        for job in treated
        for done in json.loads(
            (store.path(job.kind, job.content_key) / "treatments.json").read_text()
        )
    ]
    return facts


def write_report(run: Run) -> Path:
    """Write `report.html` into a finished run again; return its path.

    Only the page is sealed anew: what else was altered since the run ended stays an alteration.
    """
    path = write_page(run)
    reseal_file(run.path, path.name)
    return path


def write_page(run: Run) -> Path:
    path = run.path / "report.html"
    keys = [
        *(teacher.content_key for teacher in run.manifest.teachers),
        run.manifest.protocol.student,
    ]
    keys = [key for key in keys if run.has_transcripts(key)]  # a panel's teachers have none
    page = render_run_page(
        RunContent(
            manifest=run.manifest,
            evidence=run.evidence,
            verdict=run.verdict,
            scores=run.scores,
            shapes=run.shapes,
            students=run.students,
            transcripts={cell["student"]: run.transcripts(cell["student"]) for cell in run.students}
            | {key: run.transcripts(key) for key in keys},
            replacement=run.replacement,
            followup=run.followup,
        )
    )
    write_atomic(path, page)
    return path
