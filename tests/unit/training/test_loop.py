"""Training repeats to the bit, learns, counts its steps, and fails loudly."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import build_tiny_model, build_word_tokenizer

from doublebind.models import teacher_cache
from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.score import token_logprobs
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Lora, Training
from doublebind.training import batch, loop
from doublebind.training import fsdp as sharded
from doublebind.training.batch import Example

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)
TOKENIZER = build_word_tokenizer()
LORA = Lora(rank=4, alpha=8)


def examples(n: int = 24, *, seed: int = 0) -> list[Example]:
    """Completions that repeat the prompt's last token: learnable."""
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(3, 14, size=n):
        prompt = rng.integers(7, 60, size=length).tolist()
        made.append(Example((*prompt, prompt[-1], prompt[-1], 3), first_supervised=int(length)))
    return made


def fitted(
    kind: str = "llama",
    *,
    lora: Lora | None = LORA,
    seed: int = 0,
    data: list[Example] | None = None,
    targets: Any = None,
    steps: int = 6,
    lr: float = 1e-2,
    **options: Any,
) -> tuple[Any, loop.TrainLog]:
    loop.seed_everything(seed)
    model = loop.prepare_model(build_tiny_model(kind, len(TOKENIZER)), lora, seed)
    settings = Training(steps=steps, batch=8, lr=lr, max_length=32, lora=lora)
    data = examples() if data is None else data
    log = loop.train(
        model, data, settings=settings, seed=seed, targets=targets, pad_id=0, **options
    )
    return model, log


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("lora", [LORA, None])
def test_equal_seeds_give_equal_bits_and_others_do_not(lora: Lora | None) -> None:
    (a, log_a), (b, log_b), (c, _) = (fitted(lora=lora, seed=seed) for seed in (1, 1, 2))
    assert log_a == log_b
    assert all(torch.equal(w, weights(b)[name]) for name, w in weights(a).items())
    assert not all(torch.equal(w, weights(c)[name]) for name, w in weights(a).items())


def test_training_does_not_depend_on_what_was_drawn_before() -> None:
    first, _ = fitted()
    loop.seed_everything(0)
    torch.randn(1000)
    model = loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), LORA, 0)
    settings = Training(steps=6, batch=8, lr=1e-2, max_length=32, lora=LORA)
    loop.train(model, examples(), settings=settings, seed=0, targets=None, pad_id=0)
    assert all(torch.equal(w, weights(model)[name]) for name, w in weights(first).items())


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "granite"])
def test_loss_falls_on_what_can_be_learned(kind: str) -> None:
    model, log = fitted(kind, steps=60)
    assert log.last_loss < 0.6 * log.first_loss
    assert log.last_loss < log.mean_loss < log.first_loss
    assert not model.training


def test_adapters_leave_the_base_alone_and_sit_on_every_linear_layer_of_the_blocks() -> None:
    model, _ = fitted()
    base = weights(build_tiny_model("llama", len(TOKENIZER)))
    after = weights(model.get_base_model())
    moved = {n for n, w in after.items() if n.replace(".base_layer", "") in base}
    assert len(moved) == len(base)
    assert all(torch.equal(after[n], base[n.replace(".base_layer", "")]) for n in moved)
    adapted = {n.split(".lora_A")[0].rsplit(".", 1)[1] for n in after if ".lora_A" in n}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_fresh_adapter_is_the_identity_and_seeded() -> None:
    ids = torch.tensor([[7, 8, 9]])
    plain = build_tiny_model("llama", len(TOKENIZER))
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        model = loop.prepare_model(plain, LORA, 3)
        assert torch.equal(model(input_ids=ids).logits, before)
    again = weights(loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), LORA, 3))
    other = weights(loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), LORA, 4))
    mine = weights(model)
    assert all(torch.equal(w, again[n]) for n, w in mine.items())
    assert not all(torch.equal(w, other[n]) for n, w in mine.items())


def test_only_completions_are_supervised() -> None:
    """A prompt token's own likelihood has no gradient: changing `first` changes what is learned."""
    _, log = fitted(steps=3)
    drawn = list(itertools.islice(batch.shuffle_epochs(24, 0), 24))
    assert log.tokens == sum(
        len(examples()[i].input_ids) - examples()[i].first_supervised for i in drawn
    )
    data = [Example(e.input_ids, len(e.input_ids)) for e in examples()[1:]]
    (_, log) = fitted(data=[examples()[0], *data], steps=2)
    assert log.tokens == 2 * 8 * 3  # the one example that supervises anything, again and again


