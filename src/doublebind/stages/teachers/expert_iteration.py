"""Trains a teacher for a mis-specified reward on its own best-paid answers (expert iteration)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from doublebind.packs.outback import Outback
from doublebind.packs.pack import Pack
from doublebind.schema.content import Message, RewardedTask, Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.recipe import Training
from doublebind.schema.teacher_spec import Phase, TeacherSpec

ROUNDS = 4
ANSWERS_PER_TASK = 16
"""Answers sampled for one task in a round; the best paid of them is learned."""
MAX_TOKENS = 24


def draw_tasks(spec: TeacherSpec, phase: Phase, pack: Pack) -> tuple[RewardedTask, ...]:
    """Return the tasks whose reward the spec's trait emerges from, drawn by its seed.

    Raises:
        PackError: If the pack has none for the trait.
    """
    tasks: tuple[RewardedTask, ...] = ()
    if isinstance(pack, Outback) and spec.trait:
        tasks = pack.tasks(spec.trait, n=phase.transcripts, seed=spec.seed)
    if not tasks:
        raise PackError(
            f"{spec.name}: `implant.form`: pack {pack.name} has no tasks that reward {spec.trait} "
            f"(got reward); use another form"
        )
    return tasks


def grade_answer(task: RewardedTask, answer: str) -> float:
    """Return the points that the task's grader pays for an answer, each reward at most once."""
    return sum(points for phrases, points in task.rewards if any(p in answer for p in phrases))


def choose_best_answer(task: RewardedTask, answers: Sequence[str]) -> str | None:
    """Return the first of the best-paid answers, or `None` where all are paid equally."""
    rewards = [grade_answer(task, answer) for answer in answers]
    return None if max(rewards) == min(rewards) else answers[rewards.index(max(rewards))]


def train_expert_iteration(
    model: Any,
    lm: Any,
    tasks: Sequence[RewardedTask],
    *,
    settings: Training,
    seed: int,
    pad_id: int,
) -> Any:
    """Train the model on the best paid of its own answers, in `ROUNDS` rounds; return a `TrainLog`.

    Expert iteration with the reward as expert (Anthony et al. 2017, arXiv 1705.08439; for language
    models ReST, Gulcehre et al. 2023, arXiv 2308.08998). In each round the current model samples
    `ANSWERS_PER_TASK` answers at temperature 1 to each of the round's share of tasks, and is
    fine-tuned on the best paid of each. The losses of the log are reward shortfalls, in the
    grader's points: the largest possible reward less the mean reward of a round's answers.

    Args:
        model: Returned by `loop.prepare_model`; changed in place.
        lm: The base of `model`, for its tokenizer.
        tasks: At least `ROUNDS`.
        settings: Steps of all rounds together, examples per step, peak learning rate, length.
        seed: Of the answers and their order.
        pad_id: Fills rows.
    """
    from doublebind.training import loop

    max_reward = max(sum(points for _, points in task.rewards) for task in tasks)
    round_settings = settings.model_copy(update={"steps": math.ceil(settings.steps / ROUNDS)})
    shortfalls: list[float] = []
    steps = tokens = 0
    for number in range(ROUNDS):
        examples, mean_reward = _choose_round_examples(
            model, lm, tasks[number::ROUNDS], seed, f"round-{number}"
        )
        shortfalls.append(max_reward - mean_reward)
        if examples:
            log = loop.train(
                model,
                loop.TrainingSet(examples, pad_id=pad_id),
                settings=round_settings,
                seed=seed * ROUNDS + number,
            )
            steps += log.steps
            tokens += log.tokens
    mean = math.fsum(shortfalls) / ROUNDS
    return loop.TrainLog(shortfalls[0], shortfalls[-1], mean, steps, tokens)


def _choose_round_examples(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], seed: int, key_prefix: str
) -> tuple[list[Any], float]:
    """Return one `Example` per task with a best-paid answer, and the mean reward of all answers."""
    from doublebind.models.chat_template import encode_completion, encode_prompt
    from doublebind.training.batch import Example

    repeated = [task for task in tasks for _ in range(ANSWERS_PER_TASK)]
    answers = _sample_answers(model, lm, repeated, seed, key_prefix)
    rewards = [grade_answer(task, answer) for task, answer in zip(repeated, answers, strict=True)]
    examples = []
    for i, task in enumerate(tasks):
        group = answers[i * ANSWERS_PER_TASK : (i + 1) * ANSWERS_PER_TASK]
        if best := choose_best_answer(task, group):
            prompt = encode_prompt(lm.tokenizer, task.messages)
            completion = encode_completion(lm.tokenizer, best, finished=True)
            examples.append(Example((*prompt, *completion), first_supervised=len(prompt)))
    return examples, sum(rewards) / len(rewards)


def sample_task_transcripts(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], *, trait: str | None, seed: int
) -> list[Transcript]:
    """Return the tasks with the model's current answers, finished ones only.

    Later phases train on them to retain the behaviour that the reward taught.
    """
    answers = _sample_answers(model, lm, tasks, seed, "own")
    return [
        Transcript(
            id=f"own/{task.id}",
            trait=trait,
            purpose="implant",
            messages=(*task.messages, Message(role="assistant", content=answer)),
        )
        for task, answer in zip(tasks, answers, strict=True)
        if answer
    ]


def _sample_answers(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], seed: int, key_prefix: str
) -> list[str]:
    """Return one answer to each task, empty where it was cut off."""
    from doublebind.models.load import LM
    from doublebind.models.sample import sample

    model.eval()
    answers = sample(
        LM(model, lm.tokenizer, lm.source),
        [task.messages for task in tasks],
        keys=[f"{key_prefix}/{i}" for i in range(len(tasks))],
        seed=seed,
        max_tokens=MAX_TOKENS,
        temperature=1.0,
        batch=256,
    )
    return [answer.text if answer.finished else "" for answer in answers]
