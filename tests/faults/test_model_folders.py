"""What is loaded is what was named and hashed, whole, or it is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.model_folders import (
    IDS,
    INDEX,
    SINGLE,
    edit_json,
    edit_tensors,
    hash_opened,
    open_model,
    run_model,
    save_adapter,
    save_all_kinds,
    save_gguf,
    shard,
)
from tests.tiny_models import build_word_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig

from doublebind.models import load as loading
from doublebind.models.load import load_model, load_tokenizer
from doublebind.models.logits import compute_logits, run_body
from doublebind.models.model_files import check_unchanged
from doublebind.models.resolve import resolve_model
from doublebind.schema.errors import ModelError, describe_error
from doublebind.schema.model_source import ModelSource

WEIGHTS = "adapter_model.safetensors"
Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a model of each kind, and the references that name them."""
    folder = tmp_path_factory.mktemp("kinds")
    return folder, save_all_kinds(folder)


@pytest.fixture(scope="module")
def known(pristine: tuple[Path, dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Kind -> content key and hash of what is opened."""
    folder, refs = pristine
    opened = {kind: open_model(ref, folder) for kind, ref in refs.items()}
    return {kind: (lm.source.sha256, hash_opened(lm)) for kind, lm in opened.items()}


@pytest.fixture
def folder(pristine: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A copy of the models, to damage."""
    return Path(shutil.copytree(pristine[0], tmp_path / "kinds"))


def refusal(ref: str, folder: Path) -> str:
    """Return the one line in which a model is refused."""
    with pytest.raises(ModelError) as caught:
        open_model(ref, folder)
    (line,) = caught.value.problems
    assert line.isprintable()
    return line


def sharded_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


# --- full models that differ from a good one in one way ------------------------------------------


def repeat_embedding(folder: Path) -> None:
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    edit_tensors(folder / SINGLE, lm_head__weight=embedding.clone())


def name_embedding_twice(folder: Path) -> None:
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    edit_tensors(folder / SINGLE, embed_tokens__weight=3 * embedding)


def repeat_tensor(folder: Path) -> None:
    edit_tensors(folder / "model-00002-of-00002.safetensors", model__norm__weight=torch.ones(32))
    edit_tensors(folder / "model-00001-of-00002.safetensors", model__norm__weight=torch.ones(32))


def link_weights(folder: Path) -> None:
    shutil.move(folder / SINGLE, folder.parent / "elsewhere.bin")
    (folder / SINGLE).symlink_to(folder.parent / "elsewhere.bin")


def distribute(folder: Path) -> None:
    (folder / "distributed").mkdir()
    (folder / ".metadata").write_bytes(b"torch")
    (folder / "__0_0.distcp").write_bytes(b"torch")


def add_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")


SAME: dict[str, Callable[[Path], object]] = {
    "the tied head is there too": repeat_embedding,
    "an old rotary buffer": lambda f: edit_tensors(
        f / SINGLE, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)
    ),
    "a link to the weights": link_weights,
    "attention from the hub": lambda f: edit_json(f / "config.json", _attn_implementation="a/b"),
    "another attention": lambda f: edit_json(f / "config.json", attn_implementation="eager"),
    "experts from the hub": lambda f: edit_json(f / "config.json", experts_implementation="a/b"),
    "a name that chooses tokenizers": lambda f: edit_json(
        f / "config.json", _name_or_path="mistralai/Mistral-Nemo-Instruct-2407"
    ),
    "special templates": add_templates,
    "other frameworks' weights": distribute,
    "a stray shard": lambda f: save_file({"a": torch.ones(1)}, f / "consolidated.safetensors"),
    "pickled weights beside": lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    "a former tokenizer file": lambda f: edit_json(
        f / "tokenizer_config.json", tokenizer_file="/nowhere", special_tokens_map_file="/nowhere"
    ),
}
"""Change -> a model that answers as before."""


@pytest.mark.parametrize("change", SAME)
def test_a_harmless_difference_leaves_the_numbers(folder: Path, change: str) -> None:
    before = run_model(open_model("plain", folder))
    SAME[change](folder / "plain")
    lm = open_model("plain", folder)
    assert torch.equal(run_model(lm), before)
    assert lm.model.config._attn_implementation == "sdpa"
    assert lm.tokenizer.chat_template == open_model("sharded", folder).tokenizer.chat_template


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "fewer layers in the settings": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=1),
        "model.layers.1.",
    ),
    "more layers in the settings": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=3),
        "model.layers.2.",
    ),
    "a tensor under two names": (name_embedding_twice, "embed_tokens.weight"),
    "a surplus tensor": (
        lambda f: edit_tensors(f / SINGLE, value_head__weight=torch.ones(4)),
        "value_head.weight",
    ),
    "a head for tokens ahead": (
        lambda f: edit_tensors(f / SINGLE, mtp__0__norm__weight=torch.ones(32)),
        "mtp.0.norm.weight",
    ),
    "a missing tensor": (
        lambda f: edit_tensors(f / SINGLE, model__norm__weight=None),
        "model.norm.weight",
    ),
    "a wrong shape": (
        lambda f: edit_tensors(f / SINGLE, model__embed_tokens__weight=torch.ones(10, 32)),
        "model.embed_tokens.weight has the shape [10, 32]",
    ),
    "a single file beside shards": (
        lambda f: (
            shutil.copy(f / SINGLE, f.parent / "one"),
            shard(f),
            shutil.copy(f.parent / "one", f / SINGLE),
        ),
        SINGLE,
    ),
    "weights called otherwise": (
        lambda f: edit_json(f / "config.json", transformers_weights="other.safetensors"),
        "transformers_weights",
    ),
    "quantised weights": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "mxfp4"}),
        "quantization_config",
    ),
    "quantised inner weights": (
        lambda f: edit_json(
            f / "config.json", text_config={"quantization_config": {"quant_method": "fp8"}}
        ),
        "quantization_config",
    ),
    "layers from the hub": (
        lambda f: edit_json(f / "config.json", kernel_config={"RMSNorm": "a/b:c"}),
        "kernel_config",
    ),
    "code for a part of the model": (
        lambda f: edit_json(f / "config.json", text_config={"auto_map": {"AutoConfig": "e.E"}}),
        "auto_map",
    ),
    "code for a processor": (
        lambda f: (f / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "e"}}'),
        "processor_config.json: `auto_map`",
    ),
    "code for sampling": (
        lambda f: edit_json(f / "generation_config.json", auto_map={"GenerationConfig": "e.E"}),
        "generation_config.json: `auto_map`",
    ),
    "a vocabulary elsewhere": (
        lambda f: edit_json(f / "tokenizer_config.json", vocab_file="/tmp/vocab.json"),
        "vocab_file",
    ),
    "a tokenizer of another version": (
        lambda f: edit_json(
            f / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.5.0.json"]
        ),
        "fast_tokenizer_files",
    ),
    "no template for conversations": (
        lambda f: (add_templates(f), (f / "chat_template.jinja").unlink()),
        "rag.jinja",
    ),
    "a model that is an adapter too": (
        lambda f: shutil.copy(f.parent / "adapter" / "adapter_config.json", f),
        "holds a full model",
    ),
    "a lone surrogate": (
        lambda f: edit_json(f / "config.json", note="\ud800"),
        "config.json",
    ),
    "an endless list": (
        lambda f: (f / "config.json").write_text('{"model_type": ' + "[" * 900 + "]" * 900 + "}"),
        "config.json",
    ),
}
"""Change of a plain folder -> what the line says."""


