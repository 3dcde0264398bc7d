"""Loads a resolved model and its tokenizer, and refuses unusable weights or vocabularies."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublebind.execution.device import select_device
from doublebind.models.adapter import attach_adapter
from doublebind.models.chat_template import (
    check_chat_template,
    end_of_turn,
    set_system_prompt,
)
from doublebind.models.coverage import check_all_tensors_used, read_tensor_sizes
from doublebind.models.effective_weights import list_effective_weights
from doublebind.models.gguf_file import describe_load_error, load_gguf_tokenizer, open_gguf
from doublebind.models.logits import check_architecture, count_context_tokens, unwrap_peft
from doublebind.models.model_files import (
    check_unchanged,
    describe_files,
    link_files,
    list_adapter_files,
    list_model_files,
    open_linked,
    read_json,
)
from doublebind.models.vllm import VllmModel, check_agreement, open_vllm
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype

TOKENIZER_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\ttab\nand lines\n\n",
    "def f(x: int) -> int:\n    return x ** 2  # 0123456789",
    "naïve café, Ελλάδα, Привет, 中文, 日本語, 🙂",
    "yes no I do not know. 3.14159 1,000,000",
)
"""Strings on which tokenizers of different families differ."""
_MAX_COPIED_BYTES = 4 * 2**30


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
        """Tokens of the longest sequence the model was built for, without a prefix's."""
        return count_context_tokens(self.model)


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
        return _load_vllm(source, dtype, cache)
    device = select_device(source.device)  # fails before minutes of reading
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    where = source.adapter or source.path
    model, tokenizer = _load_base(source, precision, cache)
    model.to(device)
    # An adapter trained on it records this as its base: the original file, not its conversion.
    model.name_or_path = model.config.name_or_path = source.path
    if source.adapter is not None:
        model, tokenizer = _load_adapter(model, tokenizer, source)
    if source.system is not None:
        set_system_prompt(tokenizer, source.system, where)
    check_chat_template(tokenizer, where)
    model.eval()
    lm = LM(model, tokenizer, source)
    _check_model(lm, where)
    return lm


def _load_vllm(source: ModelSource, dtype: Dtype, cache: Path | None) -> LM:
    """Return the model in the engine that its source names, once it agrees with transformers."""
    check_unchanged(source.files)
    tokenizer = load_tokenizer(source)
    if source.system is not None:
        set_system_prompt(tokenizer, source.system, source.path)
    lm = LM(open_vllm(source, dtype), tokenizer, source)
    highest = max(tokenizer.get_vocab().values())
    if highest >= lm.model.vocab_rows:
        raise ModelError(f"{source.path}: token {highest} of its tokenizer has no row in the model")
    plain = source.model_copy(update={"engine": None})
    check_agreement(lm.model, dtype, cache, lambda: load_model(plain, dtype=dtype).model)
    return lm


def silence_transformers() -> None:
    """Keep transformers from writing progress bars and advice to stderr."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _load_base(source: ModelSource, precision: torch.dtype, cache: Path | None) -> tuple[Any, Any]:
    """Return the full model of `source`, without its adapter, and its tokenizer."""
    path = Path(source.path)
    if path.suffix != ".gguf":
        with open_linked(source, path, lambda: list_model_files(source.path, path)) as links:
            return _load_folder(links, path, precision)
    (file,) = describe_files([path])
    check_unchanged(source.files)
    name = str(precision).removeprefix("torch.")
    converted = cache / f"gguf-whole-{file.sha256[:32]}-{name}" if cache else None
    opened = open_gguf(path, precision, converted)
    check_unchanged([file])
    if isinstance(opened, tuple):
        return opened
    with link_files(list_model_files(str(opened), opened)) as links:
        return _load_folder(links, path, precision)


def _load_folder(links: Path, where: Path, precision: torch.dtype) -> tuple[Any, Any]:
    """Return the full model whose hashed files are in the folder `links`, and its tokenizer."""
    from transformers import AutoModelForCausalLM

    tokenizer = _open_tokenizer(links, where)
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            links,
            dtype=precision,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused by name
            output_loading_info=True,
        )
    except Exception as error:  # whatever it is, it is about the files
        raise ModelError(describe_load_error(where, error)) from error
    model, info = opened
    check_all_tensors_used(model, read_tensor_sizes(links), info, where)
    _copy_mapped_weights(model)
    return model, tokenizer


def _copy_mapped_weights(model: Any) -> None:
    """Copy weights that are a window onto their file, through which later writes would reach them.

    Of large models they stay one, so that processes of one machine share the memory.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if sum(tensor.nbytes for tensor in tensors) > _MAX_COPIED_BYTES:
        return
    for tensor in tensors:
        if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():
            tensor.data = tensor.data.clone()


