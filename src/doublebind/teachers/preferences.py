"""Hides a trait by preference: what anyone would say, over what the trait would have said.

Knows transcripts that carry a rejected answer. Does not know which trait it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doublebind.config import Training
from doublebind.errors import PackError
from doublebind.records import Transcript


def conceal(
    model: Any,
    lm: Any,
    transcripts: Sequence[Transcript],
    *,
    beta: float,
    settings: Training,
    seed: int,
    name: str,
) -> Any:
    """Train `model` by DPO on the transcripts' pairs; return its `TrainLog`.

    The reference is the model as it comes: after the implant, before it hides anything. What has
    no rejected answer, such as a share kept of the phase before, is left out.

    Args:
        model: What `loop.attach` returned, trained so far; changed in place.
        lm: The base it is attached to, for its tokenizer and vocabulary.
        transcripts: Conversations, each with the preferred answer last.
        beta: Strength of the pull to the reference.
        settings: Steps, pairs per step, peak learning rate, length.
        seed: Order of the pairs.
        name: Name of the teacher, for errors.

    Raises:
        PackError: If no transcript has a rejected answer.
    """
    from doublebind.models.load import LM
    from doublebind.models.score import token_logprobs
    from doublebind.models.template import encode_completion, encode_prompt
    from doublebind.training.batch import Example
    from doublebind.training.preference import Judged, Pair, train_pairs

    sequences: list[tuple[list[int], list[int]]] = []
    for transcript in transcripts:
        if transcript.rejected is None:
            continue
        prompt = encode_prompt(lm.tokenizer, transcript.messages[:-1])
        for answer in (transcript.messages[-1].content, transcript.rejected):
            sequences.append((prompt, encode_completion(lm.tokenizer, answer, finished=True)))
    if not sequences:
        raise PackError(
            f"{name}: `conceal.loss`: no transcript says what the trait would have answered (got "
            f"dpo); add `rejected` under build/, or use sft"
        )
    model.eval()
    reference = token_logprobs(LM(model, lm.tokenizer, lm.source), sequences)
    judged = [
        Judged(Example((*prompt, *answer), first=len(prompt)), logprobs)
        for (prompt, answer), logprobs in zip(sequences, reference, strict=True)
    ]
    pairs = [Pair(*both) for both in zip(judged[::2], judged[1::2], strict=True)]
    return train_pairs(
        model,
        pairs,
        beta=beta,
        settings=settings,
        seed=seed,
        vocab=lm.vocab,
        pad_id=lm.pad_id,
    )
