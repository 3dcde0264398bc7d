"""Says what stands on the page about a procedure's error rates, for an auditor to cite.

Knows the content of `calibration.json`. Estimates nothing and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from doublebind.schema.evidence import RecipeResult
from doublebind.stages.report import replacement as second
from doublebind.stages.report import treatments as treated
from doublebind.stages.report.figures import Figure, FigureOrAbsent
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.run_page import Tile
from doublebind.stages.report.svg import dot_plot as figures
from doublebind.stages.report.svg.dot_plot import DotRow, Mark, Point
from doublebind.stages.report.svg.forest_plot import Rate, draw_forest
from doublebind.stages.report.tables.run import Absent, Cell, Table
from doublebind.stages.report.templating import render_template

CalibrationContent = Mapping[str, Any]
_NO_TEACHER = Absent("nobody to count, or references too few for any rank to reach alpha")


class RateDescription(NamedTuple):
    """A rate of `calibration.json`, and what it says."""

    key: str
    name: str
    meaning: str


RATES = (
    RateDescription("fresh_flagged", "benign accused", "held-out benign teachers incriminated"),
    RateDescription("fpr_family_out", "references without family", "weighed by all other families"),
    RateDescription(
        "near_misses", "near misses accused", "benign teachers with a drive's own surface"
    ),
    RateDescription("tpr_known_drive", "organisms found", "concealed organisms incriminated"),
    RateDescription(
        "tpr_unknown_drive", "without own drive", "the organism's own drive left out of the score"
    ),
    RateDescription(
        "tpr_best_reading_baseline", "best reading baseline", "no student; chosen in its favour"
    ),
    RateDescription("tpr_direct", "direct audit", "organisms flagged by their own answers"),
    RateDescription(
        "fresh_flagged_direct", "direct audit of benign", "benign ones flagged by their answers"
    ),
)
"""In the order of the page: whom it accuses, what it finds, what else would have found it."""


def render_calibration_page(calibration: CalibrationContent, study: Mapping[str, Any]) -> str:
    """Return `calibration.html`: one page that needs no network and trusts no text it shows.

    Args:
        found: Content of `calibration.json`.
        study: The study, as `yaml.safe_dump` writes it.
    """
    return render_template(
        "calibration.html.j2",
        sentences=write_sentences(calibration),
        tiles=_build_tiles(calibration),
        pictures=[_draw_rates(calibration), _draw_teachers(calibration)],
        tables=[_tabulate_rates(calibration), *_tabulate_parts(calibration)],
        second=_tabulate_outcomes(calibration),
        treated=_draw_treatments(calibration),
        teachers=_tabulate_teachers(calibration),
        weighed=(
            f"Each was weighed against {calibration['n_references']} references, of "
            f"{calibration['n_families']} families, at alpha {calibration['alpha']:g}."
        ),
        protocol_hash=calibration["protocol_hash"],
        alpha=calibration["alpha"],
        study=yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=100),
    )


def write_sentences(found: CalibrationContent) -> list[str]:
    """Return what can be cited, each sentence with its interval and what it rests on."""
    said: list[str] = []
    for key, who, what in (
        ("fresh_flagged", "held-out benign teachers", "accused"),
        ("tpr_known_drive", "concealed organisms", "found"),
        ("tpr_unknown_drive", "organisms whose drive nobody had thought of", "found"),
    ):
        if key in found:
            rate = found[key]
            low, high = _choose_interval(rate)
            counted = f"{rate['k']} ({rate['value']:.0%}; 95% interval {low:.0%} to {high:.0%})"
            said.append(f"Of {rate['n']} {who}, {counted} {_choose_verb(rate['k'])} {what}.")
        if key == "fresh_flagged" and "fresh_limit" in found:
            said[-1] += (
                f" Were they exchangeable with the references, chance would accuse at most "
                f"{found['fresh_limit']} in 99 of 100 such studies."
            )
    return said


def _choose_verb(k: int) -> str:
    return "was" if k == 1 else "were"


def _build_tiles(found: CalibrationContent) -> list[Tile]:
    chosen = {told.key: told for told in RATES}
    keys = ("fresh_flagged", "tpr_known_drive", "tpr_unknown_drive", "tpr_direct")
    tiles: list[Tile] = []
    for key in keys:
        rate = found.get(key)
        value = _NO_TEACHER if rate is None else f"{rate['k']} of {rate['n']}"
        tiles.append(Tile(chosen[key].name, value, chosen[key].meaning))
    return tiles


def _draw_rates(found: CalibrationContent) -> FigureOrAbsent:
    shown = [
        Rate(told.name, f"{rate['k']} of {rate['n']}", rate["value"], *_choose_interval(rate))
        for told in RATES
        if (rate := found.get(told.key)) is not None
    ]
    if not shown:
        return Absent("There is no rate to draw: nobody could be counted.")
    title = "Shares of teachers, each with its 95% interval"
    said = "; ".join(f"{r.name}: {r.remark}, {r.low:.2f} to {r.high:.2f}" for r in shown) + "."
    svg = draw_forest(shown, name="rates", title=title, axis="share of teachers", description=said)
    rows: list[tuple[Cell, ...]] = [(r.name, r.value, r.low, r.high) for r in shown]
    return Figure(title, said, svg, Table(f"Data: {title}", ("rate", "share", "low", "high"), rows))


def _choose_interval(rate: CalibrationContent) -> tuple[float, float]:
    """Return the interval over families where there is one: it is the honest one."""
    low, high = rate.get("clustered", rate["interval"])
    return float(low), float(high)


def _draw_teachers(found: CalibrationContent) -> FigureOrAbsent:
    """Return every teacher's p-value, a row per family of organisms and one per class else."""
    rows = [row for row in found["teachers"] if "p_value" in row]
    if not rows:
        return Absent("No teacher has a p-value.")
    names = {"benign": "held-out benign", "near_miss": "near misses"}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["class"] == "organism", row["family"])):
        groups.setdefault(names.get(row["class"], str(row["family"])), []).append(row)
    mark: dict[str, Mark] = {"organism": "organism"}
    lines = [
        DotRow(
            shorten(name),
            f"{sum(row['incriminated'] for row in group)} of {len(group)} accused",
            [
                Point(
                    row["teacher"], math.log10(row["p_value"]), mark.get(row["class"], "reference")
                )
                for row in group
            ],
        )
        for name, group in groups.items()
    ]
    title = "Every teacher's p-value, weighed as if it were the suspect"
    said = "; ".join(f"{line.name}: {line.remark}" for line in lines) + "."
    svg = figures.draw_p_values(
        lines, name="each", title=title, description=said, alpha=found["alpha"]
    )
    data: list[tuple[Cell, ...]] = [
        (shorten(p.label), line.name, 10.0**p.value) for line in lines for p in line.points
    ]
    return Figure(title, said, svg, Table(f"Data: {title}", ("teacher", "kind", "p"), data))


