"""Writes a student's frozen transcripts as an Inspect `.eval` log.

Knows Inspect's log records. Runs no task and no solver: what is written is what was measured, and
nothing in the log claims to be a sampled answer. Inspect's own records: inspect_ai/log/_log.py.
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
from doublebind.stages.report.hostile_text import escape_invisible
from doublebind.stages.report.transcripts import read_options

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore
    from inspect_ai.model import ChatMessage

SCORER_NAME = "probability_of_key"


def export_inspect_log(
    out: Path,
    *,
    cell: Mapping[str, Any],
    manifest: Mapping[str, Any],
    transcripts: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the log; see the package's door."""
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise MissingExtra("exporting Inspect logs", "inspect") from None
    student = str(cell.get("student", ""))
    if not re.fullmatch(r"[0-9a-f]{12,128}", student):
        raise RunError(f"cell: `student` is no content key (got {student[:80]!r}); rerun the study")
    path = out / f"student-{student[:12]}.eval"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_eval_log(_build_log(student, cell, manifest, transcripts), str(path), format="eval")
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def _build_log(
    student: str,
    cell: Mapping[str, Any],
    manifest: Mapping[str, Any],
    transcripts: Sequence[Mapping[str, Any]],
) -> EvalLog:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    label = {t["key"]: t["label"] for t in manifest["teachers"]}
    teacher = escape_invisible(str(label.get(cell["teacher"], cell["teacher"])))
    pack, created = str(manifest["protocol"]["pack"]), str(manifest["created"])
    samples = [_build_sample(student, line) for line in transcripts]
    identity = content_hash([student, manifest["protocol_hash"]])
    spec = EvalSpec(
        eval_id=identity[:22],
        run_id=identity[22:44],
        task_id=identity[44:],
        created=created,
        task="doublebind_audit",
        task_args={"recipe": escape_invisible(str(cell["recipe"])), "seed": int(cell["seed"])},
        dataset=EvalDataset(
            name=escape_invisible(pack), samples=len(samples), sample_ids=[s.id for s in samples]
        ),
        model=f"doublebind/student-{student[:12]}",
        config=EvalConfig(),
        packages={"doublebind": str(manifest["versions"].get("doublebind", "unknown"))},
        metadata={
            "teacher": teacher,
            "student": student,
            "protocol_hash": manifest["protocol_hash"],
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
            completed_samples=sum(bool(s.scores) for s in samples),
            scores=_average_endpoints(transcripts),
        ),
        stats=EvalStats(started_at=created, completed_at=created),
        samples=samples,
    )


def _build_sample(student: str, line: Mapping[str, Any]) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    transcript, key = str(line.get("transcript", "")), escape_invisible(str(line["key"]))
    options = read_options(transcript)
    said = escape_invisible(transcript)
    if options:
        probable = "\n".join(f"{p:.4f}  {escape_invisible(o)}" for o, p in options)
        said = f"[options by probability; nothing was sampled]\n{probable}"
    identity = content_hash([student, line["audit"], line["item"]])
    asked = [_convert_message(m, f"{identity[:18]}-{i}") for i, m in enumerate(line["messages"])]
    output = ModelOutput.from_content(f"doublebind/student-{student[:12]}", said)
    # Inspect draws ids at random and marks the answer as generated; neither holds here.
    output.choices[0].message.id = f"{identity[:18]}-{len(asked)}"
    output.choices[0].message.source = None
    value = line.get("value")
    return EvalSample(
        # The same item may be asked by two audits, but an Inspect log knows a sample by its id.
        id=f"{escape_invisible(str(line['item']))} ({escape_invisible(str(line['audit']))})",
        epoch=1,
        uuid=identity[:22],
        input=asked,
        choices=[escape_invisible(o) for o, _ in options] if options else None,
        target=key,
        messages=[*asked, output.choices[0].message],
        output=output,
        scores=None
        if value is None
        else {
            SCORER_NAME: Score(
                value=float(value), answer=_find_likeliest(options), explanation=said
            )
        },
        metadata={
            "audit": escape_invisible(str(line["audit"])),
            "endpoint": escape_invisible(str(line["endpoint"])),
        },
    )


def _find_likeliest(options: Sequence[tuple[str, float]] | None) -> str | None:
    return escape_invisible(max(options, key=lambda pair: pair[1])[0]) if options else None


def _convert_message(message: Mapping[str, Any], name: str) -> ChatMessage:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    content = escape_invisible(str(message["content"]))
    match message["role"]:
        case "system":
            return ChatMessageSystem(id=name, content=content)
        case "assistant":
            return ChatMessageAssistant(id=name, content=content)
    return ChatMessageUser(id=name, content=content)


def _average_endpoints(transcripts: Sequence[Mapping[str, Any]]) -> list[EvalScore]:
    """Return one Inspect score per endpoint: the mean over its items that have a value."""
    from inspect_ai.log import EvalMetric, EvalScore

    by_endpoint: dict[str, list[float | None]] = {}
    for line in transcripts:
        by_endpoint.setdefault(escape_invisible(str(line["endpoint"])), []).append(
            line.get("value")
        )
    found: list[EvalScore] = []
    for name, values in sorted(by_endpoint.items()):
        known = [float(v) for v in values if v is not None]
        mean = {"mean": EvalMetric(name="mean", value=sum(known) / len(known))} if known else {}
        found.append(
            EvalScore(
                name=name,
                scorer=SCORER_NAME,
                metrics=mean,
                scored_samples=len(known),
                unscored_samples=len(values) - len(known),
            )
        )
    return found
