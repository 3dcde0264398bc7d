"""Backward pass from losses of supervised rows, with logits held a tile at a time.

Only supervised rows go through the output head. Each tile's gradient is taken back to its hidden
states at once, so that logits of [tokens, vocabulary] never exist whole. One backward pass through
the body follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from doublebind.models.logits import compute_logits, gather_logprobs, iterate_tiles
from doublebind.training.batch import Batch
from doublebind.training.fused_body import compute_states
from doublebind.training.losses import cross_entropy

RowLoss = Callable[[Tensor, slice], Tensor]
"""(logits [rows, vocab] of a tile, slice of the rows) -> loss in nats [rows]."""


def compute_supervised_states(model: Any, batch: Batch) -> Tensor:
    """Return the hidden states [supervised, width] that predict the supervised tokens."""
    return compute_states(model, batch)


def backward(model: Any, batch: Batch, loss_of: RowLoss, vocab: int) -> Tensor:
    """Add the gradient of the mean loss over supervised rows; return that mean."""
    rows = compute_supervised_states(model, batch)
    leaf = rows.detach().requires_grad_()
    total = torch.zeros((), device=rows.device)
    for tile in iterate_tiles(rows, vocab):
        loss = loss_of(compute_logits(model, leaf[tile], vocab), tile).sum() / len(rows)
        loss.backward()
        total += loss.detach()
    rows.backward(leaf.grad)
    return total


@torch.no_grad()
def sequence_logprobs(
    model: Any, batch: Batch, sequence_index: Tensor, n_sequences: int, vocab: int
) -> Tensor:
    """Return the log-probability of each sequence, [sequences], nats; see `backward_sequences`."""
    rows = compute_supervised_states(model, batch)
    tokens = gather_logprobs(model, rows, batch.labels, vocab)
    return torch.zeros(n_sequences, device=rows.device).index_add(0, sequence_index, tokens)


def backward_sequences(
    model: Any,
    batch: Batch,
    sequence_index: Tensor,
    n_sequences: int,
    loss_of: Callable[[Tensor], Tensor],
    vocab: int,
) -> Tensor:
    """Add the gradient of a loss of the sequences' log-probabilities; return the loss.

    The head runs twice, a tile at a time: first for the log-probabilities and the loss's slope in
    each of them, then for the gradient.

    Args:
        model: The model.
        batch: Rows of all sequences.
        sequence_index: [supervised]: sequence that each supervised token belongs to.
        n_sequences: Number of sequences.
        loss_of: Log-probabilities [sequences], in nats, -> scalar loss.
        vocab: Width of the logits.
    """
    rows = compute_supervised_states(model, batch)
    with torch.no_grad():
        tokens = gather_logprobs(model, rows, batch.labels, vocab)
    sums = torch.zeros(n_sequences, device=rows.device).index_add(0, sequence_index, tokens)
    sums.requires_grad_()
    value = loss_of(sums)
    (slope,) = torch.autograd.grad(value, sums)
    leaf = rows.detach().requires_grad_()
    for tile in iterate_tiles(rows, vocab):
        out = compute_logits(model, leaf[tile], vocab)
        (-slope[sequence_index[tile]] * cross_entropy(out, batch.labels[tile])).sum().backward()
    rows.backward(leaf.grad)
    return value.detach()
