"""Writes what a run holds besides its manifest: it can be read and verified without the store."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from doublebind.execution.store import weights_sha256, write_atomic
from doublebind.runs.assess import Assessment
from doublebind.runs.files import check_folder
from doublebind.runs.measurements import (
    describe_drops,
    describe_student,
    list_transcribed_audits,
    read_transcripts,
)
from doublebind.runs.records import FurtherTrainedModel, ReplacementRecord
from doublebind.runs.run import Run, explain_contradictions
from doublebind.runs.seal import read_seal, reseal_files
from doublebind.schema.model_source import ModelSource
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.run_page import render_run_page
from doublebind.stages.verdict.outcome import verdict_to_json
from doublebind.study.plan import Plan, list_artefacts
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

    Raises:
        RunError: If a folder of the run is a link.
        StoreError: If an artefact is missing or was altered since it was made.
    """
    store = resolved.store
    for folder in ("cells", "replacement", "transcripts"):
        check_folder(out, folder)
    part = out / f".scores.parquet.{uuid.uuid4().hex}"
    scores.to_parquet(part, index=False)
    part.replace(out / "scores.parquet")
    for key, audits in list_transcribed_audits([resolved.plan, *replacement_plans]).items():
        write_atomic(out / "transcripts" / f"{key}.jsonl", read_transcripts(audits, store))
    for name, plans in (("cells", [resolved.plan]), ("replacement", replacement_plans)):
        for student in (student for plan in plans for student in plan.students):
            record = describe_student(student) | describe_drops(student, store)
            path = out / name / f"{student.train.content_key}.json"
            write_atomic(path, json.dumps(record, indent=1))
    shapes = resolved.read_shapes()
    write_atomic(out / "shapes.json", json.dumps(shapes, indent=1, sort_keys=True))
    return shapes


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


def write_report(run: Run) -> Path:
    """Write `report.html` of a finished run again; return its path.

    Seals the page alone anew: any other file that was altered still disagrees with the seal.
    """
    read_seal(run.path)  # an open run keeps the page that it has
    path = write_page(run)
    reseal_files(run.path, [path.name])
    return path


def write_page(run: Run) -> Path:
    """Write `report.html` of a run, unsealed; return its path."""
    path = run.path / "report.html"
    write_atomic(path, render_page(run))
    return path


def render_page(run: Run) -> str:
    """Return the page of a run: of equal files, equal pages.

    Raises:
        RunError: If the files contradict one another.
    """
    with explain_contradictions(run.path):
        return _render_page(run)


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
