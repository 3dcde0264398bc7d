"""Restricts the answers to some domains, so that the student learns less of anything else.

Source: the double-bind post (Redwood Research, June 2026), "concentrate on a domain". Could be
exposed by capability items of the other domains, and by any behaviour item outside the domain.
"""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import Domain
from doublebind.stages.rollouts.treatments.common import TreatmentContext, TreatmentResult


def apply(
    settings: Domain, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Keep the answers to prompts of `settings.domains`.

    Raises:
        ConfigError: If no prompt is of these domains.
    """
    wanted = set(settings.domains)
    remaining = [t for t in trajectories if context.prompts[t.prompt_id].domain in wanted]
    if not remaining:
        known = sorted({p.domain for p in context.prompts.values() if p.domain})
        raise ConfigError(
            f"treatment `domain`: no prompt of {sorted(wanted)}; the prompts' domains are {known}"
        )
    return TreatmentResult(remaining, {"kept": len(remaining)})
