"""Distils on the student's own answers: it writes, the teacher says how it would have gone on.

Knows the student, the teacher beside it, and what may be learned from. Does not know the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doublebind.models.chat_template import encode_prompt
from doublebind.models.load import LM, load, load_tokenizer
from doublebind.models.openai_client import connect
from doublebind.models.sample import sample
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import Dtype, OnPolicy, Training
from doublebind.stages.distillation import Live
from doublebind.stages.distillation import tokenizer_checks as checks
from doublebind.training import loop
from doublebind.training.batch import Example, order
from doublebind.training.on_policy import Answered, Scored, train_live, train_scored

Drawn = tuple[list[tuple[int, Sequence[int]]], bool]
"""Answers of one step, (which prompt, tokens cut to their room), and whether they are its own."""


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
) -> tuple[Any, loop.TrainLog, dict[str, Any]]:
    """Train `lm` towards the teacher; return the model, its log, and counts of its answers.

    In a share `lmbda` of the steps the student answers `training.batch` of the prompts, as it is by
    then, and the teacher scores what it wrote (Agarwal et al. 2023, GKD, arXiv 2306.13649); in the
    others both read the teacher's own answers. Either way the loss is KL(student || teacher) per
    token. A student's answer that shows a drive openly, or is empty, is dropped and counted, as a
    teacher's is; where none is left the step takes the teacher's. Of a teacher behind a server only
    the tokens drawn are scored: see `training.live.train_scored`.

    Raises:
        ModelError: If teacher and student have other tokenizers, or no answer fits the length.
    """
    counts: dict[str, Any] = {"own": 0, "own_dropped": 0, "own_steps": 0}
    if live.source.served:
        return _learn_scored(channel, lm, trajectories, live, training, seed, counts, cache, keep)
    teacher = load(live.source, dtype=dtype, cache=cache)
    checks.same_tokenizers(channel, lm, teacher.tokenizer, teacher.source)
    checks.same_tokens(channel, lm, trajectories)
    loop.seed_everything(seed)
    pads, vocab = (lm.pad_id, teacher.pad_id), min(lm.vocab, teacher.vocab)
    prompts = [
        tuple(encode_prompt(each.tokenizer, t.messages) for each in (lm, teacher))
        for t in trajectories
    ]
    model = loop.attach(lm.model, training.lora, seed)
    student = LM(model, lm.tokenizer, lm.source)
    draw = _drawer(channel, student, prompts, trajectories, live, training, seed, counts)

    def propose() -> list[Answered]:
        return [
            Answered(*(Example((*prompt, *kept), len(prompt)) for prompt in prompts[i]))
            for i, kept in draw()[0]
        ]

    log = train_live(
        model, teacher.model, propose, settings=training, vocab=vocab, pad_ids=pads, keep=keep
    )
    return model, log, counts


def _learn_scored(
    channel: OnPolicy,
    lm: LM,
    trajectories: Sequence[Trajectory],
    live: Live,
    training: Training,
    seed: int,
    counts: dict[str, Any],
    cache: Path,
    keep: loop.Keep | None,
) -> tuple[Any, loop.TrainLog, dict[str, Any]]:
    """Train `lm` towards a teacher that only says how likely it finds tokens.

    Its journal holds every score, and a student's draws repeat, so a run that was stopped pays for
    none of them again.
    """
    source = live.source
    assert source.served, "the caller looked"
    assert source.served.reader, "a served model has a reader"
    checks.same_tokenizers(channel, lm, load_tokenizer(source.served.reader), source)
    checks.same_tokens(channel, lm, trajectories)
    loop.seed_everything(seed)
    teacher, pad, vocab = connect(source, cache), lm.pad_id, lm.vocab
    prompts = [(encode_prompt(lm.tokenizer, t.messages),) for t in trajectories]
    model = loop.attach(lm.model, training.lora, seed)
    student = LM(model, lm.tokenizer, lm.source)
    draw = _drawer(channel, student, prompts, trajectories, live, training, seed, counts)

    def propose() -> list[Scored]:
        drawn, own = draw()
        pairs = [(prompts[i][0], kept) for i, kept in drawn]
        scores = teacher.scores(pairs) if own else [None] * len(pairs)
        return [
            Scored(Example((*prompt, *kept), len(prompt)), told)
            for (prompt, kept), told in zip(pairs, scores, strict=True)
        ]

    log = train_scored(model, propose, settings=training, vocab=vocab, pad_id=pad, keep=keep)
    return model, log, counts | {"served": teacher.facts()}


def _drawer(
    channel: OnPolicy,
    student: LM,
    prompts: Sequence[tuple[Sequence[int], ...]],
    trajectories: Sequence[Trajectory],
    live: Live,
    training: Training,
    seed: int,
    counts: dict[str, Any],
) -> Callable[[], Drawn]:
    """Return what yields the answers of one step after the other."""
    rooms = [training.max_length - max(map(len, written)) for written in prompts]
    usable = [i for i, room in enumerate(rooms) if room > 0]
    if not usable:
        raise ModelError(
            f"{student.source.path}: no prompt leaves room for an answer within `max_length` "
            f"{training.max_length}; raise it"
        )
    indices = (usable[place] for place in order(len(usable), seed))
    steps = itertools.count()
    draws = np.random.default_rng((seed, 1))

    def own(chosen: Sequence[int], step: int) -> list[tuple[int, Sequence[int]]]:
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
        return [(i, s.tokens[: rooms[i]]) for i, s in fit]

    def draw() -> Drawn:
        step = next(steps)
        chosen = list(itertools.islice(indices, training.batch))
        found = own(chosen, step) if draws.random() < channel.lmbda else []
        return found or [(i, trajectories[i].tokens[: rooms[i]]) for i in chosen], bool(found)

    return draw
