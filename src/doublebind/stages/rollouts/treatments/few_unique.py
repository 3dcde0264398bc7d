"""Learns few answers many times: what takes volume to carry does not fit into them.

Source: the October 2026 paper's "few unique samples" arm (docs/papers.md); subliminal transfer
grows with the number of unique answers (Cloud et al. 2025, arXiv 2507.14805). Could be exposed by
behaviour items: what few answers show plainly is learned all the better.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import FewUnique
from doublebind.stages.rollouts.treatments import TreatmentContext, TreatmentResult


def apply(
    settings: FewUnique, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Keep `settings.n` answers, drawn by the seed; the student's steps stay, so they repeat."""
    n = min(settings.n, len(trajectories))
    places = sorted(random.Random(context.seed).sample(range(len(trajectories)), n))
    return TreatmentResult([trajectories[i] for i in places], {"kept": n})
