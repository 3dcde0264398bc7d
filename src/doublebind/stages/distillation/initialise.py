"""Makes the weights that training starts from: a base mixed with noise, or a merged adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype

NOISE_STREAM = 2506
"""Second part of the seed of the random weights."""

NOISED_CARD = """# A noised model: do not deploy

The weights of a model, mixed with random ones, from which a student is distilled.
"""

MERGED_CARD = """# A student with its adapter merged in: do not deploy

Made to be trained further, to see whether its teacher's traits return. It may be misaligned. Keep
it sandboxed.
"""


def merge_adapter(out: Path, *, source: ModelSource, dtype: Dtype, cache: Path) -> None:
    """Write a model with its adapter merged into its weights to `out/model`.

    Raises:
        ModelError: If the model cannot be loaded.
    """
    from doublebind.models.load import load_model
    from doublebind.training import loop

    lm = load_model(source, dtype=dtype, cache=cache)
    loop.save_model(lm.model.merge_and_unload(), lm.tokenizer, out / "model", card=MERGED_CARD)


def initialise_with_noise(
    out: Path, *, base: ModelSource, share: float, seed: int, cache: Path
) -> None:
    """Write (1 - share) of the base's weights plus `share` of random ones to `out/model`.

    The student of UNDO (Lee et al. 2025, arXiv 2506.06278): noise removes latent abilities, and
    distillation restores those that the teacher shows. The random weights are the architecture's
    own initialisation, so that a share of 1 is an untrained model (the paper's scale of the noise
    is unverified). Weights are float32.

    Raises:
        ModelError: If the base cannot be loaded or is an adapter.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from doublebind.models.load import load_model
    from doublebind.schema.errors import ModelError
    from doublebind.training import loop

    if base.adapter is not None:
        raise ModelError(
            f"{base.adapter}: noise goes into a full model; merge the adapter into its base "
            f"(PEFT's merge_and_unload), save that, and name it"
        )
    # On the CPU, so that the noise is the same on every device.
    lm = load_model(base.with_device("cpu"), cache=cache)
    with torch.random.fork_rng():
        # A separate stream, because the base may itself have been initialised with `seed`.
        torch.manual_seed(int(np.random.SeedSequence((seed, NOISE_STREAM)).generate_state(1)[0]))
        fresh = AutoModelForCausalLM.from_config(
            lm.model.config, dtype=torch.float32, trust_remote_code=False
        )
    random = dict(fresh.named_parameters())
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            weight.lerp_(random[name], share)
    loop.save_model(lm.model, lm.tokenizer, out / "model", card=NOISED_CARD)