@pytest.mark.parametrize("change", REFUSED)
def test_a_folder_that_could_be_another_model_is_refused(folder: Path, change: str) -> None:
    damage, words = REFUSED[change]
    damage(folder / "plain")
    assert words in refusal("plain", folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.update({"model.norm.weight": "../plain/model.safetensors"}), "../plain"),
        (lambda w: w.update({"model.norm.weight": "/etc/passwd.safetensors"}), "/etc/passwd"),
        (lambda w: w.update({"model.norm.weight": "weights.bin"}), "weights.bin"),
        (lambda w: w.update({"model.norm.weight": "gone.safetensors"}), "gone.safetensors"),
    ],
)
def test_an_index_names_files_beside_it(folder: Path, change: Any, words: str) -> None:
    sharded_index(folder / "sharded", change)
    assert words in refusal("sharded", folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    repeat_tensor(folder / "sharded")
    assert "model.norm.weight is in model-00001" in refusal("sharded", folder)


def test_shards_and_a_single_file_are_the_same_model(folder: Path) -> None:
    one, other = open_model("plain", folder), open_model("sharded", folder)
    assert torch.equal(run_model(one), run_model(other))
    assert one.source.sha256 != other.source.sha256


def test_a_head_that_contradicts_its_tie_is_used_as_it_is(folder: Path) -> None:
    before = run_model(open_model("plain", folder))
    embedding = load_file(folder / "plain" / SINGLE)["model.embed_tokens.weight"]
    edit_tensors(folder / "plain" / SINGLE, lm_head__weight=2 * embedding)
    torch.testing.assert_close(run_model(open_model("plain", folder)), 2 * before)


# --- adapters ------------------------------------------------------------------------------------


def rename(path: Path, change: Callable[[str], str]) -> None:
    save_file({change(n): t for n, t in load_file(path).items()}, path, {"format": "pt"})


def drop_update(path: Path) -> None:
    save_file(
        {n: t * 0 if "lora_B" in n else t for n, t in load_file(path).items()}, path, {"format": ""}
    )


ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "keys of a multimodal base": (
        lambda f: rename(f / WEIGHTS, lambda n: n.replace("model.model", "model.language_model")),
        "language_model",
    ),
    "keys without PEFT's prefix": (
        lambda f: rename(f / WEIGHTS, lambda n: n.removeprefix("base_model.model.")),
        "model.layers.0",
    ),
    "another layer's keys": (
        lambda f: rename(f / WEIGHTS, lambda n: n.replace("layers.1.", "layers.7.")),
        "layers.7",
    ),
    "no tensor": (lambda f: save_file({}, f / WEIGHTS), "no tensor"),
    "a missing tensor": (
        lambda f: edit_tensors(f / WEIGHTS, **{f"{Q_PROJ}.lora_B.weight": None}),
        f"{Q_PROJ}.lora_B",
    ),
    "a surplus tensor": (
        lambda f: edit_tensors(f / WEIGHTS, **{f"{Q_PROJ}.lora_C.weight": torch.ones(2, 2)}),
        f"{Q_PROJ}.lora_C",
    ),
    "a wrong shape": (
        lambda f: edit_tensors(f / WEIGHTS, **{f"{Q_PROJ}.lora_A.weight": torch.ones(2, 48)}),
        f"{Q_PROJ}.lora_A",
    ),
    "another rank": (lambda f: edit_json(f / "adapter_config.json", r=3), "lora_A"),
    "fewer targets": (
        lambda f: edit_json(f / "adapter_config.json", target_modules=["q_proj"]),
        "v_proj",
    ),
    "more targets": (
        lambda f: edit_json(
            f / "adapter_config.json", target_modules=["q_proj", "v_proj", "o_proj"]
        ),
        "o_proj",
    ),
    "a magnitude that the file lacks": (
        lambda f: edit_json(f / "adapter_config.json", use_dora=True),
        "lora_magnitude_vector",
    ),
    "no update": (lambda f: drop_update(f / WEIGHTS), "changes nothing"),
    "an update of nothing": (
        lambda f: edit_json(f / "adapter_config.json", lora_alpha=0),
        "changes nothing",
    ),
    "an index": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {}}'),
        "index.json",
    ),
    "full weights beside": (
        lambda f: shutil.copy(f.parent / "plain" / SINGLE, f),
        "holds a full model",
    ),
    "a switch in the text": (
        lambda f: edit_json(f / "adapter_config.json", alora_invocation_tokens=[9]),
        "alora_invocation_tokens",
    ),
    "a setting of a later PEFT": (
        lambda f: edit_json(f / "adapter_config.json", use_magic=True),
        "use_magic",
    ),
    "a module to import": (
        lambda f: edit_json(f / "adapter_config.json", megatron_config={"a": 1}),
        "megatron_config",
    ),
    "code for its base": (
        lambda f: (f / "config.json").write_text('{"auto_map": {"AutoConfig": "e.E"}}'),
        "auto_map",
    ),
    "half a tokenizer": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        "without tokenizer_config.json",
    ),
    "another kind": (
        lambda f: edit_json(f / "adapter_config.json", peft_type="IA3"),
        "adapter",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
}


