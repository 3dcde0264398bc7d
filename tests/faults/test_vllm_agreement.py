"""vLLM is believed where it computes what transformers does, and only there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import save_model
from tests.vllm_fake import FakeEngine, install_fake_vllm

from doublebind.models import vllm
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Engine, ModelSource
from doublebind.schema.recipe import Lora
from doublebind.training import loop

ENGINE = Engine(kind="vllm")


def write_adapter(folder: Path, **settings: Any) -> ModelSource:
    """An adapter of PEFT on a tiny base, with weights of its own, for the engine."""
    from peft import LoraConfig, get_peft_model

    save_model(folder / "base", tie_word_embeddings=False)
    lm = load_model(resolve_model("base", relative_to=folder))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, **settings)
    model: Any = get_peft_model(lm.model, config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.2 * torch.randn(
                    weight.shape, generator=torch.Generator().manual_seed(1)
                )
    loop.save_model(model, lm.tokenizer, folder / "adapter", card="")
    source = resolve_model("base+adapter", relative_to=folder)
    return source.model_copy(update={"engine": ENGINE})


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": r".*(q_proj|lm_head)"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "bias": "lora_only"},
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 64}},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}},
    ],
)
def test_an_adapter_of_which_vllm_leaves_a_part_out_is_refused_by_name(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_vllm(monkeypatch)
    source = write_adapter(tmp_path, **settings)
    with pytest.raises(ModelError, match=r"adapter: vLLM (leaves|ignores)") as caught:
        load_model(source)
    assert len(caught.value.problems) == 1


def test_a_part_that_only_the_file_has_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"leaves base_model.model.lm_head.weight out"):
        vllm.check_adapter(tmp_path / "adapter", ENGINE)


def shift_first(rows: list[Any]) -> list[Any]:
    for listed in rows:
        for entry in listed.values():
            entry.logprob -= 0.02
    return rows


def drop_adapter(engine: FakeEngine, score: Callable[..., Any], ids: Any, k: int) -> Any:
    return score(engine, engine.open_model(None), ids, k)


@pytest.mark.parametrize("fault", ["shifted", "without adapter"])
def test_an_engine_that_scores_otherwise_is_not_believed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_vllm(monkeypatch)
    vllm.forget_agreements()
    source = write_adapter(tmp_path, target_modules=["q_proj"])
    honest = FakeEngine.score_prompt
    load_model(source, cache=tmp_path / "cache")
    assert json.loads(next((tmp_path / "cache").glob("vllm-*")).read_text())
    lies: dict[str, Any] = {
        "shifted": lambda engine, lm, ids, k: shift_first(honest(engine, lm, ids, k)),
        "without adapter": lambda engine, _, ids, k: drop_adapter(engine, honest, ids, k),
    }
    monkeypatch.setattr(FakeEngine, "score_prompt", lies[fault])
    load_model(source, cache=tmp_path / "cache")  # the note stands
    vllm.forget_agreements()
    for cache in (None, tmp_path / "another"):
        with pytest.raises(ModelError, match="differ from those of transformers by up to"):
            load_model(source, cache=cache)
    assert not (tmp_path / "another").exists()


def test_adapters_of_one_kind_are_probed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_vllm(monkeypatch)
    vllm.forget_agreements()
    save_model(tmp_path / "base")
    for seed in (1, 2):
        lm = load_model(resolve_model("base", relative_to=tmp_path))
        model = loop.prepare_model(lm.model, Lora(rank=4, alpha=8), seed)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
        loop.save_model(model, lm.tokenizer, tmp_path / f"adapter-{seed}", card="")
        source = resolve_model(f"base+adapter-{seed}", relative_to=tmp_path)
        load_model(source.model_copy(update={"engine": ENGINE}), cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("vllm-*"))) == 1
