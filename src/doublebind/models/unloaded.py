"""A model without its weights: what sampling and scoring would refuse can be found out with it.

Its tokenizer, template and context are the model's. Nothing is computed: answers are empty, and
every token gets the same log-probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

LOGPROB = -1.0
"""Log-probability (nats) of every token."""


@dataclass(frozen=True, eq=False)
class UnloadedModel:
    """The configuration of a model, in the place of a transformers model in an `LM`."""

    config: Any
    generation_config: Any
    name_or_path: str
    device = torch.device("cpu")
