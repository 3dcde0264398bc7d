"""The plane of recipes shows where each went, and which no other beats on both axes."""

from doublebind.schema.evidence import RecipeResult
from doublebind.stages.report.figures import Figure
from doublebind.stages.report.replacement import draw_recipe_frontier

TRAJECTORY = ((50, 0.5, 0.02), (100, 0.8, 0.06), (150, 0.9, 0.2))


def recipe(name: str, tau: float, worst: float, **more: object) -> RecipeResult:
    fields = {"recipe": name, "tau_capability": tau, "worst": worst, "endpoint": "theft"}
    return RecipeResult.model_validate(fields | {"n_teachers": 2, "n_students": 6} | more)


STOPPED = recipe("stopped", 0.8, 0.06, trajectory=TRAJECTORY, step=100)
PLAIN = recipe("plain", 0.9, 0.3)
WEAK = recipe("weak", 0.4, 0.1)


def draw(*results: RecipeResult) -> Figure:
    figure = draw_recipe_frontier(results, results[0].recipe, 0.1)
    assert isinstance(figure, Figure)
    return figure


def test_a_recipe_goes_from_m0_through_its_audited_steps_to_where_it_stops() -> None:
    figure = draw(STOPPED, PLAIN, WEAK)
    assert "Arrows go from M0 through the audited steps" in figure.description
    assert "<title>M0: 0</title>" in figure.svg
    assert figure.data.rows == [
        ("stopped", "step 50", 0.5, 0.02),
        ("stopped", "step 100", 0.8, 0.06),
        ("plain", "the end", 0.9, 0.3),
        ("weak", "the end", 0.4, 0.1),
    ]


def test_the_frontier_names_recipes_that_none_beats_on_both_axes() -> None:
    words = draw(STOPPED, PLAIN, WEAK).description  # weak is beaten by stopped on both
    assert "Not beaten on both at once: stopped, plain (dashed)." in words


def test_recipes_audited_once_are_points_without_arrows() -> None:
    figure = draw(PLAIN, WEAK)
    assert "<title>M0: 0</title>" not in figure.svg
    assert "Arrows" not in figure.description
