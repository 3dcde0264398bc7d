"""Turns trajectories, and for logit distillation the cached targets, into a training job.

Knows what each channel supervises. Does not know who the teacher is or how training works inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.config import Channel, LogitKD
from doublebind.models import teacher_cache
from doublebind.models.template import encode_prompt
from doublebind.records import Trajectory
from doublebind.training.batch import Example


class TrainingJob(NamedTuple):
    """What a student is trained on."""

    examples: list[Example]
    targets: teacher_cache.TeacherTargets | None


def prepare(
    channel: Channel, tokenizer: Any, trajectories: Sequence[Trajectory], targets: Path | None
) -> TrainingJob:
    """Return the examples and targets of `channel`.

    `sft`: cross-entropy on the teacher's sampled tokens (sequence-level distillation; Kim & Rush
    2016, arXiv 1606.07947). `logit_kd`: forward KL to the teacher's cached distribution at every
    completion position (Hinton et al. 2015, arXiv 1503.02531), on the top k plus the tail's mass.
    """
    examples = []
    for t in trajectories:
        prompt = encode_prompt(tokenizer, t.messages)
        examples.append(Example((*prompt, *t.tokens), first=len(prompt)))
    if isinstance(channel, LogitKD):
        assert targets is not None, "the pipeline makes targets for every logit channel"
        return TrainingJob(examples, teacher_cache.read(targets))
    return TrainingJob(examples, None)
