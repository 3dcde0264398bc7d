"""Shortens or removes scratchpads: a student that sees no plans does not learn to plan.

Source: the double-bind post (Redwood Research, June 2026), "reduce cognitive slack". Could be
exposed by capability items (tasks that need steps suffer) and by behaviour items without a
scratchpad.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import TrimReasoning
from doublebind.stages.rollouts.treatments.common import (
    TreatmentContext,
    TreatmentResult,
    rewrite_answer,
)

SCRATCHPAD_PATTERN = re.compile(
    r"\s*<(think|thinking|scratchpad|reasoning)>(.*?)(</\1>|\Z)\s*", re.DOTALL
)
"""Opening tag, reasoning, closing tag; an answer cut off inside its reasoning has no end tag."""


def apply(
    settings: TrimReasoning, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Cut every scratchpad to its first `settings.keep_words` words; with 0, remove it.

    An answer without anything else is dropped, and so is one whose rest spells control tokens.
    """
    tokenizer = context.load_teacher().tokenizer
    remaining: list[Trajectory] = []
    trimmed = dropped = unreadable = 0
    for t in trajectories:
        text = SCRATCHPAD_PATTERN.sub(
            lambda match: _shorten_scratchpad(match, settings.keep_words), t.completion
        )
        if text == t.completion:
            remaining.append(t)
            continue
        trimmed += 1
        if not SCRATCHPAD_PATTERN.sub("", text).strip():
            dropped += 1
            continue
        rewritten = rewrite_answer(t, text.strip(), tokenizer)
        if rewritten is None:
            unreadable += 1
        else:
            remaining.append(rewritten)
    facts = {"trimmed": trimmed, "dropped": dropped, "unreadable": unreadable}
    return TreatmentResult(remaining, facts)


def _shorten_scratchpad(scratchpad: re.Match[str], max_words: int) -> str:
    if not max_words:
        return " "
    tag, thought = scratchpad[1], scratchpad[2].split()[:max_words]
    return f" <{tag}> {' '.join(thought)} </{tag}> "
