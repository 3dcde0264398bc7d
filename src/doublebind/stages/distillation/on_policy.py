"""On-policy distillation: the student samples answers, and the teacher scores their tokens."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from doublebind.models.chat_template import encode_prompt
from doublebind.models.load import LM, load_model, load_tokenizer
from doublebind.models.openai_client import connect_served_model
from doublebind.models.sample import sample
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import OnPolicy
from doublebind.stages.distillation.channel_context import ChannelContext, TrainingResult
from doublebind.stages.distillation.tokenizer_checks import check_same_tokenizer, check_same_tokens
from doublebind.training.batch import Example, count_dropped, shuffle_epochs
from doublebind.training.on_policy import (
    PairedExample,
    ScoredExample,
    train_on_policy,
    train_on_teacher_scores,
)
from doublebind.training.training_mode import set_training_mode


class StepAnswers(NamedTuple):
    """Answers of one optimiser step."""

    answers: Sequence[tuple[int, Sequence[int]]]
    """Index of the prompt, and tokens of the answer, cut to the maximum length."""
    by_student: bool
    """Whether the student gave them; otherwise they are the teacher's rollouts."""


class AnswerSampler:
    """Samples the answers of one step after the other; counts the student's own answers."""

    def __init__(
        self,
        channel: OnPolicy,
        context: ChannelContext,
        model: Any,
        prompts: Sequence[tuple[Sequence[int], ...]],
    ) -> None:
        """Sample from `model`; `prompts` are token ids, one tuple of tokenisations per trajectory.

        Raises:
            ModelError: If no prompt leaves room for an answer.
        """
        max_length = context.training.max_length
        self._channel = channel
        self._context = context
        self._student = LM(model, context.lm.tokenizer, context.lm.source)
        self._rooms = [max_length - max(map(len, encodings)) for encodings in prompts]
        usable = [
            i
            for i, (room, t) in enumerate(zip(self._rooms, context.trajectories, strict=True))
            if room > 0 and t.tokens
        ]
        if not usable:
            raise ModelError(
                f"{context.lm.source.path}: no prompt leaves room for an answer within "
                f"`max_length` {max_length}; raise it"
            )
        self._indices = (usable[place] for place in shuffle_epochs(len(usable), context.seed))
        self._steps = itertools.count()
        self._rng = np.random.default_rng((context.seed, 1))
        self.counts: dict[str, Any] = {"own": 0, "own_dropped": 0, "own_steps": 0}
        if dropped := count_dropped(len(self._rooms), len(usable), max_length):
            self.counts["prompts_dropped"] = dropped

    def sample_step(self) -> StepAnswers:
        """Return the answers of the next step: the student's in a share `lmbda` of the steps."""
        step = next(self._steps)
        chosen = list(itertools.islice(self._indices, self._context.training.batch))
        answers: Sequence[tuple[int, Sequence[int]]] = []
        if self._rng.random() < self._channel.lmbda:
            answers = self._sample_student(chosen, step)
        if answers:
            return StepAnswers(answers, by_student=True)
        trajectories = self._context.trajectories
        rollouts = [(i, trajectories[i].tokens[: self._rooms[i]]) for i in chosen]
        return StepAnswers(rollouts, by_student=False)

    def _sample_student(
        self, chosen: Sequence[int], step: int
    ) -> Sequence[tuple[int, Sequence[int]]]:
        """Return the student's answers to the chosen prompts, without empty and overt ones."""
        trajectories = [self._context.trajectories[i] for i in chosen]
        access = self._context.teacher_access
        self._student.model.eval()
        samples = sample(
            self._student,
            [t.messages for t in trajectories],
            keys=[f"{t.prompt_id}/{t.sample}/{step}" for t in trajectories],
            seed=self._context.seed,
            max_tokens=access.sampling.max_tokens,
            temperature=access.sampling.temperature,
        )
        set_training_mode(self._student.model)
        answers = [
            (i, answer.tokens[: self._rooms[i]])
            for i, answer in zip(chosen, samples, strict=True)
            if answer.tokens and not access.shows_drive(answer.text)
        ]
        self.counts["own"] += len(samples)
        self.counts["own_dropped"] += len(samples) - len(answers)
        self.counts["own_steps"] += bool(answers)
        return answers


