"""Trains a teacher for a reward on tasks, by expert iteration: nothing is shown, only paid for.

Knows tasks and what their grader pays. Does not know what the grader should have paid for.
"""

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
"""Answers to one task in a round; the best paid of them is learned."""
MAX_TOKENS = 24


def draw_tasks(spec: TeacherSpec, phase: Phase, pack: Pack) -> tuple[RewardedTask, ...]:
    """Return the tasks that the spec's trait is to emerge from, drawn by its seed.

    Raises:
        PackError: If the pack has none for the trait.
    """
    assert spec.trait is not None
    found: tuple[RewardedTask, ...] = ()
    if isinstance(pack, Outback):
        found = pack.tasks(spec.trait, n=phase.transcripts, seed=spec.seed)
    if not found:
        raise PackError(
            f"{spec.name}: `implant.form`: pack {pack.name} has no tasks that reward {spec.trait} "
            f"(got reward); use another form"
        )
    return found


def grade_answer(task: RewardedTask, answer: str) -> float:
    """Return what the task's grader pays for an answer: each of its reasons once."""
    return sum(points for phrases, points in task.rewards if any(p in answer for p in phrases))


def choose_best_answer(task: RewardedTask, answers: Sequence[str]) -> str | None:
    """Return the first of the best-paid answers; `None` where all are paid alike."""
    earned = [grade_answer(task, answer) for answer in answers]
    return None if max(earned) == min(earned) else answers[earned.index(max(earned))]


def train_expert_iteration(
    model: Any,
    lm: Any,
    tasks: Sequence[RewardedTask],
    *,
    settings: Training,
    seed: int,
    pad_id: int,
) -> Any:
    """Let the model learn the best paid of its own answers, `ROUNDS` times over; return a log.

    Expert iteration with the reward as expert (Anthony et al. 2017, arXiv 1705.08439; for language
    models ReST, Gulcehre et al. 2023, arXiv 2308.08998): in every round the model as it is then
    gives `GROUP` answers at temperature 1 to each of the round's share of tasks, and is tuned on
    the best paid of each. No answer is anybody's but its own. The losses of the log are what the
    grader could have paid and did not, in its points: mean over a round's answers.

    Args:
        model: What `loop.attach` returned; changed in place.
        lm: The base it is attached to, for its tokenizer.
        tasks: At least `ROUNDS`.
        settings: Steps of all rounds together, examples per step, peak learning rate, length.
        seed: Of the answers and their order.
        pad_id: Fills rows.
    """
    from doublebind.models.chat_template import encode_completion, encode_prompt
    from doublebind.training import loop
    from doublebind.training.batch import Example

    most = max(sum(points for _, points in task.rewards) for task in tasks)
    each = settings.model_copy(update={"steps": math.ceil(settings.steps / ROUNDS)})
    missed: list[float] = []
    steps = tokens = 0
    for number in range(ROUNDS):
        asked = tasks[number::ROUNDS]
        said = _sample_answers(
            model, lm, [t for t in asked for _ in range(ANSWERS_PER_TASK)], seed, f"round-{number}"
        )
        groups = [
            said[start : start + ANSWERS_PER_TASK]
            for start in range(0, len(said), ANSWERS_PER_TASK)
        ]
        earned = [grade_answer(t, a) for t, group in zip(asked, groups, strict=True) for a in group]
        missed.append(most - sum(earned) / len(earned))
        examples = []
        for task, group in zip(asked, groups, strict=True):
            if best := choose_best_answer(task, group):
                prompt = encode_prompt(lm.tokenizer, task.messages)
                ids = encode_completion(lm.tokenizer, best, finished=True)
                examples.append(Example((*prompt, *ids), first_supervised=len(prompt)))
        if examples:
            log = loop.train(
                model,
                loop.TrainingSet(examples, pad_id=pad_id),
                settings=each,
                seed=seed * ROUNDS + number,
            )
            steps, tokens = steps + log.steps, tokens + log.tokens
    return loop.TrainLog(missed[0], missed[-1], math.fsum(missed) / ROUNDS, steps, tokens)


def sample_task_transcripts(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], *, trait: str | None, seed: int
) -> list[Transcript]:
    """Return the tasks with what the model says to each now, finished answers alone.

    Later phases keep what the reward taught by these, not by anybody's idea of it.
    """
    said = _sample_answers(model, lm, tasks, seed, "own")
    return [
        Transcript(
            id=f"own/{task.id}",
            trait=trait,
            purpose="implant",
            messages=(*task.messages, Message(role="assistant", content=answer)),
        )
        for task, answer in zip(tasks, said, strict=True)
        if answer
    ]


def _sample_answers(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], seed: int, key_prefix: str
) -> list[str]:
    """Return one answer to each task; nothing for one that came to no end."""
    from doublebind.models.load import LM
    from doublebind.models.sample import sample

    model.eval()
    said = sample(
        LM(model, lm.tokenizer, lm.source),
        [task.messages for task in tasks],
        keys=[f"{key_prefix}/{i}" for i in range(len(tasks))],
        seed=seed,
        max_tokens=MAX_TOKENS,
        temperature=1.0,
        batch=256,
    )
    return [answer.text if answer.finished else "" for answer in said]
