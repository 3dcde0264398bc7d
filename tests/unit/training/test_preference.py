"""Losses of whole answers equal the papers', and their tiled gradient the dense one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.tiny_models import build_tiny_model
from torch import Tensor

from doublebind.models import logits as head
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import Training
from doublebind.training import loop
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import Example, collate
from doublebind.training.losses import forward_kl
from doublebind.training.on_policy import PairedExample, train_on_policy
from doublebind.training.preference import (
    LabelledAnswer,
    PreferencePair,
    ScoredAnswer,
    dpo_loss,
    kto_loss,
    train_dpo,
    train_kto,
)
from doublebind.training.uld import sorted_distance

VOCAB = 67
EXAMPLES = [
    Example((7, 8, 9, 10, 11), first_supervised=2),
    Example((7, 8, 12, 13), first_supervised=2),
    Example((20, 21, 22, 23, 24, 25, 26), first_supervised=3),
    Example((20, 21, 22, 30), first_supervised=3),
]


def answer_logprob(model: Any, example: Example) -> Tensor:
    """Log-probability of a completion from the model's own dense logits."""
    ids = torch.tensor([example.input_ids])
    out = model(input_ids=ids).logits[0, :, :VOCAB].float().log_softmax(1)
    places = range(example.first_supervised, len(example.input_ids))
    return torch.stack([out[t - 1, example.input_ids[t]] for t in places]).sum()


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("pack", [False, True])
def test_a_loss_of_answers_has_the_dense_gradient(
    kind: str, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE_BYTES", 4 * VOCAB * 3)  # three rows a tile
    model = build_tiny_model(kind, VOCAB).requires_grad_(True)
    reference = torch.tensor([-9.0, -4.0, -12.0, -3.0])

    def loss_of(sums: Tensor) -> Tensor:
        chosen, rejected = (sums - reference).chunk(2)
        return dpo_loss(chosen, rejected, beta=0.3).mean()

    lengths = torch.tensor([len(e.input_ids) - e.first_supervised for e in EXAMPLES])
    owner = torch.arange(4).repeat_interleave(lengths)
    batch = collate(EXAMPLES, 0, pack=pack)
    value = tiled.backward_sequences(model, batch, owner, 4, loss_of, VOCAB)
    tiled_gradients = gradients(model)
    model.zero_grad()
    dense = loss_of(torch.stack([answer_logprob(model, e) for e in EXAMPLES]))
    dense.backward()
    torch.testing.assert_close(value, dense.detach())
    for name, wanted in gradients(model).items():
        torch.testing.assert_close(tiled_gradients[name], wanted, rtol=1e-3, atol=1e-5)


def test_dpo_is_log_two_at_the_reference_and_falls_with_the_margin() -> None:
    zero = torch.zeros(1)
    assert float(dpo_loss(zero, zero, beta=0.1)) == pytest.approx(math.log(2))
    margin = torch.tensor([2.0])
    assert float(dpo_loss(margin, zero, beta=0.5)) == pytest.approx(math.log1p(math.exp(-1.0)))


def test_kto_pulls_good_answers_up_bad_ones_down_and_leaves_the_baseline_alone() -> None:
    ratio = torch.tensor([0.4, 0.4], requires_grad=True)
    baseline = torch.tensor(0.1, requires_grad=True)
    loss = kto_loss(ratio, torch.tensor([True, False]), baseline, beta=0.5)
    wanted = [1 - 1 / (1 + math.exp(-0.15)), 1 - 1 / (1 + math.exp(0.15))]
    assert loss.tolist() == pytest.approx(wanted, rel=1e-5)
    loss.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad[0] < 0 < ratio.grad[1]
    assert baseline.grad is None
    below, zero = (
        kto_loss(ratio, torch.tensor([True, False]), torch.tensor(z), beta=0.5) for z in (-3.0, 0.0)
    )
    assert torch.equal(below, zero)


def pair(a: Example, b: Example) -> PreferencePair:
    chosen, rejected = (
        ScoredAnswer(e, [-1.0] * (len(e.input_ids) - e.first_supervised)) for e in (a, b)
    )
    return PreferencePair(chosen, rejected)


def test_pairs_are_cut_with_their_reference_and_empty_ones_are_refused() -> None:
    judged = pair(EXAMPLES[2], EXAMPLES[3]).chosen
    assert judged.truncate(5) == ScoredAnswer(
        Example((20, 21, 22, 23, 24), first_supervised=3), [-1.0, -1.0]
    )
    model = loop.prepare_model(build_tiny_model("llama", VOCAB), None, 0)
    settings = Training(steps=1, batch=2, max_length=8, lora=None)
    long = Example((*range(7, 16), 16), first_supervised=9)
    with pytest.raises(ModelError, match="none of 1 pairs"):
        train_dpo(
            model, [pair(long, long)], beta=0.1, settings=settings, seed=0, vocab=VOCAB, pad_id=0
        )


def test_unpaired_answers_lose_what_the_formula_says_of_dense_log_probabilities() -> None:
    model = loop.prepare_model(build_tiny_model("llama", VOCAB), None, 0)
    with torch.no_grad():
        logprobs = [float(answer_logprob(model, e)) for e in EXAMPLES]
        swapped = [
            Example((*b.input_ids[: b.first_supervised], *a.input_ids[a.first_supervised :]), b[1])
            for a, b in zip(EXAMPLES, EXAMPLES[2:] + EXAMPLES[:2], strict=True)
        ]
        swapped_logprobs = [float(answer_logprob(model, e)) for e in swapped]

    def judged(example: Example, reference: float) -> ScoredAnswer:
        n = len(example.input_ids) - example.first_supervised
        return ScoredAnswer(example, [reference / n] * n)

    # The reference finds all answers elsewhere less likely by 0.8 nats, those here by 0.1 to 1.
    away = [0.1, 0.4, 0.7, 1.0]
    answers = [
        LabelledAnswer(judged(e, at - d), i % 2 == 0, judged(s, other - 0.8))
        for i, (e, at, d, s, other) in enumerate(
            zip(EXAMPLES, logprobs, away, swapped, swapped_logprobs, strict=True)
        )
    ]
    settings = Training(steps=1, batch=4, lr=1e-30, lora=None)
    log = train_kto(model, answers, beta=0.5, settings=settings, seed=0, vocab=VOCAB, pad_id=0)
    good = torch.tensor([True, False, True, False])
    wanted = kto_loss(torch.tensor(away), good, torch.tensor(0.8), beta=0.5).mean()
    assert log.first_loss == pytest.approx(float(wanted), rel=1e-4)
    assert log.tokens == sum(len(e.input_ids) - e.first_supervised for e in EXAMPLES)
    settings = Training(steps=1, batch=4, max_length=8, lora=None)
    long = judged(Example((*range(7, 16), 16), first_supervised=9), -1.0)
    answers = [each._replace(answer=long) for each in answers]
    with pytest.raises(ModelError, match="none of 4 answers"):
        train_kto(model, answers, beta=0.5, settings=settings, seed=0, vocab=VOCAB, pad_id=0)


def test_a_live_teacher_gives_the_dense_reverse_divergence() -> None:
    model, other = (build_tiny_model("llama", VOCAB) for _ in range(2))
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([EXAMPLES[0].input_ids])
    with torch.no_grad():
        q, p = (m(input_ids=ids).logits[0, 1:4].log_softmax(1) for m in (model, other))
    dense = float(forward_kl(q, p).mean())
    same = PairedExample(EXAMPLES[0], EXAMPLES[0])
    settings = Training(steps=1, batch=1, lora=None)
    log = train_on_policy(
        loop.prepare_model(model, None, 0), other, lambda: [same], settings=settings, vocab=VOCAB,
        pad_ids=(0, 0),
    )  # fmt: skip
    assert log.first_loss == pytest.approx(dense, rel=1e-4)
    assert log.tokens == 3


def test_sorted_distance_is_exact_on_both_vocabularies_and_smaller_on_a_part() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = 2 * torch.randn(5, 30, generator=generator)
    student = 2 * torch.randn(5, 20, generator=generator)
    p = teacher.softmax(1).sort(dim=1, descending=True).values
    q = torch.nn.functional.pad(student.softmax(1).sort(dim=1, descending=True).values, (0, 10))
    full = (p - q).abs().sum(1)
    logprobs = teacher.log_softmax(1).topk(30, dim=1).values
    torch.testing.assert_close(sorted_distance(student, logprobs, torch.zeros(5)), full)
    part = sorted_distance(student, logprobs[:, :4], 1 - p[:, :4].sum(1))
    assert bool((part <= full + 1e-6).all())
    swapped = student[:, torch.randperm(20, generator=generator)]
    torch.testing.assert_close(sorted_distance(swapped, logprobs[:, :4], 1 - p[:, :4].sum(1)), part)
