"""Universal logit distillation: learns distributions over another vocabulary by their shape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.logits import unwrap_peft
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import Training
from doublebind.training import loop, tiled_backward
from doublebind.training.batch import can_pack, collate, count_dropped, truncate_examples
from doublebind.training.losses import cross_entropy


def sorted_distance(logits: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """Return sum over ranks i of |p_(i) - q_(i)|, [rows], in [0, 2].

    The universal logit distillation loss of Boizard et al. 2024 (arXiv 2402.12030): probabilities
    are compared by rank, whatever tokens they belong to, and the shorter list is filled with
    zeros. Here it uses the teacher's top k, with all further ranks of each side as one. It is then
    at most the full distance, and equal to it if k covers both vocabularies.

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
    data: loop.TrainingSet,
    aligned_rows: Sequence[Sequence[int]],
    *,
    weight: float,
    settings: Training,
    seed: int,
    vocab: int,
    save_checkpoint: loop.CheckpointSaver | None = None,
) -> loop.TrainLog:
    """Minimise cross-entropy plus `weight` times `sorted_distance`.

    The first is a mean over all supervised tokens, the second over those with an aligned row.

    Args:
        model: Returned by `loop.prepare_model`; changed in place.
        data: Examples in the model's tokens; targets of the same answers in the teacher's tokens.
        aligned_rows: Per example, per supervised token: the row of the targets at the same place
            of the text, or -1.
        weight: Factor of the distance.
        settings: Steps, batch, peak learning rate, length.
        seed: Seeds the order of the examples.
        vocab: Tokens of the model.
        save_checkpoint: See `loop.train`.

    Raises:
        ModelError: If there are no targets, nothing is supervised, or the loss is not finite.
    """
    targets = data.targets
    if targets is None:
        raise ModelError(
            "uld learns from cached distributions, and there are none; score the teacher"
        )
    examples = truncate_examples(data.examples, settings.max_length)
    usable = loop.list_usable(examples)
    dropped = count_dropped(len(examples), len(usable), settings.max_length)
    batches = loop.iterate_batches(examples, settings, seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        group = [(examples[i], aligned_rows[i]) for i in next(batches)]
        batch = collate([e for e, _ in group], data.pad_id, pack=packs).to(device)
        rows = [aligned[: len(e.input_ids) - e.first_supervised] for e, aligned in group]
        aligned = torch.tensor(list(itertools.chain.from_iterable(rows)))
        scale = weight * len(aligned) / max(1, int((aligned >= 0).sum()))

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            loss = cross_entropy(out, batch.labels[tile])
            places = (aligned[tile] >= 0).nonzero().squeeze(1)
            target_rows = aligned[tile][places]
            logprobs = move_to_device(targets.logprobs[target_rows], device)
            tail = move_to_device(targets.tail[target_rows], device)
            places = move_to_device(places, device)
            return loss.index_add(0, places, scale * sorted_distance(out[places], logprobs, tail))

        return tiled_backward.backward(model, batch, loss_of, vocab), len(batch.labels)

    log = loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)
    return log._replace(dropped=dropped)
