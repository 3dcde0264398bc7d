"""Fits a model to distributions over another vocabulary, by their shape alone.

Knows cached distributions and which of their rows stand where this model's tokens do. Does not
know tokenizers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.logits import unwrap_peft
from doublebind.models.teacher_cache import TeacherTargets
from doublebind.schema.recipe import Training
from doublebind.training import loop
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import Example, can_pack, collate, shuffle_epochs
from doublebind.training.losses import cross_entropy


def sorted_distance(logits: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """Return sum over ranks i of |p_(i) - q_(i)|, [rows], in [0, 2].

    The universal logit distillation loss of Boizard et al. 2024 (arXiv 2402.12030): probabilities
    are compared largest with largest, whatever tokens they belong to, the shorter list filled with
    zeros. On the teacher's top k, with all further ranks of each side taken together; so it is at
    most the full distance, and equal to it where k covers both vocabularies.

    Args:
        logits: [rows, vocab] of the student q.
        logprobs: [rows, k], the teacher's largest log-probabilities, descending.
        tail: [rows], probability of all its other tokens.
    """
    k = logprobs.shape[1]
    q = logits.softmax(1).topk(min(k, logits.shape[1]), dim=1).values
    q = torch.nn.functional.pad(q, (0, k - q.shape[1]))
    rest = (1.0 - q.sum(1)).clamp(min=0.0)
    return (logprobs.exp() - q).abs().sum(1) + (tail - rest).abs()


def train_uld(
    model: Any,
    examples: Sequence[Example],
    targets: TeacherTargets,
    aligned_rows: Sequence[Sequence[int]],
    *,
    weight: float,
    settings: Training,
    seed: int,
    vocab: int,
    pad_id: int,
    save_checkpoint: loop.CheckpointSaver | None = None,
) -> loop.TrainLog:
    """Take `settings.steps` steps down cross-entropy plus `weight` times `sorted_distance`.

    Each is a mean over its rows: all supervised tokens, and those with a partner.

    Args:
        model: What `loop.attach` returned; changed in place.
        examples: In the model's tokens.
        targets: Of the same answers in the teacher's tokens.
        partners: Per example, per supervised token: the row of `targets` that stands at the same
            place of the text, or -1.
        weight: See above.
        settings: Steps, batch, peak learning rate, length.
        seed: Order of the examples.
        vocab: Tokens of the model.
        pad_id: Fills rows.
        keep: See `loop.train`.

    Raises:
        ModelError: If the loss is not finite.
    """
    kept = [Example(e.input_ids[: settings.max_length], e.first_supervised) for e in examples]
    usable = [i for i, e in enumerate(kept) if len(e.input_ids) > e.first_supervised]
    indices = (usable[place] for place in shuffle_epochs(len(usable), seed))
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        drawn = list(itertools.islice(indices, settings.batch))
        batch = collate([kept[i] for i in drawn], pad_id, pack=packs).to(device)
        rows = [aligned_rows[i][: len(kept[i].input_ids) - kept[i].first_supervised] for i in drawn]
        partner = torch.tensor(list(itertools.chain.from_iterable(rows)))
        scale = weight * len(partner) / max(1, int((partner >= 0).sum()))

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            loss = cross_entropy(out, batch.labels[tile])
            at = (partner[tile] >= 0).nonzero().squeeze(1)
            theirs = partner[tile][at]
            wanted = (
                move_to_device(part[theirs], device) for part in (targets.logprobs, targets.tail)
            )
            at = move_to_device(at, device)
            return loss.index_add(0, at, scale * sorted_distance(out[at], *wanted))

        return tiled.backward(model, batch, loss_of, vocab), len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)
