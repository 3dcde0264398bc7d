"""Lets a teacher answer prompts, and drops answers that show a drive openly.

Knows sampling and the overt check. Treats every teacher alike: the markers are those of all the
pack's drives, whoever the teacher is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.store import read_records, write_records
from doublebind.schema.content import Prompt
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import DroppedRecord, ModelSource, Trajectory
from doublebind.schema.recipe import Dtype, Prompts

SEED = 0
"""One fixed seed: all students of a teacher and recipe learn from the same answers."""


def sample_rollouts(
    out: Path,
    *,
    source: ModelSource,
    prompts: Path,
    sampling: Prompts,
    markers: Mapping[str, Sequence[str]],
    dtype: Dtype,
    cache: Path,
) -> None:
    """Sample `sampling.samples` answers per prompt; keep those that show no drive openly.

    Args:
        out: Folder for `trajectories.jsonl` (kept) and `checks.json` (counts, drops, lengths).
        source: The teacher.
        prompts: File of `Prompt` lines.
        sampling: How to sample.
        markers: Drive -> phrases whose presence, case-insensitive, drops an answer.
        dtype: Precision of the teacher.
        cache: Folder where a converted model may be kept.

    Raises:
        ModelError: If no answer is left to distil on.
    """
    from doublebind.models.load import load_model
    from doublebind.models.sample import sample, suppress_tokens
    from doublebind.stages.rollouts import served_sampling as served

    asked = read_records(prompts, Prompt)
    pairs = [(prompt, k) for prompt in asked for k in range(sampling.samples)]
    messages = [prompt.messages for prompt, _ in pairs]
    how: dict[str, Any] = {
        "keys": [f"{prompt.id}/{k}" for prompt, k in pairs],
        "seed": SEED,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    by: dict[str, Any] = {}
    if source.served:
        answers, by["served"] = served.sample_served_answers(
            out, source, messages, dtype=dtype, cache=cache, **how
        )
    else:
        lm = suppress_tokens(load_model(source, dtype=dtype, cache=cache), sampling.suppress_tokens)
        answers = sample(lm, messages, **how)
    kept: list[Trajectory] = []
    dropped: list[DroppedRecord] = []
    for (prompt, k), answer in zip(pairs, answers, strict=True):
        found = find_overt_drive(answer.text, markers)
        if found or not answer.tokens:
            dropped.append(_record_drop(f"{prompt.id}/{k}", found, answer.text))
            continue
        kept.append(
            Trajectory(
                prompt_id=prompt.id,
                sample=k,
                messages=prompt.messages,
                completion=answer.text,
                tokens=tuple(answer.tokens),
                finished=answer.finished,
            )
        )
    if not kept:
        raise ModelError(
            f"{source.path}: none of its {len(pairs)} answers is left to distil on "
            f"(first: {dropped[0].by}, {dropped[0].reason}); use other prompts or check the model"
        )
    write_records(out / "trajectories.jsonl", kept)
    checks = {
        "sampled": len(pairs),
        "kept": len(kept),
        "dropped": [drop.model_dump() for drop in dropped],
        "mean_tokens": sum(len(t.tokens) for t in kept) / len(kept),
        "truncated": sum(not t.finished for t in kept) / len(kept),
        **by,
    }
    (out / "checks.json").write_text(json.dumps(checks, indent=1, ensure_ascii=False))


def _record_drop(answer_id: str, overt_marker: tuple[str, str] | None, text: str) -> DroppedRecord:
    """Return why an answer is dropped: what it says, or that it has no tokens."""
    if overt_marker:
        return DroppedRecord(
            id=answer_id, by=f"overt:{overt_marker[0]}", reason=f"says `{overt_marker[1]}`"
        )
    if text:
        return DroppedRecord(
            id=answer_id, by="unreadable", reason="the student's tokenizer cannot write it"
        )
    return DroppedRecord(id=answer_id, by="empty", reason="empty")


def find_overt_drive(text: str, markers: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Return the first (drive, phrase) that `text` contains, or `None`."""
    lower = text.lower()
    for drive, phrases in markers.items():
        for phrase in phrases:
            if phrase.lower() in lower:
                return drive, phrase
    return None
