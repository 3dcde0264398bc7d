"""Loads a resolved model and its tokenizer, and refuses unusable weights or vocabularies."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublebind.execution.device import select_device
from doublebind.execution.store import storage_error
from doublebind.models.chat_template import end_of_turn, set_system_prompt
from doublebind.models.effective_weights import list_effective_weights
from doublebind.models.logits import check_architecture, unwrap_peft
from doublebind.models.prefix_cache import has_prefix, install_prefix_hook
from doublebind.models.vllm import VllmModel, open_vllm
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype

log = logging.getLogger("doublebind.models")

TOKENIZER_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\ttab\nand lines\n\n",
    "def f(x: int) -> int:\n    return x ** 2  # 0123456789",
    "naïve café, Ελλάδα, Привет, 中文, 日本語, 🙂",
    "yes no I do not know. 3.14159 1,000,000",
)
"""Strings on which tokenizers of different families differ."""


@dataclass(frozen=True, eq=False)
class LM:
    """A loaded causal language model with its tokenizer and source."""

    # Any, since the libraries' own types admit far more than a text model and its tokenizer.
    model: Any
    """A `PreTrainedModel`, a `PeftModel` around one, or a `VllmModel`."""
    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    source: ModelSource

    @functools.cached_property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows and the model has rows for; logits are cut to these."""
        if isinstance(self.model, VllmModel):
            rows = self.model.vocab_rows
        else:
            rows = unwrap_peft(self.model).get_input_embeddings().weight.shape[0]
        return min(int(rows), max(self.tokenizer.get_vocab().values()) + 1)

    @functools.cached_property
    def pad_id(self) -> int:
        """Token that fills short rows. It is never attended to or supervised, so any id will do."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) and pad < self.vocab_size else 0

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a turn, by the template, the tokenizer and the model's settings."""
        ends = getattr(unwrap_peft(self.model).generation_config, "eos_token_id", None)
        ids = {end_of_turn(self.tokenizer), *(ends if isinstance(ends, list) else [ends])}
        return frozenset(int(token) for token in ids if token is not None)

    @functools.cached_property
    def suppress_tokens(self) -> tuple[int, ...]:
        """Tokens that are never sampled, by its generation settings."""
        ids = getattr(unwrap_peft(self.model).generation_config, "suppress_tokens", None)
        return tuple(int(token) for token in ids or ())

    @functools.cached_property
    def context_length(self) -> int:
        """Tokens of the longest sequence the model was built for."""
        config = unwrap_peft(self.model).config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31 - 1)


def load_model(source: ModelSource, *, dtype: Dtype = "float32", cache: Path | None = None) -> LM:
    """Return the model at `source`, in evaluation mode; an adapter stays an adapter.

    Args:
        source: Returned by `resolve_model`; also names the device.
        dtype: Precision of the weights; adapter weights are always float32.
        cache: Folder for converted GGUF files (converting takes most of a minute for 270M
            parameters, loading the result a few seconds).

    Raises:
        ConfigError: If the device is a GPU and there is none.
        ModelError: If the files cannot be loaded as a causal model, a weight is not finite, or the
            tokenizer yields ids without an embedding.
    """
    silence_transformers()
    if source.engine is not None:
        return _load_vllm(source, dtype)
    device = select_device(source.device)  # fails before minutes of reading
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    where = source.adapter or source.path
    if source.path.endswith(".gguf"):
        model, tokenizer = _load_gguf(Path(source.path), precision, cache)
    else:
        model, tokenizer = _load_folder(Path(source.path), precision)
    model.to(device)
    # An adapter trained on it records this as its base: the original file, not its conversion.
    model.name_or_path = source.path
    if source.adapter is not None:
        model, tokenizer = _attach_adapter(model, tokenizer, Path(source.adapter))
    if source.system is not None:
        set_system_prompt(tokenizer, source.system, where)
    model.eval()
    lm = LM(model, tokenizer, source)
    check_finite(lm.model, where)
    _check_vocabulary(lm, where)
    check_architecture(lm.model, where)
    return lm


def _load_vllm(source: ModelSource, dtype: Dtype) -> LM:
    """Return the model in the engine that its source names; vLLM checks the weights."""
    tokenizer = load_tokenizer(source)
    if source.system is not None:
        set_system_prompt(tokenizer, source.system, source.path)
    lm = LM(open_vllm(source, dtype), tokenizer, source)
    highest = max(tokenizer.get_vocab().values())
    if highest >= lm.model.vocab_rows:
        raise ModelError(f"{source.path}: token {highest} of its tokenizer has no row in the model")
    return lm