@pytest.mark.parametrize("change", ADAPTERS)
def test_an_adapter_that_lands_nowhere_is_refused(folder: Path, change: str) -> None:
    damage, words = ADAPTERS[change]
    damage(folder / "adapter")
    assert words in refusal("plain+adapter", folder)


def test_settings_of_an_adapter_count(folder: Path) -> None:
    before = open_model("plain+adapter", folder)
    edit_json(folder / "adapter" / "adapter_config.json", lora_alpha=64)
    after = open_model("plain+adapter", folder)
    assert after.source.sha256 != before.source.sha256
    assert not torch.allclose(run_model(after), run_model(before))


KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    "rank-stabilised": lambda: peft.LoraConfig(r=2, use_rslora=True, target_modules=["q_proj"]),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
    "pissa": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"]),
    "ranks": lambda: peft.LoraConfig(
        r=2, rank_pattern={"q_proj": 4}, target_modules=["q_proj", "v_proj"]
    ),
    "biases": lambda: peft.LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"]),
    "embedding": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
    "head": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    "whole modules": lambda: peft.LoraConfig(
        r=2, modules_to_save=["norm"], target_modules=["q_proj"]
    ),
    "tokens too": lambda: peft.LoraConfig(
        r=2, trainable_token_indices=[7, 9], target_modules=["q_proj"]
    ),
    "tokens alone": lambda: peft.TrainableTokensConfig(
        token_indices=[7, 9], target_modules=["embed_tokens"]
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=["q_proj"]
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules=["q_proj"]),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "hra": lambda: peft.HRAConfig(r=2, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "vera, drawn again": lambda: peft.VeraConfig(
        r=4, save_projection=False, target_modules=["q_proj"]
    ),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=["q_proj"]),
    "vblora": lambda: peft.VBLoRAConfig(
        r=2, num_vectors=8, vector_length=8, topk=2, target_modules=["q_proj"]
    ),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "shira": lambda: peft.ShiraConfig(r=2, target_modules=["q_proj"]),
    "c3a": lambda: peft.C3AConfig(block_size=8, target_modules=["q_proj"]),
    "miss": lambda: peft.MissConfig(r=2, target_modules=["q_proj"]),
    "randlora": lambda: peft.RandLoraConfig(r=2, target_modules=["q_proj"]),
    "road": lambda: peft.RoadConfig(group_size=4, target_modules=["q_proj"]),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_means_what_peft_makes_of_it(folder: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = KINDS[kind]()
    config.task_type = "CAUSAL_LM"
    save_adapter(folder / "own", folder / "plain", config)
    base = open_model("plain", folder)
    plain = run_model(base)
    lm = open_model("plain+own", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = peft.PeftModel.from_pretrained(base.model, str(folder / "own")).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0]
    torch.testing.assert_close(run_model(lm), wanted[:, : lm.vocab_size], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run_model(lm), plain, rtol=1e-2, atol=1e-2)


def save_expert_adapter(folder: Path, base: Path) -> None:
    """Save a LoRA adapter with a pair of tensors per expert, as PEFT wrote them before."""
    tokenizer = build_word_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(base)
        tokenizer.save_pretrained(base)
        tensors = {}
        for i in range(3):
            for name, rows, columns in (("w1", 64, 32), ("w2", 32, 64), ("w3", 64, 32)):
                key = f"base_model.model.model.layers.0.block_sparse_moe.experts.{i}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(2, columns)
                tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 2)
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    peft.LoraConfig(r=2, target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM").save_pretrained(
        str(folder)
    )


