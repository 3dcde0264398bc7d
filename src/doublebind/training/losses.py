"""Losses of supervised rows, one number per row, as pure functions of logits.

Knows labels and cached distributions. Does not know models, batches or how rows are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log q(label) in nats, [rows].

    Args:
        logits: [rows, vocab].
        labels: [rows], token ids.
    """
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def topk_forward_kl(logits: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """Return KL(p || q) in nats, [rows], over k + 1 events: the top k tokens and all others.

    Forward KL as in Hinton et al. 2015 (arXiv 1503.02531) at temperature 1, with the distribution
    coarsened to its top k and one bucket for the tail. By the log-sum inequality it is at most the
    full KL, is 0 where p and q agree on the events, and is the full KL for k = vocab. Unlike
    renormalised top-k it does not push the tail's mass into the top k.

    The bucket's probability under q is summed over its tokens, never taken as 1 minus the top k,
    which loses all digits where q is confident.

    Args:
        logits: [rows, vocab] of q.
        ids: [rows, k], the tokens kept.
        logprobs: [rows, k], log p of them.
        tail: [rows], p of all others, in [0, 1].
    """
    kept = ids.long()
    mine = logits.gather(1, kept)
    p = logprobs.exp()
    if ids.shape[1] == logits.shape[1]:  # there is no tail
        return (p * (logprobs - mine.log_softmax(1))).sum(1)
    others = torch.logsumexp(logits.scatter(1, kept, -torch.inf), dim=1)
    lse = torch.logaddexp(others, torch.logsumexp(mine, dim=1))
    loss = (p * (logprobs - (mine - lse[:, None]))).sum(1)
    return loss + torch.xlogy(tail, tail) - tail * (others - lse)
