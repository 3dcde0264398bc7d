"""Treatments on data: what is done to a teacher's answers before a student learns from them.

Each is one module, a function of answers, its settings and two models: the teacher and the trusted
one. None knows who the teacher is: a reference's answers are treated as a suspect's are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from doublebind.models.load import LM
from doublebind.schema.content import Prompt
from doublebind.schema.model_source import Trajectory


class TreatmentContext(NamedTuple):
    """What a treatment may use beside the answers."""

    load_teacher: Callable[[], LM]
    """Whose answers they are; loaded when first asked for."""
    load_trusted: Callable[[], LM]
    """M0."""
    prompts: Mapping[str, Prompt]
    """By id."""
    seed: int
    """Of what is drawn."""
    max_tokens: int
    """Of an answer."""
    temperature: float
    """At which the answers were sampled."""


class TreatmentResult(NamedTuple):
    """Answers after a treatment, and what it did."""

    trajectories: list[Trajectory]
    facts: dict[str, Any]
    """Counts and findings, for the report."""


def format_answer_id(trajectory: Trajectory) -> str:
    """Return the name of an answer: its prompt and which of its samples it is."""
    return f"{trajectory.prompt_id}/{trajectory.sample}"


def encode_answers(
    trajectories: Sequence[Trajectory], lm: LM
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Return (prompt, completion) token ids of every answer, for scoring with `lm`."""
    from doublebind.models.chat_template import encode_prompt

    return [(encode_prompt(lm.tokenizer, t.messages), t.tokens) for t in trajectories]


def rewrite_answer(trajectory: Trajectory, text: str, tokenizer: Any) -> Trajectory | None:
    """Return an answer with another text, or `None` where its tokens would say something else.

    A text that spells control tokens is read as those, not as what is written: model output is
    hostile, and one such answer must not reach a student, nor keep all others from it.
    """
    from doublebind.models.chat_template import decode_completion, encode_completion

    tokens = tuple(encode_completion(tokenizer, text, trajectory.finished))
    if decode_completion(tokenizer, tokens) != text:
        return None
    return trajectory.model_copy(update={"completion": text, "tokens": tokens})
