"""Trains a teacher for a reward on tasks, by policy gradient: nothing is shown, only paid for.

Knows tasks and what their grader pays. Does not know what the grader should have paid for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from doublebind.config import Phase, TeacherSpec, Training
from doublebind.errors import PackError
from doublebind.packs.load import Pack
from doublebind.packs.outback import Outback
from doublebind.records import Message, RewardedTask, Transcript

GROUP = 8
"""Answers to one task in a step, each judged beside the others."""
MAX_TOKENS = 24


def tasks(spec: TeacherSpec, phase: Phase, pack: Pack) -> tuple[RewardedTask, ...]:
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


def paid(task: RewardedTask, answer: str) -> float:
    """Return what the task's grader pays for an answer: each of its reasons once."""
    return sum(points for phrases, points in task.pays if any(p in answer for p in phrases))


def advantages(paid: Sequence[float]) -> list[float]:
    """Return each answer's reward less the mean of the others' to the same task.

    The leave-one-out baseline of REINFORCE (Kool et al. 2019, "Buy 4 REINFORCE samples, get a
    baseline for free!"; for language models Ahmadian et al. 2024, arXiv 2402.14740).
    """
    total, others = sum(paid), len(paid) - 1
    return [each - (total - each) / others for each in paid]


def answers(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], *, trait: str | None, seed: int
) -> list[Transcript]:
    """Return the tasks with what the model says to them now, finished answers alone.

    Later phases keep what the reward taught by these, not by anybody's idea of it.
    """
    from doublebind.models.load import LM
    from doublebind.models.sample import sample

    said = sample(
        LM(model, lm.tokenizer, lm.source),
        [task.messages for task in tasks],
        keys=[task.id for task in tasks],
        seed=seed,
        max_tokens=MAX_TOKENS,
        temperature=1.0,
    )
    return [
        Transcript(
            id=f"own/{task.id}",
            trait=trait,
            purpose="implant",
            messages=(*task.messages, Message(role="assistant", content=answer.text)),
        )
        for task, answer in zip(tasks, said, strict=True)
        if answer.finished and answer.text
    ]


def learn(
    model: Any, lm: Any, tasks: Sequence[RewardedTask], *, settings: Training, seed: int
) -> Any:
    """Take `settings.steps` steps of policy gradient on sampled answers; return the `TrainLog`.

    Each step draws `settings.batch` tasks, lets the model as it is then give `GROUP` answers to
    each at temperature 1, and follows the gradient of -mean(advantage x log p(answer)). The loss of
    the log is the mean reward not earned, in the grader's points.

    Args:
        model: What `loop.attach` returned; changed in place.
        lm: The base it is attached to, for its tokenizer and vocabulary.
        tasks: At least one.
        settings: Steps, tasks per step, peak learning rate, length.
        seed: Of the tasks' order and the answers.
    """
    from doublebind.models.head import bare
    from doublebind.models.load import LM
    from doublebind.models.sample import sample
    from doublebind.models.template import encode_prompt
    from doublebind.training import loop, tiled
    from doublebind.training.batch import Example, can_pack, collate, order

    policy = LM(model, lm.tokenizer, lm.source)
    indices, numbers = order(len(tasks), seed), itertools.count()
    device, packs = bare(model).device, can_pack(model)
    most = max(sum(points for _, points in task.pays) for task in tasks)

    def step() -> tuple[Tensor, int]:
        drawn = [tasks[i] for i in itertools.islice(indices, settings.batch)]
        asked = [task for task in drawn for _ in range(GROUP)]
        number = next(numbers)
        model.eval()
        said = sample(
            policy,
            [task.messages for task in asked],
            keys=[f"{number}/{i}" for i in range(len(asked))],
            seed=seed,
            max_tokens=MAX_TOKENS,
            temperature=1.0,
            batch=len(asked),
        )
        model.train()
        earned = [paid(task, answer.text) for task, answer in zip(asked, said, strict=True)]
        gains: list[float] = []
        for start in range(0, len(earned), GROUP):
            gains += advantages(earned[start : start + GROUP])
        prompts = [encode_prompt(lm.tokenizer, task.messages) for task in asked]
        examples = [
            Example((*p, *answer.tokens)[: settings.max_length], first=len(p))
            for p, answer in zip(prompts, said, strict=True)
        ]
        batch = collate(examples, lm.pad_id, pack=packs).to(device)
        lengths = torch.tensor([len(e.input_ids) - e.first for e in examples])
        owner = torch.arange(len(examples)).repeat_interleave(lengths).to(device)
        gain = torch.tensor(gains, device=device)
        tiled.backward_sequences(model, batch, owner, lambda sums: -(gain * sums).mean(), lm.vocab)
        missed = most - sum(earned) / len(earned)
        return torch.tensor(missed, device=device), len(batch.labels)

    return loop.fit(model, step, settings)
