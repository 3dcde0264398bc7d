"""Tells whether two models have the same weights, wherever their files are; loads none of them."""

from __future__ import annotations

import json
from pathlib import Path

from doublebind.models.model_files import describe_files
from doublebind.schema.errors import ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource

_FACTORS = (("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B"))
"""Names of the two low-rank factors of an update, as PEFT writes them."""
_NO_CHANGE = frozenset(b"\x00\x80")
"""Bytes of zeros, of either sign and in any floating-point format."""


def identify_weights(source: ModelSource) -> str:
    """Return a hash that local models of equal weights and system prompt share.

    Files count by their content, whatever they are called; configuration, tokenizer and chat
    template do not count. An adapter whose update is zero counts as its base.
    """
    weights = _hash_weights(Path(source.path))
    if source.adapter is not None and not _is_zero_update(Path(source.adapter)):
        adapter = Path(source.adapter)
        weights = [*weights, "adapter", *_hash_weights(adapter), _read_scale(adapter)]
    return content_hash([weights, source.system])


def _list_weights(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _hash_weights(path: Path) -> list[str]:
    return sorted(file.sha256 for file in describe_files(_list_weights(path)))


def _read_scale(adapter: Path) -> str:
    """Return the settings by which an adapter's tensors are multiplied."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    names = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    return json.dumps([config.get(name) for name in names], sort_keys=True)


def _is_zero_update(adapter: Path) -> bool:
    """Return whether an adapter has low-rank factors alone, the first or second of which are 0."""
    from safetensors import SafetensorError, deserialize

    factors: tuple[list[bool], list[bool]] = ([], [])
    for file in _list_weights(adapter):
        try:
            tensors = deserialize(file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: cannot be read ({error}); save the adapter again") from None
        for name, tensor in tensors:
            matches = [any(part in name for part in names) for names in _FACTORS]
            if not any(matches):
                return False
            factors[matches.index(True)].append(set(tensor["data"]) <= _NO_CHANGE)
    return any(each and all(each) for each in factors)
