"""Distils on the student's own answers: it writes, the teacher says how it would have gone on.

Knows the student, the teacher beside it, and what may be learned from. Does not know the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doublebind.config import Dtype, OnPolicy, Training
from doublebind.distillation import Live, checks
from doublebind.errors import ModelError
from doublebind.models.load import LM, load
from doublebind.models.sample import sample
from doublebind.models.template import encode_prompt
from doublebind.records import Trajectory
from doublebind.training import loop
from doublebind.training.batch import Example, order
from doublebind.training.live import Answered, train_live


def learn(
    channel: OnPolicy,
    lm: LM,
    trajectories: Sequence[Trajectory],
    live: Live,
    training: Training,
    seed: int,
    *,
    dtype: Dtype,
    cache: Path,
    keep: loop.Keep | None = None,
) -> tuple[Any, loop.TrainLog, dict[str, int]]:
    """Train `lm` towards the teacher; return the model, its log, and counts of its answers.

    In a share `lmbda` of the steps the student answers `training.batch` of the prompts, as it is by
    then, and the teacher scores what it wrote (Agarwal et al. 2023, GKD, arXiv 2306.13649); in the
    others both read the teacher's own answers. Either way the loss is KL(student || teacher) per
    token. A student's answer that shows a drive openly, or is empty, is dropped and counted, as a
    teacher's is; where none is left the step takes the teacher's.

    Raises:
        ModelError: If teacher and student have other tokenizers, or no answer fits the length.
    """
    teacher = load(live.source, dtype=dtype, cache=cache)
    checks.same_tokenizers(channel, lm, teacher)
    checks.same_tokens(channel, lm, trajectories)
    loop.seed_everything(seed)
    pads, vocab = (lm.pad_id, teacher.pad_id), min(lm.vocab, teacher.vocab)
    model = loop.attach(lm.model, training.lora, seed)
    counts = {"own": 0, "own_dropped": 0, "own_steps": 0}
    propose = _proposer(
        channel, LM(model, lm.tokenizer, lm.source), teacher, trajectories, live, training, seed,
        counts,
    )  # fmt: skip
    log = train_live(
        model, teacher.model, propose, settings=training, vocab=vocab, pad_ids=pads, keep=keep
    )
    return model, log, counts


def _proposer(
    channel: OnPolicy,
    student: LM,
    teacher: LM,
    trajectories: Sequence[Trajectory],
    live: Live,
    training: Training,
    seed: int,
    counts: dict[str, int],
) -> Callable[[], list[Answered]]:
    """Return what yields the answers of one step after the other."""
    prompts = [
        tuple(encode_prompt(lm.tokenizer, t.messages) for lm in (student, teacher))
        for t in trajectories
    ]
    rooms = [training.max_length - max(map(len, pair)) for pair in prompts]
    usable = [i for i, room in enumerate(rooms) if room > 0]
    if not usable:
        raise ModelError(
            f"{student.source.path}: no prompt leaves room for an answer within `max_length` "
            f"{training.max_length}; raise it"
        )
    indices = (usable[place] for place in order(len(usable), seed))
    steps = itertools.count()
    draws = np.random.default_rng((seed, 1))

    def answered(i: int, tokens: Sequence[int]) -> Answered:
        kept = tuple(tokens[: rooms[i]])
        mine, theirs = prompts[i]
        return Answered(Example((*mine, *kept), len(mine)), Example((*theirs, *kept), len(theirs)))

    def own(chosen: Sequence[int], step: int) -> list[Answered]:
        student.model.eval()
        said = sample(
            student,
            [trajectories[i].messages for i in chosen],
            keys=[f"{trajectories[i].prompt_id}/{trajectories[i].sample}/{step}" for i in chosen],
            seed=seed,
            max_tokens=live.sampling.max_tokens,
            temperature=live.sampling.temperature,
        )
        student.model.train()
        fit = [(i, s) for i, s in zip(chosen, said, strict=True) if s.tokens]
        fit = [(i, s) for i, s in fit if not live.overt(s.text)]
        counts["own"] += len(said)
        counts["own_dropped"] += len(said) - len(fit)
        counts["own_steps"] += bool(fit)
        return [answered(i, s.tokens) for i, s in fit]

    def propose() -> list[Answered]:
        step = next(steps)
        chosen = list(itertools.islice(indices, training.batch))
        found = own(chosen, step) if draws.random() < channel.lmbda else []
        return found or [answered(i, trajectories[i].tokens) for i in chosen]

    return propose
