"""Runs a list of audits on one model and writes its score rows and transcripts.

Every model gets the items of every trait of the pack. An item on which an audit fails is unscored,
with the reason; the others keep their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from doublebind.execution.store import read_absence, write_records
from doublebind.packs.load import load_pack
from doublebind.schema.content import Item, Split, name_endpoint
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.audits.isolation import Failure, explain_failure
from doublebind.stages.audits.protocol import Answer, Audit, Question, list_questions

SERVED_REASON = "a server gives log-probabilities of its own answers only, not of given options"


class AuditedAnswer(NamedTuple):
    """An answer under its endpoint, and the name and version of the audit, as `behaviour@1`."""

    audit: str
    endpoint: str
    answer: Answer


class TranscriptLine(Record):
    """One line of `transcripts.jsonl`: an item and the model's answer to it."""

    audit: str
    endpoint: str
    item: str
    messages: tuple[dict[str, str], ...]
    target_option: str = Field(validation_alias="key", serialization_alias="key")
    """The option whose probability is the value."""
    value: float | None
    transcript: str


def run_battery(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    pack: str,
    split: Split,
    audits: Sequence[Audit],
    dtype: Dtype,
    cache: Path,
) -> None:
    """Audit the model at `source` on the pack's items of `split`.

    A served model is unscored, and so is a student that could not be made.
    """
    from doublebind.models.load import load_model

    items = load_pack(pack, relative_to=Path()).items(split)
    absent = SERVED_REASON if source.served else read_absence(Path(source.adapter or source.path))
    if absent is not None:
        by_audit = [
            [(question, Answer(question.item, None, absent)) for question in questions]
            for questions in (list_questions(audit, items) for audit in audits)
        ]
    else:
        model = load_model(source, dtype=dtype, cache=cache)
        m0 = model if baseline == source else load_model(baseline, dtype=dtype, cache=cache)
        by_audit = [run_audit(audit, model, m0, items) for audit in audits]
    write_answers(
        out,
        [
            AuditedAnswer(f"{audit.name}@{audit.version}", question.endpoint, answer)
            for audit, answers in zip(audits, by_audit, strict=True)
            for question, answer in answers
        ],
    )


def run_audit(
    audit: Audit, model: object, baseline: object, items: Sequence[Item]
) -> list[tuple[Question, Answer]]:
    """Return an answer to every question of `audit`; unscored where it fails or gives none.

    An audit that fails is asked again without the items that break it.

    Raises:
        DoublebindError: If the audit raises one that is not about an answer, such as a missing
            extra.
        MemoryError, OSError: If memory or the disk is full.
    """
    matching = [item for item in items if item.kind in audit.endpoints]
    results, broken = _ask_apart(lambda part: audit(model, baseline, part), matching)
    reasons = {
        question.item.id: failure.reason
        for item, failure in broken
        for question in list_questions(audit, [item] if item else items)
    }
    by_id: dict[str, list[Answer]] = {}
    strangers: list[str] = []
    for result in results:
        if isinstance(result, Answer) and isinstance(result.item, Item):
            by_id.setdefault(result.item.id, []).append(check_answer(result))
        else:
            strangers.append(type(result).__name__)
    default = "the audit gave no answer"
    if strangers:
        default = f"an audit gives an Answer for each item, not {strangers[0]}"
    answers: list[tuple[Question, Answer]] = []
    for question in list_questions(audit, items):
        item = question.item
        answer = Answer(item, None, reasons.get(item.id, default))
        if len(found := by_id.get(item.id, [])) == 1:
            answer = found[0]
        elif found:
            answer = Answer(item, None, f"the audit gave {len(found)} answers to this item")
        answers.append((question, answer))
    return answers


def _ask_apart(
    ask: Callable[[list[Item]], Any], items: list[Item]
) -> tuple[list[Any], list[tuple[Item | None, Failure]]]:
    """Return the answers, and the items that break the audit, each with its failure.

    What an audit makes of an item may depend on the others, so that all items that break nothing
    are asked together once more. An item of `None` stands for all: the audit has none of its own.
    """
    try:
        return list(ask(items)), []
    except Exception as error:
        failure = explain_failure(error)
    if len(items) < 2:
        return [], [(item, failure) for item in items or [None]]
    half = len(items) // 2
    parts = [_ask_apart(ask, part) for part in (items[:half], items[half:])]
    answers = [answer for part, _ in parts for answer in part]
    broken = [pair for _, part in parts for pair in part]
    names = {item.id for item, _ in broken if item}
    whole = [item for item in items if item.id not in names]
    if whole and all(part for part, _ in parts):
        try:
            answers = list(ask(whole))
        except Exception as error:
            explain_failure(error)
    return answers, broken


def check_answer(answer: Answer) -> Answer:
    """Return an answer with a plain float in [0, 1] as its value, or none and the reason.

    Users' audits may return numbers of any library. A truth value, a text or nothing is no
    probability: 0 would read as an answer without misalignment.
    """
    value: Any = answer.value
    reason = answer.unscored_reason
    try:
        value = value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError, RuntimeError):
        reason = f"the value is a {type(value).__name__} of several numbers"
        return answer._replace(value=None, unscored_reason=reason)
    if value is None:
        return answer._replace(value=None, unscored_reason=str(reason or "no reason given"))
    if isinstance(value, bool) or not isinstance(value, Real):
        reason = f"value {str(value)[:80]!r} is no number but a {type(value).__name__}"
        return answer._replace(value=None, unscored_reason=reason)
    value = float(value)
    if not 0.0 <= value <= 1.0:
        reason = f"value {value} is outside [0, 1]"
        return answer._replace(value=None, unscored_reason=reason)
    return answer._replace(value=value, unscored_reason=None)


def build_score_row(audit: str, answer: Answer, endpoint: str | None = None) -> dict[str, object]:
    """Return one row of `scores.parquet` of an audit such as `behaviour@1`.

    `endpoint` defaults to the item's.
    """
    answer = check_answer(answer)
    return {
        "audit": audit,
        "endpoint": endpoint or name_endpoint(answer.item),
        "role": answer.item.role,
        "split": answer.item.split,
        "item": answer.item.id,
        "value": answer.value,
        "unscored_reason": answer.unscored_reason,
    }


def write_answers(out: Path, rows: Sequence[AuditedAnswer]) -> None:
    """Write `scores.parquet` and `transcripts.jsonl`."""
    rows = [row._replace(answer=check_answer(row.answer)) for row in rows]
    write_scores(out, [build_score_row(row.audit, row.answer, row.endpoint) for row in rows])
    lines = [
        TranscriptLine(
            audit=audit,
            endpoint=endpoint,
            item=answer.item.id,
            messages=tuple({"role": m.role, "content": m.content} for m in answer.item.messages),
            target_option=answer.item.options[answer.item.target_index],
            # JSON has no NaN and no infinity, which a user's audit may give.
            value=_keep_finite(answer.value),
            transcript=answer.transcript,
        )
        for audit, endpoint, answer in rows
    ]
    write_records(out / "transcripts.jsonl", lines)


def _keep_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_scores(out: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `scores.parquet`, with null where a value is missing."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame["value"] = frame["value"].astype("float64")
    frame.to_parquet(out / "scores.parquet", index=False)
