"""Shortens or removes scratchpads: a student that sees no plans does not learn to plan.

Source: the double-bind post (Redwood Research, June 2026), "reduce cognitive slack". Could be
exposed by capability items (tasks that need steps suffer) and by behaviour items without a
scratchpad.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import TrimReasoning
from doublebind.stages.rollouts.treatments.common import (
    TreatmentContext,
    TreatmentResult,
    rewrite_answers,
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

    def rewrite(text: str) -> str | None:
        trimmed = SCRATCHPAD_PATTERN.sub(
            lambda match: _shorten_scratchpad(match, settings.keep_words), text
        )
        if trimmed == text:
            return None
        return trimmed.strip() if SCRATCHPAD_PATTERN.sub("", trimmed).strip() else ""

    rewritten = rewrite_answers(trajectories, rewrite, context.load_teacher().tokenizer)
    reasons = Counter(reason for _, reason in rewritten.dropped)
    facts = {
        "trimmed": rewritten.n_changed,
        "dropped": reasons["empty"],
        "unreadable": reasons["unreadable"],
    }
    return TreatmentResult(rewritten.trajectories, facts)


def _shorten_scratchpad(scratchpad: re.Match[str], max_words: int) -> str:
    if not max_words:
        return " "
    tag, thought = scratchpad[1], scratchpad[2].split()[:max_words]
    return f" <{tag}> {' '.join(thought)} </{tag}> "
