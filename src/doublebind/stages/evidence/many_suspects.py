"""Decides about many suspects that are weighed against one panel.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, cast

import numpy as np
from scipy.stats import (  # pyright: ignore[reportMissingTypeStubs]
    false_discovery_control,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import exact_fraction


def adjust_for_suspects(p_values: Sequence[float]) -> Floats:
    """Return p-values adjusted by Benjamini and Hochberg; those at most q keep the FDR at q. [61].

    Conformal p-values against one panel are positively dependent, for which the procedure holds
    (Bates et al. 2023, arXiv 2104.08279; Benjamini & Hochberg 1995,
    doi 10.1111/j.2517-6161.1995.tb02031.x).
    """
    return np.asarray(cast("Any", false_discovery_control)(list(p_values)), dtype=np.float64)


def min_references_for_suspects(n_suspects: int, q: float) -> int:
    """Return the fewest references with which one of m suspects alone can pass: m / q - 1. [61].

    Example:
        >>> min_references_for_suspects(1, 0.05), min_references_for_suspects(10, 0.05)
        (19, 199)
    """
    return ceil(n_suspects / exact_fraction(q)) - 1
