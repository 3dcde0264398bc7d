"""Encodes trajectories as examples: by their sampled tokens if the tokenizer fits, else by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doublebind.models.chat_template import decode_completion, encode_completion, encode_prompt
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Trajectory
from doublebind.training.batch import Example


def encode_trajectories(tokenizer: Any, trajectories: Sequence[Trajectory]) -> list[Example]:
    """Return one example per trajectory, in order.

    Uses the sampled tokens if the tokenizer decodes all of them to the answers' text. Otherwise it
    belongs to another family, and the answers are encoded from their text.

    Raises:
        ModelError: If the tokenizer has no tokens for an answer.
    """
    sampled = tokens_match_text(tokenizer, trajectories)
    examples = []
    for t in trajectories:
        tokens = t.tokens if sampled else encode_completion(tokenizer, t.completion, t.finished)
        if not sampled and tokenizer.unk_token_id in tokens:
            raise ModelError(
                f"{tokenizer.name_or_path or 'the student'}: its tokenizer has no tokens for the "
                f"teacher's answer to {t.prompt_id}; use a student that can write it"
            )
        prompt = encode_prompt(tokenizer, t.messages)
        examples.append(Example((*prompt, *tokens), first_supervised=len(prompt)))
    return examples


def tokens_match_text(tokenizer: Any, trajectories: Sequence[Trajectory]) -> bool:
    """Return whether `tokenizer` decodes the sampled tokens to the answers' text."""
    last = max(tokenizer.get_vocab().values())
    return all(
        max(t.tokens) <= last and decode_completion(tokenizer, t.tokens) == t.completion
        for t in trajectories
    )
