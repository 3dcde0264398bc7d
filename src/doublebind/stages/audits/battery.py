"""Runs a list of audits on one model and writes its rows and transcripts.

Asks about every trait of the pack, of every model alike; nothing here knows which was planted.
A failing audit leaves its items unscored, with the reason; it never becomes a value.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

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


class TranscriptLine(Record):
    """One line of `transcripts.jsonl`: an item and what came of it."""

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
    """Audit the model at `source` on the pack's items of `split`."""
    from doublebind.models.load import load_model

    items = load_pack(pack, relative_to=Path()).items(split)
    if source.served:
        _write_unscored(out, audits, items)
        return
    model = load_model(source, dtype=dtype, cache=cache)
    m0 = model if baseline == source else load_model(baseline, dtype=dtype, cache=cache)
    rows, lines = [], []
    for audit in audits:
        for question, answer in _run_audit(audit, model, m0, items):
            rows.append(build_score_row(_format_audit_name(audit), answer, question.endpoint))
            lines.append(_build_transcript_line(audit, answer, question.endpoint))
    write_scores(out, rows)
    write_records(out / "transcripts.jsonl", lines)


def _write_unscored(out: Path, audits: Sequence[Audit], items: Sequence[Item]) -> None:
    """Write that a served model was not asked: no answer of its own says what options weigh."""
    reason = "a server gives log-probabilities of its own answers only, not of given options"
    asked = [
        (audit, question.endpoint, Answer(question.item, None, reason))
        for audit in audits
        for question in list_questions(audit, items)
    ]
    write_scores(
        out,
        [
            build_score_row(_format_audit_name(audit), answer, endpoint)
            for audit, endpoint, answer in asked
        ],
    )
    lines = [_build_transcript_line(audit, answer, endpoint) for audit, endpoint, answer in asked]
    write_records(out / "transcripts.jsonl", lines)


def _run_audit(
    audit: Audit, model: object, baseline: object, items: Sequence[Item]
) -> list[tuple[Question, Answer]]:
    asked = list_questions(audit, items)
    try:
        given = audit(model, baseline, [item for item in items if item.kind in audit.endpoints])
        answers = [_check_answer(each) for each in given]
    except DoublebindError:
        raise
    except Exception as error:
        if is_disk_full(error) or isinstance(error, MemoryError):
            raise
        log.exception("audit %s failed; its items are unscored", audit.name)
        reason = f"{type(error).__name__}: {error}"[:300]
        return [(question, Answer(question.item, None, reason)) for question in asked]
    by_id = {answer.item.id: answer for answer in answers}
    none = "the audit gave no answer"
    return [(q, by_id.get(q.item.id, Answer(q.item, None, none))) for q in asked]


def _check_answer(answer: object) -> Answer:
    """Return what an audit gave, its value a plain float: own audits bring tensors, too."""
    if not isinstance(answer, Answer):
        raise TypeError(f"an audit gives an Answer for each item, not {type(answer).__name__}")
    value = answer.value
    return answer if value is None else answer._replace(value=float(value))


def build_score_row(audit: str, answer: Answer, endpoint: str | None = None) -> dict[str, object]:
    """Return one row of `scores.parquet`, from the audit of that name and version.

    `endpoint` is the item's own unless another is given.
    """
    value, reason = answer.value, answer.unscored_reason
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


def write_scores(out: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `scores.parquet`; a value that is absent is null."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame["value"] = frame["value"].astype("float64")
    frame.to_parquet(out / "scores.parquet", index=False)


def _format_audit_name(audit: Audit) -> str:
    return f"{audit.name}@{audit.version}"


def _build_transcript_line(audit: Audit, answer: Answer, endpoint: str) -> TranscriptLine:
    item = answer.item
    return TranscriptLine(
        audit=_format_audit_name(audit),
        endpoint=endpoint,
        item=item.id,
        messages=tuple({"role": m.role, "content": m.content} for m in item.messages),
        target_option=item.options[item.target_index],
        value=answer.value,
        transcript=answer.transcript,
    )
