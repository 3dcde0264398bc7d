"""The in-context baseline: M0 is audited after reading a teacher's answers.

Items and comparison are those of the students' audits; instead of training on the answers, M0 gets
as many as fit as earlier turns of the conversation. Distillation has to beat this.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.store import read_records
from doublebind.packs.load import load_pack
from doublebind.schema.content import Message, Split
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Dtype
from doublebind.stages.audits.battery import build_score_row, write_scores
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import Answer, select_auditable

N_DRAWS = 4
"""Random sets of answers; values are means over them."""
CONTEXT_SHARE = 0.5
"""Share of the model's context for the answers: small models use little of theirs well."""
MAX_TOKENS = 4096
"""Most tokens of answers, however long the context."""


def score_in_context(
    out: Path,
    *,
    source: ModelSource,
    rollouts: Path,
    pack: str,
    split: Split,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write `scores.parquet`: one row per auditable item, as the audits write them."""
    from doublebind.models.load import load_model

    model = load_model(source, dtype=dtype, cache=cache)
    items = select_auditable(load_pack(pack, relative_to=Path()).items(split))
    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    draws = [
        choose(model, items, before=sample_turns(model, trajectories, d)) for d in range(N_DRAWS)
    ]
    rows: list[dict[str, object]] = []
    for item, answers in zip(items, zip(*draws, strict=True), strict=True):
        values = [answer.value for answer in answers if answer.value is not None]
        is_scored = len(values) == N_DRAWS
        value = math.fsum(values) / N_DRAWS if is_scored else None
        reason = None if is_scored else "a draw gave no value"
        rows.append(build_score_row("reading@1", Answer(item, value, reason)))
    write_scores(out, rows)


def sample_turns(
    model: Any, trajectories: Sequence[Trajectory], draw: int, most: int | None = None
) -> list[Message]:
    """Return answers with their prompts, in a random order, as many as fit, and at most `most`."""
    from doublebind.models.chat_template import encode_prompt

    tokens_left = min(MAX_TOKENS, int(CONTEXT_SHARE * model.context_length))
    turns: list[Message] = []
    for trajectory in random.Random(draw).sample(trajectories, len(trajectories))[:most]:
        tokens_left -= len(encode_prompt(model.tokenizer, trajectory.messages))
        tokens_left -= len(trajectory.tokens)
        if tokens_left < 0:
            break
        turns += [*trajectory.messages, Message(role="assistant", content=trajectory.completion)]
    return turns
