"""The loss of hidden states against sparse targets, with logits held a tile at a time.

Knows heads, targets and where gradients go. Does not know models, batches or which divergence it
is: that is a formula over events (`losses`).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.models.logits import OutputHead, count_tile_rows
from doublebind.models.matmul import multiply
from doublebind.schema.errors import ModelError
from doublebind.training.losses import DivergenceFunction, forward_kl

MIN_LOGPROB = -87.0
"""Log-probabilities are floored here, near float32's smallest; a divergence stays finite."""


class SoftTargets(NamedTuple):
    """A teacher's distribution at each supervised row, over `events` of its tokens.

    Two ways to account for the other tokens. As one event: `tail` is their probability, and the
    distributions are coarsened to k + 1 events. By sampling: `tail` is `None`, some of the events
    are drawn from the tail, and `logweights` make sums over events unbiased estimates of sums over
    the vocabulary (importance sampling, as in Anshumann et al. 2025, arXiv 2503.16870). Where the
    events are the whole vocabulary neither is needed and nothing is approximate.
    """

    ids: Tensor
    """[rows, events], int64: distinct in a row, except for those sampled."""
    logprobs: Tensor
    """[rows, events], float32: the teacher's log-probabilities."""
    tail: Tensor | None = None
    """[rows], float32: probability of all other tokens together, in [0, 1]."""
    logweights: Tensor | None = None
    """[rows, events], float32: log of how many tokens an event stands for; `None` means one."""


def make_sampled_targets(
    ids: Tensor, logprobs: Tensor, tail: Tensor, tail_ids: Tensor, tail_logprobs: Tensor
) -> SoftTargets:
    """Return targets whose tail is estimated from m tokens drawn from it, with replacement.

    Each draw stands for 1 / (m s) tokens, s = p / tail being the chance that it was drawn.

    Args:
        ids: [rows, k], the tokens kept.
        logprobs: [rows, k], log p of them.
        tail: [rows], p of all others.
        tail_ids: [rows, m], drawn in proportion to p among the others.
        tail_logprobs: [rows, m], log p of them.
    """
    m, tail_logprobs = tail_ids.shape[1], tail_logprobs.clamp_min(MIN_LOGPROB)
    stands_for = tail.log().clamp_min(MIN_LOGPROB)[:, None] - tail_logprobs - torch.tensor(m).log()
    return SoftTargets(
        ids=torch.cat([ids.long(), tail_ids.long()], dim=1),
        logprobs=torch.cat([logprobs, tail_logprobs], dim=1),
        logweights=torch.cat([torch.zeros_like(logprobs), stands_for], dim=1),
    )


def apply_temperature(targets: SoftTargets, temperature: float) -> SoftTargets:
    """Return targets at `temperature`, p ** (1 / T) normalised anew.

    Exact where the events are the whole vocabulary; with a sampled tail the normaliser is
    estimated (consistent, with a bias of order 1 / m).

    Raises:
        ModelError: If the tail is known by its mass alone, which does not fix it.
    """
    if temperature == 1.0:
        return targets
    if targets.tail is not None:
        raise ModelError(
            f"temperature {temperature}: the tail's mass at another temperature is unknown; keep "
            f"the whole vocabulary, sample the tail, or use temperature 1"
        )
    scaled = targets.logprobs / temperature
    weighted = scaled if targets.logweights is None else scaled + targets.logweights
    return targets._replace(logprobs=scaled - weighted.logsumexp(1, keepdim=True))