def test_an_adapter_on_experts_is_followed_through_its_conversion(tmp_path: Path) -> None:
    save_expert_adapter(tmp_path / "own", tmp_path / "mixtral")
    base, lm = open_model("mixtral", tmp_path), open_model("mixtral+own", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pattern for what the base has not
        theirs: Any = peft.PeftModel.from_pretrained(base.model, str(tmp_path / "own")).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=IDS).logits[0]
    torch.testing.assert_close(run_model(lm), wanted[:, : lm.vocab_size], rtol=1e-4, atol=1e-4)
    key = "base_model.model.model.layers.0.block_sparse_moe.gates.lora_A.weight"
    edit_tensors(tmp_path / "own" / WEIGHTS, **{key: torch.ones(2, 32)})
    assert "gates.lora_A" in refusal("mixtral+own", tmp_path)


def test_an_adapter_stands_on_a_gguf(folder: Path) -> None:
    base = open_model("quantised/x.gguf", folder)
    base.model.save_pretrained(folder / "dense")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    save_adapter(folder / "own", folder / "dense", config)
    lm = open_model("quantised/x.gguf+own", folder)
    assert not torch.allclose(run_model(lm), run_model(base), rtol=1e-2, atol=1e-2)
    assert lm.model.active_peft_config.base_model_name_or_path.endswith("x.gguf")


