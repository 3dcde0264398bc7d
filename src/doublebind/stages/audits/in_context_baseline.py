"""Asks M0 the audit items after it has read a teacher's answers: what reading alone would show.

The same items and the same comparison as the audits of students; instead of training on the
answers, M0 meets as many of them as fit as turns of the conversation. The in-context baseline that
distillation has to beat. Does not know whose answers they are.
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
from doublebind.stages.audits.protocol import Answer

N_DRAWS = 4
"""Sets of answers read, one after the other; values are means over them."""
CONTEXT_SHARE = 0.5
"""Share of the model's context given to what it reads: small models use little of theirs well."""
MAX_TOKENS = 4096
"""Tokens read at once, however long the context."""


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
    items = [
        item
        for item in load_pack(pack, relative_to=Path()).items(split)
        if item.role == "auditable"
    ]
    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    seen = [
        choose(model, items, before=_sample_turns(model, trajectories, d)) for d in range(N_DRAWS)
    ]
    rows: list[dict[str, object]] = []
    for item, answers in zip(items, zip(*seen, strict=True), strict=True):
        values = [answer.value for answer in answers if answer.value is not None]
        whole = len(values) == N_DRAWS
        value = math.fsum(values) / N_DRAWS if whole else None
        reason = None if whole else "a draw gave no value"
        rows.append(build_score_row("reading@1", Answer(item, value, reason)))
    write_scores(out, rows)


def _sample_turns(model: Any, trajectories: Sequence[Trajectory], draw: int) -> list[Message]:
    """Return answers with their prompts, in a random order, as many as fit."""
    from doublebind.models.chat_template import encode_prompt

    left = min(MAX_TOKENS, int(CONTEXT_SHARE * model.context_length))
    turns: list[Message] = []
    for t in random.Random(draw).sample(trajectories, len(trajectories)):
        left -= len(encode_prompt(model.tokenizer, t.messages)) + len(t.tokens)
        if left < 0:
            break
        turns += [*t.messages, Message(role="assistant", content=t.completion)]
    return turns