def head_loss(
    rows: Tensor,
    head: OutputHead,
    *,
    soft: SoftTargets | None = None,
    labels: Tensor | None = None,
    divergence: DivergenceFunction = forward_kl,
    hard: float = 0.0,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean over `rows` of a divergence from the teacher, mixed with cross-entropy.

    Gradients are formed in the forward pass (as in Liger, Hsu et al. 2024, arXiv 2410.10989), so
    that a tile's logits are made once and [rows, vocabulary] never exists; where the head is
    frozen its gradient is neither formed nor held. A student whose logits are z has, with event
    e's share g_e of dL / d log q_e and G their sum, dL/dz_j = g_j - q_j G for a token j among the
    events and q_j (g_tail / q_tail - G) for one in the tail. Differentiable once.

    Args:
        rows: [rows, width], final hidden states of supervised positions, in the head's precision.
        head: What makes logits of them.
        soft: The teacher's distributions; `None` leaves cross-entropy alone.
        labels: [rows], token ids; needed where `hard` is above 0 or `soft` is `None`.
        divergence: Formula over events; exact where the events are the whole vocabulary, of the
            coarsened distributions with a tail event, unbiased with a sampled tail.
        hard: Share of the cross-entropy, in [0, 1].
        temperature: Of teacher and student in the divergence (Hinton et al. 2015,
            arXiv 1503.02531); the loss is not multiplied by its square. Cross-entropy is at 1.
        weights: [rows], share of each row in the sum; `None` means 1 / rows.

    Raises:
        ModelError: See `tempered`.
    """
    if weights is None:
        weights = torch.full((len(rows),), 1.0 / max(1, len(rows)), device=rows.device)
    alone = _LossTerms(None, labels, divergence, 1.0, 1.0, weights)
    if soft is None or hard == 1.0:
        return _apply_head_loss(rows, head, alone)
    terms = dataclasses.replace(
        alone, soft=apply_temperature(soft, temperature), hard=hard, temperature=temperature
    )
    if temperature == 1.0 or hard == 0.0:
        return _apply_head_loss(rows, head, terms)
    # Two softmaxes of the same logits: two passes.
    both = (
        _apply_head_loss(rows, head, dataclasses.replace(terms, hard=0.0)),
        _apply_head_loss(rows, head, alone),
    )
    return (1.0 - hard) * both[0] + hard * both[1]


@dataclass(frozen=True, eq=False)
class _LossTerms:
    """What the logits of every row are held against."""

    soft: SoftTargets | None
    labels: Tensor | None
    divergence: DivergenceFunction
    hard: float
    temperature: float
    weights: Tensor

    def __getitem__(self, tile: slice) -> _LossTerms:
        soft: Any = self.soft and SoftTargets._make(p if p is None else p[tile] for p in self.soft)
        labels = self.labels if self.labels is None else self.labels[tile]
        return dataclasses.replace(self, soft=soft, labels=labels, weights=self.weights[tile])


def _apply_head_loss(rows: Tensor, head: OutputHead, terms: _LossTerms) -> Tensor:
    down, up, scaling = head.lora or (None, None, 1.0)
    rows = rows.to(head.weight.dtype)
    loss: Any = _HeadLossFunction.apply(
        rows, head.weight, head.bias, down, up, head, scaling, terms
    )
    return loss


class _HeadLossFunction(torch.autograd.Function):
    """Sum of weighted row losses; the gradients wait, formed, for backward to scale them."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        head: OutputHead,
        scaling: float,
        terms: _LossTerms,
    ) -> Tensor:
        """Form loss and gradients, tile by tile."""
        inputs = (rows, weight, bias, down, up)
        grads = [
            torch.zeros_like(part) if part is not None and need else None
            for part, need in zip(inputs, ctx.needs_input_grad[:5], strict=True)
        ]
        step = count_tile_rows(len(weight), rows.device)
        total = torch.zeros((), device=rows.device)
        for start in range(0, len(rows), step):
            tile = slice(start, min(start + step, len(rows)))
            z, low = _compute_logits(rows[tile], weight, bias, down, up, scaling)
            slope = _scale_logits(z, head, terms.temperature)
            total += _differentiate(z, terms[tile])
            if slope is not None:
                z.mul_(slope)
            if any(grad is not None for grad in grads):
                _accumulate_gradients(grads, tile, z, low, inputs, scaling)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Scale what forward formed."""
        (upstream,) = grad_outputs
        scaled = (g if g is None else g.mul_(upstream.to(g.dtype)) for g in ctx.saved_tensors)
        return (*scaled, None, None, None)


_BUFFERS = threading.local()


def _reuse_buffer(tensor: Tensor, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Return [rows, vocab] of memory that this thread keeps between calls, contents undefined.

    At most a tile. Fresh memory would be handed out page by page, which costs a fifth of the loss.
    """
    name, size = f"{tensor.device} {dtype}", rows * vocab
    kept = getattr(_BUFFERS, name, None)
    if kept is None or kept.numel() < size:
        kept = torch.empty(size, dtype=dtype, device=tensor.device)
        setattr(_BUFFERS, name, kept)
    return kept[:size].view(rows, vocab)


