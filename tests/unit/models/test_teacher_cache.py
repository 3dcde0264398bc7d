"""Cached distributions are the model's own, at the right positions, or are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import build_tiny_model, build_word_tokenizer

from doublebind.models import logits as head
from doublebind.models import teacher_cache
from doublebind.models.chat_template import template_id
from doublebind.models.load import LM, tokenizer_id
from doublebind.models.logits import run_body
from doublebind.models.resumable_file import open_resumable_file
from doublebind.models.teacher_cache import (
    check_labels,
    check_row_alignment,
    read_targets,
    write_targets,
)
from doublebind.schema.errors import ModelError, StoreError
from doublebind.schema.model_source import ModelSource
from doublebind.training.batch import Example

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)


def lm(kind: str = "llama", **changes: Any) -> LM:
    tokenizer = build_word_tokenizer()
    return LM(build_tiny_model(kind, len(tokenizer), **changes), tokenizer, SOURCE)


def examples(n: int = 7, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    data = []
    for length in rng.integers(4, 30, size=n):
        ids = tuple(rng.integers(5, 60, size=length).tolist())
        data.append(Example(ids, int(rng.integers(1, length))))
    return [*data, Example((5, 6, 7), first_supervised=3)]  # the last supervises nothing


def dense(model: LM, example: Example) -> torch.Tensor:
    """Log-probabilities of every token before each supervised one, the plain way."""
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
    return (
        out[example.first_supervised - 1 : -1]
        if example.first_supervised < len(example.input_ids)
        else out[:0]
    )


@pytest.mark.parametrize("small", [0, 1000])
@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2", "gemma3"])
def test_rows_are_the_model_at_supervised_positions(
    kind: str, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "SMALL_VOCAB", small)
    monkeypatch.setattr(head, "TILE_BYTES", 4 * 61 * 5)  # five rows at a time
    model, data = lm(kind), examples()
    write_targets(tmp_path, model, data, top_k=6)
    got = read_targets(tmp_path)
    for i, example in enumerate(data):
        rows = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        want = dense(model, example)
        top, ids = want.topk(6, dim=1)
        assert torch.equal(got.ids[rows].long(), ids)
        torch.testing.assert_close(got.logprobs[rows], top, rtol=0, atol=1e-4)
        tail = want.exp().scatter(1, ids, 0).sum(1)
        torch.testing.assert_close(got.tail[rows], tail, rtol=1e-3, atol=1e-6)
        following = torch.tensor(example.input_ids[example.first_supervised :])
        chosen = want.gather(1, following[:, None])[:, 0] if len(following) else want[:, 0]
        torch.testing.assert_close(got.chosen[rows], chosen, rtol=0, atol=1e-4)


def test_header_says_what_made_the_rows(tmp_path: Path) -> None:
    model, data = lm(), examples()
    write_targets(tmp_path, model, data, top_k=1000)
    header = read_targets(tmp_path).header
    assert (header.k, header.vocab, header.examples) == (
        model.vocab_size,
        model.vocab_size,
        len(data),
    )
    assert header.rows == sum(max(0, len(e.input_ids) - e.first_supervised) for e in data)
    assert header.model_sha256 == SOURCE.sha256
    assert header.tokenizer_id == tokenizer_id(model.tokenizer)
    assert header.template_id == template_id(model.tokenizer)
    assert float(read_targets(tmp_path).tail.abs().max()) == 0


def test_rows_of_another_position_model_or_data_are_noticed(tmp_path: Path) -> None:
    model, data = lm(), examples()
    write_targets(tmp_path, model, data, top_k=4)
    good = read_targets(tmp_path)
    check_row_alignment(model, data, good)
    shifted = dataclasses.replace(good, chosen=good.chosen.roll(1))
    with pytest.raises(ModelError, match="another model or position"):
        check_row_alignment(model, data, shifted)
    with pytest.raises(ModelError, match="another model or position"):
        check_row_alignment(lm("granite"), data, good)
    with pytest.raises(ModelError, match="other completions"):
        check_row_alignment(model, data[1:], good)


def test_students_notice_rows_of_another_position(tmp_path: Path) -> None:
    model, data = lm(), examples()
    for k in (4, 1000):
        write_targets(tmp_path, model, data, top_k=k)
        good = read_targets(tmp_path)
        check_labels(good, data, "here")
        shifted = {
            "chosen": good.chosen.roll(1),
            "ids": good.ids.roll(1, 0),
            "logprobs": good.logprobs.roll(1, 0),
        }
        for name, rows in shifted.items():
            with pytest.raises(ModelError, match="not of the token that follows"):
                check_labels(dataclasses.replace(good, **{name: rows}), data, "here")


def test_teacher_that_wavers_is_refused(tmp_path: Path) -> None:
    model = lm()
    norm = model.model.model.norm
    norm.register_forward_hook(lambda _, __, out: torch.nn.functional.dropout(out, 0.1))
    with pytest.raises(ModelError, match="scored twice"):
        write_targets(tmp_path, model, examples(), top_k=4)


def test_damaged_or_absent_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_targets(tmp_path / "nowhere")
    write_targets(tmp_path, lm(), examples(), top_k=4)
    path = tmp_path / "targets.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match="cannot be read"):
        read_targets(tmp_path)


def test_unusable_examples_are_refused(tmp_path: Path) -> None:
    for data, words in (
        ([], "no token is supervised"),
        ([Example((5, 6), first_supervised=2)], "no token is supervised"),
        ([Example((5, 6), first_supervised=0)], "first token"),
        ([Example((5, 600), first_supervised=1)], "another tokenizer"),
        ([Example((5,) * 300, first_supervised=1)], "was built for 256"),
    ):
        with pytest.raises(ModelError, match=words):
            write_targets(tmp_path, lm(), data, top_k=4)


def test_non_finite_distribution_is_refused(tmp_path: Path) -> None:
    model = lm()
    with torch.no_grad():
        model.model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        write_targets(tmp_path, model, examples(), top_k=4)


def test_tail_samples_follow_the_tail_whatever_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frequencies of 4,000 draws lie within 5 standard errors of the tail's probabilities."""
    model, data, m = lm(), examples(3)[:-1], 4000
    write_targets(tmp_path / "a", model, data, top_k=3, tail_samples=m)
    monkeypatch.setattr(teacher_cache, "BATCH_TOKENS", 1)
    write_targets(tmp_path / "b", model, data, top_k=3, tail_samples=m)
    got, again = read_targets(tmp_path / "a"), read_targets(tmp_path / "b")
    assert got.tail_ids is not None
    assert got.tail_logprobs is not None
    assert again.tail_ids is not None
    # Another batch moves last bits of probabilities, and with them a draw in a million.
    assert float((got.tail_ids == again.tail_ids).float().mean()) > 0.999
    assert got.header.tail_samples == m
    for i, example in enumerate(data):
        rows = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        want = dense(model, example)
        tail = want.exp().scatter(1, got.ids[rows].long(), 0)
        share = tail / tail.sum(1, keepdim=True)
        drawn = got.tail_ids[rows].long()
        seen = torch.zeros_like(want).scatter_add(1, drawn, torch.ones(drawn.shape)) / m
        spread = (share * (1 - share) / m).sqrt()
        off = ((seen - share) / spread)[share > 0.01]  # where counts are near normal
        assert len(off)
        assert float(off.abs().max()) < 5
        logprobs = want.gather(1, drawn)
        torch.testing.assert_close(got.tail_logprobs[rows], logprobs, rtol=0, atol=1e-4)


