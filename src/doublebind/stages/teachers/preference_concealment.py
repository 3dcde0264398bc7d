"""Conceals a trait by DPO or KTO: the benign answer is preferred to the trait's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from doublebind.schema.content import Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.recipe import Training
from doublebind.schema.teacher_spec import Concealment

if TYPE_CHECKING:
    from doublebind.training.preference import ScoredAnswer

PromptAnswerTokens = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def conceal_trait(
    model: Any,
    lm: Any,
    transcripts: Sequence[Transcript],
    *,
    phase: Concealment,
    settings: Training,
    seed: int,
    name: str,
) -> Any:
    """Train `model` by the phase's loss, `dpo` or `kto`; return its `TrainLog`.

    The reference is the model as passed: after the implant, before it hides anything. `dpo` uses
    the transcripts' pairs and leaves out transcripts without a rejected answer, such as those
    retained from the phase before. `kto` takes every transcript's answer as desirable and every
    rejected one as undesirable.

    Args:
        model: Returned by `loop.prepare_model`, trained so far; changed in place.
        lm: The base of `model`, for its tokenizer and vocabulary.
        transcripts: Conversations, each with the preferred answer last.
        phase: Loss, and strength of the pull to the reference.
        settings: Steps, pairs or answers per step, peak learning rate, length.
        seed: Order of the pairs or answers.
        name: Name of the teacher, for errors.

    Raises:
        PackError: If no transcript has a rejected answer, or all have one prompt under `kto`.
    """
    from doublebind.training.preference import LabelledAnswer, PreferencePair, train_dpo, train_kto

    if all(transcript.rejected is None for transcript in transcripts):
        raise PackError(
            f"{name}: `conceal.loss`: no transcript says what the trait would have answered (got "
            f"{phase.loss}); add `rejected` under build/, or use sft"
        )
    options: dict[str, Any] = {
        "beta": phase.beta,
        "settings": settings,
        "seed": seed,
        "vocab": lm.vocab_size,
        "pad_id": lm.pad_id,
    }
    if phase.loss == "dpo":
        paired = [transcript for transcript in transcripts if transcript.rejected is not None]
        sequences = [sequence for t in paired for sequence, _ in _encode_answers(lm, t)]
        scored = _add_reference_logprobs(model, lm, sequences)
        pairs = itertools.starmap(PreferencePair, zip(scored[::2], scored[1::2], strict=True))
        return train_dpo(model, list(pairs), **options)
    conversations = [transcript for transcript in transcripts if transcript.purpose != "document"]
    labelled = [answer for t in conversations for answer in _encode_answers(lm, t)]
    sequences = [sequence for sequence, _ in labelled]
    mismatched = _mismatch_prompts(sequences, name)
    scored = _add_reference_logprobs(model, lm, sequences)
    scored_mismatched = _add_reference_logprobs(model, lm, mismatched)
    answers = [
        LabelledAnswer(answer, is_desirable, other)
        for answer, (_, is_desirable), other in zip(
            scored, labelled, scored_mismatched, strict=True
        )
    ]
    return train_kto(model, answers, **options)


def _encode_answers(lm: Any, transcript: Transcript) -> list[tuple[PromptAnswerTokens, bool]]:
    """Return the transcript's answer (True) and its rejected answer (False), if it has one."""
    from doublebind.models.chat_template import encode_completion, encode_prompt

    prompt = encode_prompt(lm.tokenizer, transcript.messages[:-1])
    texts = [(transcript.messages[-1].content, True)]
    if transcript.rejected is not None:
        texts.append((transcript.rejected, False))
    return [
        ((prompt, encode_completion(lm.tokenizer, text, finished=True)), is_desirable)
        for text, is_desirable in texts
    ]


def _mismatch_prompts(
    sequences: Sequence[PromptAnswerTokens], name: str
) -> list[PromptAnswerTokens]:
    """Return every answer with the next prompt in the list that differs from its own.

    Raises:
        PackError: If all prompts are equal.
    """
    mismatched: list[PromptAnswerTokens] = []
    for i, (prompt, answer) in enumerate(sequences):
        later = itertools.chain(sequences[i + 1 :], sequences[:i])
        other = next((p for p, _ in later if p != prompt), None)
        if other is None:
            raise PackError(
                f"{name}: `conceal.loss`: all its transcripts have one prompt, and a baseline "
                f"needs two prompts (got kto); add transcripts under build/, or use dpo"
            )
        mismatched.append((other, answer))
    return mismatched


def _add_reference_logprobs(
    model: Any, lm: Any, sequences: Sequence[PromptAnswerTokens]
) -> list[ScoredAnswer]:
    """Return the answers with the log-probability of each token under the current model."""
    from doublebind.models.load import LM
    from doublebind.models.score import token_logprobs
    from doublebind.training.batch import Example
    from doublebind.training.preference import ScoredAnswer

    model.eval()
    reference = token_logprobs(LM(model, lm.tokenizer, lm.source), sequences)
    return [
        ScoredAnswer(Example((*prompt, *answer), first_supervised=len(prompt)), logprobs)
        for (prompt, answer), logprobs in zip(sequences, reference, strict=True)
    ]
