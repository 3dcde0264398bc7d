"""Training mode without the dropout of the base: what is trained is the model that is audited.

With a base's own dropout on, a student's first loss is not that of the model it starts from, and
the log-ratios of a preference loss do not start at 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def set_training_mode(model: Any) -> None:
    """Put adapters in training mode and the base in evaluation mode.

    An adapter's own dropout stays on. A base's dropout, dropped layers and router noise are off,
    whether they are modules, arguments of functions or numbers of the configuration: all of them
    ask for the module's mode.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.eval()
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        for name, part in layer.named_children():
            if name != "base_layer":
                part.train()


@contextlib.contextmanager
def train_without_base_dropout(model: Any) -> Iterator[None]:
    """Put `model` in the mode of `set_training_mode`, and in evaluation mode at the end.

    Blocks that save memory by computing their activations twice do so in training mode only. They
    keep it; their own rates of dropout are 0 meanwhile.
    """
    set_training_mode(model)
    blocks = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    rates = [
        (block, name, value)
        for block in blocks
        for name, value in vars(block).items()
        if "drop" in name and isinstance(value, float)
    ]
    for block in blocks:
        block.training = True
    for block, name, _ in rates:
        setattr(block, name, 0.0)
    try:
        yield
    finally:
        for block, name, value in rates:
            setattr(block, name, value)
        model.eval()
