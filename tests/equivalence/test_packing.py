"""Packed, padded and tiled training take the same step as one example at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import build_tiny_model

from doublebind.models import logits as head
from doublebind.training import loop
from doublebind.training.batch import Example, collate
from doublebind.training.loop import backward_batch

VOCAB = 61


def examples() -> list[Example]:
    rng = np.random.default_rng(5)
    data = []
    for length in (25, 24, 12, 11, 9, 8, 5, 4, 3, 3, 2):  # beyond the sliding window of 8, and not
        ids = tuple(rng.integers(1, VOCAB, size=length).tolist())
        data.append(Example(ids, max(1, length // 3)))
    return data


def step(model: Any, data: list[Example], *, pack: bool) -> tuple[float, torch.Tensor]:
    """Loss and gradient of all weights, as one vector."""
    model.zero_grad()
    batch = collate(data, 0, pack=pack)
    assert (batch.positions is not None) == pack
    loss = backward_batch(model, batch, None, VOCAB)
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters()])


def plain(model: Any, data: list[Example]) -> tuple[float, torch.Tensor]:
    """The same by the model's own logits, one example at a time."""
    model.zero_grad()
    n = sum(len(e.input_ids) - e.first_supervised for e in data)
    total = torch.zeros(())
    for e in data:
        ids = torch.tensor([e.input_ids])
        out = model(input_ids=ids).logits[0, e.first_supervised - 1 : -1].float().log_softmax(-1)
        total = total - out.gather(1, ids[0, e.first_supervised :, None]).sum() / n
    total.backward()
    return float(total.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["llama", "gemma3", "granite"])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("small", [0, 1000])
def test_step_is_that_of_single_examples(
    kind: str, pack: bool, rows: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SMALL_VOCAB", small)
    monkeypatch.setattr(head, "TILE_BYTES", 4 * VOCAB * rows)
    model, data = build_tiny_model(kind, VOCAB), examples()
    loss, gradient = step(model, data, pack=pack)
    want_loss, want = plain(model, data)
    assert loss == pytest.approx(want_loss, abs=1e-5)
    torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "granite"])
@pytest.mark.parametrize("k", [5, VOCAB])
def test_step_on_targets_is_the_same_whichever_way_the_head_goes(
    kind: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build_tiny_model(kind, VOCAB), collate(examples(), 0, pack=True)
    logits = torch.randn(len(batch.labels), VOCAB, generator=torch.Generator().manual_seed(3))
    top, ids = logits.log_softmax(1).topk(k, dim=1)
    tail = logits.softmax(1).scatter(1, ids, 0).sum(1)
    results = []
    for small in (0, 1000):
        monkeypatch.setattr(loop, "SMALL_VOCAB", small)
        model.zero_grad()
        loss = backward_batch(model, batch, loop.TargetRows(ids.int(), top, tail), VOCAB)
        results.append((loss, torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


def test_padding_token_does_not_matter() -> None:
    model, data = build_tiny_model("gemma3", VOCAB, pad_token_id=None), examples()
    for pack in (True, False):
        losses = {
            float(backward_batch(model, collate(data, pad, pack=pack), None, VOCAB))
            for pad in (0, 7)
        }
        assert max(losses) - min(losses) < 1e-6
