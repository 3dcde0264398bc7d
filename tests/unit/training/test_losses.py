"""Losses are what their formulas say, in value and gradient, at the edges of float32 too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from doublebind.training.losses import (
    cross_entropy,
    reverse_kl,
    sampled_reverse_kl,
    topk_forward_kl,
)


def teacher(rows: int, vocab: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, vocab, generator=generator)).double().log_softmax(1)


def cached(logp: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    top, ids = logp.topk(k, dim=1)
    tail = logp.exp().scatter(1, ids, 0).sum(1)
    return ids.int(), top.float(), tail.float()


def full_kl(logits: Tensor, logp: Tensor) -> Tensor:
    return (logp.exp() * (logp - logits.double().log_softmax(1))).sum(1)


def test_cross_entropy_is_the_negative_log_probability() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 8, 1, 1])
    want = -logits.log_softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(cross_entropy(logits, labels), want)


def test_whole_vocabulary_gives_the_full_kl_and_its_gradient() -> None:
    logp = teacher(6, 40, 0)
    mine = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    dense = mine.detach().clone().requires_grad_()
    loss, want = topk_forward_kl(mine, *cached(logp, 40)), full_kl(dense, logp)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(mine.grad, dense.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 39])
def test_gradient_is_that_of_the_coarsened_distributions(k: int) -> None:
    logp = teacher(4, 40, 2)
    ids, top, tail = cached(logp, k)
    mine = torch.randn(4, 40, generator=torch.Generator().manual_seed(3), requires_grad=True)
    topk_forward_kl(mine, ids, top, tail).sum().backward()
    q = mine.detach().double().softmax(1)
    p = logp.exp()
    outside = torch.ones_like(p).scatter(1, ids.long(), 0)
    p_tail, q_tail = (p * outside).sum(1, True), (q * outside).sum(1, True)
    want = q - p * (1 - outside) - outside * q * p_tail / q_tail
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.double(), want, rtol=1e-4, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([0.1, 3.0, 30.0]))
def test_coarsening_never_adds_divergence(seed: int, k: int, scale: float) -> None:
    logp = teacher(3, 30, seed, scale)
    logits = scale * torch.randn(3, 30, generator=torch.Generator().manual_seed(seed + 1))
    loss = topk_forward_kl(logits, *cached(logp, k))
    # Float32 sums of the cached tail leave errors of the order of 1e-6 times the log-ratios.
    slack = 1e-4 * (1 + scale)
    assert bool((loss <= full_kl(logits, logp) + slack).all())
    assert bool((loss >= -slack).all())


def test_agreement_costs_nothing_and_pulls_nowhere() -> None:
    logp = teacher(5, 50, 4)
    mine = logp.float().requires_grad_()
    loss = topk_forward_kl(mine, *cached(logp, 8))
    loss.sum().backward()
    assert mine.grad is not None
    assert float(loss.detach().abs().max()) < 1e-6
    assert float(mine.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("confident", ["teacher", "student", "both"])
def test_certainty_gives_finite_values_and_gradients(confident: str) -> None:
    sharp = torch.zeros(1, 20)
    sharp[0, 3] = 200.0  # probabilities beyond it underflow float32
    flat = torch.zeros(1, 20)
    flat[0, 3] = 0.1  # so that it is among the top k
    logp = (flat if confident == "student" else sharp).double().log_softmax(1)
    mine = (flat if confident == "teacher" else sharp).clone().requires_grad_()
    loss = topk_forward_kl(mine, *cached(logp, 4))
    loss.sum().backward()
    assert mine.grad is not None
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(mine.grad).all())
    if confident == "student":
        # 1 minus the top k would be 0 here, and its logarithm no number at all.
        assert float(loss.detach()) == pytest.approx(float(full_kl(mine.detach(), logp)), rel=0.2)


def test_tokens_drawn_from_the_student_estimate_the_reverse_kl_and_its_gradient() -> None:
    torch.manual_seed(3)
    q, p = torch.randn(2, 12, dtype=torch.float64)
    logp = p.log_softmax(0)
    exact = q.clone().requires_grad_()
    kl = reverse_kl(logp[None], exact.log_softmax(0)[None]).sum()
    kl.backward()
    # Every token once, weighted by how often it would be drawn.
    rows = q.clone().requires_grad_()
    estimates = sampled_reverse_kl(rows.expand(12, 12), torch.arange(12), logp)
    mean = (q.softmax(0) * estimates).sum()
    mean.backward()
    assert float(mean.detach()) == pytest.approx(float(kl.detach()))
    assert rows.grad is not None
    assert exact.grad is not None
    assert torch.allclose(rows.grad, exact.grad, atol=1e-12)
