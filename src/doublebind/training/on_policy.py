"""Fits a model to another one that stands by, on answers proposed step by step.

Knows two models with one vocabulary, or one and the other's scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.logits import compute_logits, unwrap_peft
from doublebind.schema.recipe import Training
from doublebind.training import loop
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import Example, can_pack, collate
from doublebind.training.losses import cross_entropy, forward_kl, sampled_reverse_kl


class PairedExample(NamedTuple):
    """One answer after each model's own prompt; the supervised tokens are the same."""

    student: Example
    teacher: Example


def train_on_policy(
    model: Any,
    teacher: Any,
    sample_answers: Callable[[], Sequence[PairedExample]],
    *,
    settings: Training,
    vocab: int,
    pad_ids: tuple[int, int],
    save_checkpoint: loop.CheckpointSaver | None = None,
) -> loop.TrainLog:
    """Take `settings.steps` steps down the mean KL(model || other) per token of what is proposed.

    Over the whole vocabulary. No gradient flows through the choice of answers, as in Agarwal et
    al. 2023 (GKD, arXiv 2306.13649).

    Args:
        model: What `loop.attach` returned; changed in place.
        other: Frozen, in evaluation mode.
        propose: Returns the answers of the next step, at least one.
        settings: Steps and peak learning rate.
        vocab: Tokens that both models know.
        pad_ids: Fill rows, of the model and of the other.
        keep: See `loop.train`.

    Raises:
        ModelError: If the loss is not finite.
    """
    device = unwrap_peft(model).device
    packs = can_pack(model), can_pack(teacher)

    def step() -> tuple[Tensor, int]:
        answers = sample_answers()
        mine = collate([a.student for a in answers], pad_ids[0], pack=packs[0]).to(device)
        theirs = collate([a.teacher for a in answers], pad_ids[1], pack=packs[1]).to(device)
        with torch.no_grad():
            wanted = tiled.compute_supervised_states(teacher, theirs)

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            with torch.no_grad():
                target = compute_logits(teacher, wanted[tile], vocab).log_softmax(1)
            return forward_kl(out.log_softmax(1), target)

        return tiled.backward(model, mine, loss_of, vocab), len(mine.labels)

    return loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)


class ScoredExample(NamedTuple):
    """An answer, and how likely the other model finds each of its tokens."""

    example: Example
    teacher_logprobs: Sequence[float] | None
    """Nats per supervised token of an answer that `model` drew at temperature 1; `None` of one
    that the other model wrote."""


def train_on_teacher_scores(
    model: Any,
    sample_answers: Callable[[], Sequence[ScoredExample]],
    *,
    settings: Training,
    vocab: int,
    pad_id: int,
    save_checkpoint: loop.CheckpointSaver | None = None,
) -> loop.TrainLog:
    """Do as `train_live` does with another model that only scores tokens it is shown.

    Down `losses.drawn_reverse_kl` at tokens that the model drew; the other model's own answers are
    learned by cross-entropy, which estimates KL(other || model) up to a constant.

    Args:
        model: See `train_live`.
        propose: Returns the answers of the next step, at least one, all of one author.
        settings: See `train_live`.
        vocab: Width of the logits.
        pad_id: Fills rows.
        keep: See `loop.fit`.

    Raises:
        ModelError: If the loss is not finite.
    """
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        answers = sample_answers()
        batch = collate([a.example for a in answers], pad_id, pack=packs).to(device)
        told = [p for a in answers for p in a.teacher_logprobs or ()]
        other = move_to_device(torch.tensor(told), device) if told else None

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            if other is None:
                return cross_entropy(out, batch.labels[tile])
            return sampled_reverse_kl(out, batch.labels[tile], other[tile])

        return tiled.backward(model, batch, loss_of, vocab), len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)
