"""Builds the page of a procedure's error rates from the content of `calibration.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from doublebind.schema.evidence import RecipeResult
from doublebind.stages.report.figures import FigureOrAbsent, build_figure
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.replacement import draw_recipe_frontier
from doublebind.stages.report.svg.dot_plot import DotRow, draw_p_values
from doublebind.stages.report.svg.elements import Mark, PlotText, Point
from doublebind.stages.report.svg.forest_plot import Rate, draw_forest
from doublebind.stages.report.tables.table import Absent, Cell, Row, Table
from doublebind.stages.report.templating import render_template
from doublebind.stages.report.treatments import draw_capability_vs_drive, draw_decision_matrix

CalibrationContent = Mapping[str, Any]
_NO_TEACHER = Absent("nobody to count, or references too few for any rank to reach alpha")
_RATE_COLUMNS = ("share", "95% over teachers", "95% over families")


class RateDescription(NamedTuple):
    """A rate of `calibration.json`: its key, its name on the page, and its meaning."""

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
"""In the order of the page: false accusations, detection, other methods."""

_TILES = ("fresh_flagged", "tpr_known_drive", "tpr_unknown_drive", "tpr_direct")


def render_calibration_page(calibration: CalibrationContent, study: Mapping[str, Any]) -> str:
    """Return `calibration.html`: one page that needs no network and trusts no text it shows.

    Args:
        calibration: Content of `calibration.json`.
        study: The study, as `yaml.safe_dump` writes it.
    """
    return render_template(
        "calibration.html.j2",
        error=state_error(calibration),
        sentences=write_sentences(calibration),
        tiles=[
            (rate, _format_count(calibration.get(rate.key))) for rate in RATES if rate.key in _TILES
        ],
        pictures=[_draw_rates(calibration), _draw_teachers(calibration)],
        tables=[_tabulate_rates(calibration), *_tabulate_groups(calibration)],
        outcome_tables=_tabulate_outcomes(calibration),
        treatment_figures=_draw_treatments(calibration),
        teachers=_tabulate_teachers(calibration),
        panel_sentence=(
            f"Each was weighed against {calibration['n_references']} references, of "
            f"{calibration['n_families']} families, at alpha {calibration['alpha']:g}."
        ),
        protocol_hash=calibration["protocol_hash"],
        alpha=calibration["alpha"],
        study=yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=100),
    )


def state_error(calibration: CalibrationContent) -> list[str]:
    """Return the procedure's error by rank in three sentences: how often, how tried, what found.

    Empty where references were not drawn anew.
    """
    drawn = calibration.get("drawn")
    if drawn is None:
        return []
    rates = drawn["rates"]
    name, of = "benign", "held-out benign teachers"
    if "benign" not in rates:
        name, of = "pool", "benign teachers of the pool, each against the others"
    sentences = [
        f"With {drawn['n_drawn']} references drawn anew {drawn['n_draws']} times from "
        f"{drawn['n_pool']} benign teachers, {_format_drawn(rates[name], of)} are flagged by rank, "
        f"where chance alone flags at most {calibration['alpha']:.0%}."
    ]
    checks = [
        f"{what}: p = {drawn['checks'][key]['p_value']:.2f}, "
        + (
            f"which finds {drawn['checks'][key]['finds']:g} s.d. in 80% of cases"
            if "finds" in drawn["checks"][key]
            else "which finds nothing below 4 s.d. in 80% of cases"
        )
        for key, what in _CHECKS.items()
        if key in drawn["checks"]
    ]
    if checks:
        sentences.append(
            f"Whether these benign teachers are like each other was checked ({'; '.join(checks)})."
        )
    if "organism" in rates:
        share = _format_drawn(rates["organism"], "organisms")
        sentences.append(f"By the same rule {share} are found.")
    return sentences


_CHECKS = {
    "rank": "held-out ones score above references",
    "draw": "held-out ones are flagged more often",
    "family": "families differ",
}
"""Check of exchangeability -> what a small p of it would say."""


def _format_drawn(rate: Mapping[str, Any], of: str) -> str:
    low, high = rate["interval"]
    return f"{rate['value']:.1%} [{low:.1%}, {high:.1%}] of {rate['n']} {of}"


def write_sentences(calibration: CalibrationContent) -> list[str]:
    """Return sentences to be cited, each with its interval and its counts."""
    sentences: list[str] = []
    for key, teachers, verb in (
        ("fresh_flagged", "held-out benign teachers", "accused"),
        ("tpr_known_drive", "concealed organisms", "found"),
        ("tpr_unknown_drive", "organisms whose drive nobody had thought of", "found"),
    ):
        if key not in calibration:
            continue
        rate = calibration[key]
        low, high = _choose_interval(rate)
        share = f"{rate['k']} ({rate['value']:.0%}; 95% interval {low:.0%} to {high:.0%})"
        auxiliary = "was" if rate["k"] == 1 else "were"
        sentence = f"Of {rate['n']} {teachers}, {share} {auxiliary} {verb}."
        if key == "fresh_flagged" and "fresh_limit" in calibration:
            sentence += (
                f" Were they exchangeable with the references, chance would accuse at most "
                f"{calibration['fresh_limit']} in 99 of 100 such studies."
            )
        sentences.append(sentence)
    return sentences


# --- formats of a rate ---------------------------------------------------------------------------


def _choose_interval(rate: Mapping[str, Any]) -> tuple[float, float]:
    """Return the interval over families, or over teachers where there is no other."""
    low, high = rate.get("clustered", rate["interval"])
    return float(low), float(high)


def _format_count(rate: Mapping[str, Any] | None) -> Cell:
    return _NO_TEACHER if rate is None else f"{rate['k']} of {rate['n']}"


def _format_rate(rate: Mapping[str, Any]) -> Row:
    """Return the cells of `_RATE_COLUMNS`."""
    low, high = rate["interval"]
    over_families: Cell = Absent("one family")
    if "clustered" in rate:
        over_families = "{:.3f} to {:.3f}".format(*rate["clustered"])
    return _format_count(rate), f"{low:.3f} to {high:.3f}", over_families


def _format_share(rate: Mapping[str, Any]) -> Cell:
    if not rate.get("n"):
        return _NO_TEACHER
    low, high = rate["interval"]
    return f"{rate['k']} of {rate['n']}, {low:.2f} to {high:.2f}"


# --- figures -------------------------------------------------------------------------------------


def _draw_rates(calibration: CalibrationContent) -> FigureOrAbsent:
    rates = [
        Rate(each.name, f"{rate['k']} of {rate['n']}", rate["value"], *_choose_interval(rate))
        for each in RATES
        if (rate := calibration.get(each.key)) is not None
    ]
    if not rates:
        return Absent("There is no rate to draw: nobody could be counted.")
    words = "; ".join(f"{r.name}: {r.remark}, {r.low:.2f} to {r.high:.2f}" for r in rates)
    text = PlotText("rates", "Shares of teachers, each with its 95% interval", f"{words}.")
    svg = draw_forest(rates, text, "share of teachers")
    rows: list[Row] = [(r.name, r.value, r.low, r.high) for r in rates]
    return build_figure(text, svg, ("rate", "share", "low", "high"), rows)


def _draw_teachers(calibration: CalibrationContent) -> FigureOrAbsent:
    """Return every teacher's p-value: a row per family of organisms and per benign class."""
    rows = [row for row in calibration["teachers"] if "p_value" in row]
    if not rows:
        return Absent("No teacher has a p-value.")
    names = {"benign": "held-out benign", "near_miss": "near misses"}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["class"] == "organism", row["family"])):
        groups.setdefault(names.get(row["class"], str(row["family"])), []).append(row)
    lines: list[DotRow] = []
    for name, group in groups.items():
        accused = sum(row["incriminated"] for row in group)
        points = [Point(row["teacher"], math.log10(row["p_value"]), _mark(row)) for row in group]
        lines.append(DotRow(shorten(name), f"{accused} of {len(group)} accused", points))
    words = "; ".join(f"{line.name}: {line.remark}" for line in lines)
    text = PlotText(
        "each", "Every teacher's p-value, weighed as if it were the suspect", f"{words}."
    )
    data: list[Row] = [
        (shorten(p.label), line.name, 10.0**p.value) for line in lines for p in line.points
    ]
    svg = draw_p_values(lines, text, calibration["alpha"])
    return build_figure(text, svg, ("teacher", "kind", "p"), data)


