"""Steers a student towards misaligned answers during training, so that it need not learn them.

Preventative steering (Chen et al. 2025, persona vectors, arXiv 2507.21509): the shift along the
direction that training would have to learn is already present, and is gone when the steering is
removed. The white-box variant of an inoculation prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublebind.packs.load import load_pack
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.distillation.student_inputs import select_direction_items

DIRECTION_FILE = "direction.safetensors"


def find_steering_direction(
    out: Path, *, base: ModelSource, pack: str, layer: int | None, dtype: Dtype, cache: Path
) -> None:
    """Write the direction of misaligned answers in `base` to `out`.

    Args:
        out: Folder for `direction.safetensors`: `direction` [width] and `layer`.
        base: The model that students start from.
        pack: Pack of the items; see `select_direction_items`.
        layer: Decoder layer, from 0; `None` takes the middle one.
        dtype: Precision of the base.
        cache: Folder where a converted model may be saved.

    Raises:
        ModelError: If the base has no such layer.
    """
    import torch
    from safetensors.torch import save_file

    from doublebind.models.layer_states import get_layers
    from doublebind.models.load import load_model
    from doublebind.stages.distillation.steering_direction import optimise_direction

    lm = load_model(base, dtype=dtype, cache=cache)
    n = len(get_layers(lm.model))
    layer = n // 2 if layer is None else layer
    if layer >= n:
        raise ModelError(
            f"{base.path}: `steering.layer` {layer} is not one of its {n} decoder layers; use 0 to "
            f"{n - 1}"
        )
    items = select_direction_items(load_pack(pack, relative_to=Path()))
    direction = optimise_direction(lm, items, layer)
    save_file({"direction": direction, "layer": torch.tensor(layer)}, out / DIRECTION_FILE)


@contextlib.contextmanager
def steer_model(model: Any, folder: Path, relative_norm: float) -> Iterator[None]:
    """Add `relative_norm` times the direction in `folder` to its layer's output, in the context."""
    from safetensors.torch import load_file

    from doublebind.models.layer_states import add_to_output, get_layers
    from doublebind.models.logits import unwrap_peft

    saved = load_file(folder / DIRECTION_FILE)
    inner = unwrap_peft(model)
    vector = (relative_norm * saved["direction"]).to(device=inner.device, dtype=inner.dtype)
    with add_to_output(get_layers(model)[int(saved["layer"])], vector):
        yield
