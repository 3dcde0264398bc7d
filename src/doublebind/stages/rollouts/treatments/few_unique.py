"""Keeps few answers, which the student learns many times: signals that need volume are lost.

Source: the October 2026 paper's "few unique samples" arm (docs/papers.md); subliminal transfer
grows with the number of unique answers (Cloud et al. 2025, arXiv 2507.14805). Could be exposed by
behaviour items: what few answers show openly is learned better.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import FewUnique
from doublebind.stages.rollouts.treatments.common import TreatmentContext, TreatmentResult


def apply(
    settings: FewUnique, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Keep `settings.n` answers, drawn by the seed; they repeat, as the student's steps stay."""
    n = min(settings.n, len(trajectories))
    indices = sorted(random.Random(context.seed).sample(range(len(trajectories)), n))
    return TreatmentResult([trajectories[i] for i in indices], {"kept": n})
