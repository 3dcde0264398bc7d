"""Loaded models are whole, quiet and comparable, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import WORDS, build_tiny_model, build_word_tokenizer, save_model

from doublebind.models import gguf_file
from doublebind.models.load import (
    LM,
    load_model,
    merge_adapter_weights,
    same_tokenizer,
    tokenizer_id,
)
from doublebind.models.logits import check_architecture, measure_distance
from doublebind.models.resolve import resolve_model
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Lora
from doublebind.training import loop

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)


def opened(folder: Path, name: str = "m") -> LM:
    return load_model(resolve_model(name, relative_to=folder))


def refusal(folder: Path, name: str = "m") -> str:
    with pytest.raises(ModelError) as caught:
        opened(folder, name)
    (line,) = caught.value.problems
    return line


def test_model_comes_back_in_evaluation_mode_and_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m")
    capfd.readouterr()
    lm = opened(tmp_path)
    assert not lm.model.training
    assert (lm.vocab_size, lm.pad_id, lm.end_ids, lm.context_length) == (
        len(lm.tokenizer),
        0,
        {2, 3},
        256,
    )
    assert capfd.readouterr() == ("", "")


def test_weights_can_be_bfloat16(tmp_path: Path) -> None:
    save_model(tmp_path / "m")
    lm = load_model(resolve_model("m", relative_to=tmp_path), dtype="bfloat16")
    assert lm.model.dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weight_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    path = save_model(tmp_path / "m") / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(tmp_path)


def test_missing_weight_is_refused_by_name(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m") / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.norm.weight" in refusal(tmp_path)


def test_config_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m") / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))
    assert "cannot be opened" in refusal(tmp_path)
    path.write_text(path.read_text().replace('"llama"', '"no-such-architecture"'))
    assert "cannot be opened" in refusal(tmp_path)


def test_tokenizer_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m")
    build_word_tokenizer(words=[*WORDS, "extra", "words"]).save_pretrained(tmp_path / "m")
    assert "embeddings" in refusal(tmp_path)


def test_special_token_beyond_the_embedding_is_no_reason_to_refuse(tmp_path: Path) -> None:
    save_model(tmp_path / "m")
    tokenizer = build_word_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]}, False)
    tokenizer.save_pretrained(tmp_path / "m")
    lm = opened(tmp_path)
    assert lm.vocab_size == len(build_word_tokenizer())


def test_padded_embedding_is_cut_to_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = build_word_tokenizer()
    build_tiny_model("llama", len(tokenizer) + 7).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert opened(tmp_path).vocab_size == len(tokenizer)


def test_architecture_with_unknown_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny_model("llama", 50)
    check_architecture(model, "m")
    forward = type(model).forward

    def scaled(self: object, *args: object, **kwargs: object) -> object:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 2  # as an architecture unknown to us might
        return out

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(ModelError, match="of type llama"):
        check_architecture(model, "m")


def test_logits_are_compared_without_what_all_tokens_have_in_common() -> None:
    row = torch.linspace(-3, 3, 50)[None]
    assert measure_distance(row, row + 0.6) < 1e-6
    assert measure_distance(row, 1.25 * row) > 0.2
    assert (
        not measure_distance(row, torch.full_like(row, torch.nan)) < 1
    )  # refused, whatever is near


@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2", "gemma3"])
def test_known_architectures_are_accepted(kind: str) -> None:
    check_architecture(build_tiny_model(kind, 50), "m")


def test_recurrent_architecture_is_refused() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ModelError, match="mamba"):
        check_architecture(AutoModelForCausalLM.from_config(config), "m")


def adapted(folder: Path) -> LM:
    """A LoRA adapter with weights that matter, saved and loaded."""
    save_model(folder / "m")
    lm = opened(folder)
    model = loop.prepare_model(lm.model, Lora(rank=2), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    loop.save_model(model, lm.tokenizer, folder / "a", card="do not deploy")
    return opened(folder, "a")


def test_adapter_stays_an_adapter_and_computes(tmp_path: Path) -> None:
    lm = adapted(tmp_path)
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        with_adapter = lm.model(input_ids=ids).logits
        with lm.model.disable_adapter():
            without = lm.model(input_ids=ids).logits
    assert hasattr(lm.model, "peft_config")
    assert float((with_adapter - without).abs().max()) > 0.1


def test_merged_state_is_the_plain_model(tmp_path: Path) -> None:
    lm, plain = adapted(tmp_path), opened(tmp_path)
    for each in (lm, plain):  # the same sums in another order: single precision would blur them
        each.model.double()
    before = {n: w.clone() for n, w in lm.model.named_parameters()}
    merged = merge_adapter_weights(lm.model)
    assert merged.keys() == merge_adapter_weights(plain.model).keys()
    assert all(torch.equal(w, before[n]) for n, w in lm.model.named_parameters())
    plain.model.load_state_dict(merged, strict=False)
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        torch.testing.assert_close(
            plain.model(input_ids=ids).logits, lm.model(input_ids=ids).logits
        )


def test_damaged_adapter_is_refused(tmp_path: Path) -> None:
    adapted(tmp_path)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(path.read_text().replace('"LORA"', '"NO_SUCH"'))
    assert "cannot be opened" in refusal(tmp_path, "a")


def test_tokenizers_are_compared_by_what_they_encode() -> None:
    a = build_word_tokenizer()
    assert same_tokenizer(a, build_word_tokenizer())
    assert tokenizer_id(a) == tokenizer_id(build_word_tokenizer())
    # Same width, same special tokens, two words exchanged: every fixed probe is unknown to both.
    swapped = build_word_tokenizer(words=[WORDS[1], WORDS[0], *WORDS[2:]])
    assert len(swapped) == len(a)
    assert not same_tokenizer(a, swapped)
    assert tokenizer_id(a) != tokenizer_id(swapped)


def test_end_of_turn_is_part_of_a_tokenizer() -> None:
    assert not same_tokenizer(build_word_tokenizer(chat=True), build_word_tokenizer(chat=False))


# --- GGUF ----------------------------------------------------------------------------------------


def test_converted_file_is_kept_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def dequantised(path: Path, precision: torch.dtype) -> tuple[object, object]:
        calls.append(path)
        tokenizer = build_word_tokenizer()
        return build_tiny_model("llama", len(tokenizer)), tokenizer

    monkeypatch.setattr(gguf_file, "dequantise_gguf", dequantised)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    source = resolve_model("x.gguf", relative_to=tmp_path)
    cache = tmp_path / "cache"
    first = load_model(source, cache=cache)
    second = load_model(source, cache=cache)
    assert len(calls) == 1
    assert [p.name.startswith("gguf-") for p in cache.iterdir()] == [True]
    assert first.model.name_or_path == second.model.name_or_path == str(tmp_path / "x.gguf")
    load_model(source)
    assert len(calls) == 2

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(first.model), "save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        load_model(source, dtype="bfloat16", cache=cache)
    assert len(list(cache.iterdir())) == 1


def test_garbage_behind_the_magic_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\x07" * 200)
    assert "cannot be opened" in refusal(tmp_path, "x.gguf")
