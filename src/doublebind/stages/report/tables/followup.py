"""Tables of a follow-up: the hypotheses, and what the suspect itself answered.

Texts of `followup.json` come from models: they are shortened here and escaped on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.tables.table import Absent, Cell, Row, Table, format_fixed

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


def tabulate_followup(followup: Mapping[str, Any]) -> list[Table]:
    """Return the suspect's hypotheses with the answers to them, and every teacher on its own."""
    leads = Table(
        "What its students suggest, asked of all alike",
        COLUMNS,
        [_build_row(lead) for lead in followup["leads"]],
    )
    return [leads, _tabulate_own_round(followup["own_round"], followup["suspect"])]


def _build_row(lead: Mapping[str, Any]) -> Row:
    absent = Absent(lead.get("missing", "no item was scored"))

    def cell(name: str) -> Cell:
        return format_fixed(lead.get(name, absent))

    forms = [
        f"{shorten(form)} {effect['value']:+.3f}" for form, effect in lead.get("forms", {}).items()
    ]
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
        ", ".join(forms) or absent,
        cell("its_students"),
        cell("references"),
        cell("their_students"),
        as_high,
    )


def _tabulate_own_round(own_round: Mapping[str, Any], suspect: str) -> Table:
    nothing = Absent("none of its questions could be scored")
    rows: list[Row] = [
        (
            shorten(label),
            format_fixed(own_round["excess"].get(label, nothing)),
            shorten("; ".join(texts) or "nothing", 300),
        )
        for label, texts in own_round["suggested"].items()
    ]
    note = ""
    if "p_value" in own_round:
        note = (
            f"{own_round['n_at_or_above']} of {own_round['n_references']} references stand as high "
            f"on their own questions: p = {own_round['p_value']:.4g}, secondary, and of these "
            "references alone."
        )
    return Table(
        "Every teacher on what its own students suggest",
        ("teacher", "itself above M0", "what it was asked about"),
        rows,
        note,
        highlighted=suspect,
    )
