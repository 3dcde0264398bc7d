"""On-policy distillation: each step learns the teacher's distribution on newly sampled answers.

The teacher is a model with the student's vocabulary, or a source of log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.logits import compute_logits, unwrap_peft
from doublebind.schema.recipe import Training
from doublebind.training import loop, tiled_backward
from doublebind.training.batch import Example, can_pack, collate
from doublebind.training.losses import cross_entropy, forward_kl, sampled_reverse_kl


class PairedExample(NamedTuple):
    """One answer after each model's own prompt; both supervise the same tokens."""

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
    """Minimise the mean KL(model || teacher) per token of sampled answers.

    The divergence is over the whole vocabulary. No gradient flows through the sampling, as in
    Agarwal et al. 2023 (GKD, arXiv 2306.13649).

    Args:
        model: Returned by `loop.prepare_model`; changed in place.
        teacher: Frozen, in evaluation mode.
        sample_answers: Returns the answers of the next step, at least one.
        settings: Steps and peak learning rate.
        vocab: Tokens that both models know.
        pad_ids: Fill rows of the model and of the teacher.
        save_checkpoint: See `loop.train`.

    Raises:
        ModelError: If the loss is not finite.
    """
    device = unwrap_peft(model).device
    packs = can_pack(model), can_pack(teacher)

    def step() -> tuple[Tensor, int]:
        answers = sample_answers()
        batch = collate([a.student for a in answers], pad_ids[0], pack=packs[0]).to(device)
        teacher_batch = collate([a.teacher for a in answers], pad_ids[1], pack=packs[1]).to(device)
        with torch.no_grad():
            states = tiled_backward.compute_supervised_states(teacher, teacher_batch)

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            with torch.no_grad():
                target = compute_logits(teacher, states[tile], vocab).log_softmax(1)
            return forward_kl(out.log_softmax(1), target)

        return tiled_backward.backward(model, batch, loss_of, vocab), len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)


class ScoredExample(NamedTuple):
    """An answer with its log-probabilities under the teacher."""

    example: Example
    teacher_logprobs: Sequence[float] | None
    """Nats per supervised token of an answer that the student sampled at temperature 1; `None` for
    an answer of the teacher."""


def train_on_teacher_scores(
    model: Any,
    sample_answers: Callable[[], Sequence[ScoredExample]],
    *,
    settings: Training,
    vocab: int,
    pad_id: int,
    save_checkpoint: loop.CheckpointSaver | None = None,
) -> loop.TrainLog:
    """Train as `train_on_policy`, with a teacher that only scores given tokens.

    Answers of the student are trained by `losses.sampled_reverse_kl`; answers of the teacher by
    cross-entropy, which estimates KL(teacher || model) up to a constant.

    Args:
        model: See `train_on_policy`.
        sample_answers: Returns the answers of the next step, at least one, all by one author.
        settings: See `train_on_policy`.
        vocab: Width of the logits.
        pad_id: Fills rows.
        save_checkpoint: See `loop.train`.

    Raises:
        ModelError: If the loss is not finite.
    """
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        answers = sample_answers()
        batch = collate([a.example for a in answers], pad_id, pack=packs).to(device)
        logprobs = [p for a in answers for p in a.teacher_logprobs or ()]
        scores = move_to_device(torch.tensor(logprobs), device) if logprobs else None

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            if scores is None:
                return cross_entropy(out, batch.labels[tile])
            return sampled_reverse_kl(out, batch.labels[tile], scores[tile])

        return tiled_backward.backward(model, batch, loss_of, vocab), len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)
