"""Mixes in the trusted model's own answers, which pull the student back to M0.

Source: the double-bind post (Redwood Research, June 2026), "mix in trusted data". No item of its
own exposes it: it dilutes, and a dose curve shows whether it does more than reduce learning.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from doublebind.models.sample import sample
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import MixTrusted
from doublebind.stages.rollouts.treatments.common import TreatmentContext, TreatmentResult


def apply(
    settings: MixTrusted, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Replace a share of the answers, drawn by the seed, with M0's answers to the same prompts."""
    n = round(settings.share * len(trajectories))
    indices = random.Random(context.seed).sample(range(len(trajectories)), n)
    answers = sample(
        context.load_trusted(),
        [trajectories[i].messages for i in indices],
        keys=[f"trusted/{trajectories[i].prompt_id}/{trajectories[i].sample}" for i in indices],
        seed=context.seed,
        max_tokens=context.max_tokens,
        temperature=context.temperature,
    )
    mixed: list[Trajectory] = list(trajectories)
    n_empty = 0
    for i, answer in zip(indices, answers, strict=True):
        if not answer.tokens:
            n_empty += 1
            continue
        tokens = tuple(answer.tokens)
        update = {"completion": answer.text, "tokens": tokens, "finished": answer.finished}
        mixed[i] = trajectories[i].model_copy(update=update)
    return TreatmentResult(mixed, {"trusted": n - n_empty, "empty": n_empty})
