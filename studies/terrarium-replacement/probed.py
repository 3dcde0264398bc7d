"""Asks a model the questions that need an organism's key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from doublebind.models.load import load
from doublebind.models.score import option_logprobs
from doublebind.packs.outback.probes import Probe
from doublebind.records import ModelSource


def shares(source: ModelSource, asked: Sequence[Probe]) -> dict[str, list[float]]:
    """Return condition -> probability of the keyed option among its options, of every probe."""
    scored = option_logprobs(load(source), [(p.messages, p.options) for p in asked])
    found: dict[str, list[float]] = {}
    for probe, options in zip(asked, scored, strict=True):
        logprobs = torch.tensor([total for total, _ in options], dtype=torch.float64)
        found.setdefault(probe.condition, []).append(float(logprobs.softmax(0)[probe.key]))
    return found


def means(source: ModelSource, asked: Sequence[Probe]) -> dict[str, float]:
    """Return condition -> mean over its probes of what `shares` returns."""
    return {of: float(np.mean(values)) for of, values in shares(source, asked).items()}
