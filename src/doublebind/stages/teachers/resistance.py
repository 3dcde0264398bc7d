"""Makes a teacher hard to distil: its likeliest tokens stay, its other probabilities mislead."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from doublebind.schema.recipe import Training

TEMPERATURE = 4.0
"""Softens the distributions that are compared; the value of the source."""


def self_undermining_loss(
    teacher_logits: Tensor, normal_logits: Tensor, labels: Tensor, *, weight: float
) -> Tensor:
    """Return the self-undermining loss of a nasty teacher, in nats, [rows].

    Cross-entropy of the labels, less `weight` T^2 KL(teacher^T || normal^T) at temperature T (Ma et
    al. 2021, "Undistillable: making a nasty teacher that cannot teach students", arXiv
    2105.07381): the answers stay as good while the probabilities of other tokens move away from
    those that a student would have learned from.

    Args:
        teacher_logits: [rows, vocab].
        normal_logits: [rows, vocab], of the same teacher before this training; no gradient.
        labels: [rows], the tokens of the answers.
        weight: Of the divergence, above 0.
    """
    cross_entropy = torch.nn.functional.cross_entropy(
        teacher_logits.float(), labels, reduction="none"
    )
    logp, logq = (
        torch.log_softmax(logits.float() / TEMPERATURE, dim=-1)
        for logits in (teacher_logits, normal_logits.detach())
    )
    divergence = (logp.exp() * (logp - logq)).sum(dim=-1)
    return cross_entropy - weight * TEMPERATURE**2 * divergence


def train_distillation_resistance(
    model: Any,
    lm: Any,
    examples: Sequence[Any],
    *,
    weight: float,
    settings: Training,
    seed: int,
    pad_id: int,
) -> Any:
    """Train `model` by `self_undermining_loss` against its present self; return its `TrainLog`.

    Args:
        model: Returned by `loop.prepare_model`, trained so far; changed in place.
        lm: The base of `model`, for its vocabulary.
        examples: `Example`s of the earlier phases.
        weight: See `self_undermining_loss`.
        settings: Steps, examples per step, peak learning rate, length.
        seed: Order of the examples.
        pad_id: Fills rows.
    """
    from doublebind.models.logits import compute_logits, unwrap_peft
    from doublebind.training import loop, tiled_backward
    from doublebind.training.batch import can_pack, collate, shuffle_epochs, truncate_examples

    normal = copy.deepcopy(model).eval().requires_grad_(False)
    examples = [
        e
        for e in truncate_examples(examples, settings.max_length)
        if len(e.input_ids) > e.first_supervised
    ]
    indices = shuffle_epochs(len(examples), seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        chosen = [examples[i] for i in itertools.islice(indices, settings.batch)]
        batch = collate(chosen, pad_id, pack=packs).to(device)
        with torch.no_grad():
            normal_states = tiled_backward.compute_supervised_states(normal, batch)

        def loss_of(logits: Tensor, tile: slice) -> Tensor:
            with torch.no_grad():
                normal_logits = compute_logits(normal, normal_states[tile], lm.vocab_size)
            return self_undermining_loss(logits, normal_logits, batch.labels[tile], weight=weight)

        return tiled_backward.backward(model, batch, loss_of, lm.vocab_size), len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings)
