"""Combines the decisions on both horns, and returns the content of `verdict.json`."""

from __future__ import annotations

from typing import Any

from doublebind.schema.verdict import Horn, Incrimination, Replacement, Verdict

METHOD_VERSION = "5"
"""Version of docs/method.md and this policy; raise it with any change that can move a verdict."""


def decide_horn(incrimination: Incrimination, replacement: Replacement) -> Horn:
    """Return which horns of the double bind were reached."""
    return combine_decisions(
        accused=incrimination.decision == "incriminated",
        replaced=replacement.decision == "within_margin",
    )


def combine_decisions(*, accused: bool, replaced: bool) -> Horn:
    """Return the horn that two decisions come to."""
    if accused and replaced:
        return "both"
    if accused:
        return "incriminated"
    return "replacement_within_margin" if replaced else "neither"


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return the content of `verdict.json`: what could not be computed is absent, not null.

    `replacement` and `horn` alone are null where one horn was asked for.
    """
    content = verdict.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"replacement": None, "horn": None} | content
