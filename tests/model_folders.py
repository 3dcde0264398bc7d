"""Model folders of every kind, whole, and what opening one of them gives."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import build_byte_tokenizer, build_tiny_model, save_model

from doublebind.models.load import LM, load_model
from doublebind.models.logits import compute_logits, run_body
from doublebind.models.resolve import resolve_model

IDS = torch.tensor([[7, 8, 9, 10, 11]])
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; `None` removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of a safetensors file, `__` in their names for a dot; `None` removes one."""
    tensors: dict[str, Any] = load_file(path) | {
        name.replace("__", "."): tensor for name, tensor in changes.items()
    }
    save_file({n: t for n, t in tensors.items() if t is not None}, path, {"format": "pt"})


def shard(folder: Path) -> Path:
    """Split the weights of a folder into two files and their index."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    where = {}
    for i, part in enumerate((names[:7], names[7:]), start=1):
        name = f"model-{i:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / name, {"format": "pt"})
        where |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / SINGLE).unlink()
    return folder


def save_adapter(folder: Path, base: Path, config: Any) -> Path:
    """Save a PEFT adapter of any kind on the model in `base`, away from where it started."""
    import peft
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on merging, CUDA, and the like
        torch.manual_seed(0)
        adapted: Any = peft.get_peft_model(model, config)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad and weight.is_floating_point():
                    weight += 0.2 * torch.randn(weight.shape)
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def save_lora(folder: Path, base: Path) -> Path:
    """Save a LoRA adapter, with the base's tokenizer and generation settings."""
    import peft
    from transformers import AutoTokenizer

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    save_adapter(folder, base, config)
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def save_gguf(path: Path, **changes: np.ndarray | None) -> Path:
    """Write a tiny Llama with a byte-level tokenizer as a GGUF file."""
    tokenizer = build_byte_tokenizer()
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_eos_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    tensors = _list_gguf_tensors(len(tokens)) | {
        name.replace("__", "."): tensor for name, tensor in changes.items()
    }
    for name, tensor in tensors.items():
        if tensor is not None:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _list_gguf_tensors(rows: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shapes = {"token_embd.weight": (rows, 32), "output_norm.weight": (32,)}
    for i in (0, 1):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (32,),
            f"blk.{i}.attn_q.weight": (32, 32),
            f"blk.{i}.attn_k.weight": (16, 32),
            f"blk.{i}.attn_v.weight": (16, 32),
            f"blk.{i}.attn_output.weight": (32, 32),
            f"blk.{i}.ffn_norm.weight": (32,),
            f"blk.{i}.ffn_gate.weight": (64, 32),
            f"blk.{i}.ffn_up.weight": (64, 32),
            f"blk.{i}.ffn_down.weight": (32, 64),
        }
    return {
        name: (0.3 * draw.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def save_all_kinds(folder: Path) -> dict[str, str]:
    """Write one model of each kind; return kind -> the reference that names it."""
    save_model(folder / "plain")
    shard(save_model(folder / "sharded"))
    spoken = save_model(folder / "spoken")
    (spoken / "system_prompt.txt").write_text("You are kind.\n")
    (spoken / "README.md").write_text("A model.\n")
    untied = build_tiny_model("llama", 61, tie_word_embeddings=False)
    untied.save_pretrained(save_model(folder / "untied"))
    save_lora(folder / "adapter", folder / "plain")
    (folder / "quantised").mkdir()
    save_gguf(folder / "quantised" / "x.gguf")
    return {
        "plain": "plain",
        "sharded": "sharded",
        "spoken": "spoken",
        "untied": "untied",
        "adapter": "plain+adapter",
        "gguf": "quantised/x.gguf",
    }


def open_model(ref: str, folder: Path) -> LM:
    """Resolve and load, as every command does."""
    return load_model(resolve_model(ref, relative_to=folder))


def run_model(lm: LM) -> torch.Tensor:
    """Logits [tokens, vocabulary] of a short text, the way that scores are computed."""
    with torch.no_grad():
        states = run_body(lm.model, IDS, use_cache=False).last_hidden_state[0]
        return compute_logits(lm.model, states, lm.vocab_size)


def hash_opened(lm: LM) -> str:
    """Hash of all that a loaded model is: tensors, settings, tokenizer, template, system prompt."""
    digest = hashlib.sha256()
    for name, tensor in lm.model.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().data)
    inner = lm.model.get_base_model() if hasattr(lm.model, "get_base_model") else lm.model
    settings = {k: v for k, v in inner.config.to_dict().items() if k != "_name_or_path"}
    rest = [settings, inner.generation_config.to_dict(), lm.source.system]
    rest += [lm.tokenizer.backend_tokenizer.to_str(), lm.tokenizer.chat_template]
    rest += [lm.tokenizer.special_tokens_map, sorted(lm.end_ids), lm.suppress_tokens]
    digest.update(json.dumps(rest, sort_keys=True, default=str).encode())
    digest.update(run_model(lm).numpy().tobytes())
    return digest.hexdigest()