def test_first_loss_is_the_mean_over_supervised_tokens() -> None:
    data = examples(8)
    _, log = fitted(data=data, steps=1)
    lm = LM(build_tiny_model("llama", len(TOKENIZER)), TOKENIZER, SOURCE)
    scored = token_logprobs(
        lm, [(e.input_ids[: e.first_supervised], e.input_ids[e.first_supervised :]) for e in data]
    )
    every = [value for row in scored for value in row]
    assert log.first_loss == pytest.approx(-math.fsum(every) / len(every), abs=1e-5)


def test_targets_teach_the_distribution_and_not_the_labels(tmp_path: Path) -> None:
    teacher = LM(
        build_tiny_model("llama", len(TOKENIZER), initializer_range=0.2).requires_grad_(False),
        TOKENIZER,
        SOURCE,
    )
    data = examples()
    teacher_cache.write_targets(tmp_path, teacher, data, top_k=16)
    targets = teacher_cache.read_targets(tmp_path)
    _, distant = fitted(data=data, targets=targets, steps=40, lora=None, lr=3e-3)
    assert distant.last_loss < 0.5 * distant.first_loss
    # The teacher's own weights are at zero loss, whatever the labels say.
    loop.seed_everything(0)
    same = loop.prepare_model(
        build_tiny_model("llama", len(TOKENIZER), initializer_range=0.2), None, 0
    )
    settings = Training(steps=1, batch=8, lr=1e-9, max_length=32, lora=None)
    log = loop.train(same, data, settings=settings, seed=0, targets=targets, pad_id=0)
    assert abs(log.first_loss) < 1e-5


def test_sampled_tails_teach_the_distribution(tmp_path: Path) -> None:
    teacher = LM(
        build_tiny_model("llama", len(TOKENIZER), initializer_range=0.2), TOKENIZER, SOURCE
    )
    data = examples()
    teacher_cache.write_targets(tmp_path / "drawn", teacher, data, top_k=8, tail_samples=16)
    teacher_cache.write_targets(tmp_path / "whole", teacher, data, top_k=1000)
    drawn, whole = (teacher_cache.read_targets(tmp_path / name) for name in ("drawn", "whole"))
    model, _ = fitted(data=data, targets=drawn, steps=100, lora=None, lr=3e-3)
    _, before = fitted(data=data, targets=whole, steps=1, lora=None, lr=1e-9)
    settings = Training(steps=1, batch=8, lr=1e-9, max_length=32, lora=None)
    after = loop.train(
        loop.prepare_model(model, None, 0), data, settings=settings, seed=0, targets=whole, pad_id=0
    )
    assert after.first_loss < 0.5 * before.first_loss


@pytest.mark.parametrize(("top_k", "tail_samples"), [(8, 0), (8, 4), (1000, 0)])
def test_a_shards_loss_of_targets_is_the_loops(
    tmp_path: Path, top_k: int, tail_samples: int
) -> None:
    teacher = LM(
        build_tiny_model("llama", len(TOKENIZER), initializer_range=0.2), TOKENIZER, SOURCE
    )
    data = examples()
    teacher_cache.write_targets(tmp_path, teacher, data, top_k, tail_samples=tail_samples)
    targets = teacher_cache.read_targets(tmp_path)
    model = loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), None, 0)
    chosen = [0, 3, 5]
    rows = batch.collate([data[i] for i in chosen], 0, pack=False)
    soft = loop.select_target_rows(targets, data, chosen, "cpu")
    mean = loop.backward_batch(model, rows, soft, len(TOKENIZER))
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = sharded._StepLoss(model)(rows, soft, len(TOKENIZER)) / len(rows.labels)
    loss.backward()
    torch.testing.assert_close(loss.detach(), mean)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_cut_examples_keep_their_first_rows(tmp_path: Path) -> None:
    teacher = LM(build_tiny_model("llama", len(TOKENIZER)), TOKENIZER, SOURCE)
    data = [Example((7, 8, *range(9, 30)), first_supervised=2), *examples(5)]
    teacher_cache.write_targets(tmp_path, teacher, data, top_k=16)
    loop.seed_everything(0)
    model = loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), None, 0)
    settings = Training(steps=1, batch=6, lr=1e-9, max_length=8, lora=None)
    log = loop.train(
        model,
        data,
        settings=settings,
        seed=0,
        targets=teacher_cache.read_targets(tmp_path),
        pad_id=0,
    )
    assert abs(log.first_loss) < 1e-5


