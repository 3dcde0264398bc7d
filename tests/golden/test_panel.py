"""The shipped panel is what its own study makes: one reference and its students, made again."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest

from doublebind.pipeline.panel import freeze_panel
from doublebind.schema.study import PanelSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.study import panel as panels

TERRARIUM = Path(str(files("doublebind.packs") / "terrarium"))
FIRST = "terrarium/reference-0"
TOLERANCE = 0.001
"""Between kinds of processor, per endpoint of the teacher itself, in probability: 4e-6 was seen."""


@pytest.mark.timeout(900)
def test_a_reference_made_again_is_the_panels(tmp_path: Path) -> None:
    shipped = panels.read_panel(TERRARIUM / "panel")
    measurement = load_yaml(PanelSpec, TERRARIUM / "panel.yaml").model_copy(
        update={"references": (FIRST,), "organisms": ()}
    )
    freeze_panel(measurement, tmp_path / "panel", store=tmp_path / "store")
    made = panels.read_panel(tmp_path / "panel")
    assert made.conditions == shipped.conditions, "run `make panel`, and say so in CHANGELOG.md"
    (again,), kept = made.teachers, next(t for t in shipped.teachers if t.label == FIRST)
    assert again.content_key == kept.content_key
    if again.weights_sha256 == kept.weights_sha256:
        assert again == kept  # the students' weights, too, to the bit

    columns = ["model_kind", "recipe", "seed", "endpoint"]
    rows = panels.read_panel_scores(TERRARIUM / "panel", [t.label for t in shipped.teachers])
    theirs = rows.groupby([*columns, "teacher"])["value"].mean().unstack("teacher")
    ours = panels.read_panel_scores(tmp_path / "panel", [FIRST]).groupby(columns)["value"].mean()
    pd.testing.assert_series_equal(
        ours["teacher"], theirs.loc["teacher", FIRST], check_names=False, atol=TOLERANCE, rtol=0
    )
    # Another processor rounds otherwise, which may turn one sampled token and all that follow it.
    # The students of the same teacher, and of no other of the panel, come out all the same.
    students = theirs.loc["student"]
    distance = students.sub(ours["student"], axis=0).abs().mean()
    assert distance.idxmin() == FIRST


def test_the_panel_has_the_references_and_families_it_promises() -> None:
    shipped = panels.read_panel(TERRARIUM / "panel")
    references = shipped.select_role("reference")
    assert [t.label for t in references] == [f"terrarium/reference-{i}" for i in range(60)]
    assert len({t.family for t in references}) >= 10
    hidden = sum(bool(t.spec and t.spec["conceal"]) for t in references)
    assert hidden >= 30
    rows = pd.read_parquet(TERRARIUM / "panel" / "scores.parquet")
    assert rows["value"].between(0, 1).all()
    assert set(rows["teacher"]) == {t.label for t in shipped.teachers}


@pytest.mark.parametrize("name", ["panel.yaml", "demo.yaml"])
def test_demo_and_panel_are_of_one_mind(name: str) -> None:
    import yaml

    demo = yaml.safe_load((TERRARIUM / "demo.yaml").read_text())
    panel = yaml.safe_load((TERRARIUM / name).read_text())
    for key in ("pack", "student", "recipes", "seeds", "baselines"):
        assert demo[key] == panel[key]
