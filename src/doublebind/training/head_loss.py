"""Loss of hidden states against sparse targets, with logits held a tile at a time.

The divergence is a formula over events (`losses`).
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
"""Floor of log-probabilities, near float32's smallest, so that divergences stay finite."""


class SoftTargets(NamedTuple):
    """Teacher's distribution at each supervised row, over some events (tokens).

    There are two ways to account for the other tokens. As one event: `tail` is their probability,
    and the distributions are coarsened to k + 1 events. By sampling: `tail` is `None`, some events
    are drawn from the tail, and `logweights` make sums over events unbiased estimates of sums over
    the vocabulary (importance sampling, as in Anshumann et al. 2025, arXiv 2503.16870). If the
    events are the whole vocabulary, neither is needed and nothing is approximate.
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
    """Return targets whose tail is estimated from m tokens drawn from it with replacement.

    Each draw has the weight 1 / (m s), where s = p / tail is the probability of drawing it.

    Args:
        ids: [rows, k], the tokens kept.
        logprobs: [rows, k], log p of them.
        tail: [rows], p of all others.
        tail_ids: [rows, m], drawn in proportion to p among the others.
        tail_logprobs: [rows, m], log p of them.
    """
    m, tail_logprobs = tail_ids.shape[1], tail_logprobs.clamp_min(MIN_LOGPROB)
    logweights = tail.log().clamp_min(MIN_LOGPROB)[:, None] - tail_logprobs - torch.tensor(m).log()
    return SoftTargets(
        ids=torch.cat([ids.long(), tail_ids.long()], dim=1),
        logprobs=torch.cat([logprobs, tail_logprobs], dim=1),
        logweights=torch.cat([torch.zeros_like(logprobs), logweights], dim=1),
    )


def apply_temperature(targets: SoftTargets, temperature: float) -> SoftTargets:
    """Return targets at `temperature`, p ** (1 / T) normalised anew.

    Exact where the events are the whole vocabulary; with a sampled tail the normaliser is
    estimated (consistent, with a bias of order 1 / m).

    Raises:
        ModelError: If only the mass of the tail is known, which does not determine it.
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


class HeadLossSettings(NamedTuple):
    """Mixture of a divergence and cross-entropy."""

    divergence: DivergenceFunction = forward_kl
    """Formula over events: exact if the events are the whole vocabulary, that of the coarsened
    distributions with a tail event, unbiased with a sampled tail."""
    hard: float = 0.0
    """Share of the cross-entropy, in [0, 1]."""
    temperature: float = 1.0
    """Temperature of teacher and student in the divergence (Hinton et al. 2015, arXiv 1503.02531).
    The loss is not multiplied by its square. Cross-entropy is at temperature 1."""


