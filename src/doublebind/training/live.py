"""Fits a model to another one that is run beside it, on answers proposed step by step.

Knows two models with one vocabulary. Does not know who wrote the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.config import Training
from doublebind.models.head import bare, logits
from doublebind.training import loop, tiled
from doublebind.training.batch import Example, can_pack, collate
from doublebind.training.losses import forward_kl


class Answered(NamedTuple):
    """One answer after each model's own prompt; the supervised tokens are the same."""

    mine: Example
    theirs: Example


def train_live(
    model: Any,
    other: Any,
    propose: Callable[[], Sequence[Answered]],
    *,
    settings: Training,
    vocab: int,
    pad_ids: tuple[int, int],
    keep: loop.Keep | None = None,
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
    device = bare(model).device
    packs = can_pack(model), can_pack(other)

    def step() -> tuple[Tensor, int]:
        answers = propose()
        mine = collate([a.mine for a in answers], pad_ids[0], pack=packs[0]).to(device)
        theirs = collate([a.theirs for a in answers], pad_ids[1], pack=packs[1]).to(device)
        with torch.no_grad():
            wanted = tiled.rows_of(other, theirs)

        def loss_of(out: Tensor, tile: slice) -> Tensor:
            with torch.no_grad():
                target = logits(other, wanted[tile], vocab).log_softmax(1)
            return forward_kl(out.log_softmax(1), target)

        return tiled.backward(model, mine, loss_of, vocab), len(mine.labels)

    return loop.fit(model, step, settings, keep=keep)
