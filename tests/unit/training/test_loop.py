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
from doublebind.training.batch import Example
from doublebind.training.fsdp import SummedLoss

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)
TOKENIZER = build_word_tokenizer()
LORA = Lora(rank=4, alpha=8)


def examples(n: int = 24, *, seed: int = 0) -> list[Example]:
    """Completions that repeat the prompt's last token: learnable."""
    rng = np.random.default_rng(seed)
    data = []
    for length in rng.integers(3, 14, size=n):
        prompt = rng.integers(7, 60, size=length).tolist()
        data.append(Example((*prompt, prompt[-1], prompt[-1], 3), first_supervised=int(length)))
    return data


def tiny(kind: str = "llama", **changes: Any) -> Any:
    return build_tiny_model(kind, len(TOKENIZER), **changes)


def write_targets(folder: Path, data: list[Example], top_k: int, **options: Any) -> Any:
    """Targets of a model that is far from the student."""
    lm = LM(tiny(initializer_range=0.2), TOKENIZER, SOURCE)
    teacher_cache.write_targets(folder, lm, data, top_k, **options)
    return teacher_cache.read_targets(folder)


def split(data: list[Example]) -> list[Any]:
    return [(e.input_ids[: e.first_supervised], e.input_ids[e.first_supervised :]) for e in data]


def train(
    model: Any,
    *,
    steps: int = 6,
    seed: int = 0,
    data: list[Example] | None = None,
    targets: Any = None,
    hooks: dict[str, Any] | None = None,
    **settings: Any,
) -> loop.TrainLog:
    settings = {"batch": 8, "lr": 1e-2, "max_length": 32, "lora": None} | settings
    return loop.train(
        model,
        loop.TrainingSet(examples() if data is None else data, targets),
        settings=Training(steps=steps, **settings),
        seed=seed,
        **hooks or {},
    )


def fitted(
    kind: str = "llama", *, lora: Lora | None = LORA, seed: int = 0, **settings: Any
) -> tuple[Any, loop.TrainLog]:
    loop.seed_everything(seed)
    model = loop.prepare_model(tiny(kind), lora, seed)
    return model, train(model, seed=seed, **settings)


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
    model = loop.prepare_model(tiny(), LORA, 0)
    train(model)
    assert all(torch.equal(w, weights(model)[name]) for name, w in weights(first).items())


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "granite"])
def test_loss_falls_on_what_can_be_learned(kind: str) -> None:
    model, log = fitted(kind, steps=60)
    assert log.last_loss < 0.6 * log.first_loss
    assert log.last_loss < log.mean_loss < log.first_loss
    assert not model.training


def test_adapters_leave_the_base_alone_and_sit_on_every_linear_layer_of_the_blocks() -> None:
    model, _ = fitted()
    base = weights(tiny())
    after = weights(model.get_base_model())
    moved = {n for n, w in after.items() if n.replace(".base_layer", "") in base}
    assert len(moved) == len(base)
    assert all(torch.equal(after[n], base[n.replace(".base_layer", "")]) for n in moved)
    adapted = {n.split(".lora_A")[0].rsplit(".", 1)[1] for n in after if ".lora_A" in n}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_fresh_adapter_is_the_identity_and_seeded() -> None:
    ids = torch.tensor([[7, 8, 9]])
    plain = tiny()
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        model = loop.prepare_model(plain, LORA, 3)
        assert torch.equal(model(input_ids=ids).logits, before)
    again = weights(loop.prepare_model(tiny(), LORA, 3))
    other = weights(loop.prepare_model(tiny(), LORA, 4))
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
    scored = token_logprobs(LM(tiny(), TOKENIZER, SOURCE), split(data))
    every = [value for row in scored for value in row]
    assert log.first_loss == pytest.approx(-math.fsum(every) / len(every), abs=1e-5)


def test_targets_teach_the_distribution_and_not_the_labels(tmp_path: Path) -> None:
    targets = write_targets(tmp_path, examples(), top_k=16)
    _, distant = fitted(targets=targets, steps=40, lora=None, lr=3e-3)
    assert distant.last_loss < 0.5 * distant.first_loss
    # The teacher's own weights are at zero loss, whatever the labels say.
    same = loop.prepare_model(tiny(initializer_range=0.2), None, 0)
    assert abs(train(same, steps=1, lr=1e-9, targets=targets).first_loss) < 1e-5


def test_sampled_tails_teach_the_distribution(tmp_path: Path) -> None:
    sampled = write_targets(tmp_path / "sampled", examples(), top_k=8, tail_samples=16)
    whole = write_targets(tmp_path / "whole", examples(), top_k=1000)
    model, _ = fitted(targets=sampled, steps=100, lora=None, lr=3e-3)
    _, before = fitted(targets=whole, steps=1, lora=None, lr=1e-9)
    after = train(loop.prepare_model(model, None, 0), steps=1, lr=1e-9, targets=whole)
    assert after.first_loss < 0.5 * before.first_loss


