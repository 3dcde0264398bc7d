"""Runs a list of audits on one model and writes its score rows and transcripts.

Every model gets the items of every trait of the pack. An audit that fails leaves its items
unscored, with the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from doublebind.execution.store import is_disk_full, write_records
from doublebind.packs.load import load_pack
from doublebind.schema.content import Item, Split, name_endpoint
from doublebind.schema.errors import DoublebindError
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.audits.protocol import Answer, Audit, Question, list_questions

log = logging.getLogger("doublebind.stages.audits")


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
    """Audit the model at `source` on the pack's items of `split`; a served model is unscored."""
    from doublebind.models.load import load_model

    items = load_pack(pack, relative_to=Path()).items(split)
    if source.served:
        by_audit = [
            [(question, Answer(question.item, None, SERVED_REASON)) for question in questions]
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

    Raises:
        DoublebindError: If the audit raises one, such as a missing extra.
        MemoryError, OSError: If memory or the disk is full.
    """
    questions = list_questions(audit, items)
    try:
        results = audit(model, baseline, [item for item in items if item.kind in audit.endpoints])
        answers = [_check_answer(result) for result in results]
    except DoublebindError:
        raise
    except Exception as error:
        if is_disk_full(error) or isinstance(error, MemoryError):
            raise
        log.exception("audit %s failed; its items are unscored", audit.name)
        reason = f"{type(error).__name__}: {error}"[:300]
        return [(question, Answer(question.item, None, reason)) for question in questions]
    by_id = {answer.item.id: answer for answer in answers}
    reason = "the audit gave no answer"
    return [(q, by_id.get(q.item.id, Answer(q.item, None, reason))) for q in questions]


def _check_answer(answer: object) -> Answer:
    """Return an answer with a plain float as its value; users' audits may return tensors."""
    if not isinstance(answer, Answer):
        raise TypeError(f"an audit gives an Answer for each item, not {type(answer).__name__}")
    value = answer.value
    return answer if value is None else answer._replace(value=float(value))


def build_score_row(audit: str, answer: Answer, endpoint: str | None = None) -> dict[str, object]:
    """Return one row of `scores.parquet` of an audit such as `behaviour@1`.

    `endpoint` defaults to the item's. A value outside [0, 1] is unscored.
    """
    value = answer.value
    reason = answer.unscored_reason
    if value is not None and not 0.0 <= value <= 1.0:
        value, reason = None, f"value {answer.value} is outside [0, 1]"
    return {
        "audit": audit,
        "endpoint": endpoint or name_endpoint(answer.item),
        "role": answer.item.role,
        "split": answer.item.split,
        "item": answer.item.id,
        "value": value,
        "unscored_reason": None if value is not None else (reason or "no reason given"),
    }


def write_answers(out: Path, rows: Sequence[AuditedAnswer]) -> None:
    """Write `scores.parquet` and `transcripts.jsonl`."""
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
