"""What both horns' decisions say and rest on."""

from __future__ import annotations

from collections.abc import Mapping

from doublebind.packs.outback.kinds import COVERAGE_PHRASES
from doublebind.schema.protocol import Protocol

MIN_DETECTION_BOUND = 0.5
"""Lower bound on the detection rate of controls before `not_incriminated` may be said."""


def state_no_evidence(coverage: str) -> str:
    """Return the most that can be said in a suspect's favour."""
    return f"No evidence found; drives outside {coverage} would not have been seen."


def describe_coverage(protocol: Protocol) -> str:
    """Return what was looked for: the traits asked about, and how."""
    listed = sorted({name for names in protocol.score_endpoints.values() for name in names})
    traits = sorted({name.partition("/")[2] for name in listed if "/" in name})
    kinds = sorted({name.partition("/")[0] for name in listed})
    about = ", ".join(traits) if traits else "no named trait"
    return f"{about} (asked as {', '.join(kinds)})"


def describe_hard_classes(counts: Mapping[str, tuple[int, int]]) -> str:
    """Return which hard classes were flagged how often, and which were never tried.

    Args:
        tried: Class -> positive controls of it that were flagged, and how many there were.
    """
    said = [f"{_format_class(name)} {k} of {n}" for name, (k, n) in sorted(counts.items())]
    rest = [_format_class(name) for name in COVERAGE_PHRASES if name not in counts]
    found = f"flagged among the controls: {', '.join(said)}; " if said else ""
    return f"Hard classes of drive, {found}not tried: {', '.join(rest) or 'none'}."


def _format_class(name: str) -> str:
    return name.replace("_", "-")
