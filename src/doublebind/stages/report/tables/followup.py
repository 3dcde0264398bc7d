"""Shows a follow-up on the page: what was suspected, and what the suspect itself answered.

Knows the content of `followup.json`. Its texts come from models: they are shortened here, and
escaped where the page shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.tables.run import Absent, Cell, Table, format_fixed

COLUMNS = (
    "hypothesis",
    "students",
    "items",
    "M0",
    "suspect itself",
    "above M0, by form of question",
    "its students",
    "references, median",
    "their students, median",
    "references as high",
)


def build_tables(followup: Mapping[str, Any] | None) -> list[Table]:
    """Return the leads with their answers, and the round of everybody's own; none without one."""
    if followup is None:
        return []
    rows = [_build_row(lead) for lead in followup["leads"]]
    leads = Table("What its students suggest, asked of all alike", COLUMNS, rows)
    own = followup["own_round"]
    suggested: Mapping[str, list[str]] = own["suggested"]
    nothing = Absent("none of its questions could be scored")
    second: list[tuple[Cell, ...]] = [
        (
            shorten(label),
            format_fixed(own["excess"].get(label, nothing)),
            shorten("; ".join(texts) or "nothing", 300),
        )
        for label, texts in suggested.items()
    ]
    note = ""
    if "p_value" in own:
        note = (
            f"{own['n_at_or_above']} of {own['n_references']} references stand as high on their "
            f"own questions: p = {own['p_value']:.4g}, secondary, and of these references alone."
        )
    columns = ("teacher", "itself above M0", "what it was asked about")
    alone = Table(
        "Every teacher on what its own students suggest", columns, second, note, followup["suspect"]
    )
    return [leads, alone]


def _build_row(lead: Mapping[str, Any]) -> tuple[Cell, ...]:
    absent = Absent(lead.get("missing", "no item was scored"))

    def cell(name: str) -> Cell:
        return format_fixed(lead.get(name, absent))

    by_form = lead.get("forms", {}).items()
    forms = ", ".join(f"{shorten(form)} {told['value']:+.3f}" for form, told in by_form)
    as_high: Cell = absent
    if lead.get("n_references"):
        as_high = f"{lead['n_at_or_above']} of {lead['n_references']}"
    elif "n_references" in lead:
        as_high = Absent("no reference was at hand")
    return (
        shorten(f"{lead['name']}: {lead['text']}", 200),
        lead["students"],
        lead.get("n", 0),
        cell("m0"),
        cell("suspect"),
        forms or absent,
        *(cell(name) for name in ("its_students", "references", "their_students")),
        as_high,
    )