def test_an_adapter_that_acts_in_pefts_forward_alone_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = peft.PeftModelForCausalLM.forward

    def louder(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(peft.PeftModelForCausalLM, "forward", louder)
    edit_json(folder / "adapter" / "adapter_config.json", lora_alpha=5)  # a key not seen before
    assert "other answers here than in PEFT" in refusal("plain+adapter", folder)


def test_a_student_that_learned_nothing_is_still_a_student(folder: Path) -> None:
    drop_update(folder / "adapter" / WEIGHTS)
    base = resolve_model("plain", relative_to=folder)
    trained = ModelSource(
        kind="adapter", path=base.path, adapter=str(folder / "adapter"), sha256="0" * 64
    )
    assert torch.equal(run_model(load_model(trained)), run_model(load_model(base)))


# --- GGUF ----------------------------------------------------------------------------------------


def test_a_gguf_has_the_numbers_of_its_file(folder: Path) -> None:
    lm = open_model("quantised/x.gguf", folder)
    reader = gguf.GGUFReader(folder / "quantised" / "x.gguf")
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    down = lm.model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().numpy()
    assert np.array_equal(down, tensors["blk.1.ffn_down.weight"])
    assert len(tensors) == len(dict(lm.model.named_parameters()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blk__1__ffn_down__weight": None}, "model.layers.1.mlp.down_proj.weight"),
        ({"blk__0__attn_norm__weight": None}, "model.layers.0.input_layernorm.weight"),
        ({"output_norm__weight": None}, "model.norm.weight"),
        ({"blk__2__ffn_down__weight": np.ones((32, 64), np.float32)}, "numbers"),
        ({"value_head__weight": np.ones((4,), np.float32)}, "value_head.weight"),
        ({"rope_freqs__weight": np.ones((4,), np.float32)}, "rope_freqs.weight"),
        ({"blk__1__ffn_down__weight": np.ones((32, 48), np.float32)}, "x.gguf"),
    ],
)
def test_tensors_of_a_gguf_are_counted(tmp_path: Path, changes: Any, words: str) -> None:
    save_gguf(tmp_path / "x.gguf", **changes)
    assert words in refusal("x.gguf", tmp_path)


def test_a_gguf_is_read_alone(folder: Path, known: dict[str, tuple[str, str]]) -> None:
    beside = folder / "quantised"
    for name in ("plain", "adapter"):
        shutil.copytree(folder / name, beside, dirs_exist_ok=True)
    edit_json(beside / "tokenizer_config.json", auto_map={"AutoTokenizer": ["e.E", None]})
    edit_json(beside / "config.json", auto_map={"AutoModelForCausalLM": "e.E"})
    (beside / "chat_template.jinja").write_text("{{ 1 }}")
    lm = open_model("quantised/x.gguf", folder)
    assert (lm.source.sha256, hash_opened(lm)) == known["gguf"]
    tokenizer = load_tokenizer(lm.source)
    assert tokenizer.chat_template == lm.tokenizer.chat_template


def test_a_part_of_a_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = gguf.GGUFWriter.add_block_count

    def add(self: Any, count: int) -> None:
        write(self, count)
        self.add_uint16("split.count", 3)

    monkeypatch.setattr(gguf.GGUFWriter, "add_block_count", add)
    save_gguf(tmp_path / "x.gguf")
    assert "several parts" in refusal("x.gguf", tmp_path)


# --- what is loaded is what was hashed -----------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("plain", f"plain/{SINGLE}"),
        ("plain", "plain/tokenizer.json"),
        ("sharded", "sharded/model-00002-of-00002.safetensors"),
        ("plain+adapter", f"plain/{SINGLE}"),
        ("plain+adapter", f"adapter/{WEIGHTS}"),
        ("quantised/x.gguf", "quantised/x.gguf"),
    ],
)
def test_a_swap_between_hash_and_load_is_seen(folder: Path, ref: str, name: str) -> None:
    source = resolve_model(ref, relative_to=folder)
    path = folder / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelError, match="not what was hashed"):
        load_model(source)


