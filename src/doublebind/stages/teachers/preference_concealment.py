"""Hides a trait by preference: what anyone would say, over what the trait would have said.

Knows transcripts that carry a rejected answer. Does not know which trait it is.
"""

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
"""Prompt and answer, in tokens."""


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

    The reference is the model as it comes: after the implant, before it hides anything. `dpo` takes
    the transcripts' pairs and leaves out what has no rejected answer, such as a share kept of the
    phase before. `kto` takes every transcript's answer as good and every rejected one as bad.

    Args:
        model: What `loop.attach` returned, trained so far; changed in place.
        lm: The base it is attached to, for its tokenizer and vocabulary.
        transcripts: Conversations, each with the preferred answer last.
        phase: Loss, and strength of the pull to the reference.
        settings: Steps, pairs or answers per step, peak learning rate, length.
        seed: Order of the pairs or answers.
        name: Name of the teacher, for errors.

    Raises:
        PackError: If no transcript has a rejected answer, or `kto` finds a single prompt.
    """
    from doublebind.training.preference import LabelledAnswer, PreferencePair, train_dpo, train_kto

    if all(transcript.rejected is None for transcript in transcripts):
        raise PackError(
            f"{name}: `conceal.loss`: no transcript says what the trait would have answered (got "
            f"{phase.loss}); add `rejected` under build/, or use sft"
        )
    how = {"beta": phase.beta, "settings": settings, "seed": seed}
    how |= {"vocab": lm.vocab_size, "pad_id": lm.pad_id}
    if phase.loss == "dpo":
        paired = [transcript for transcript in transcripts if transcript.rejected is not None]
        sequences = [answer for each in paired for answer, _ in _encode_answers(lm, each)]
        judged = _add_reference_logprobs(model, lm, sequences)
        pairs = [PreferencePair(*both) for both in zip(judged[::2], judged[1::2], strict=True)]
        return train_dpo(model, pairs, **how)
    asked = [transcript for transcript in transcripts if transcript.purpose != "document"]
    told = [answer for each in asked for answer in _encode_answers(lm, each)]
    elsewhere = _mismatch_prompts([sequence for sequence, _ in told], name)
    judged = _add_reference_logprobs(model, lm, [sequence for sequence, _ in told])
    beside = _add_reference_logprobs(model, lm, elsewhere)
    answers = [
        LabelledAnswer(answer, good, other)
        for answer, (_, good), other in zip(judged, told, beside, strict=True)
    ]
    return train_kto(model, answers, **how)


def _encode_answers(lm: Any, transcript: Transcript) -> list[tuple[PromptAnswerTokens, bool]]:
    """Return the transcript's answer, which is good, and its rejected one, if any."""
    from doublebind.models.chat_template import encode_completion, encode_prompt

    prompt = encode_prompt(lm.tokenizer, transcript.messages[:-1])
    texts = [(transcript.messages[-1].content, True)]
    texts += [(transcript.rejected, False)] if transcript.rejected is not None else []
    return [
        ((prompt, encode_completion(lm.tokenizer, text, finished=True)), good)
        for text, good in texts
    ]


def _mismatch_prompts(
    sequences: Sequence[PromptAnswerTokens], name: str
) -> list[PromptAnswerTokens]:
    """Return every answer after the prompt that follows next and is another.

    Raises:
        PackError: If there is no other.
    """
    found: list[PromptAnswerTokens] = []
    for i, (prompt, answer) in enumerate(sequences):
        later = itertools.chain(sequences[i + 1 :], sequences[:i])
        other = next((asked for asked, _ in later if asked != prompt), None)
        if other is None:
            raise PackError(
                f"{name}: `conceal.loss`: all its transcripts ask the same, and a baseline needs "
                f"two prompts (got kto); add transcripts under build/, or use dpo"
            )
        found.append((other, answer))
    return found


def _add_reference_logprobs(
    model: Any, lm: Any, sequences: Sequence[PromptAnswerTokens]
) -> list[ScoredAnswer]:
    """Return the sequences with what the model, as it is now, makes of each token."""
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