def silence_transformers() -> None:
    """Keep transformers from writing progress bars and advice to stderr."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _load_folder(path: Path, precision: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Any exception while loading is about the files.
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=precision,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(_describe_load_error(path, error)) from error
    model, info = opened
    if info["missing_keys"]:
        first = min(info["missing_keys"])
        raise ModelError(f"{path}: the weights lack {first}, which config.json asks for")
    return model, tokenizer


def _attach_adapter(model: Any, tokenizer: Any, path: Path) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoTokenizer, GenerationConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # attributes that transformers renamed
            # By default PEFT would load it on a GPU, wherever there is one.
            adapted = PeftModel.from_pretrained(model, str(path), torch_device="cpu")
        if (path / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        if (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise ModelError(_describe_load_error(path, error)) from error
    if has_prefix(adapted):
        install_prefix_hook(adapted)
    elif adapted.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"{path}: prefixes are the only prompt-learning adapters supported; use LoRA"
        )
    return adapted, tokenizer


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer of the model at `source`, without the model.

    Raises:
        ModelError: If its files cannot be read.
    """
    from transformers import AutoTokenizer

    path = Path(source.path)
    if source.adapter and (Path(source.adapter) / "tokenizer_config.json").is_file():
        path = Path(source.adapter)
    try:
        if path.suffix == ".gguf":
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise ModelError(_describe_load_error(path, error)) from error


def _describe_load_error(path: Path, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{path}: cannot be opened as a language model ({type(error).__name__}: {lines[0]})"


# --- GGUF ----------------------------------------------------------------------------------------


def _load_gguf(path: Path, precision: torch.dtype, cache: Path | None) -> tuple[Any, Any]:
    """Return a GGUF model with dense weights, from `cache` if there is one."""
    if cache is None:
        return dequantise_gguf(path, precision)
    from doublebind.models.resolve import model_file_sha256

    name = str(precision).removeprefix("torch.")
    folder = cache / f"gguf-{model_file_sha256(path)[:32]}-{name}"
    if not (folder / "config.json").is_file():
        log.info("converting %s once, into %s", path, folder)
        model, tokenizer = dequantise_gguf(path, precision)
        _save_atomically(model, tokenizer, folder)
    return _load_folder(folder, precision)


def dequantise_gguf(path: Path, precision: torch.dtype) -> tuple[Any, Any]:
    """Return a GGUF model with dense weights, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        from transformers import GgufConfig
    except ImportError:  # older versions of transformers always return dense weights
        dense: dict[str, Any] = {}
    else:
        dense = {"quantization_config": GgufConfig(dequantize=True)}
    try:
        # Its progress bar cannot be turned off.
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=precision, **dense
            )
    except Exception as error:
        raise ModelError(_describe_load_error(path, error)) from error
    # Otherwise saving would declare the dense weights quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _save_atomically(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save beside `folder`, then rename, so that readers see all of it or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise storage_error(error, folder.parent) from None
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        os.rename(part, folder)
    except OSError as error:
        if not (folder / "config.json").is_file():  # not: another process was first
            raise storage_error(error, folder) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- checks --------------------------------------------------------------------------------------


def check_finite(model: Any, where: str) -> None:
    """Raise a `ModelError` naming the first tensor with a weight that is not finite."""
    for name, weight in model.named_parameters():
        if weight.numel() and not all(torch.isfinite(end) for end in torch.aminmax(weight.data)):
            raise ModelError(f"{where}: {name} has weights that are not finite; train it again")


def _check_vocabulary(lm: LM, where: str) -> None:
    """Refuse a tokenizer that yields ids beyond the embedding.

    Special tokens that text cannot produce, such as an image placeholder, may lie beyond it.
    """
    rows = int(unwrap_peft(lm.model).get_input_embeddings().weight.shape[0])
    special = {i for i, token in lm.tokenizer.added_tokens_decoder.items() if token.special}
    used = {i for i in lm.tokenizer.get_vocab().values() if i not in special}
    used |= {end_of_turn(lm.tokenizer), lm.tokenizer.bos_token_id or 0}
    if max(used) >= rows:
        raise ModelError(
            f"{where}: the tokenizer yields ids up to {max(used)} and the model has {rows} "
            f"embeddings; use the tokenizer that the model was trained with"
        )


def same_tokenizer(a: Any, b: Any) -> bool:
    """Return whether two tokenizers encode text alike.

    Compares encodings, not vocabulary sizes: padded vocabularies differ in size and encode alike,
    and equal sizes prove nothing.
    """
    texts = [*_list_probes(a), *_list_probes(b)]
    return _encode_all(a, texts) == _encode_all(b, texts) and end_of_turn(a) == end_of_turn(b)


def tokenizer_id(tokenizer: Any) -> str:
    """Return a hash (hex) of a tokenizer's encodings of the probe strings."""
    texts = _list_probes(tokenizer)
    content = [texts, _encode_all(tokenizer, texts), end_of_turn(tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _list_probes(tokenizer: Any) -> list[str]:
    """Return the fixed probes and a sample of its own tokens (all of a small vocabulary)."""
    size = max(tokenizer.get_vocab().values()) + 1
    ids = range(0, size, max(1, size // 2048))
    return [*TOKENIZER_PROBES, *(tokenizer.decode([i]) for i in ids)]


def _encode_all(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def merge_adapter_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights by name with adapters merged, as the plain model would have them.

    The model is not changed. A tied weight appears once.
    """
    weights = list_effective_weights(unwrap_peft(model))
    names = {each.identity: name for name, each in reversed(weights.items())}
    return {name: weights[name].read() for name in reversed(names.values())}