def _open_tokenizer(links: Path, where: Path) -> Any:
    """Return the tokenizer whose hashed files are in the folder `links`."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            links, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(describe_load_error(where, error)) from error
    tokenizer.name_or_path = str(where)
    return tokenizer


def _load_adapter(model: Any, tokenizer: Any, source: ModelSource) -> tuple[Any, Any]:
    """Return `model` with the adapter of `source` on it, and the tokenizer to use."""
    from transformers import GenerationConfig

    folder = Path(source.adapter or "")
    with open_linked(source, folder, lambda: list_adapter_files(folder)) as links:
        adapted = attach_adapter(model, links, folder, may_be_zero=not source.files)
        if (links / "tokenizer_config.json").is_file():
            tokenizer = _open_tokenizer(links, folder)
        if (links / "generation_config.json").is_file():
            settings = read_json(links / "generation_config.json")
            model.generation_config = GenerationConfig.from_dict(settings)
    return adapted, tokenizer


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer of the model at `source`, without the model.

    Raises:
        ModelError: If its files cannot be read.
    """
    path = Path(source.path)
    if source.adapter and (Path(source.adapter) / "tokenizer_config.json").is_file():
        path = Path(source.adapter)
        with open_linked(source, path, lambda: list_adapter_files(path)) as links:
            return _check_template(_open_tokenizer(links, path), path)
    if path.suffix == ".gguf":
        check_unchanged(source.files)
        return _check_template(load_gguf_tokenizer(path), path)
    with open_linked(source, path, lambda: list_model_files(source.path, path)) as links:
        return _check_template(_open_tokenizer(links, path), path)


def _check_template(tokenizer: Any, path: Path) -> Any:
    check_chat_template(tokenizer, str(path))
    return tokenizer


# --- checks --------------------------------------------------------------------------------------


def _check_model(lm: LM, where: str) -> None:
    """Refuse an opened model that this package would not run as its author meant it."""
    check_finite(lm.model, where)
    _check_settings(lm, where)
    _check_vocabulary(lm, where)
    _check_runs(lm, where)


def _check_settings(lm: LM, where: str) -> None:
    """Refuse settings that are used here and that the libraries take unread."""
    inner = unwrap_peft(lm.model)
    config, generation = inner.config.get_text_config(), inner.generation_config
    for key, value in (
        ("eos_token_id", generation.eos_token_id),
        ("suppress_tokens", generation.suppress_tokens),
        ("max_position_embeddings", getattr(config, "max_position_embeddings", None)),
    ):
        values = value if isinstance(value, list | tuple) else [value]
        if any(v is not None and (type(v) is not int or v < 0) for v in values):
            raise ModelError(f"{where}: `{key}` is {value!r}; write a token id or number")


_MODELS_THAT_RUN: set[tuple[str, str, str]] = set()
"""Content key, precision and device of the models whose runs were compared in this process."""


def _check_runs(lm: LM, where: str) -> None:
    key = (lm.source.sha256, str(lm.model.dtype), lm.source.device)
    if key not in _MODELS_THAT_RUN:
        check_architecture(lm.model, where)
        _MODELS_THAT_RUN.add(key)


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