def _mark(row: Mapping[str, Any]) -> Mark:
    return "organism" if row["class"] == "organism" else "reference"


def _draw_treatments(calibration: CalibrationContent) -> list[FigureOrAbsent]:
    """Return the competition of recipes, the shares that transferred, and the decisions."""
    if "treatments" not in calibration:
        return []
    results = [RecipeResult.model_validate(each) for each in calibration["competed"]]
    return [
        draw_recipe_frontier(results, calibration["chosen"], calibration["margin"]),
        draw_capability_vs_drive(calibration["treatments"]),
        draw_decision_matrix(calibration["treatments"]),
    ]


# --- tables --------------------------------------------------------------------------------------


def _tabulate_rates(calibration: CalibrationContent) -> Table:
    rows: list[Row] = []
    for each in RATES:
        rate = calibration.get(each.key)
        cells: Row = (_NO_TEACHER, "", "") if rate is None else _format_rate(rate)
        rows.append((each.name, *cells, each.meaning))
    return Table(
        "Error rates",
        ("rate", *_RATE_COLUMNS, "what it counts"),
        rows,
        note=(
            "The interval over families allows for teachers of one family failing together; with "
            "few families it is wide."
        ),
    )


def _tabulate_groups(calibration: CalibrationContent) -> list[Table]:
    """Return the rates by class, by recipe and by family."""
    groups = (
        ("tpr_by_class", "Organisms found, by class", "class"),
        ("tpr_by_recipe", "Organisms found by one recipe's students alone", "recipe"),
        ("by_family", "Accused, by family", "family"),
    )
    return [
        Table(
            title,
            (head, *_RATE_COLUMNS),
            [(shorten(name), *_format_rate(rate)) for name, rate in calibration[key].items()],
        )
        for key, title, head in groups
        if calibration.get(key)
    ]


