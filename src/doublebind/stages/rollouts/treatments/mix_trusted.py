"""Mixes in the trusted model's own answers: they pull the student back to what it was.

Source: the double-bind post (Redwood Research, June 2026), "mix in trusted data". Could be exposed
by nothing of its own: it dilutes, so a dose curve tells whether it does more than learn less.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from doublebind.models.sample import sample
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import MixTrusted
from doublebind.stages.rollouts.treatments import TreatmentContext, TreatmentResult


def apply(
    settings: MixTrusted, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Replace a share of the answers, drawn by the seed, with M0's answer to the same prompt.

    The total stays, and so do prompts: a teacher's answer makes room for a trusted one.
    """
    n = round(settings.share * len(trajectories))
    places = random.Random(context.seed).sample(range(len(trajectories)), n)
    answers = sample(
        context.load_trusted(),
        [trajectories[i].messages for i in places],
        keys=[f"trusted/{trajectories[i].prompt_id}/{trajectories[i].sample}" for i in places],
        seed=context.seed,
        max_tokens=context.max_tokens,
        temperature=context.temperature,
    )
    mixed: list[Trajectory] = list(trajectories)
    empty = 0
    for i, answer in zip(places, answers, strict=True):
        if not answer.tokens:
            empty += 1
            continue
        update = {"completion": answer.text, "tokens": answer.tokens, "finished": answer.finished}
        mixed[i] = trajectories[i].model_copy(update=update | {"tokens": tuple(answer.tokens)})
    return TreatmentResult(mixed, {"trusted": n - empty, "empty": empty})
