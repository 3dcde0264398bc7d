"""Writes what a run holds besides its manifest: it can be read and verified without the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.execution.executor import Job
from doublebind.execution.store import Store, weights_sha256, write_atomic
from doublebind.runs.assess import Assessment
from doublebind.runs.records import FurtherTrainedModel, ReplacementRecord
from doublebind.runs.run import Run, explain_contradictions
from doublebind.runs.seal import read_seal, reseal_file
from doublebind.schema.model_source import ModelSource
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_json import parse_json
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.run_page import render_run_page
from doublebind.stages.verdict.outcome import verdict_to_json
from doublebind.study.plan import Plan, StudentJobs, list_artefacts
from doublebind.study.resolve import ResolvedStudy

if TYPE_CHECKING:
    import pandas as pd


class Competition(NamedTuple):
    """The measurements of a search for a replacement."""

    scores: pd.DataFrame
    plans: tuple[Plan, Plan]
    """Of the students that compete, and of the fresh ones."""
    delivered: ModelSource
    """The student of the first suspect that would be handed over."""


def write_measurements(
    out: Path, resolved: ResolvedStudy, replacement_plans: Sequence[Plan], scores: pd.DataFrame
) -> dict[str, dict[str, float]]:
    """Copy scores, transcripts, student records and match features into a run.

    Args:
        out: Run directory.
        resolved: The study; records of its students go to `cells/`.
        replacement_plans: Plans of the search for a replacement; records go to `replacement/`.
        scores: All score rows.

    Returns:
        Match features: teacher label -> feature -> value.
    """
    store = resolved.store
    part = out / ".scores.parquet"
    scores.to_parquet(part, index=False)
    part.replace(out / "scores.parquet")
    _write_transcripts(out, [resolved.plan, *replacement_plans], store)
    for name, plans in (("cells", [resolved.plan]), ("replacement", replacement_plans)):
        for student in (student for plan in plans for student in plan.students):
            record = json.dumps(_describe_student(student, store), indent=1)
            write_atomic(out / name / f"{student.train.content_key}.json", record)
    shapes = resolved.read_shapes()
    write_atomic(out / "shapes.json", json.dumps(shapes, indent=1, sort_keys=True))
    return shapes


def _write_transcripts(out: Path, plans: Sequence[Plan], store: Store) -> None:
    """Write one file of transcripts for each model that was audited."""
    files: dict[str, dict[str, Path]] = {}
    for plan in plans:
        baselines = {each.job.content_key for each in plan.baselines}
        for job in (each.job for each in plan.audited if each.job.content_key not in baselines):
            key = str(job.inputs["source"].sha256)
            path = store.path(job.kind, job.content_key) / "transcripts.jsonl"
            files.setdefault(key, {})[job.content_key] = path
    for key, paths in files.items():
        text = "".join(path.read_text(encoding="utf-8") for path in paths.values())
        write_atomic(out / "transcripts" / f"{key}.jsonl", text)


def write_assessment(out: Path, assessment: Assessment, competition: Competition | None) -> None:
    """Write `evidence.json`, `verdict.json` and, of a search for a replacement, its record."""
    write_atomic(out / "evidence.json", assessment.evidence.model_dump_json(indent=1))
    verdict = json.dumps(verdict_to_json(assessment.verdict), indent=1)
    write_atomic(out / "verdict.json", verdict)
    if assessment.replacement is None or competition is None:
        return
    record = ReplacementRecord(
        evidence=assessment.replacement,
        artefacts=list_artefacts(*competition.plans),
        student=competition.delivered.sha256,
        further_training=tuple(
            FurtherTrainedModel(
                each.model_kind, each.recipe, each.seed, each.step, each.job.inputs["source"].sha256
            )
            for each in competition.plans[-1].further_training
        ),
    )
    write_atomic(out / "replacement.json", record.model_dump_json(indent=1))


def hash_weights(model: ModelSource) -> str:
    """Return the hash of a model's own weights (hex)."""
    return weights_sha256(Path(model.adapter or model.path))


def _describe_student(student: StudentJobs, store: Store) -> dict[str, Any]:
    """Return the record of a student: its labels, keys, and reports of screens and treatments."""

    def read(job: Job, name: str) -> Any:
        path = store.path(job.kind, job.content_key) / f"{name}.json"
        return parse_json(read_text(path))

    record: dict[str, Any] = {
        "teacher": student.teacher.content_key,
        "recipe": student.recipe.name,
        "seed": student.seed,
    }
    jobs = (student.prompts, student.rollouts, student.targets, student.train, student.audit)
    record |= {job.kind: job.content_key for job in jobs if job}
    if student.checkpoint_audits:
        record["marks"] = {
            str(step): job.inputs["source"].sha256 for step, job in student.checkpoint_audits
        }
    record["screen"] = read(student.prompts, "screen")
    record["checks"] = read(student.rollouts, "checks")
    treated = [each.treated for each in student.list_rounds() if each.treated]
    record["treatments"] = [report for job in treated for report in read(job, "treatments")]
    return record


def write_report(run: Run) -> Path:
    """Write `report.html` of a finished run again; return its path.

    Seals the page alone anew: any other file that was altered still disagrees with the seal.
    """
    read_seal(run.path)  # an open run keeps the page that it has
    path = write_page(run)
    reseal_file(run.path, path.name)
    return path


def write_page(run: Run) -> Path:
    """Write `report.html` of a run, unsealed; return its path."""
    path = run.path / "report.html"
    with explain_contradictions(run.path):
        page = _render_page(run)
    write_atomic(path, page)
    return path


def _render_page(run: Run) -> str:
    keys = [
        *(teacher.content_key for teacher in run.manifest.teachers),
        run.manifest.protocol.student,
    ]
    keys = [key for key in keys if run.has_transcripts(key)]  # a panel's teachers have none
    return render_run_page(
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
