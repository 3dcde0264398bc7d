"""Cached distributions are the model's own, at the right positions, or are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doublebind.errors import ModelError, StoreError
from doublebind.models import head
from doublebind.models.load import LM, tokenizer_id
from doublebind.models.teacher_cache import check_shift, read, write
from doublebind.models.template import template_id
from doublebind.records import ModelSource
from doublebind.training.batch import Example
from tiny_models import tiny_model, word_tokenizer

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)


def lm(kind: str = "llama", **changes: Any) -> LM:
    tokenizer = word_tokenizer()
    return LM(tiny_model(kind, len(tokenizer), **changes), tokenizer, SOURCE)


def examples(n: int = 7, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(4, 30, size=n):
        ids = tuple(rng.integers(5, 60, size=length).tolist())
        made.append(Example(ids, int(rng.integers(1, length))))
    return [*made, Example((5, 6, 7), first=3)]  # the last supervises nothing


def dense(model: LM, example: Example) -> torch.Tensor:
    """Log-probabilities of every token before each supervised one, the plain way."""
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
    return out[example.first - 1 : -1] if example.first < len(example.input_ids) else out[:0]


@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2", "gemma3"])
def test_rows_are_the_model_at_supervised_positions(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE_BYTES", 4 * 61 * 5)  # five rows at a time
    model, data = lm(kind), examples()
    write(tmp_path, model, data, top_k=6)
    got = read(tmp_path)
    for i, example in enumerate(data):
        rows = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        want = dense(model, example)
        top, ids = want.topk(6, dim=1)
        assert torch.equal(got.ids[rows].long(), ids)
        torch.testing.assert_close(got.logprobs[rows], top, rtol=0, atol=1e-4)
        tail = want.exp().scatter(1, ids, 0).sum(1)
        torch.testing.assert_close(got.tail[rows], tail, rtol=1e-3, atol=1e-6)
        following = torch.tensor(example.input_ids[example.first :])
        chosen = want.gather(1, following[:, None])[:, 0] if len(following) else want[:, 0]
        torch.testing.assert_close(got.chosen[rows], chosen, rtol=0, atol=1e-4)


def test_header_says_what_made_the_rows(tmp_path: Path) -> None:
    model, data = lm(), examples()
    write(tmp_path, model, data, top_k=1000)
    header = read(tmp_path).header
    assert (header.k, header.vocab, header.examples) == (model.vocab, model.vocab, len(data))
    assert header.rows == sum(max(0, len(e.input_ids) - e.first) for e in data)
    assert header.model_sha256 == SOURCE.sha256
    assert header.tokenizer_id == tokenizer_id(model.tokenizer)
    assert header.template_id == template_id(model.tokenizer)
    assert float(read(tmp_path).tail.abs().max()) == 0


def test_rows_of_another_position_model_or_data_are_noticed(tmp_path: Path) -> None:
    model, data = lm(), examples()
    write(tmp_path, model, data, top_k=4)
    good = read(tmp_path)
    check_shift(model, data, good)
    shifted = dataclasses.replace(good, chosen=good.chosen.roll(1))
    with pytest.raises(ModelError, match="another model or position"):
        check_shift(model, data, shifted)
    with pytest.raises(ModelError, match="another model or position"):
        check_shift(lm("granite"), data, good)
    with pytest.raises(ModelError, match="other completions"):
        check_shift(model, data[1:], good)


def test_damaged_or_absent_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read(tmp_path / "nowhere")
    write(tmp_path, lm(), examples(), top_k=4)
    path = tmp_path / "targets.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match="cannot be read"):
        read(tmp_path)


def test_unusable_examples_are_refused(tmp_path: Path) -> None:
    for data, words in (
        ([], "no token is supervised"),
        ([Example((5, 6), first=2)], "no token is supervised"),
        ([Example((5, 6), first=0)], "first token"),
        ([Example((5, 600), first=1)], "another tokenizer"),
        ([Example((5,) * 300, first=1)], "was built for 256"),
    ):
        with pytest.raises(ModelError, match=words):
            write(tmp_path, lm(), data, top_k=4)


def test_non_finite_distribution_is_refused(tmp_path: Path) -> None:
    model = lm()
    with torch.no_grad():
        model.model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        write(tmp_path, model, examples(), top_k=4)
