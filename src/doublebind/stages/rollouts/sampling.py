"""Samples a teacher's answers to prompts, and drops answers that show a drive openly.

All teachers are screened for the same phrases: those of all the pack's drives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.store import read_records, write_records
from doublebind.schema.content import Prompt
from doublebind.schema.errors import NothingToDistil
from doublebind.schema.model_source import DroppedRecord, ModelSource, Trajectory
from doublebind.schema.recipe import Dtype, Prompts

if TYPE_CHECKING:
    from doublebind.models.sample import SampledAnswer

SEED = 0
"""Fixed, so that all students of a teacher and recipe learn from the same answers."""


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
        out: Folder for `trajectories.jsonl` (remaining answers) and `checks.json` (counts, dropped
            answers, lengths).
        source: The teacher.
        prompts: File of `Prompt` lines.
        sampling: Sampling options.
        markers: Drive -> phrases whose presence, case-insensitive, drops an answer.
        dtype: Precision of the teacher.
        cache: Folder where a converted model may be saved.

    Raises:
        NothingToDistil: If no answer is left; `checks.json` says why.
    """
    records = read_records(prompts, Prompt)
    pairs = [(prompt, k) for prompt in records for k in range(sampling.samples)]
    answers, facts = _sample_answers(out, source, pairs, sampling, dtype, cache)
    remaining, dropped = screen_answers(pairs, answers, markers)
    checks: dict[str, Any] = {
        "sampled": len(pairs),
        "kept": len(remaining),
        "dropped": [drop.model_dump() for drop in dropped],
    }
    if remaining:
        checks["mean_tokens"] = sum(len(t.tokens) for t in remaining) / len(remaining)
        checks["truncated"] = sum(not t.finished for t in remaining) / len(remaining)
    (out / "checks.json").write_text(json.dumps(checks | facts, indent=1, ensure_ascii=False))
    if not remaining:
        raise NothingToDistil(
            f"{source.path}: none of its {len(pairs)} answers is left to distil on "
            f"(first: {dropped[0].by}, {dropped[0].reason}); use other prompts or check the model"
        )
    write_records(out / "trajectories.jsonl", remaining)


def _sample_answers(
    out: Path,
    source: ModelSource,
    pairs: Sequence[tuple[Prompt, int]],
    sampling: Prompts,
    dtype: Dtype,
    cache: Path,
) -> tuple[list[SampledAnswer], dict[str, Any]]:
    """Return one answer per (prompt, sample number), and facts about a server."""
    from doublebind.models.load import load_model
    from doublebind.models.sample import sample, suppress_tokens
    from doublebind.stages.rollouts.served_sampling import sample_served_answers

    messages = [prompt.messages for prompt, _ in pairs]
    options: dict[str, Any] = {
        "keys": [f"{prompt.id}/{k}" for prompt, k in pairs],
        "seed": SEED,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if source.served:
        answers, server_facts = sample_served_answers(
            out, source, messages, dtype=dtype, cache=cache, **options
        )
        return answers, {"served": server_facts}
    lm = suppress_tokens(load_model(source, dtype=dtype, cache=cache), sampling.suppress_tokens)
    return sample(lm, messages, **options), {}


def screen_answers(
    pairs: Sequence[tuple[Prompt, int]],
    answers: Sequence[SampledAnswer],
    markers: Mapping[str, Sequence[str]],
) -> tuple[list[Trajectory], list[DroppedRecord]]:
    """Return the answers to distil on, and the dropped ones with reasons."""
    remaining: list[Trajectory] = []
    dropped: list[DroppedRecord] = []
    for (prompt, k), answer in zip(pairs, answers, strict=True):
        answer_id = f"{prompt.id}/{k}"
        if answer.missing:
            dropped.append(DroppedRecord(id=answer_id, by="missing", reason=answer.missing))
        elif overt := find_overt_drive(answer.text, markers):
            drive, phrase = overt
            reason = f"says `{phrase}`"
            dropped.append(DroppedRecord(id=answer_id, by=f"overt:{drive}", reason=reason))
        elif answer.tokens:
            remaining.append(
                Trajectory(
                    prompt_id=prompt.id,
                    sample=k,
                    messages=prompt.messages,
                    completion=answer.text,
                    tokens=tuple(answer.tokens),
                    finished=answer.finished,
                )
            )
        elif answer.text:
            reason = "the student's tokenizer cannot write it"
            dropped.append(DroppedRecord(id=answer_id, by="unreadable", reason=reason))
        else:
            dropped.append(DroppedRecord(id=answer_id, by="empty", reason="empty"))
    return remaining, dropped


def find_overt_drive(text: str, markers: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Return the first (drive, phrase) that `text` contains, or `None`."""
    lower = text.lower()
    for drive, phrases in markers.items():
        for phrase in phrases:
            if phrase.lower() in lower:
                return drive, phrase
    return None
