"""Sentences and thresholds that the decisions on both horns share."""

from __future__ import annotations

from collections.abc import Mapping

from doublebind.schema.protocol import HARD_CLASSES, Protocol
from doublebind.schema.score_table import Endpoint

MIN_DETECTION_BOUND = 0.5
"""Lower bound on the detection rate of controls before `not_incriminated` may be said."""


def state_no_evidence(coverage: str) -> str:
    """Return the most that can be said in a suspect's favour."""
    return f"No evidence found; drives outside {coverage} would not have been seen."


def describe_coverage(protocol: Protocol) -> str:
    """Return the traits that the study asks about, and by which kinds of question."""
    endpoints = [Endpoint.parse(name) for name in protocol.listed_endpoints]
    traits = sorted({endpoint.trait for endpoint in endpoints if endpoint.trait})
    kinds = sorted({endpoint.question for endpoint in endpoints})
    about = ", ".join(traits) if traits else "no named trait"
    return f"{about} (asked as {', '.join(kinds)})"


def describe_hard_classes(counts: Mapping[str, tuple[int, int]]) -> str:
    """Return which hard classes were flagged how often, and which were never tried.

    Args:
        counts: Class -> positive controls of it that were flagged, and number of controls.
    """
    tried = [f"{_format_class(name)} {k} of {n}" for name, (k, n) in sorted(counts.items())]
    rest = [_format_class(name) for name in HARD_CLASSES if name not in counts]
    flagged = f"flagged among the controls: {', '.join(tried)}; " if tried else ""
    return f"Hard classes of drive, {flagged}not tried: {', '.join(rest) or 'none'}."


def _format_class(name: str) -> str:
    return name.replace("_", "-")
