"""Checks that a model came from its files: every tensor of theirs used, none of its own missing.

The library's own account is one witness. The other counts numbers: those in the files' headers
against those of the model, which no renaming, stacking or splitting on the way changes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from doublebind.schema.errors import ModelError

_INERT_BUFFERS = (
    r"(^|\.)(original_)?inv_freq$",  # rotary frequencies, which config.json gives
    r"(^|\.)position_ids$",  # 0, 1, 2, ...
    r"(^|\.)(attn|crossattention|attention)\.(masked_)?bias$",  # GPT's causal masks
)
"""Names of buffers that older versions of transformers saved and that it computes itself."""
_UNUSED_PARTS = (
    (r"(^|\.)mtp(_layers|_dspark)?\.", None),  # heads that guess tokens ahead
    (r"\.layers\.(?P<layer>\d+)\.", "num_nextn_predict_layers"),  # the same, as last layers
    (r"\.self_attn\.(k|v)_(proj|norm)\.", "num_kv_shared_layers"),  # keys of an earlier layer serve
    (r"(^|\.)(visual|vision_tower|vision_model|audio_tower)\.", None),  # text does not enter them
    (r"(^|\.)(embed_vision|embed_audio|multi_modal_projector)\.", None),
)
"""Name of a tensor that the next token never depends on, and the setting without which it does;
such tensors may be left out where the architecture itself says so."""


def read_tensor_sizes(folder: Path) -> dict[str, int]:
    """Return tensor name -> how many numbers it holds, for the safetensors files in `folder`."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                sizes[name] = _count(file.get_slice(name).get_shape())
    return sizes


def _count(shape: Iterable[int]) -> int:
    total = 1
    for length in shape:
        total *= int(length)
    return total


def check_all_tensors_used(
    model: Any, sizes: Mapping[str, int], info: Mapping[str, Any], where: Path
) -> None:
    """Refuse a model that is not, tensor by tensor, what its files hold.

    Args:
        model: The loaded model.
        sizes: Tensor name in the files -> how many numbers it holds.
        info: What transformers says of loading: missing, unexpected and mismatched keys.
        where: The model's folder or file, for messages.

    Raises:
        ModelError: Naming a tensor.
    """
    if missing := sorted(map(str, info.get("missing_keys", ()))):
        raise ModelError(
            f"{where}: the weights lack {missing[0]}, which config.json asks for"
            f"{_count_others(missing)}; save or download the model again"
        )
    if wrong := sorted(info.get("mismatched_keys", ()), key=lambda key: str(key[0])):
        name, held, asked = wrong[0]
        raise ModelError(
            f"{where}: cannot be opened: {name} has the shape {list(held)}, config.json asks for "
            f"{list(asked)}{_count_others(wrong)}; use the config.json that belongs to the weights"
        )
    unexpected = {str(key) for key in info.get("unexpected_keys", ())}
    surplus = sorted(name for name in unexpected if not _is_inert_buffer(name))
    if surplus:
        raise ModelError(
            f"{where}: {surplus[0]} has no place in the model that config.json describes"
            f"{_count_others(surplus)}; use the config.json that belongs to the weights"
        )
    _compare_counts(model, sizes, where)


def _compare_counts(model: Any, sizes: Mapping[str, int], where: Path) -> None:
    names: dict[int, list[str]] = defaultdict(list)
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    wanted = sum(tensors[group[0]].numel() for group in names.values())
    unused = {
        name
        for name in sizes
        if name not in tensors
        and (_is_inert_buffer(name) or _is_unused_part(name, model.config.get_text_config()))
        and not _ends_a_name(name, tensors)
    }
    # transformers ties two weights only where the file holds one of them, or both and equal.
    repeated = {name for group in names.values() for name in [n for n in group if n in sizes][1:]}
    held = sum(size for name, size in sizes.items() if name not in unused | repeated)
    if held == wanted:
        return
    known = {name for group in names.values() if any(n in sizes for n in group) for name in group}
    strange = sorted(set(sizes) - set(tensors) - unused, key=lambda n: (_is_usual(n), n))
    strange = strange or sorted(set(tensors) - known)
    named = f"; first of all look at {strange[0]}" if strange else ""
    raise ModelError(
        f"{where}: the files hold {held:,} numbers and the model {wanted:,}, so that some are "
        f"unused, or made up{named}; use the config.json that belongs to the weights"
    )


def _is_usual(name: str) -> bool:
    """Return whether every GGUF has a tensor of this name: a less likely cause of trouble."""
    return name.startswith(("blk.", "token_embd.", "output_norm.", "output."))


def _ends_a_name(name: str, tensors: Mapping[str, Any]) -> bool:
    """Return whether a tensor of the model has this name behind a prefix, or the reverse."""
    return any(f".{name}".endswith(f".{n}") or f".{n}".endswith(f".{name}") for n in tensors)


def _is_inert_buffer(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in _INERT_BUFFERS)


def _is_unused_part(name: str, config: Any) -> bool:
    for pattern, setting in _UNUSED_PARTS:
        match = re.search(pattern, name)
        if not match or (setting and not getattr(config, setting, None)):
            continue
        if "layer" not in match.groupdict() or int(match["layer"]) >= config.num_hidden_layers:
            return True
    return False


def _count_others(names: Sequence[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
