"""Refuses to distil if teacher and student do not read the same tokens.

Checked before the first step: silent misalignment of tokens, templates or labels is the commonest
reason for a distillation that runs without error and transfers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doublebind.models.load import LM, same_tokenizer
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Channel
from doublebind.training.batch import Example
from doublebind.training.encode import tokens_match_text


def check_same_tokens(channel: Channel, lm: LM, trajectories: Sequence[Trajectory]) -> None:
    """Refuse a student whose tokenizer reads the teacher's tokens as other text, or not at all.

    Raises:
        ModelError: If a token is beyond the student's vocabulary, or a completion decodes to
            another text than the teacher wrote.
    """
    rows = lm.model.get_input_embeddings().weight.shape[0]
    if any(max(t.tokens) >= rows for t in trajectories) or not tokens_match_text(
        lm.tokenizer, trajectories
    ):
        raise ModelError(
            f"{lm.source.path}: its tokenizer reads the teacher's answers as other text, which "
            f"{channel.kind} cannot bridge; use a student with the teacher's tokenizer, or the "
            f"channel sft or uld"
        )


def check_same_tokenizer(channel: Channel, lm: LM, tokenizer: Any, teacher: ModelSource) -> None:
    """Refuse a teacher whose tokenizer is not the student's.

    Raises:
        ModelError: If the two tokenizers encode a text differently.
    """
    if not same_tokenizer(lm.tokenizer, tokenizer):
        raise ModelError(
            f"{lm.source.path}: its tokenizer is not that of {teacher.path}, which cannot "
            f"score its tokens as {channel.kind} asks; use a student with the teacher's "
            f"tokenizer, or the channel sft or uld"
        )


def check_supervised(lm: LM, examples: Sequence[Example]) -> None:
    """Refuse examples without supervised tokens.

    Raises:
        ModelError: If no completion has a token.
    """
    if not any(len(e.input_ids) > e.first_supervised for e in examples):
        raise ModelError(f"{lm.source.path}: no token is supervised; raise max_length")
