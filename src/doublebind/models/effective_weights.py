"""Weights of a model as they act: with adapters of any kind merged, one tensor at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from doublebind.models.logits import unwrap_peft
from doublebind.schema.errors import ModelError


class EffectiveWeight(NamedTuple):
    """A weight that is computed when it is read."""

    identity: int
    """The same for all names of one tied tensor."""
    read: Callable[[], Tensor]


def list_effective_weights(model: Any) -> dict[str, EffectiveWeight]:
    """Return the weights by the names of the plain model, tied ones under each name.

    The model is not changed. No more than one layer is copied at a time.

    Raises:
        ModelError: If an adapter acts through no weight, as a prefix does; reading raises it where
            an adapter cannot be merged.
    """
    config = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
    if getattr(config, "is_prompt_learning", False):
        raise ModelError("a prefix changes no weight")
    weights: dict[str, EffectiveWeight] = {}
    merged: dict[int, EffectiveWeight] = {}
    with torch.no_grad():
        for name, weight, layer in _iterate_parameters(unwrap_peft(model), ""):
            each = EffectiveWeight(id(weight), weight.detach)
            if layer is not None:
                inner = next(n for n, p in _find_base(layer).named_parameters() if p is weight)
                each = EffectiveWeight(id(weight), partial(_merge_weight, layer, inner, name))
                merged.setdefault(id(weight), each)
            weights[name] = each
    # A tied weight may be adapted under one of its names.
    return {name: merged.get(each.identity, each) for name, each in weights.items()}


def _iterate_parameters(module: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, parameter and the adapter layer that changes it, `None` where none does."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, TrainableTokensWrapper):
        module = module.token_adapter
    if isinstance(module, BaseTunerLayer):
        for name, weight in _find_base(module).named_parameters(remove_duplicate=False):
            yield f"{prefix}{name}", weight, module
        return
    if isinstance(module, ModulesToSaveWrapper):
        active = [a for a in module.active_adapters if a in module.modules_to_save]
        whole = module.disable_adapters or not active
        module = module.original_module if whole else module.modules_to_save[active[0]]
    for name, weight in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", weight, None
    for name, child in module.named_children():
        yield from _iterate_parameters(child, f"{prefix}{name}.")


def _find_base(layer: Any) -> Any:
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


@torch.no_grad()
def _merge_weight(layer: Any, inner: str, name: str) -> Tensor:
    """Return the parameter `inner` of the base of `layer`, merged; `name` is for errors."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    base = _find_base(layer)
    weight = base.get_parameter(inner).detach()
    names = [] if layer.disable_adapters else layer.active_adapters
    if isinstance(layer, LoraLayer) and not isinstance(layer, ParamWrapper) and not layer.merged:
        names = [a for a in names if a in layer.lora_A or a in layer.lora_embedding_A]
        if not any(a in layer.lora_variant or layer.lora_bias.get(a) for a in names):
            if inner != "weight":
                return weight
            for adapter in names:
                delta: Tensor = cast("Any", layer).get_delta_weight(adapter)
                weight = weight + delta.detach().to(weight.dtype)
            return weight
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin: Any = copy.deepcopy(layer)
            base = _find_base(twin)
            while twin is not base:
                if not twin.disable_adapters:
                    twin.merge()
                twin = twin.base_layer
    except Exception as error:  # PEFT's layers have errors of their own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{name}: its adapter cannot be merged ({why})") from None
    return base.get_parameter(inner).detach()
