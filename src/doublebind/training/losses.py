"""Losses of supervised rows, one number per row, as pure functions of logits or of events.

Divergences are over events: tokens, or a bucket of them. Over all tokens of a vocabulary they are
exact. Over k tokens and one bucket for the others they are those of the coarsened distributions,
which are at most the exact ones (f-divergences do not grow by coarsening, Csiszar 1967). Over k
tokens and a weighted sample of the others they are unbiased estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DivergenceFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(log p, log q, log weights) of events, each [rows, events] -> nats [rows]."""


def forward_kl(logp: Tensor, logq: Tensor, logweights: Tensor | None = None) -> Tensor:
    """Return KL(p || q) (Hinton et al. 2015, arXiv 1503.02531, up to the entropy of p)."""
    return (_weighted_probabilities(logp, logweights) * (logp - logq)).sum(1)


def reverse_kl(logp: Tensor, logq: Tensor, logweights: Tensor | None = None) -> Tensor:
    """Return KL(q || p) (MiniLLM, Gu et al. 2024, arXiv 2306.08543)."""
    return (_weighted_probabilities(logq, logweights) * (logq - logp)).sum(1)


def skew_kl(alpha: float) -> DivergenceFunction:
    """Return KL(p || alpha p + (1 - alpha) q), of DistiLLM (Ko et al. 2024, arXiv 2402.03898).

    Args:
        alpha: In (0, 1); 0.1 in the paper.
    """

    def divergence(logp: Tensor, logq: Tensor, logweights: Tensor | None = None) -> Tensor:
        return (
            _weighted_probabilities(logp, logweights) * (logp - _log_mixture(logp, logq, alpha))
        ).sum(1)

    return divergence


def jensen_shannon(beta: float) -> DivergenceFunction:
    """Return beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, arXiv 2306.13649).

    Args:
        beta: In (0, 1), the teacher's share; 0.5 is symmetric.
    """

    def divergence(logp: Tensor, logq: Tensor, logweights: Tensor | None = None) -> Tensor:
        logm = _log_mixture(logp, logq, beta)
        p, q = _weighted_probabilities(logp, logweights), _weighted_probabilities(logq, logweights)
        return (beta * p * (logp - logm) + (1.0 - beta) * q * (logq - logm)).sum(1)

    return divergence


def _weighted_probabilities(logprobs: Tensor, logweights: Tensor | None) -> Tensor:
    return (logprobs if logweights is None else logprobs + logweights).exp()


def _log_mixture(logp: Tensor, logq: Tensor, share: float) -> Tensor:
    return torch.logaddexp(logp + math.log(share), logq + math.log1p(-share))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log q(label) in nats, [rows].

    Args:
        logits: [rows, vocab].
        labels: [rows], token ids.
    """
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def sampled_reverse_kl(logits: Tensor, labels: Tensor, logprobs: Tensor) -> Tensor:
    """Return estimates of KL(q || p) in nats, [rows], from one token sampled from q each.

    Each is log q - log p of its token. Its gradient is (log q - log p) grad log q, an unbiased
    estimate of that of the divergence: the policy gradient of MiniLLM (Gu et al. 2024, arXiv
    2306.08543) with the reward of one step.

    Args:
        logits: [rows, vocab] of q.
        labels: [rows], tokens sampled from q.
        logprobs: [rows], log p of the same tokens.
    """
    surprise = cross_entropy(logits, labels)
    gap = -surprise.detach() - logprobs
    estimate = -gap * surprise
    return estimate - estimate.detach() + gap


def topk_forward_kl(logits: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """Return KL(p || q) in nats, [rows], over k + 1 events: the top k tokens and all others.

    Forward KL as in Hinton et al. 2015 (arXiv 1503.02531) at temperature 1, with the distribution
    coarsened to its top k and one bucket for the tail. By the log-sum inequality it is at most the
    full KL. It is 0 if p and q agree on the events, and the full KL for k = vocab. Unlike
    renormalised top-k it does not push the tail's mass into the top k.

    The bucket's probability under q is summed over its tokens, not taken as 1 minus the top k,
    which loses all digits if q is confident.

    Args:
        logits: [rows, vocab] of q.
        ids: [rows, k], the tokens kept.
        logprobs: [rows, k], log p of them.
        tail: [rows], p of all others, in [0, 1].
    """
    ids = ids.long()
    top = logits.gather(1, ids)
    p = logprobs.exp()
    if ids.shape[1] == logits.shape[1]:  # there is no tail
        return (p * (logprobs - top.log_softmax(1))).sum(1)
    others = torch.logsumexp(logits.scatter(1, ids, -torch.inf), dim=1)
    lse = torch.logaddexp(others, torch.logsumexp(top, dim=1))
    loss = (p * (logprobs - (top - lse[:, None]))).sum(1)
    return loss + torch.xlogy(tail, tail) - tail * (others - lse)
