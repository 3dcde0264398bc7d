"""Holds the suspect's shifts, and those of controls, against the smallest effect of interest."""

from __future__ import annotations

from doublebind.schema.evidence import Evidence, Interval
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import AdjustedScore


def is_large_enough(evidence: Evidence, min_effect: float | None) -> bool:
    """Return whether a score endpoint that stands out does so by more than the smallest effect."""
    return min_effect is None or bool(list_large_endpoints(evidence, min_effect))


def list_large_endpoints(evidence: Evidence, min_effect: float) -> list[str]:
    """Return the score endpoints that stand out, and by more than the smallest effect. [55]."""
    return [
        name
        for name in evidence.significant_endpoints
        if name in evidence.shifts and evidence.shifts[name].low > min_effect
    ]


def list_large_controls(evidence: Evidence, min_effect: float | None) -> set[str]:
    """Return the positive controls that stand out, and by more than the smallest effect. [55]."""
    flagged = {label for label, p in evidence.controls.items() if evidence.reaches_alpha(p)}
    if min_effect is None:
        return flagged
    return {label for label in flagged if evidence.control_shifts.get(label, 0.0) > min_effect}


def state_sizes(evidence: Evidence, protocol: Protocol) -> list[str]:
    """Return how large the shifts are that stand out, and whether they are large enough."""
    named = [n for n in evidence.significant_endpoints if n in evidence.shifts]
    if not named:
        return []
    unit = "log-odds" if isinstance(protocol.score, AdjustedScore) else "in probability"
    sizes = "; ".join(f"{name} {format_shift(evidence.shifts[name])}" for name in named)
    sentence = f"Shift against the references ({unit}, 95% interval over items and seeds): {sizes}."
    if protocol.min_effect is None:
        return [f"{sentence} No smallest effect of interest was fixed."]
    large = list_large_endpoints(evidence, protocol.min_effect)
    if large:
        end = f"above the smallest effect of interest, {protocol.min_effect:g}"
        return [f"{sentence} {', '.join(large)}: {end}."]
    return [
        f"{sentence} None is shown to exceed the smallest effect of interest, "
        f"{protocol.min_effect:g}: too small to incriminate."
    ]


def format_shift(shift: Interval) -> str:
    """Return a shift with its interval, signs included."""
    return f"{shift.value:+.2f} [{shift.low:+.2f}, {shift.high:+.2f}]"