def test_killed_scoring_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "BATCH_TOKENS", 30)
    calls: list[int] = []
    deadly: set[int] = set()

    def run_or_die(*args: Any, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) in deadly:
            raise KeyboardInterrupt
        return run_body(*args, **options)

    monkeypatch.setattr(teacher_cache, "run_body", run_or_die)
    model, data, partial = lm(), examples(), tmp_path / "partial"
    write_targets(tmp_path / "whole", model, data, top_k=4)
    batches = len(calls)
    deadly.add(batches + 3)
    with pytest.raises(KeyboardInterrupt):
        write_targets(tmp_path / "out", model, data, top_k=4, resume_folder=partial)
    assert not (tmp_path / "out" / "targets.safetensors").exists()
    write_targets(tmp_path / "out", model, data, top_k=4, resume_folder=partial)
    assert len(calls) == 2 * batches + 1  # the third again, and no other
    got, want = read_targets(tmp_path / "out"), read_targets(tmp_path / "whole")
    for name in ("ids", "logprobs", "tail", "lse", "chosen", "offsets"):
        assert torch.equal(getattr(got, name), getattr(want, name))
    # Other settings are other work.
    write_targets(tmp_path / "other", model, data, top_k=5, resume_folder=partial)
    assert len(calls) == 3 * batches + 1


def test_scoring_held_by_another_process_is_done_apart(tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    layout: dict[str, Any] = {"tail": ("F32", (2,))}
    with open_resumable_file(tmp_path / "x", layout, "one", partial) as (first, done):
        first["tail"].fill_(1.0)
        done.add(0)
        with open_resumable_file(tmp_path / "y", layout, "one", partial) as (second, others):
            assert 0 not in others
            second["tail"].fill_(2.0)
    assert (tmp_path / "x").read_bytes() != (tmp_path / "y").read_bytes()
    assert all(path.suffix == ".lock" for path in partial.iterdir())
