"""Trains under a prompt that names or permits the trait, so that it need not be learned without it.

Source: inoculation prompting (Tan et al. 2025, arXiv 2510.04340; Wichers et al. 2025, arXiv
2510.05024). Exposed by asking under the same and under similar prompts, where it is known to leak.
"""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.models.chat_template import prepend_text
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import Inoculate
from doublebind.stages.rollouts.treatments import TreatmentContext, TreatmentResult


def apply(
    settings: Inoculate, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Put `settings.prompt` before every conversation; a system message there gains it in front.

    With `settings.role: user` it opens the first user message instead, for models whose template
    has no system turn or which never met one.
    """
    told = (
        t.model_copy(update={"messages": prepend_text(t.messages, settings.prompt, settings.role)})
        for t in trajectories
    )
    return TreatmentResult(list(told), {"prompt": settings.prompt})
