"""Puts a PEFT adapter on its base, and refuses one that does not land there whole."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublebind.models.logits import list_probe_ids
from doublebind.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from doublebind.models.prefix_cache import has_prefix, install_prefix_hook
from doublebind.schema.errors import ModelError, describe_error

_NAME = "default"
_PREFIX_TENSOR = "prompt_embeddings"
_DERIVED_TENSORS = (".ranknum.",)  # AdaLoRA's rank, from its settings
"""Parts of names: tensors of an adapter that PEFT makes from its settings and never saves."""
_READ_ELSEWHERE = ("shira_indices", "_topk_indices", "_topk_weights")
"""Ends of names: tensors of a file that PEFT turns into something other than a parameter."""


def attach_adapter(model: Any, links: Path, where: Path, *, may_be_zero: bool) -> Any:
    """Return `model` with the adapter in the folder `links`, whose every tensor is in place.

    Args:
        model: A loaded full model; it is changed.
        links: Folder with the adapter's hashed files.
        where: The adapter's folder, for messages.
        may_be_zero: Whether an adapter that changes nothing is accepted: one trained here may have
            learned nothing, but a stranger's was not meant to.

    Raises:
        ModelError: If PEFT refuses it, a tensor of the file or of the adapter is left over, or it
            acts where this package does not run it.
    """
    from peft import get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    before = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # attributes that transformers renamed
            config = _read_config(links, where)
            adapted: Any = get_peft_model(model, config, adapter_name=_NAME).eval()
            renames = getattr(model, "_checkpoint_conversion_mapping", None)
            renames = None if config.is_prompt_learning else renames
            # By default PEFT would load it on a GPU, wherever there is one.
            tensors = load_peft_weights(str(links), device="cpu", key_mapping=renames)
            if not tensors:
                raise ModelError(f"{where / ADAPTER_WEIGHTS}: holds no tensor; save it again")
            landed = _record_landing(
                adapted, lambda: set_peft_model_state_dict(adapted, tensors, adapter_name=_NAME)
            )
            if lost := _find_lost(adapted, tensors, landed):
                lost = _trace_converted(adapted, tensors, lost)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{where}: cannot be opened as an adapter of {model.name_or_path} "
            f"({describe_error(error)})"
        ) from error
    if has_prefix(adapted):
        _check_prefix(adapted, tensors, where)
        install_prefix_hook(adapted)
    else:
        _check_landing(adapted, before, landed, lost, where)
        if not may_be_zero:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what PEFT thinks of its own sparse tensors
                _check_update(adapted, where)
    return adapted


def _read_config(links: Path, where: Path) -> Any:
    """Return the adapter's settings, none of which PEFT leaves out or this package cannot run."""
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(links), trust_remote_code=False)
    config.inference_mode = True
    path = where / ADAPTER_CONFIG
    known = {field.name for field in dataclasses.fields(config)} | {"runtime_config"}
    for key, value in read_json(links / ADAPTER_CONFIG).items():
        if key not in known and (value is True or (value and isinstance(value, list | dict))):
            raise ModelError(f"{path}: this version of PEFT does not know `{key}`; upgrade peft")
    if config.is_prompt_learning and str(config.peft_type.value) != "PREFIX_TUNING":
        raise ModelError(
            f"{where}: prefixes are the only prompt-learning adapters supported; use LoRA"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise ModelError(
            f"{path}: `alora_invocation_tokens` switches the adapter on in mid-text, which is not "
            f"supported; use LoRA"
        )
    if str(config.peft_type.value) == "XLORA":
        raise ModelError(f"{path}: X-LoRA reads adapters in other folders; merge them into one")
    return config


def _record_landing(adapted: Any, load: Any) -> dict[str, Tensor]:
    """Return the tensors by the model's names for them, as `load` hands them to the model."""
    landed: dict[str, Tensor] = {}

    def record(_module: Any, tensors: Mapping[str, Tensor], *_: Any) -> None:
        landed.update(tensors)

    hook = adapted.register_load_state_dict_pre_hook(record)
    try:
        load()
    finally:
        hook.remove()
    return landed


def _find_lost(
    adapted: Any, tensors: Mapping[str, Tensor], landed: Mapping[str, Tensor]
) -> list[str]:
    """Return the names of tensors of the file that the model did not take as they are."""
    places = set(adapted.state_dict(keep_vars=True))
    taken = {id(tensor) for name, tensor in landed.items() if name in places}
    return [
        name
        for name, tensor in tensors.items()
        if id(tensor) not in taken and not name.endswith(_READ_ELSEWHERE)
    ]


def _trace_converted(adapted: Any, tensors: Mapping[str, Tensor], lost: list[str]) -> list[str]:
    """Return which of the tensors do not reach the model even converted, stacked with others say.

    Loads the file a second time with a number of its own in each, looks for the numbers in what
    the model is given, and restores it.
    """
    from peft.utils import set_peft_model_state_dict

    marks = {name: float(i) for i, name in enumerate(lost, start=1)}
    marked = {
        name: torch.full_like(tensor, marks[name], dtype=torch.float64) if name in marks else tensor
        for name, tensor in tensors.items()
    }
    places = set(adapted.state_dict(keep_vars=True))
    landed = _record_landing(
        adapted, lambda: set_peft_model_state_dict(adapted, marked, adapter_name=_NAME)
    )
    set_peft_model_state_dict(adapted, dict(tensors), adapter_name=_NAME)
    ours = {id(tensor) for tensor in tensors.values()}
    seen: set[float] = set()
    for name, tensor in landed.items():
        if name in places and id(tensor) not in ours:
            seen.update(tensor.double().unique().tolist())
    return [name for name in lost if marks[name] not in seen]


def _check_landing(
    adapted: Any, before: set[int], landed: Mapping[str, Tensor], lost: list[str], where: Path
) -> None:
    """Refuse tensors of the file without a place, and tensors of the adapter not in the file."""
    path = where / ADAPTER_WEIGHTS
    if lost:
        raise ModelError(
            f"{path}: {lost[0]} lands nowhere in {adapted.get_base_model().name_or_path} "
            f"({len(lost)} of the file's tensors do not); use the base that the adapter was "
            f"trained on, and PEFT's own names"
        )
    tensors = adapted.state_dict(keep_vars=True)
    filled = {id(tensor) for name, tensor in tensors.items() if name in landed}
    empty = [
        name
        for name, tensor in tensors.items()
        if id(tensor) not in before | filled and not any(p in name for p in _DERIVED_TENSORS)
    ]
    if empty:
        raise ModelError(
            f"{path}: lacks {empty[0].replace(f'.{_NAME}', '')} ({len(empty)} tensors of the "
            f"adapter are not in the file); save it again, or mend {ADAPTER_CONFIG}"
        )


def _check_prefix(adapted: Any, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse a prefix that is not exactly the one tensor of the file."""
    path = where / ADAPTER_WEIGHTS
    for name in tensors:
        if name != _PREFIX_TENSOR:
            raise ModelError(f"{path}: {name} is no part of a prefix; save it again")
    weight = adapted.prompt_encoder[_NAME].embedding.weight
    if not torch.equal(weight.float(), tensors[_PREFIX_TENSOR].float()):
        raise ModelError(f"{path}: {_PREFIX_TENSOR} is not what PEFT loaded; use LoRA")


def _check_update(adapted: Any, where: Path) -> None:
    """Refuse an adapter that leaves every weight and every output as the base has it."""
    with torch.no_grad():
        for layer in adapted.modules():
            if callable(getattr(layer, "get_delta_weight", None)) and _has_update(layer):
                return
        ids = list_probe_ids(adapted)
        try:
            with_adapter = adapted(input_ids=ids, use_cache=False).logits
            with adapted.disable_adapter():
                without = adapted(input_ids=ids, use_cache=False).logits
        except Exception as error:
            raise ModelError(
                f"{where}: this kind of adapter does not run ({describe_error(error)}); use LoRA"
            ) from error
    if torch.equal(with_adapter, without):
        raise ModelError(
            f"{where / ADAPTER_WEIGHTS}: the adapter changes nothing (its update is 0 everywhere); "
            f"name its base instead, or save the trained adapter"
        )


def _has_update(layer: Any) -> bool:
    try:
        return bool(layer.get_delta_weight(_NAME).count_nonzero())
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
