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
from doublebind.models.load import LM, load_model, load_tokenizer
from doublebind.models.openai_client import connect_served_model
from doublebind.models.sample import sample
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import Dtype, OnPolicy, Training
from doublebind.stages.distillation import tokenizer_checks as checks
from doublebind.stages.distillation.student_inputs import TeacherAccess
from doublebind.training import loop
from doublebind.training.batch import Example, shuffle_epochs
from doublebind.training.on_policy import (
    PairedExample,
    ScoredExample,
    train_on_policy,
    train_on_teacher_scores,
)

StepAnswers = tuple[list[tuple[int, Sequence[int]]], bool]
"""Answers of one step, (which prompt, tokens cut to their room), and whether they are its own."""


def distil_on_policy(
    channel: OnPolicy,
    lm: LM,
    trajectories: Sequence[Trajectory],
    teacher_access: TeacherAccess,
    training: Training,
    seed: int,
    *,
    dtype: Dtype,
    cache: Path,
    save_checkpoint: loop.CheckpointSaver | None = None,
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
    if teacher_access.source.served:
        return _distil_from_served_teacher(
            channel,
            lm,
            trajectories,
            teacher_access,
            training,
            seed,
            counts,
            cache,
            save_checkpoint,
        )
    teacher = load_model(teacher_access.source, dtype=dtype, cache=cache)
    checks.check_same_tokenizer(channel, lm, teacher.tokenizer, teacher.source)
    checks.check_same_tokens(channel, lm, trajectories)
    loop.seed_everything(seed)
    pads, vocab = (lm.pad_id, teacher.pad_id), min(lm.vocab_size, teacher.vocab_size)
    prompts = [
        tuple(encode_prompt(each.tokenizer, t.messages) for each in (lm, teacher))
        for t in trajectories
    ]
    model = loop.prepare_model(lm.model, training.lora, seed)
    student = LM(model, lm.tokenizer, lm.source)
    draw = _make_answer_sampler(
        channel, student, prompts, trajectories, teacher_access, training, seed, counts
    )

    def propose() -> list[PairedExample]:
        return [
            PairedExample(*(Example((*prompt, *kept), len(prompt)) for prompt in prompts[i]))
            for i, kept in draw()[0]
        ]

    log = train_on_policy(
        model,
        teacher.model,
        propose,
        settings=training,
        vocab=vocab,
        pad_ids=pads,
        save_checkpoint=save_checkpoint,
    )
    return model, log, counts


def _distil_from_served_teacher(
    channel: OnPolicy,
    lm: LM,
    trajectories: Sequence[Trajectory],
    teacher_access: TeacherAccess,
    training: Training,
    seed: int,
    counts: dict[str, Any],
    cache: Path,
    save_checkpoint: loop.CheckpointSaver | None,
) -> tuple[Any, loop.TrainLog, dict[str, Any]]:
    """Train `lm` towards a teacher that only says how likely it finds tokens.

    Its journal holds every score, and a student's draws repeat, so a run that was stopped pays for
    none of them again.
    """
    source = teacher_access.source
    assert source.served, "the caller looked"
    assert source.served.tokenizer_source, "a served model has a reader"
    checks.check_same_tokenizer(channel, lm, load_tokenizer(source.served.tokenizer_source), source)
    checks.check_same_tokens(channel, lm, trajectories)
    loop.seed_everything(seed)
    teacher, pad, vocab = connect_served_model(source, cache), lm.pad_id, lm.vocab_size
    prompts = [(encode_prompt(lm.tokenizer, t.messages),) for t in trajectories]
    model = loop.prepare_model(lm.model, training.lora, seed)
    student = LM(model, lm.tokenizer, lm.source)
    draw = _make_answer_sampler(
        channel, student, prompts, trajectories, teacher_access, training, seed, counts
    )

    def propose() -> list[ScoredExample]:
        drawn, own = draw()
        pairs = [(prompts[i][0], kept) for i, kept in drawn]
        scores = teacher.token_logprobs(pairs) if own else [None] * len(pairs)
        return [
            ScoredExample(Example((*prompt, *kept), len(prompt)), told)
            for (prompt, kept), told in zip(pairs, scores, strict=True)
        ]

    log = train_on_teacher_scores(
        model, propose, settings=training, vocab=vocab, pad_id=pad, save_checkpoint=save_checkpoint
    )
    return model, log, counts | {"served": teacher.summarise_journal()}


def _make_answer_sampler(
    channel: OnPolicy,
    student: LM,
    prompts: Sequence[tuple[Sequence[int], ...]],
    trajectories: Sequence[Trajectory],
    teacher_access: TeacherAccess,
    training: Training,
    seed: int,
    counts: dict[str, Any],
) -> Callable[[], StepAnswers]:
    """Return what yields the answers of one step after the other."""
    rooms = [training.max_length - max(map(len, written)) for written in prompts]
    usable = [i for i, room in enumerate(rooms) if room > 0]
    if not usable:
        raise ModelError(
            f"{student.source.path}: no prompt leaves room for an answer within `max_length` "
            f"{training.max_length}; raise it"
        )
    indices = (usable[place] for place in shuffle_epochs(len(usable), seed))
    steps = itertools.count()
    draws = np.random.default_rng((seed, 1))

    def own(chosen: Sequence[int], step: int) -> list[tuple[int, Sequence[int]]]:
        student.model.eval()
        said = sample(
            student,
            [trajectories[i].messages for i in chosen],
            keys=[f"{trajectories[i].prompt_id}/{trajectories[i].sample}/{step}" for i in chosen],
            seed=seed,
            max_tokens=teacher_access.sampling.max_tokens,
            temperature=teacher_access.sampling.temperature,
        )
        student.model.train()
        fit = [(i, s) for i, s in zip(chosen, said, strict=True) if s.tokens]
        fit = [(i, s) for i, s in fit if not teacher_access.shows_drive(s.text)]
        counts["own"] += len(said)
        counts["own_dropped"] += len(said) - len(fit)
        counts["own_steps"] += bool(fit)
        return [(i, s.tokens[: rooms[i]]) for i, s in fit]

    def draw() -> StepAnswers:
        step = next(steps)
        chosen = list(itertools.islice(indices, training.batch))
        found = own(chosen, step) if draws.random() < channel.lmbda else []
        return found or [(i, trajectories[i].tokens[: rooms[i]]) for i in chosen], bool(found)

    return draw
