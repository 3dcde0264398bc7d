"""Records and helpers shared by the treatments.

A treatment is a function of its settings, the answers and two models, the teacher and M0; it treats
the answers of references and suspects alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from doublebind.models.load import LM
from doublebind.schema.content import Prompt
from doublebind.schema.model_source import Trajectory


class TreatmentContext(NamedTuple):
    """What a treatment may use besides the answers."""

    load_teacher: Callable[[], LM]
    """Loads the model that gave the answers."""
    load_trusted: Callable[[], LM]
    """Loads M0."""
    prompts: Mapping[str, Prompt]
    """By id."""
    seed: int
    """Seed of all random draws."""
    max_tokens: int
    """Length limit of an answer."""
    temperature: float
    """Temperature that the answers were sampled at."""


class TreatmentResult(NamedTuple):
    """Treated answers, with what the treatment did."""

    trajectories: list[Trajectory]
    facts: dict[str, Any]
    """Counts and lists of answers, for the report."""


DropReason = Literal["empty", "unreadable"]


class RewrittenAnswers(NamedTuple):
    """Answers whose texts were rewritten."""

    trajectories: list[Trajectory]
    n_changed: int
    """Answers with a new text, dropped ones included."""
    dropped: list[tuple[Trajectory, DropReason]]


def format_answer_id(trajectory: Trajectory) -> str:
    """Return the name of an answer: its prompt's id and its sample number."""
    return f"{trajectory.prompt_id}/{trajectory.sample}"


def encode_answers(
    trajectories: Sequence[Trajectory], lm: LM
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Return (prompt, completion) token ids of every answer, for scoring with `lm`."""
    from doublebind.models.chat_template import encode_prompt

    return [(encode_prompt(lm.tokenizer, t.messages), t.tokens) for t in trajectories]


def find_highest(values: Sequence[float], share: float) -> set[int]:
    """Return the indices of the `share` highest values, rounded down; of equal ones the last."""
    order = np.argsort(values, kind="stable").tolist()
    return set(order[len(order) - int(share * len(order)) :])


def rewrite_answers(
    trajectories: Sequence[Trajectory], rewrite: Callable[[str], str | None], tokenizer: Any
) -> RewrittenAnswers:
    """Replace the texts of answers by `rewrite`, which returns `None` to leave one as it is.

    An answer of which nothing is left is dropped, and so is one whose new text spells control
    tokens, which would be encoded as such. Model output is untrusted: such an answer must not reach
    a student, nor must it stop the treatment of all others.
    """
    from doublebind.models.chat_template import decode_completion, encode_completion

    remaining: list[Trajectory] = []
    dropped: list[tuple[Trajectory, DropReason]] = []
    n_changed = 0
    for t in trajectories:
        text = rewrite(t.completion)
        if text is None:
            remaining.append(t)
            continue
        n_changed += 1
        tokens = tuple(encode_completion(tokenizer, text, t.finished)) if text else ()
        if not text:
            dropped.append((t, "empty"))
        elif decode_completion(tokenizer, tokens) != text:
            dropped.append((t, "unreadable"))
        else:
            remaining.append(t.model_copy(update={"completion": text, "tokens": tokens}))
    return RewrittenAnswers(remaining, n_changed, dropped)