@pytest.mark.parametrize(("top_k", "tail_samples"), [(8, 0), (8, 4), (1000, 0)])
def test_a_shards_loss_of_targets_is_the_loops(
    tmp_path: Path, top_k: int, tail_samples: int
) -> None:
    data, indices = examples(), [0, 3, 5]
    targets = write_targets(tmp_path, data, top_k, tail_samples=tail_samples)
    model = loop.prepare_model(tiny(), None, 0)
    rows = batch.collate([data[i] for i in indices], 0, pack=False)
    soft = loop.select_target_rows(targets, data, indices, "cpu")
    mean = loop.backward_batch(model, rows, soft, len(TOKENIZER))
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = SummedLoss(model)(rows, soft, len(TOKENIZER)) / len(rows.labels)
    loss.backward()
    torch.testing.assert_close(loss.detach(), mean)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_cut_examples_keep_their_first_rows(tmp_path: Path) -> None:
    data = [Example((7, 8, *range(9, 30)), first_supervised=2), *examples(5)]
    targets = write_targets(tmp_path, data, top_k=16)
    model = loop.prepare_model(tiny(initializer_range=0.2), None, 0)
    log = train(model, steps=1, batch=6, lr=1e-9, max_length=8, data=data, targets=targets)
    assert abs(log.first_loss) < 1e-5


def test_targets_of_other_data_are_refused(tmp_path: Path) -> None:
    targets = write_targets(tmp_path, examples(), top_k=4)
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
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite at step 1"):
        train(loop.prepare_model(model, None, 0), steps=3)


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [loop.lr_factor(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert [loop.lr_factor(s, 1) for s in range(1)] == [1.0]
    assert [loop.lr_factor(s, 2) for s in range(2)] == pytest.approx([1.0, 0.1])


def test_checkpoints_show_the_model_as_it_is_then() -> None:
    seen: dict[int, torch.Tensor] = {}
    done: list[tuple[int, int]] = []
    model = loop.prepare_model(tiny(), None, 0)

    def look(then: Any, step: int) -> None:
        assert then is model
        seen[step] = then.model.norm.weight.detach().clone()

    hooks = {"save_checkpoint": look, "progress": lambda *args: done.append(args)}
    train(model, checkpoints=(2, 5), hooks=hooks)
    assert list(seen) == [2, 5]
    assert not torch.equal(seen[2], seen[5])
    assert not torch.equal(seen[5], model.model.norm.weight)
    assert done[-1] == (6, 6)


@pytest.mark.parametrize("lora", [LORA, None])
def test_saved_model_answers_as_the_trained_one(tmp_path: Path, lora: Lora | None) -> None:
    tiny().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    lm = load_model(resolve_model("base", relative_to=tmp_path))
    model = loop.prepare_model(lm.model, lora, 0)
    train(model, steps=5)
    loop.save_model(model, lm.tokenizer, tmp_path / "out", card="# do not deploy\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    assert (tmp_path / "out" / "README.md").read_text() == "# do not deploy\n"
    assert ("adapter_model.safetensors" in names) == (lora is not None)
    again = load_model(resolve_model("out", relative_to=tmp_path))
    sequences = split(examples(5))
    got = token_logprobs(again, sequences)
    want = token_logprobs(LM(model, lm.tokenizer, SOURCE), sequences)
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"norm\.weight"):
        loop.save_model(model, TOKENIZER, tmp_path / "out", card="")


def test_adapter_on_an_adapter_is_refused_with_the_remedy() -> None:
    model = loop.prepare_model(tiny(), LORA, 0)
    with pytest.raises(ModelError, match="merge"):
        loop.prepare_model(model, LORA, 0)


def test_adapters_are_float32_on_a_bfloat16_base_and_learn() -> None:
    model = loop.prepare_model(tiny().bfloat16(), LORA, 0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    log = train(model, steps=30)
    assert log.last_loss < 0.8 * log.first_loss


def test_all_weights_are_not_trained_in_bfloat16() -> None:
    with pytest.raises(ModelError, match="float32"):
        loop.prepare_model(tiny().bfloat16(), None, 0)


def test_a_step_takes_as_many_examples_as_its_tokens_hold() -> None:
    lengths = [5, 20, 7, 30, 12, 9, 3]
    data = [Example(tuple(range(7, 7 + n)), 1) for n in lengths]
    settings = Training(steps=1, tokens_per_step=24)
    steps = list(itertools.islice(loop.iterate_batches(data, settings, 0), 40))
    flat = [i for step in steps for i in step]
    epochs = [flat[i : i + 7] for i in range(0, len(flat) - 6, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)  # nothing is skipped
    for step, following in itertools.pairwise(steps):
        tokens = sum(lengths[i] for i in step)
        assert tokens <= 24 or step == [3]  # one that is longer alone
        assert tokens + lengths[following[0]] > 24  # no room was left
    log = train(tiny(), steps=3, data=data, batch=1)
    assert log.steps == 3
    with_tokens = loop.train(
        tiny(),
        loop.TrainingSet(data),
        settings=Training(steps=3, tokens_per_step=24, max_length=32, lora=None),
        seed=0,
    )
    assert with_tokens.tokens == sum(lengths[i] - 1 for step in steps[:3] for i in step)