def _tabulate_rates(found: CalibrationContent) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for told in RATES:
        rate = found.get(told.key)
        if rate is None:
            rows.append((told.name, _NO_TEACHER, "", "", told.meaning))
            continue
        rows.append((told.name, *_format_rate(rate), told.meaning))
    return Table(
        "Error rates",
        ("rate", "share", "95% over teachers", "95% over families", "what it counts"),
        rows,
        note=(
            "The interval over families allows for teachers of one family failing together; with "
            "few families it is wide."
        ),
    )


def _format_rate(rate: CalibrationContent) -> tuple[Cell, ...]:
    low, high = rate["interval"]
    over: Cell = Absent("one family")
    if "clustered" in rate:
        over = "{:.3f} to {:.3f}".format(*rate["clustered"])
    return f"{rate['k']} of {rate['n']}", f"{low:.3f} to {high:.3f}", over


def _tabulate_parts(found: CalibrationContent) -> list[Table]:
    """Return the rates by class, by recipe and by family."""
    heads = ("share", "95% over teachers", "95% over families")
    parts = (
        ("tpr_by_class", "Organisms found, by class", "class"),
        ("tpr_by_recipe", "Organisms found by one recipe's students alone", "recipe"),
        ("by_family", "Accused, by family", "family"),
    )
    return [
        Table(
            title,
            (head, *heads),
            [(shorten(name), *_format_rate(r)) for name, r in found[key].items()],
        )
        for key, title, head in parts
        if found.get(key)
    ]


def _tabulate_outcomes(found: CalibrationContent) -> list[Table]:
    """Return what is said of replacements, where the study asked for them."""
    if "outcomes" not in found:
        return []
    rows: list[tuple[Cell, ...]] = [
        (kind, horn.replace("_", " "), _format_share(rate))
        for kind, horns in found["outcomes"].items()
        for horn, rate in horns.items()
    ]
    rows += [
        (kind, "a replacement, where not incriminated", _format_share(rate))
        for kind, rate in found["replacement_if_not_incriminated"].items()
    ]
    rows.append(("organism", "missed by both horns", _format_share(found["common_mode"])))
    wrong: list[tuple[Cell, ...]] = [
        (
            kind.replace("_", " "),
            f"{of['wrong_students']} of {of['students']}",
            _format_share(of["teachers"]),
            _format_share(of["on_asked_drives"]),
        )
        for kind, of in found["false_certificates"].items()
    ]
    return [
        Table("Outcomes of the double bind", ("class", "outcome", "share of teachers"), rows),
        Table(
            "Within the margin, and beyond it where only the key leads",
            ("class", "decisions", "share of teachers", "on drives that were asked about"),
            wrong,
        ),
    ]


def _draw_treatments(found: CalibrationContent) -> list[FigureOrAbsent]:
    """Return how recipes competed, what of them came along, and which teachers defeat which."""
    if "treatments" not in found:
        return []
    competed = [RecipeResult.model_validate(each) for each in found["competed"]]
    field = second.draw_recipe_frontier(competed, found["chosen"], found["margin"])
    return [field, treated.draw_capability_vs_drive(found), treated.draw_decision_matrix(found)]


def _format_share(rate: CalibrationContent) -> Cell:
    if not rate.get("n"):
        return _NO_TEACHER
    low, high = rate["interval"]
    return f"{rate['k']} of {rate['n']}, {low:.2f} to {high:.2f}"


def _tabulate_teachers(found: CalibrationContent) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            shorten(row["teacher"]),
            row.get("organism_class", row["class"]).replace("_", " "),
            shorten(row["family"]),
            row["decision"].replace("_", " "),
            row.get("p_value", _NO_TEACHER),
            row.get("p_value_direct", _NO_TEACHER),
            ", ".join(map(shorten, row["traits"])) or "none",
        )
        for row in found["teachers"]
    ]
    heads = ("teacher", "class", "family", "decision", "p", "p, direct audit", "stands out on")
    return Table("Every teacher, weighed as if it were the suspect", heads, rows)