def _compute_logits(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Return float32 logits of `rows`, and a buffer of their shape in the weights' dtype.

    In float32 the two are one.
    """
    if weight.dtype == torch.float32:
        z = low = multiply(rows, weight)
    else:
        low = _reuse_buffer(rows, len(rows), len(weight), weight.dtype)
        torch.mm(rows, weight.t(), out=low)
        z = _reuse_buffer(rows, len(rows), len(weight), torch.float32).copy_(low)
    if bias is not None:
        z.add_(bias)
    if down is not None and up is not None:
        z.addmm_(rows.to(down.dtype) @ down.t(), up.t(), alpha=scaling)
    return z, low


def _scale_logits(z: Tensor, head: OutputHead, temperature: float) -> Tensor | None:
    """Scale and cap `z` in place, then divide by the temperature; return d(after) / d(before).

    `None` stands for one.
    """
    if head.cap is None:
        factor = head.scale / temperature
        return None if factor == 1.0 else z.mul_(factor).new_full((), factor)
    z.mul_(head.scale / head.cap).tanh_()
    slope = torch.addcmul(z.new_ones(()), z, z, value=-1.0).mul_(head.scale / temperature)
    z.mul_(head.cap / temperature)
    return slope


def _find_kernels(z: Tensor) -> Any:
    """Return the module of kernels that may take `z`, on GPUs or interpreted; else `None`."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton itself reads it
    if not (z.is_cuda or interpreted) or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("doublebind.training.triton_kernels")


def _differentiate(z: Tensor, terms: _LossTerms) -> Tensor:
    """Replace logits `z` by the gradient of the weighted loss; return that loss."""
    kernels = _find_kernels(z)
    if kernels is not None:
        return _differentiate_with_kernels(kernels, z, terms)
    soft, labels = terms.soft, terms.labels if terms.hard else None
    events = [] if soft is None else [z.gather(1, soft.ids)]
    label = None if labels is None else z.gather(1, labels[:, None])
    highest = z.amax(1, keepdim=True)
    torch.softmax(z, dim=1, out=z)
    # log-sum-exp of the logits; the likeliest token's probability is at least 1 / vocabulary.
    lse = highest - z.amax(1, keepdim=True).log()
    events = [at - lse for at in events]
    others = None
    if soft is not None and soft.tail is not None:
        kept = z.gather(1, soft.ids)
        # Summed over the others, not taken as 1 - sum(kept), which cancels where the tail is thin.
        others = z.scatter_(1, soft.ids, 0.0).sum(1, keepdim=True).clamp_min_(1e-37)
        z.scatter_(1, soft.ids, kept)
        events.append(others.log())
    loss, slopes = _differentiate_events(events, None if label is None else label - lse, terms)
    spread = -sum(slope.sum(1, keepdim=True) for slope in slopes)
    if soft is not None:
        g = slopes[0][:, : soft.ids.shape[1]]
        if others is None:
            z.mul_(spread).scatter_add_(1, soft.ids, g)
        else:
            at = z.gather(1, soft.ids).mul_(spread).add_(g)
            z.mul_(slopes[0][:, -1:] / others + spread).scatter_(1, soft.ids, at)
    else:
        z.mul_(spread)
    if labels is not None:
        z.scatter_add_(1, labels[:, None], slopes[-1])
    return loss


def _differentiate_with_kernels(kernels: Any, z: Tensor, terms: _LossTerms) -> Tensor:
    """Do the same with `head_triton`: one pass for the softmax, one for the gradient."""
    soft, labels = terms.soft, terms.labels if terms.hard else None
    label = None if labels is None else z.gather(1, labels[:, None])
    kept = None if soft is None else z.gather(1, soft.ids)
    if soft is None or kept is None or soft.tail is None:
        lse = kernels.logsumexp(z)[:, None]
        events, others = [] if kept is None else [kept - lse], None
    else:
        # The others' own sum, not what the events leave of 1, which cancels where that is little.
        rest = kernels.logsumexp(z.scatter_(1, soft.ids, -torch.inf))[:, None]
        lse = torch.logaddexp(rest, kept.logsumexp(1, keepdim=True))
        others = (rest - lse).exp().clamp_min(1e-37)
        events = [kept - lse, others.log()]
    loss, slopes = _differentiate_events(events, None if label is None else label - lse, terms)
    spread = -torch.stack([slope.sum(1, keepdim=True) for slope in slopes]).sum(0)
    factor = spread if others is None else slopes[0][:, -1:] / others + spread
    kernels.scaled_softmax_(z, lse[:, 0], factor[:, 0])
    if soft is not None:
        g = slopes[0][:, : soft.ids.shape[1]]
        if others is None:
            z.scatter_add_(1, soft.ids, g)
        else:
            z.scatter_(1, soft.ids, events[0].exp() * spread + g)
    if labels is not None:
        z.scatter_add_(1, labels[:, None], slopes[-1])
    return loss


def _differentiate_events(
    events: list[Tensor], wanted: Tensor | None, terms: _LossTerms
) -> tuple[Tensor, list[Tensor]]:
    """Return the weighted loss, and its slope in log q of the events and of the labels."""
    with torch.enable_grad():
        leaf = torch.cat(events, dim=1).requires_grad_() if events else None
        wanted = None if wanted is None else wanted.requires_grad_()
        loss = (terms.weights * _compute_row_losses(leaf, wanted, terms)).sum()
        parts = [part for part in (leaf, wanted) if part is not None]
        return loss.detach(), list(torch.autograd.grad(loss, parts))


def _compute_row_losses(leaf: Tensor | None, wanted: Tensor | None, terms: _LossTerms) -> Tensor:
    """Return [rows] losses of log-probabilities of the events, and of the labels."""
    total = torch.zeros_like(terms.weights)
    if leaf is not None and terms.soft is not None:
        soft = terms.soft
        logp = soft.logprobs.clamp_min(MIN_LOGPROB)
        if soft.tail is not None:
            tail = soft.tail.log().clamp_min(MIN_LOGPROB)[:, None]
            logp = torch.cat([logp, tail], dim=1)
        total = total + (1.0 - terms.hard) * terms.divergence(logp, leaf, soft.logweights)
    if wanted is not None:
        total = total - terms.hard * wanted[:, 0]
    return total


def _accumulate_gradients(
    grads: list[Tensor | None],
    tile: slice,
    z: Tensor,
    low: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    scaling: float,
) -> None:
    """Add what the gradient `z` of a tile's linear map makes of every input that is asked for."""
    rows, weight, _, down, up = inputs
    if low is not z:
        low.copy_(z)
    of_rows, of_weight, of_bias, of_down, of_up = grads
    through = None if up is None else (z @ up).mul_(scaling)
    if of_rows is not None:
        of_rows[tile] = multiply(low, weight.t())
        if through is not None and down is not None:
            of_rows[tile] += (through @ down).to(of_rows.dtype)
    if of_weight is not None:
        of_weight.addmm_(low.t(), rows[tile])
    if of_bias is not None:
        of_bias += z.sum(0).to(of_bias.dtype)
    if down is not None and through is not None:
        seen = rows[tile].to(down.dtype)
        if of_down is not None:
            of_down.addmm_(through.t(), seen)
        if of_up is not None:
            of_up.addmm_(z.t(), seen @ down.t(), alpha=scaling)
