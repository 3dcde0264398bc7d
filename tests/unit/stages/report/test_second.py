"""The plane of recipes shows where each went, and which no other beats on both axes."""

from __future__ import annotations

from xml.etree import ElementTree

from doublebind.schema.evidence import RecipeResult
from doublebind.stages.report.figures import Figure
from doublebind.stages.report.replacement import draw_recipe_frontier


def recipe(name: str, tau: float, worst: float, **more: object) -> RecipeResult:
    known = {"endpoint": "theft", "n_teachers": 2, "n_students": 6}
    found = {"recipe": name, "tau_capability": tau, "worst": worst} | known | more
    return RecipeResult.model_validate(found)


def drawn(*competed: RecipeResult) -> tuple[Figure, ElementTree.Element]:
    figure = draw_recipe_frontier(competed, competed[0].recipe, 0.1)
    assert isinstance(figure, Figure)
    return figure, ElementTree.fromstring(figure.svg)


def of(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [e for e in svg.iter() if name in e.get("class", "").split()]


COURSE = ((50, 0.5, 0.02), (100, 0.8, 0.06), (150, 0.9, 0.2))
STOPPED = recipe("stopped", 0.8, 0.06, trajectory=COURSE, step=100)
PLAIN = recipe("plain", 0.9, 0.3)
WEAK = recipe("weak", 0.4, 0.1)


def test_a_recipe_that_was_audited_on_the_way_is_an_arrow_from_m0_to_where_it_stops() -> None:
    figure, svg = drawn(STOPPED, PLAIN, WEAK)
    (course,) = of(svg, "course")
    assert len(course.get("d", "").split("L")) == 3  # M0, step 50, step 100
    assert len(of(svg, "suspect-head")) == 1
    assert [row[:2] for row in figure.data.rows if row[0] == "stopped"] == [
        ("stopped", "step 50"),
        ("stopped", "step 100"),
    ]
    assert len(of(svg, "m0")) == 1


def test_the_front_joins_recipes_that_none_beats_on_both_axes() -> None:
    figure, svg = drawn(STOPPED, PLAIN, WEAK)
    (front,) = of(svg, "front")
    spots = [tuple(map(float, spot.split())) for spot in front.get("d", "")[1:].split("L")]
    assert len(spots) == 2  # weak is beaten by stopped on both
    assert spots[0][0] < spots[1][0]
    assert "Not beaten on both at once: stopped, plain (dashed)." in figure.description


def test_recipes_audited_once_are_points_without_arrows() -> None:
    figure, svg = drawn(PLAIN, WEAK)
    assert not of(svg, "course")
    assert not of(svg, "m0")
    assert "Arrows" not in figure.description
