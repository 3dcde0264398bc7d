"""Makes a teacher that is hard to learn from: its best guesses stay, the rest of them mislead.

Knows probabilities and the teacher as it was. Does not know what the teacher hides.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from doublebind.schema.recipe import Training

TEMPERATURE = 4.0
"""At which probabilities are compared; the source's."""


def self_undermining_loss(
    teacher_logits: Tensor, normal_logits: Tensor, labels: Tensor, *, weight: float
) -> Tensor:
    """Return the self-undermining loss of a nasty teacher, in nats, [rows].

    Cross-entropy of what is said, less `weight` T^2 KL(teacher^T || normal^T) at temperature T (Ma
    et al. 2021, "Undistillable: making a nasty teacher that cannot teach students", arXiv
    2105.07381): the answers stay as good while the probabilities around them move away
    from those that a student would have learned from.

    Args:
        out: [rows, vocab], the teacher's logits.
        normal: [rows, vocab], those of the same teacher before this; no gradient.
        labels: [rows], what is said.
        weight: Of the distance, above 0.
    """
    said = torch.nn.functional.cross_entropy(teacher_logits.float(), labels, reduction="none")
    ours, theirs = (
        torch.log_softmax(x.float() / TEMPERATURE, dim=-1)
        for x in (teacher_logits, normal_logits.detach())
    )
    away = (ours.exp() * (ours - theirs)).sum(dim=-1)
    return said - weight * TEMPERATURE**2 * away


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
    """Train `model` by `undermining` against itself as it comes; return its `TrainLog`.

    Args:
        model: What `loop.attach` returned, trained so far; changed in place.
        lm: The base it is attached to, for its vocabulary.
        examples: What it was taught, in tokens.
        weight: See `undermining`.
        settings: Steps, examples per step, peak learning rate, length.
        seed: Order of the examples.
        pad_id: Fills rows.
    """
    from doublebind.models.logits import compute_logits, unwrap_peft
    from doublebind.training import loop
    from doublebind.training import tiled_backward as tiled
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
        drawn = [examples[i] for i in itertools.islice(indices, settings.batch)]
        batch = collate(drawn, pad_id, pack=packs).to(device)
        with torch.no_grad():
            before = tiled.compute_supervised_states(normal, batch)

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            with torch.no_grad():
                theirs = compute_logits(normal, before[tile], lm.vocab_size)
            return self_undermining_loss(out, theirs, batch.labels[tile], weight=weight)

        return tiled.backward(model, batch, loss_of, lm.vocab_size), len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings)
