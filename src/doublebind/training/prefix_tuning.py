"""Prefix tuning: a trainable prefix of keys and values on a model with frozen weights."""

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
from doublebind.training.loop import refuse_adapter


def attach_prefix(model: Any, n_tokens: int, examples: Sequence[Example], seed: int) -> Any:
    """Return `model` with `n_tokens` virtual tokens as its only trainable weights.

    Prefix tuning (Li & Liang 2021, arXiv 2101.00190) without its reparametrisation. The prefix is
    initialised with the keys and values that the model computes for real text, as in Eyuboglu et
    al. 2025 (Cartridges, arXiv 2506.06266). The text is prompts, in the order of `seed`, and never
    answers, so that before the first step the prefix holds nothing of the teacher.

    Raises:
        ModelError: If the model is an adapter already, its architecture takes no prefix, or no
            prompt has a token.
    """
    from peft import PrefixTuningConfig, get_peft_model

    refuse_adapter(model)
    where = unwrap_peft(model).name_or_path
    if not any(e.first_supervised for e in examples):
        raise ModelError(f"{where}: a prefix starts from the text of prompts, and there is none")
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