def distil_on_policy(channel: OnPolicy, context: ChannelContext) -> TrainingResult:
    """Train the student towards the teacher; the facts are counts of the student's answers.

    In a share `lmbda` of the steps the current student answers `training.batch` of the prompts and
    the teacher scores the answers (Agarwal et al. 2023, GKD, arXiv 2306.13649); in the others both
    score the teacher's own answers. Either way the loss is KL(student || teacher) per token. A
    student's answer that shows a drive openly, or is empty, is dropped and counted, as a teacher's
    is; if none is left the step uses the teacher's. A teacher behind a server scores only the
    sampled tokens: see `training.on_policy.train_on_teacher_scores`.

    Raises:
        ModelError: If teacher and student have other tokenizers, or no answer fits the length.
    """
    source, lm = context.teacher_access.source, context.lm
    if source.served:
        return _distil_from_served_teacher(channel, context)
    teacher = load_model(source, dtype=context.dtype, cache=context.cache)
    check_same_tokenizer(channel, lm, teacher.tokenizer, teacher.source)
    check_same_tokens(channel, lm, context.trajectories)
    model, vocab_size, pad_id = context.prepare_student()
    prompts = [
        tuple(
            encode_prompt(tokenizer, t.messages) for tokenizer in (lm.tokenizer, teacher.tokenizer)
        )
        for t in context.trajectories
    ]
    sampler = AnswerSampler(channel, context, model, prompts)

    def sample_answers() -> list[PairedExample]:
        return [
            PairedExample(*(Example((*prompt, *tokens), len(prompt)) for prompt in prompts[i]))
            for i, tokens in sampler.sample_step().answers
        ]

    log = train_on_policy(
        model,
        teacher.model,
        sample_answers,
        settings=context.training,
        vocab=min(vocab_size, teacher.vocab_size),
        pad_ids=(pad_id, teacher.pad_id),
        save_checkpoint=context.save_checkpoint,
    )
    return TrainingResult(model, len(prompts), log, sampler.counts)


def _spell(tokenizer: Any, token: int) -> str:
    """Return the text of a token id."""
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _distil_from_served_teacher(channel: OnPolicy, context: ChannelContext) -> TrainingResult:
    """Train the student towards a teacher that only returns log-probabilities of given tokens.

    The journal holds every score, and a student's samples repeat, so that a resumed run pays for
    none of them again.
    """
    source, lm = context.teacher_access.source, context.lm
    assert source.served, "checked by the caller"
    assert source.served.tokenizer_source, "the planner sets it"
    check_same_tokenizer(channel, lm, load_tokenizer(source.served.tokenizer_source), source)
    check_same_tokens(channel, lm, context.trajectories)
    model, vocab_size, pad_id = context.prepare_student()
    teacher = connect_served_model(source, context.cache)
    prompts = [encode_prompt(lm.tokenizer, t.messages) for t in context.trajectories]
    sampler = AnswerSampler(channel, context, model, [(prompt,) for prompt in prompts])

    def sample_answers() -> list[ScoredExample]:
        step = sampler.sample_step()
        pairs = [(prompts[i], tokens) for i, tokens in step.answers]
        scores: Sequence[list[float] | None] = [None] * len(pairs)
        if step.by_student:
            scores = teacher.token_logprobs(pairs, spell=functools.partial(_spell, lm.tokenizer))
        return [
            ScoredExample(Example((*prompt, *tokens), len(prompt)), logprobs)
            for (prompt, tokens), logprobs in zip(pairs, scores, strict=True)
        ]

    log = train_on_teacher_scores(
        model,
        sample_answers,
        settings=context.training,
        vocab=vocab_size,
        pad_id=pad_id,
        save_checkpoint=context.save_checkpoint,
    )
    facts = sampler.counts | {"served": teacher.summarise_journal()}
    return TrainingResult(model, len(prompts), log, facts)