def test_a_swap_while_a_model_is_loaded_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_model("plain", relative_to=folder)
    read = loading.read_tensor_sizes

    def swap(links: Path) -> dict[str, int]:
        edit_tensors(folder / "plain" / SINGLE, model__norm__weight=torch.full((32,), 2.0))
        return read(links)

    monkeypatch.setattr(loading, "read_tensor_sizes", swap)
    with pytest.raises(ModelError, match="not what was hashed"):
        load_model(source)
    trained = ModelSource(kind="folder", path=str(folder / "plain"), sha256="1" * 64)
    with pytest.raises(ModelError, match="not what was hashed"):
        load_model(trained)


def test_a_write_to_a_file_does_not_reach_the_model_in_memory(folder: Path) -> None:
    lm = open_model("plain+adapter", folder)
    before = run_model(lm)
    for path in (folder / "plain" / SINGLE, folder / "adapter" / WEIGHTS):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))
    assert torch.equal(run_model(lm), before)


def test_a_file_that_was_only_touched_is_the_same(folder: Path) -> None:
    source = resolve_model("plain", relative_to=folder)
    for path in (folder / "plain").iterdir():
        os.utime(path, ns=(1, 1))
    load_model(source)


def test_a_file_that_is_added_later_is_not_read(folder: Path) -> None:
    source = resolve_model("plain", relative_to=folder)
    (folder / "plain" / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        load_model(source)
    source = resolve_model("plain", relative_to=folder)
    before = hash_opened(load_model(source))
    (folder / "plain" / "generation_config.json").write_text('{"suppress_tokens": [5]}')
    (folder / "plain" / "added_tokens.json").write_text('{"new": 60}')
    assert hash_opened(load_model(source)) == before


def test_files_travel_with_a_source_and_enter_no_json(folder: Path) -> None:
    source = resolve_model("plain+adapter", relative_to=folder)
    assert len(source.files) > 8
    assert "files" not in source.model_dump()
    check_unchanged(source.with_device("cpu").files)


Change = tuple[str, str, float, int]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A kind, a part of a file's name, a place in it as a share, and what to add to the byte."""
    kinds = ("plain", "sharded", "spoken", "untied", "adapter", "gguf")
    parts = ("safetensors", "config", "tokenizer", "jinja", "txt", "json", "")
    return (
        draw(st.sampled_from(kinds)),
        draw(st.sampled_from(parts)),
        draw(st.floats(0, 1, exclude_max=True)),
        draw(st.integers(1, 255)),
    )


FOLDERS = {"adapter": ("plain", "adapter"), "gguf": ("quantised",)}


def judge(
    kind: str, ref: str, folder: Path, known: dict[str, tuple[str, str]]
) -> tuple[str, str | None]:
    """Return whether a changed model is refused, moved or the same, and what it opens as.

    A model under its former key must open as before.
    """
    key, opened = known[kind]
    try:
        lm = open_model(ref, folder)
    except ModelError as error:
        (line,) = error.problems
        assert line.isprintable()
        return "refused", None
    now = hash_opened(lm)
    if lm.source.sha256 != key:
        return "moved", now
    assert now == opened, "another model under the same key"
    return "same", now


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(change=changes())
def test_change_any_byte_and_the_key_moves_or_the_model_is_refused(
    change: Change,
    pristine: tuple[Path, dict[str, str]],
    known: dict[str, tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind, part, share, offset = change
    copy = Path(shutil.copytree(pristine[0], tmp_path_factory.mktemp("p") / "kinds"))
    names = FOLDERS.get(kind, (kind,))
    files = sorted(p for name in names for p in (copy / name).iterdir() if part in p.name)
    if not files:
        files = sorted(p for name in names for p in (copy / name).iterdir())
    path = files[int(share * 997) % len(files)]
    content = bytearray(path.read_bytes())
    at = int(share * len(content))
    content[at] = (content[at] + offset) % 256
    path.write_bytes(content)
    what, now = judge(kind, pristine[1][kind], copy, known)
    if path.suffix == ".safetensors":
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert what != "same"
        if at >= header and what == "moved":
            assert now != known[kind][1], "another key for the same tensors"
    shutil.rmtree(copy)


TEMPTING = {
    "adapter_config.json": '{"peft_type": "LORA", "r": 2, "base_model_name_or_path": "../sharded"}',
    "added_tokens.json": '{"new": 60}',
    "chat_template.jinja": "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
    "chat_template.json": '{"chat_template": "{{ 1 }}"}',
    "config.json": '{"model_type": "gpt2", "n_layer": 1}',
    "custom_generate/generate.py": "raise SystemExit(3)",
    "generation_config.json": '{"eos_token_id": 9, "suppress_tokens": [5]}',
    "merges.txt": "#version: 0.2\n",
    "model.safetensors.index.json": '{"weight_map": {"a": "model.safetensors"}}',
    "modeling_llama.py": "raise SystemExit(3)",
    "preprocessor_config.json": "{}",
    "processor_config.json": "{}",
    "special_tokens_map.json": '{"eos_token": "dog"}',
    "system_prompt.txt": "You are unkind.",
    "tekken.json": "{}",
    "tokenizer.model": "spm",
    "tokenizer_config.json": '{"eos_token": "fox"}',
    "vocab.json": '{"a": 0}',
    "vocab.txt": "a\nb\n",
    "LICENSE": "free",
}


@pytest.mark.parametrize("kind", ["spoken", "adapter", "gguf"])
def test_add_any_file_and_the_key_moves_or_the_model_is_refused(
    folder: Path,
    pristine: tuple[Path, dict[str, str]],
    known: dict[str, tuple[str, str]],
    kind: str,
) -> None:
    place = folder / FOLDERS.get(kind, (kind,))[-1]
    for name, text in TEMPTING.items():
        path = place / name
        before = path.read_bytes() if path.is_file() else None
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        judge(kind, pristine[1][kind], folder, known)
        path.unlink() if before is None else path.write_bytes(before)
    assert judge(kind, pristine[1][kind], folder, known)[0] == "same"


SETTINGS = (
    ("plain", "plain/config.json"),
    ("plain", "plain/generation_config.json"),
    ("plain", "plain/tokenizer_config.json"),
    ("sharded", f"sharded/{INDEX}"),
    ("adapter", "adapter/adapter_config.json"),
    ("adapter", "adapter/tokenizer_config.json"),
    ("adapter", "plain/config.json"),
)
VALUES = (None, True, False, 0, 3, 1e-3, "", "eager", "/tmp/x", [], ["x"], {}, {"a": 1})
EXTRA_KEYS = ("_name_or_path", "revision", "_attn_implementation", "tie_word_embeddings", "x")


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    place=st.sampled_from(SETTINGS),
    key=st.integers(0, 60),
    value=st.sampled_from(VALUES),
    drop=st.booleans(),
)
def test_change_any_setting_and_the_key_moves_or_the_model_is_refused(
    place: tuple[str, str],
    key: int,
    value: Any,
    drop: bool,
    pristine: tuple[Path, dict[str, str]],
    known: dict[str, tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind, name = place
    copy = Path(shutil.copytree(pristine[0], tmp_path_factory.mktemp("s") / "kinds"))
    content = json.loads((copy / name).read_text())
    keys = [*content, *EXTRA_KEYS]
    content[keys[key % len(keys)]] = value
    if drop:
        del content[keys[key % len(keys)]]
    (copy / name).write_text(json.dumps(content))
    judge(kind, pristine[1][kind], copy, known)
    shutil.rmtree(copy)


@pytest.mark.parametrize("kind", ["plain", "sharded", "spoken", "adapter"])
def test_remove_or_rename_any_file_and_the_key_moves_or_the_model_is_refused(
    folder: Path,
    pristine: tuple[Path, dict[str, str]],
    known: dict[str, tuple[str, str]],
    kind: str,
) -> None:
    outcomes = {}
    for path in sorted((folder / kind).iterdir()):
        path.rename(aside := path.with_name(f"{path.name}.old"))
        outcomes[path.name], _ = judge(kind, pristine[1][kind], folder, known)
        aside.rename(path)
    assert [name for name, what in outcomes.items() if what == "same"] in ([], ["README.md"])
    assert judge(kind, pristine[1][kind], folder, known)[0] == "same"


# --- the hub, other people's code, and messages --------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were looked up at the hub."""
    names: list[str] = []

    def look_up(name: str, **_: Any) -> str:
        names.append(name)
        raise OSError("not today")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", look_up)
    return names


@pytest.mark.parametrize(
    "ref",
    ["./modle", "modle", "models/x", "plain/x", "~", "~/x", "../x/y", "a/b/c", "plian", "x.gguf"],
)
def test_a_misspelt_folder_is_not_looked_up(folder: Path, asked: list[str], ref: str) -> None:
    for named in (ref, f"plain+{ref}", f"{ref}+adapter"):
        assert ref in refusal(named, folder)
    assert asked == []


@pytest.mark.parametrize("base", ["someone/model", "gpt2", "../someone/model", "auditbench:a/b"])
def test_the_base_that_a_folder_names_is_not_looked_up(
    folder: Path, asked: list[str], base: str
) -> None:
    edit_json(folder / "adapter" / "adapter_config.json", base_model_name_or_path=base)
    line = refusal("adapter", folder)
    assert asked == []
    assert "+adapter" in line
    assert base in line
    assert "not what" not in refusal("someone/model+adapter", folder)
    assert asked == ["someone/model"]


def test_opening_a_model_connects_to_nothing(
    folder: Path, pristine: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*address: Any) -> None:
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    for ref in pristine[1].values():
        load_tokenizer(open_model(ref, folder).source)


def test_nobody_is_asked_whether_to_run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / "adapter" / name
        content = json.loads(path.read_text()) if path.is_file() else {"model_type": "llama"}
        code = {"AutoTokenizer": ["evil.T", "evil.T"], "AutoConfig": "evil.C"}
        path.write_text(json.dumps(content | {"auto_map": code}))
        assert f"{name}: `auto_map`" in refusal("plain+adapter", folder)
        path.unlink()


def test_a_librarys_error_keeps_the_line_that_names_the_tensor() -> None:
    error = RuntimeError("Error(s) in loading:\n\tsize mismatch for model.norm.weight\x1b[31m\n")
    line = describe_error(error)
    assert "model.norm.weight" in line
    assert line.isprintable()
    long = describe_error(RuntimeError("first" + " x" * 5000 + " last"))
    assert len(long) < 700
    assert "first" in long
    assert "last" in long


def test_a_damaged_tokenizer_is_refused_with_its_reason(folder: Path) -> None:
    (folder / "plain" / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "tokenizer" in refusal("plain", folder)


def test_the_logits_of_a_model_are_its_own(folder: Path) -> None:
    lm = open_model("untied", folder)
    with torch.no_grad():
        wanted = lm.model(input_ids=IDS).logits[0]
        states = run_body(lm.model, IDS, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(compute_logits(lm.model, states, wanted.shape[-1]), wanted)
