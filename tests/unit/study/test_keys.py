"""Keys come from content: what a recipe could not say before leaves old keys as they were."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.schema.errors import ConfigError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import LogitKD, Recipe
from doublebind.schema.study import PanelSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.study import panel as panels
from doublebind.study.planner import Planner
from doublebind.study.resolve import assign_roles

TERRARIUM = Path(str(files("doublebind.packs") / "terrarium"))


def students(measurement: PanelSpec, store: Path) -> dict[tuple[str, str, int], str]:
    """The key of every student that would be made."""
    planner = Planner(measurement, TERRARIUM, Store(store))
    teachers = [planner.find_teacher(ref) for ref in assign_roles(measurement, planner.pack)]
    return {
        (s.teacher.label, s.recipe.name, s.seed): s.train.content_key
        for s in planner.plan(teachers).students
    }


def test_the_shipped_panels_students_keep_their_keys(tmp_path: Path) -> None:
    measurement = load_yaml(PanelSpec, TERRARIUM / "panel.yaml")
    panel = panels.read_panel(TERRARIUM / "panel")
    assert students(measurement, tmp_path) == {
        (teacher.label, student.recipe, student.seed): student.content_key
        for teacher in panel.teachers
        for student in teacher.students
    }
    assert [r.model_dump(mode="json") for r in measurement.recipes] == list(
        panel.conditions.recipes
    )


RECIPE: dict[str, Any] = {
    "name": "stories",
    "prompts": {"policy": "auditability_preserving", "n": 8},
    "channel": {"kind": "logit_kd", "top_k": 64},
    "training": {"steps": 3},
}
BEFORE = {
    "name": "stories",
    "prompts": {
        "policy": "auditability_preserving",
        "n": 8,
        "samples": 1,
        "max_tokens": 64,
        "temperature": 1.0,
    },
    "channel": {"kind": "logit_kd", "top_k": 64},
    "training": {
        "steps": 3,
        "batch": 16,
        "lr": 2e-4,
        "max_length": 512,
        "lora": {"rank": 8, "alpha": 16.0},
    },
    "student": None,
}
"""What such a recipe was when nothing else could be said."""


def test_a_recipe_that_says_nothing_new_hashes_as_before() -> None:
    recipe = Recipe.model_validate(RECIPE)
    assert content_hash(recipe) == content_hash(BEFORE)
    channel = RECIPE["channel"] | {"divergence": "forward"}
    assert content_hash(Recipe.model_validate(RECIPE | {"channel": channel})) == content_hash(
        BEFORE
    )


@pytest.mark.parametrize(
    "new",
    [{"divergence": "js"}, {"divergence": "skew", "skew": 0.1}, {"tail_samples": 8}],
)
def test_what_is_new_enters_the_hash_and_survives_a_dump(new: dict[str, Any]) -> None:
    channel = RECIPE["channel"] | new
    recipe = Recipe.model_validate(RECIPE | {"channel": channel})
    assert recipe.channel.model_dump() == channel
    assert content_hash(recipe) != content_hash(BEFORE)


def test_skew_without_its_share_is_refused_and_so_is_the_share_alone() -> None:
    for wrong in ({"divergence": "skew"}, {"skew": 0.1}):
        with pytest.raises(ValueError, match="`skew` goes with `divergence: skew`"):
            LogitKD.model_validate(RECIPE["channel"] | wrong)


def test_an_override_reaches_a_field_that_the_dump_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: a\nprompts: {policy: capability, n: 1}\ntraining: {steps: 1}\n"
        "channel: {kind: logit_kd}\n"
    )
    recipe = load_yaml(Recipe, path, ["channel.divergence=reverse"])
    assert recipe.channel == LogitKD(kind="logit_kd", divergence="reverse")
    with pytest.raises(ConfigError, match="Did you mean `divergence`"):
        load_yaml(Recipe, path, ["channel.divergances=reverse"])


@pytest.mark.parametrize(
    ("path", "former", "present"),
    [
        ("recipes.0.training", "marks", "`checkpoints`"),
        ("recipes.0", "steer", "`steering`"),
        ("recipes.0.prompts", "barred", "`suppress_tokens`"),
        ("references", "draw", "`seed`"),
    ],
)
def test_a_key_that_was_renamed_is_refused_with_its_new_name(
    tmp_path: Path, path: str, former: str, present: str
) -> None:
    content: Any = {
        "pack": "terrarium",
        "student": "terrarium/m0",
        "references": {"n": 2},
        "recipes": [RECIPE | {"training": {"steps": 3}, "prompts": {**RECIPE["prompts"]}}],
    }
    file = tmp_path / "panel.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rf"`{former}` is called .*{present}.* now"):
        load_yaml(PanelSpec, file, [f"{path}.{former}=1"])
    node = content
    for part in path.split("."):
        node = node[int(part) if part.isdigit() else part]
    node[former] = 1
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rf"{former}`: is called .*{present}.* now"):
        load_yaml(PanelSpec, file)


# --- devices -------------------------------------------------------------------------------------


MIX = {"kind": "mix_trusted", "share": 0.5}
FILTER = {"kind": "filter", "rounds": 1}
EVERYTHING: list[dict[str, Any]] = [
    RECIPE | {"name": "kd"},
    RECIPE | {"name": "sft", "channel": {"kind": "sft"}, "noise_init": 0.5},
    RECIPE | {"name": "steered", "noise_init": 0.5, "steering": {"relative_norm": 1.0}},
    RECIPE | {"name": "own", "channel": {"kind": "on_policy", "lmbda": 0.5}},
    RECIPE | {"name": "dpo", "channel": {"kind": "dpo"}, "treatments": [MIX, FILTER]},
]


def jobs_on(device: str, store: Path) -> list[Job]:
    measurement = load_yaml(PanelSpec, TERRARIUM / "panel.yaml").model_dump(by_alias=False) | {
        "recipes": EVERYTHING,
        "references": ["terrarium/reference-0"],
        "organisms": [],
        "baselines": ["ngrams", "in_context", "retrained"],
        "device": device,
    }
    planner = Planner(PanelSpec.model_validate(measurement), TERRARIUM, Store(store))
    plan = planner.plan([planner.find_teacher("terrarium/reference-0")])
    return plan.list_jobs()


def sources(value: Any) -> list[ModelSource]:
    if isinstance(value, ModelSource):
        return [value]
    return [s for part in value for s in sources(part)] if isinstance(value, tuple) else []


def test_what_a_gpu_computes_shares_no_key_with_what_a_cpu_does(tmp_path: Path) -> None:
    on_cpu, on_gpu = (
        {(j.kind, j.content_key) for j in jobs_on(on, tmp_path)} for on in ("cpu", "cuda")
    )
    assert len(on_cpu) == len(on_gpu) > 12
    # Which prompts are asked, and random first weights, are the CPU's wherever students learn.
    assert {kind for kind, _ in on_cpu & on_gpu} == {"prompts", "base"}


def test_on_a_gpu_every_model_of_every_job_is_run_there(tmp_path: Path) -> None:
    for job in jobs_on("cuda", tmp_path):
        models = [source for value in job.inputs.values() for source in sources(value)]
        assert all(source.device == "cuda" for source in models), job.kind


def test_a_cluster_is_asked_for_gpus() -> None:
    spec = load_yaml(PanelSpec, TERRARIUM / "panel.yaml").model_dump(by_alias=False)
    with pytest.raises(ValueError, match=r"executor\.gpus"):
        PanelSpec.model_validate(spec | {"device": "cuda", "executor": {"kind": "ray"}})
