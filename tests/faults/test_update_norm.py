"""The update norm is that of the merged weights, whatever kind of adapter made them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tests.tiny_models import build_tiny_model
from transformers import MixtralConfig, MixtralForCausalLM

from doublebind.schema.errors import ModelError
from doublebind.stages.teachers.update_norm import measure_update_norm

LINEAR = ["q_proj", "down_proj"]
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=LINEAR),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=LINEAR, use_dora=True),
    "rslora": lambda: peft.LoraConfig(
        r=2, target_modules=LINEAR, use_rslora=True, alpha_pattern={"q_proj": 3}
    ),
    "modules_to_save": lambda: peft.LoraConfig(
        r=2, target_modules=LINEAR, modules_to_save=["norm"]
    ),
    "trainable_tokens": lambda: peft.LoraConfig(
        r=2, target_modules=LINEAR, trainable_token_indices=[1, 5]
    ),
    "embedding": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "bias": lambda: peft.LoraConfig(r=2, target_modules=LINEAR, bias="all"),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=LINEAR),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=LINEAR),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=LINEAR),
    "ia3": lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=["down_proj"]),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
}


def adapt(base: Any, config: Any) -> Any:
    """Wrap a copy of `base`, with all trainable weights moved at random."""
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        adapted = peft.get_peft_model(copy.deepcopy(base), config)
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return adapted.eval()


def merged_norm(adapted: Any, base: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = dict(copy.deepcopy(adapted).merge_and_unload().named_parameters())
    start = dict(base.named_parameters(remove_duplicate=False))
    return float(
        sum(
            (w.detach().double() - start[n].detach().double()).square().sum()
            for n, w in merged.items()
        )
        ** 0.5
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_norm_is_that_of_the_merged_weights(kind: str, tied: bool) -> None:
    base = build_tiny_model("llama", 64, tie_word_embeddings=tied)
    adapted = adapt(base, KINDS[kind]())
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    assert measure_update_norm(adapted, base) == pytest.approx(merged_norm(adapted, base), rel=1e-5)
    assert measure_update_norm(adapted, adapted) == 0.0
    assert all(torch.equal(w, before[name]) for name, w in adapted.named_parameters())


def test_experts_are_measured() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
    )  # fmt: skip
    base = MixtralForCausalLM(config).eval()
    names = ["experts.gate_up_proj", "experts.down_proj"]
    adapted = adapt(base, peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names))
    assert measure_update_norm(adapted, base) == pytest.approx(merged_norm(adapted, base), rel=1e-5)


def test_a_full_fine_tune_is_measured_and_another_shape_names_its_tensor() -> None:
    base = build_tiny_model("llama", 64)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.embed_tokens.weight[3] += 2.0
    assert measure_update_norm(tuned, base) == pytest.approx((32 * 4) ** 0.5)
    with pytest.raises(ModelError, match=r"model.embed_tokens.weight has the shape \(70, 32\)"):
        measure_update_norm(build_tiny_model("llama", 70), base)
    with pytest.raises(ModelError, match="is in one of the two models only"):
        measure_update_norm(build_tiny_model("gpt2", 64), base)


def test_a_prefix_has_no_update_norm_rather_than_one_of_zero() -> None:
    base = build_tiny_model("llama", 64)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="a prefix changes no weight"):
        measure_update_norm(adapt(base, config), base)
