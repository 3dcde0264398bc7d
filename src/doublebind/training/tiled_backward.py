"""Takes losses of supervised rows back into a model, a tile of logits at a time.

Only supervised rows meet the output head, and each tile's gradient is taken back to its hidden
states at once, so that logits of [tokens, vocabulary] never exist whole. One pass through the body
follows. Does not know what a row's loss means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from doublebind.models.logits import compute_logits, gather_logprobs, iterate_tiles, run_body
from doublebind.training.batch import Batch
from doublebind.training.losses import cross_entropy

RowLoss = Callable[[Tensor, slice], Tensor]
"""Logits [rows, vocab] of a tile, and which rows those are -> nats [rows]."""


def compute_supervised_states(model: Any, batch: Batch) -> Tensor:
    """Return the hidden states [supervised, width] from which the supervised tokens follow."""
    states = run_body(model, batch.ids, position_ids=batch.positions, use_cache=False)
    return states.last_hidden_state.flatten(0, 1).index_select(0, batch.prediction_positions)


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
    """Return the log-probability of whole sequences, [sequences], in nats.

    Arguments as for `backward_sequences`.
    """
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
    """Add the gradient of a loss of whole sequences' log-probabilities; return the loss.

    The head runs twice: first to know the log-probabilities and how the loss hangs on them, then
    to take that back. Both times a tile at a time.

    Args:
        model: The model.
        batch: Rows of all sequences.
        owner: [supervised]: which sequence each supervised token belongs to.
        n: Sequences.
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