def head_loss(
    rows: Tensor,
    head: OutputHead,
    soft: SoftTargets | None = None,
    labels: Tensor | None = None,
    *,
    settings: HeadLossSettings = HeadLossSettings(),  # noqa: B008 - a constant
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean over `rows` of a divergence from the teacher, mixed with cross-entropy.

    Gradients are formed in the forward pass (as in Liger, Hsu et al. 2024, arXiv 2410.10989), so
    that a tile's logits are computed once and [rows, vocabulary] never exists. The gradient of a
    frozen head is neither formed nor held. For a student with logits z, let g_e = dL / d log q_e
    for each event e, and G their sum. Then dL/dz_j = g_j - q_j G for a token j among the events
    and q_j (g_tail / q_tail - G) for one in the tail. Differentiable once.

    Args:
        rows: [rows, width], final hidden states of supervised positions, in the head's precision.
        head: Maps hidden states to logits.
        soft: The teacher's distributions; `None` leaves only cross-entropy.
        labels: [rows], token ids; needed if `settings.hard` is above 0 or `soft` is `None`.
        settings: Divergence, share of the cross-entropy, temperature.
        weights: [rows], weight of each row in the sum; `None` means 1 / rows.

    Raises:
        ModelError: See `apply_temperature`.
    """
    if weights is None:
        weights = torch.full((len(rows),), 1.0 / max(1, len(rows)), device=rows.device)
    divergence, hard, temperature = settings
    cross_entropy = _LossTerms(None, labels, HeadLossSettings(divergence, hard=1.0), weights)
    if soft is None or hard == 1.0:
        return _apply_head_loss(rows, head, cross_entropy)
    terms = _LossTerms(apply_temperature(soft, temperature), labels, settings, weights)
    if temperature == 1.0 or hard == 0.0:
        return _apply_head_loss(rows, head, terms)
    # Two softmaxes of the same logits need two passes.
    soft_terms = dataclasses.replace(terms, settings=settings._replace(hard=0.0))
    soft_loss = _apply_head_loss(rows, head, soft_terms)
    hard_loss = _apply_head_loss(rows, head, cross_entropy)
    return (1.0 - hard) * soft_loss + hard * hard_loss


@dataclass(frozen=True, eq=False)
class _LossTerms:
    """Targets of each row, and how they are compared with its logits."""

    soft: SoftTargets | None
    labels: Tensor | None
    settings: HeadLossSettings
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
    """Sum of weighted row losses, with gradients formed in the forward pass."""

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
        """Compute loss and gradients, tile by tile."""
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
            slope = _scale_logits(z, head, terms.settings.temperature)
            total += _differentiate(z, terms[tile])
            if slope is not None:
                z.mul_(slope)
            if any(grad is not None for grad in grads):
                _accumulate_gradients(grads, tile, z, low, inputs, scaling)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Scale the gradients that `forward` computed."""
        (upstream,) = grad_outputs
        scaled = (g if g is None else g.mul_(upstream.to(g.dtype)) for g in ctx.saved_tensors)
        return (*scaled, None, None, None)


_BUFFERS = threading.local()


def _reuse_buffer(tensor: Tensor, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Return uninitialised memory [rows, vocab] that this thread reuses between calls.

    At most a tile. New memory would be handed out page by page, which costs a fifth of the loss.
    """
    name = f"{tensor.device} {dtype}"
    size = rows * vocab
    buffer = getattr(_BUFFERS, name, None)
    if buffer is None or buffer.numel() < size:
        buffer = torch.empty(size, dtype=dtype, device=tensor.device)
        setattr(_BUFFERS, name, buffer)
    return buffer[:size].view(rows, vocab)


def _compute_logits(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Return float32 logits of `rows`, and a buffer of their shape in the weights' dtype.

    In float32 both are the same tensor.
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

    `None` means one.
    """
    if head.cap is None:
        factor = head.scale / temperature
        return None if factor == 1.0 else z.mul_(factor).new_full((), factor)
    z.mul_(head.scale / head.cap).tanh_()
    slope = torch.addcmul(z.new_ones(()), z, z, value=-1.0).mul_(head.scale / temperature)
    z.mul_(head.cap / temperature)
    return slope


def find_kernels(z: Tensor) -> Any:
    """Return the module of Triton kernels if they can run on `z`, else `None`."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton itself reads it
    if not (z.is_cuda or interpreted) or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("doublebind.training.triton_kernels")


def _differentiate(z: Tensor, terms: _LossTerms) -> Tensor:
    """Replace logits `z` by the gradient of the weighted loss; return that loss."""
    kernels = find_kernels(z)
    if kernels is not None:
        return _differentiate_with_kernels(kernels, z, terms)
    soft = terms.soft
    labels = terms.labels if terms.settings.hard else None
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
        # Summed over the others, not taken as 1 - sum(kept), which cancels for a thin tail.
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
    """Do the same with `triton_kernels`: one pass for the softmax, one for the gradient."""
    soft = terms.soft
    labels = terms.labels if terms.settings.hard else None
    label = None if labels is None else z.gather(1, labels[:, None])
    kept = None if soft is None else z.gather(1, soft.ids)
    if soft is None or kept is None or soft.tail is None:
        lse = kernels.logsumexp(z)[:, None]
        events, others = [] if kept is None else [kept - lse], None
    else:
        # Summed over the others, not taken as 1 minus the events, which cancels for a thin tail.
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
    events: list[Tensor], label: Tensor | None, terms: _LossTerms
) -> tuple[Tensor, list[Tensor]]:
    """Return the weighted loss, and its slopes in log q of the events and of the labels."""
    with torch.enable_grad():
        leaf = torch.cat(events, dim=1).requires_grad_() if events else None
        label = None if label is None else label.requires_grad_()
        loss = (terms.weights * _compute_row_losses(leaf, label, terms)).sum()
        parts = [part for part in (leaf, label) if part is not None]
        return loss.detach(), list(torch.autograd.grad(loss, parts))


def _compute_row_losses(logq: Tensor | None, label: Tensor | None, terms: _LossTerms) -> Tensor:
    """Return [rows] losses of the student's log q of the events, and of the labels."""
    total = torch.zeros_like(terms.weights)
    divergence, hard, _ = terms.settings
    if logq is not None and terms.soft is not None:
        soft = terms.soft
        logp = soft.logprobs.clamp_min(MIN_LOGPROB)
        if soft.tail is not None:
            tail = soft.tail.log().clamp_min(MIN_LOGPROB)[:, None]
            logp = torch.cat([logp, tail], dim=1)
        total = total + (1.0 - hard) * divergence(logp, logq, soft.logweights)
    if label is not None:
        total = total - hard * label[:, 0]
    return total


def _accumulate_gradients(
    grads: list[Tensor | None],
    tile: slice,
    z: Tensor,
    low: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    scaling: float,
) -> None:
    """Add the gradients of the required inputs, given the gradient `z` of a tile's logits."""
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
        tile_rows = rows[tile].to(down.dtype)
        if of_down is not None:
            of_down.addmm_(through.t(), tile_rows)
        if of_up is not None:
            of_up.addmm_(z.t(), tile_rows @ down.t(), alpha=scaling)