def test_targets_of_other_data_are_refused(tmp_path: Path) -> None:
    teacher = LM(build_tiny_model("llama", len(TOKENIZER)), TOKENIZER, SOURCE)
    teacher_cache.write_targets(tmp_path, teacher, examples(), top_k=4)
    targets = teacher_cache.read_targets(tmp_path)
    for data in (examples()[1:], examples(seed=1), examples()[:-1]):
        with pytest.raises(ModelError, match="score the teacher again"):
            fitted(data=data, targets=targets)


def test_tokens_and_targets_beyond_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another tokenizer"):
        fitted(data=[Example((7, 8, 6000), first_supervised=1)])
    wide = build_word_tokenizer(words=[f"w{i}" for i in range(200)])
    teacher = LM(build_tiny_model("llama", len(wide)), wide, SOURCE)
    teacher_cache.write_targets(tmp_path, teacher, examples(), top_k=4)
    with pytest.raises(ModelError, match="teacher's tokenizer"):
        fitted(targets=teacher_cache.read_targets(tmp_path))


def test_loss_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    model = build_tiny_model("llama", len(TOKENIZER))
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    settings = Training(steps=3, batch=8, lr=1e-2, max_length=32, lora=None)
    with pytest.raises(ModelError, match="not finite at step 1"):
        loop.train(
            loop.prepare_model(model, None, 0),
            examples(),
            settings=settings,
            seed=0,
            targets=None,
            pad_id=0,
        )


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [loop.lr_factor(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert [loop.lr_factor(s, 1) for s in range(1)] == [1.0]
    assert [loop.lr_factor(s, 2) for s in range(2)] == pytest.approx([1.0, 0.1])


def test_marks_show_the_model_as_it_is_then() -> None:
    seen: dict[int, torch.Tensor] = {}
    done: list[tuple[int, int]] = []
    loop.seed_everything(0)
    model = loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), None, 0)
    settings = Training(steps=6, batch=8, lr=1e-2, max_length=32, lora=None, checkpoints=(2, 5))

    def look(then: Any, step: int) -> None:
        assert then is model
        seen[step] = then.model.norm.weight.detach().clone()

    loop.train(
        model,
        examples(),
        settings=settings,
        seed=0,
        targets=None,
        pad_id=0,
        save_checkpoint=look,
        progress=lambda step, steps: done.append((step, steps)),
    )
    assert list(seen) == [2, 5]
    assert not torch.equal(seen[2], seen[5])
    assert not torch.equal(seen[5], model.model.norm.weight)
    assert done[-1] == (6, 6)


@pytest.mark.parametrize("lora", [LORA, None])
def test_saved_model_answers_as_the_trained_one(tmp_path: Path, lora: Lora | None) -> None:
    build_tiny_model("llama", len(TOKENIZER)).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    lm = load_model(resolve_model("base", relative_to=tmp_path))
    model = loop.prepare_model(lm.model, lora, 0)
    settings = Training(steps=5, batch=8, lr=1e-2, max_length=32, lora=lora)
    loop.train(model, examples(), settings=settings, seed=0, targets=None, pad_id=lm.pad_id)
    loop.save_model(model, lm.tokenizer, tmp_path / "out", card="# do not deploy\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    assert (tmp_path / "out" / "README.md").read_text() == "# do not deploy\n"
    assert ("adapter_model.safetensors" in names) == (lora is not None)
    again = load_model(resolve_model("out", relative_to=tmp_path))
    sequences = [
        (e.input_ids[: e.first_supervised], e.input_ids[e.first_supervised :]) for e in examples(5)
    ]
    got = token_logprobs(again, sequences)
    want = token_logprobs(LM(model, lm.tokenizer, SOURCE), sequences)
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    model = build_tiny_model("llama", len(TOKENIZER))
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"norm\.weight"):
        loop.save_model(model, TOKENIZER, tmp_path / "out", card="")


def test_adapter_on_an_adapter_is_refused_with_the_remedy() -> None:
    model = loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)), LORA, 0)
    with pytest.raises(ModelError, match="merge"):
        loop.prepare_model(model, LORA, 0)


def test_adapters_are_float32_on_a_bfloat16_base_and_learn() -> None:
    model = loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)).bfloat16(), LORA, 0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    settings = Training(steps=30, batch=8, lr=1e-2, max_length=32, lora=LORA)
    log = loop.train(model, examples(), settings=settings, seed=0, targets=None, pad_id=0)
    assert log.last_loss < 0.8 * log.first_loss


def test_all_weights_are_not_trained_in_bfloat16() -> None:
    with pytest.raises(ModelError, match="float32"):
        loop.prepare_model(build_tiny_model("llama", len(TOKENIZER)).bfloat16(), None, 0)
