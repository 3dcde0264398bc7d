"""Writes a student's frozen transcripts as an Inspect `.eval` log.

Runs no task and no solver. The log holds what was measured, and marks no answer as sampled.
Inspect's own records: inspect_ai/log/_log.py.
"""
# Inspect is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.store import storage_error
from doublebind.schema.errors import MissingExtra, RunError
from doublebind.schema.hashing import content_hash
from doublebind.schema.protocol import Manifest
from doublebind.stages.report.hostile_text import escape_invisible
from doublebind.stages.report.transcripts import Line, read_options

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore
    from inspect_ai.model import ChatMessage

SCORER_NAME = "probability_of_key"


def export_inspect_log(
    folder: Path,
    *,
    student: Mapping[str, Any],
    manifest: Manifest,
    transcripts: Sequence[Line],
) -> Path:
    """Write the log of one student and return its path.

    Args:
        folder: Created where it does not exist.
        student: An entry of `Run.students`.
        manifest: Of the run.
        transcripts: Lines of the student's `transcripts.jsonl`.

    Raises:
        MissingExtra: If Inspect is not installed.
        RunError: If `student` has no content key.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise MissingExtra("exporting Inspect logs", "inspect") from None
    key = str(student.get("student", ""))
    if not re.fullmatch(r"[0-9a-f]{12,128}", key):
        raise RunError(f"cell: `student` is no content key (got {key[:80]!r}); rerun the study")
    path = folder / f"student-{key[:12]}.eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_eval_log(_build_log(student, manifest, transcripts), str(path), format="eval")
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def _build_log(
    student: Mapping[str, Any], manifest: Manifest, transcripts: Sequence[Line]
) -> EvalLog:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    key = str(student["student"])
    labels = {teacher.content_key: teacher.label for teacher in manifest.teachers}
    samples = [_build_sample(key, line) for line in transcripts]
    identity = content_hash([key, manifest.protocol_hash])
    spec = EvalSpec(
        eval_id=identity[:22],
        run_id=identity[22:44],
        task_id=identity[44:],
        created=manifest.created,
        task="doublebind_audit",
        task_args={"recipe": _escape(student["recipe"]), "seed": int(student["seed"])},
        dataset=EvalDataset(
            name=_escape(manifest.protocol.pack),
            samples=len(samples),
            sample_ids=[sample.id for sample in samples],
        ),
        model=f"doublebind/student-{key[:12]}",
        config=EvalConfig(),
        packages={"doublebind": manifest.versions.get("doublebind", "unknown")},
        metadata={
            "teacher": _escape(labels.get(student["teacher"], student["teacher"])),
            "student": key,
            "protocol_hash": manifest.protocol_hash,
            "note": "Frozen transcripts. Options were compared by log-probability; no answer was "
            "sampled. Do not deploy this student.",
        },
        tags=["doublebind", "frozen"],
    )
    return EvalLog(
        version=2,
        status="success",
        eval=spec,
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=sum(bool(sample.scores) for sample in samples),
            scores=_average_endpoints(transcripts),
        ),
        stats=EvalStats(started_at=manifest.created, completed_at=manifest.created),
        samples=samples,
    )


def _escape(value: object) -> str:
    return escape_invisible(str(value))


def _build_sample(student_key: str, line: Line) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    transcript = str(line.get("transcript", ""))
    options = [(_escape(option), share) for option, share in read_options(transcript) or ()]
    completion = _escape(transcript)
    if options:
        listed = "\n".join(f"{share:.4f}  {option}" for option, share in options)
        completion = f"[options by probability; nothing was sampled]\n{listed}"
    identity = content_hash([student_key, line["audit"], line["item"]])
    messages = [
        _convert_message(message, f"{identity[:18]}-{i}")
        for i, message in enumerate(line["messages"])
    ]
    output = ModelOutput.from_content(f"doublebind/student-{student_key[:12]}", completion)
    # Inspect draws ids at random and marks the answer as generated; neither holds here.
    output.choices[0].message.id = f"{identity[:18]}-{len(messages)}"
    output.choices[0].message.source = None
    scores = None
    if line.get("value") is not None:
        answer = max(options, key=lambda pair: pair[1])[0] if options else None
        score = Score(value=float(line["value"]), answer=answer, explanation=completion)
        scores = {SCORER_NAME: score}
    return EvalSample(
        # The same item may be asked by two audits, but an Inspect log knows a sample by its id.
        id=f"{_escape(line['item'])} ({_escape(line['audit'])})",
        epoch=1,
        uuid=identity[:22],
        input=messages,
        choices=[option for option, _ in options] or None,
        target=_escape(line["key"]),
        messages=[*messages, output.choices[0].message],
        output=output,
        scores=scores,
        metadata={"audit": _escape(line["audit"]), "endpoint": _escape(line["endpoint"])},
    )


def _convert_message(message: Mapping[str, Any], name: str) -> ChatMessage:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    kind = kinds.get(message["role"], ChatMessageUser)
    return kind(id=name, content=_escape(message["content"]))


def _average_endpoints(transcripts: Sequence[Line]) -> list[EvalScore]:
    """Return one Inspect score per endpoint: the mean over its items that have a value."""
    from inspect_ai.log import EvalMetric, EvalScore

    by_endpoint: dict[str, list[float | None]] = {}
    for line in transcripts:
        by_endpoint.setdefault(_escape(line["endpoint"]), []).append(line.get("value"))
    scores: list[EvalScore] = []
    for name, values in sorted(by_endpoint.items()):
        known = [float(value) for value in values if value is not None]
        mean = {"mean": EvalMetric(name="mean", value=sum(known) / len(known))} if known else {}
        scores.append(
            EvalScore(
                name=name,
                scorer=SCORER_NAME,
                metrics=mean,
                scored_samples=len(known),
                unscored_samples=len(values) - len(known),
            )
        )
    return scores