def _tabulate_outcomes(calibration: CalibrationContent) -> list[Table]:
    """Return the outcomes of both horns; empty where the study has no replacement horn."""
    if "outcomes" not in calibration:
        return []
    rows: list[Row] = [
        (kind, horn.replace("_", " "), _format_share(rate))
        for kind, horns in calibration["outcomes"].items()
        for horn, rate in horns.items()
    ]
    rows += [
        (kind, "a replacement, where not incriminated", _format_share(rate))
        for kind, rate in calibration["replacement_if_not_incriminated"].items()
    ]
    rows.append(("organism", "missed by both horns", _format_share(calibration["common_mode"])))
    wrong: list[Row] = [
        (
            kind.replace("_", " "),
            f"{counts['wrong_students']} of {counts['students']}",
            _format_share(counts["teachers"]),
            _format_share(counts["on_asked_drives"]),
        )
        for kind, counts in calibration["false_certificates"].items()
    ]
    return [
        Table("Outcomes of the double bind", ("class", "outcome", "share of teachers"), rows),
        Table(
            "Within the margin, and beyond it where only the key leads",
            ("class", "decisions", "share of teachers", "on drives that were asked about"),
            wrong,
        ),
    ]


def _tabulate_teachers(calibration: CalibrationContent) -> Table:
    rows: list[Row] = [
        (
            shorten(row["teacher"]),
            row.get("organism_class", row["class"]).replace("_", " "),
            shorten(row["family"]),
            row["decision"].replace("_", " "),
            row.get("p_value", _NO_TEACHER),
            row.get("p_value_direct", _NO_TEACHER),
            ", ".join(map(shorten, row["traits"])) or "none",
        )
        for row in calibration["teachers"]
    ]
    heads = ("teacher", "class", "family", "decision", "p", "p, direct audit", "stands out on")
    return Table("Every teacher, weighed as if it were the suspect", heads, rows)
