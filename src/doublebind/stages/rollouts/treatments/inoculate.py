"""Trains under a prompt that asks for or permits the trait, so that it is not learned without it.

Source: inoculation prompting (Tan et al. 2025, arXiv 2510.04340; Wichers et al. 2025, arXiv
2510.05024). Could be exposed by items under the same and similar prompts, where the trait is known
to leak.
"""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.models.chat_template import prepend_text
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import Inoculate
from doublebind.stages.rollouts.treatments.common import TreatmentContext, TreatmentResult


def apply(
    settings: Inoculate, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Prepend `settings.prompt` to every conversation, as a system message or to the existing one.

    With `settings.role: user` it opens the first user message instead, for models whose template
    has no system turn or which were never trained with one.
    """
    prompted = [
        t.model_copy(update={"messages": prepend_text(t.messages, settings.prompt, settings.role)})
        for t in trajectories
    ]
    return TreatmentResult(prompted, {"prompt": settings.prompt})
