"""Collects what a run copies from its store: score rows, transcripts, records, match features.

`run` writes it into the run directory, and `verify` compares the directory with it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from doublebind.execution.executor import Job
from doublebind.execution.store import Store, read_absence
from doublebind.schema.errors import StoreError
from doublebind.schema.score_table import SCORE_COLUMNS
from doublebind.study.plan import Audited, Plan, StudentJobs

if TYPE_CHECKING:
    import pandas as pd


def read_artefact(store: Store, kind: str, key: str, name: str) -> bytes:
    """Return the bytes of a file of an artefact; they are the ones that its seal lists.

    Raises:
        StoreError: If the file is missing, cannot be read, or was altered since it was made.
    """
    path = store.path(kind, key) / name
    try:
        content = path.read_bytes()
        sealed = store.read_seal(kind, key)["files"][name]
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; delete the folder and rerun") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete the folder and rerun") from None
    if hashlib.sha256(content).hexdigest() != sealed:
        raise StoreError(f"{path}: altered since it was made; delete the folder and rerun")
    return content


def read_score_rows(audited: Audited, store: Store) -> pd.DataFrame:
    """Return the score rows of an audited model, with its labels: columns as `SCORE_COLUMNS`.

    Raises:
        StoreError: If they are missing or were altered.
    """
    import pandas as pd

    labels = audited._asdict()
    job: Job = labels.pop("job")
    content = read_artefact(store, job.kind, job.content_key, "scores.parquet")
    try:
        rows = pd.read_parquet(io.BytesIO(content))
        return rows.assign(**labels).loc[:, list(SCORE_COLUMNS)]
    except Exception as error:  # what a parquet reader raises on damaged bytes is not bounded
        path = store.path(job.kind, job.content_key) / "scores.parquet"
        raise StoreError(f"{path}: cannot be read ({error}); delete it and rerun") from None


def list_transcribed_audits(plans: Sequence[Plan]) -> dict[str, list[Job]]:
    """Return content key of a model -> the audits whose transcripts its file holds, in order."""
    audits: dict[str, dict[str, Job]] = {}
    for plan in plans:
        baselines = {each.job.content_key for each in plan.baselines}
        for job in (each.job for each in plan.audited if each.job.content_key not in baselines):
            audits.setdefault(str(job.inputs["source"].sha256), {})[job.content_key] = job
    return {model: list(jobs.values()) for model, jobs in audits.items()}


def read_transcripts(audits: Sequence[Job], store: Store) -> str:
    """Return the lines of a model's transcripts, over its audits.

    Raises:
        StoreError: If they are missing or were altered.
    """
    return "".join(
        read_artefact(store, job.kind, job.content_key, "transcripts.jsonl").decode("utf-8")
        for job in audits
    )


def describe_student(student: StudentJobs) -> dict[str, Any]:
    """Return the part of a student's record that follows from the plan: its labels and keys."""
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
    return record


def describe_drops(student: StudentJobs, store: Store) -> dict[str, Any]:
    """Return the part of a student's record that its artefacts hold: screens and treatments.

    Raises:
        StoreError: If a report is missing or was altered.
    """

    def read(job: Job, name: str) -> Any:
        return json.loads(read_artefact(store, job.kind, job.content_key, f"{name}.json"))

    def explain_absence(job: Job) -> str | None:
        return read_absence(store.path(job.kind, job.content_key))

    treated = [each.treated for each in student.list_rounds() if each.treated]
    present = [job for job in treated if explain_absence(job) is None]
    absent = explain_absence(student.train)
    return {
        "screen": read(student.prompts, "screen"),
        "checks": read(student.rollouts, "checks"),
        "treatments": [report for job in present for report in read(job, "treatments")],
    } | ({} if absent is None else {"absent": absent})
