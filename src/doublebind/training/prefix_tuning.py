"""Makes a model trainable through a prefix of keys and values, its weights frozen.

Knows PEFT's prefix tuning and where a prefix starts from. Does not know what it learns.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from doublebind.models.logits import check_architecture, run_body, unwrap_peft
from doublebind.models.prefix_cache import install_prefix_hook
from doublebind.schema.errors import ModelError
from doublebind.training.batch import Example, shuffle_epochs


def attach_prefix(model: Any, n_tokens: int, examples: Sequence[Example], seed: int) -> Any:
    """Return `model` with `tokens` virtual tokens, the only thing about it that can be trained.

    Prefix tuning (Li & Liang 2021, arXiv 2101.00190) without its reparametrisation. The prefix
    starts as the keys and values that the model computes for real text, as Eyuboglu et al. 2025
    (Cartridges, arXiv 2506.06266) start theirs: here for prompts, in the order of `seed`, and never
    for answers, so that before the first step it knows nothing of the teacher.

    Raises:
        ModelError: If the model is an adapter already, or its architecture does not take a prefix.
    """
    from peft import PrefixTuningConfig, get_peft_model

    where = unwrap_peft(model).name_or_path
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"{where}: the model to train is an adapter on this base; merge the two into a full "
            f"model (PEFT's merge_and_unload), save that, and train it"
        )
    texts = (
        examples[i].input_ids[: examples[i].first_supervised]
        for i in shuffle_epochs(len(examples), seed)
    )
    ids = list(itertools.islice(itertools.chain.from_iterable(texts), n_tokens))
    with torch.no_grad():
        start = torch.tensor([ids], device=model.device)
        cache = run_body(model, start, use_cache=True).past_key_values
        layers = [part[0] for layer in cache.layers for part in (layer.keys, layer.values)]
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attributes that transformers renamed
        prefixed: Any = get_peft_model(model, config)
    weight = prefixed.prompt_encoder[prefixed.active_adapter].embedding.weight
    # PEFT's layout: [token, layer x (keys, values), head, width].
    flat = torch.stack(layers).permute(2, 0, 1, 3).reshape(n_tokens, -1)
    if flat.shape != weight.shape:
        raise ModelError(
            f"{where}: its layers keep keys and values of other shapes than a prefix has; use a "
            f"channel that trains adapters"
        )
    with torch.no_grad():
        weight.copy_(flat)
    weight.data = weight.data.float()
    install_prefix_hook(prefixed)
    check_architecture(prefixed, where)
    return prefixed
