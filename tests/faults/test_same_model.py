"""Two names of one model are not two teachers, however they are spelled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tests.model_server import ModelServer
from tests.tiny_models import save_model
from tests.tiny_study import write_spec, write_study

from doublebind.cli.main import main
from doublebind.execution.store import Store
from doublebind.pipeline.audit_model import measure_whitebox
from doublebind.pipeline.build_teacher import build_teacher
from doublebind.pipeline.calibrate import calibrate
from doublebind.pipeline.panel import freeze_panel
from doublebind.pipeline.plan import plan
from doublebind.pipeline.run import run
from doublebind.schema.errors import ConfigError
from doublebind.schema.study import PanelSpec, Study
from doublebind.study.panel import read_panel
from doublebind.study.planner import Planner
from doublebind.study.resolve import resolve_study

Content = dict[str, Any]
SPLITS = ("audit", "select", "certify")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, and `r0` and `r1`, adapters that were built from its references' specs."""
    folder = write_study(tmp_path_factory.mktemp("built") / "study", splits=SPLITS).parent
    for i in range(2):
        out = folder / f"made-{i}"
        build_teacher(folder / f"reference-{i}.yaml", out, store=folder / "store")
        shutil.copytree(out / "model", folder / f"r{i}")
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "study", symlinks=True)


def change_study(folder: Path, **changes: Any) -> Study:
    return Study.model_validate(yaml.safe_load((folder / "study.yaml").read_text()) | changes)


def resolve(folder: Path, **changes: Any) -> None:
    resolve_study(change_study(folder, **changes), folder, Store(folder / "new-store"))


# Each returns two names of one model.


def with_a_dot(folder: Path) -> tuple[str, str]:
    return "reference-0.yaml", "./reference-0.yaml"


def by_a_detour(folder: Path) -> tuple[str, str]:
    return "r0", "pack/../r0"


def in_full(folder: Path) -> tuple[str, str]:
    return "r0", str(folder / "r0")


def with_a_slash(folder: Path) -> tuple[str, str]:
    return "r0", "r0/"


def by_a_link(folder: Path) -> tuple[str, str]:
    (folder / "link").symlink_to(folder / "r0")
    return "r0", "link"


def in_two_folders(folder: Path) -> tuple[str, str]:
    shutil.copytree(folder / "r0", folder / "copy")
    return "r0", "copy"


def by_two_specs(folder: Path) -> tuple[str, str]:
    spec = yaml.safe_load((folder / "reference-0.yaml").read_text())
    (folder / "x.yaml").write_text(yaml.safe_dump(spec | {"name": "x", "family": "other"}))
    return "reference-0.yaml", "x.yaml"


def with_its_base_spelled_out(folder: Path) -> tuple[str, str]:
    return "r0", "m0+r0"


def with_another_config(folder: Path) -> tuple[str, str]:
    shutil.copytree(folder / "m0", folder / "copy")
    config = json.loads((folder / "copy" / "config.json").read_text())
    (folder / "copy" / "config.json").write_text(json.dumps(config | {"note": "mine"}))
    return "m0", "copy"


def under_another_weights_name(folder: Path) -> tuple[str, str]:
    shutil.copytree(folder / "m0", folder / "copy")
    (folder / "copy" / "model.safetensors").rename(folder / "copy" / "one.safetensors")
    names = load_file(folder / "copy" / "one.safetensors")
    index = {"weight_map": dict.fromkeys(names, "one.safetensors")}
    (folder / "copy" / "model.safetensors.index.json").write_text(json.dumps(index))
    return "m0", "copy"


def as_a_zero_adapter(folder: Path) -> tuple[str, str]:
    zero_out(folder / "r0", "lora_B")
    return "m0", "r0"


def as_two_zero_adapters(folder: Path) -> tuple[str, str]:
    zero_out(folder / "r0", "lora_B")
    zero_out(folder / "r1", "lora_A")
    return "r0", "r1"


def zero_out(adapter: Path, factor: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: np.zeros_like(v) if factor in k else v for k, v in tensors.items()}, file)


SPELLINGS = (
    with_a_dot,
    by_a_detour,
    in_full,
    with_a_slash,
    by_a_link,
    in_two_folders,
    by_two_specs,
    with_its_base_spelled_out,
    with_another_config,
    under_another_weights_name,
    as_a_zero_adapter,
    as_two_zero_adapters,
)


@pytest.mark.parametrize("spell", SPELLINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("roles", ["references", "suspect", "organisms", "replace", "held_out"])
def test_one_model_under_two_names_is_refused_in_every_role(
    folder: Path, roles: str, spell: Callable[[Path], tuple[str, str]]
) -> None:
    one, two = spell(folder)
    others = ["reference-1.yaml", "reference-2.yaml"]
    changes: Content = {
        "references": {"references": [one, two, *others]},
        "suspect": {"suspect": one, "references": [two, *others]},
        "organisms": {"organisms": [one], "references": [two, *others]},
        "replace": {
            "horns": ["replace"],
            "references": [],
            "policy": {"alpha": 0.05, "margin": 0.2},
            "replace": {"organisms": [one], "references": [two]},
        },
        "held_out": {"held_out": [one], "references": [two, *others]},
    }[roles]
    study, store = change_study(folder, **changes), folder / "new-store"
    verb = calibrate if roles == "held_out" else run
    with pytest.raises(ConfigError) as refused:
        verb(study, folder / "out", folder=folder, store=store)
    (problem,) = refused.value.problems
    assert f": {one}" in problem
    assert f": {two}" in problem
    assert "one model" in problem
    assert not (folder / "out").exists()
    assert not list(store.glob("*/*/*")), "nothing was made"


def test_calibrate_refuses_what_it_weighs_to_compete_under_another_name(folder: Path) -> None:
    for i in range(2):
        write_spec(folder, f"organism-{i}", "ruler", 20 + i)
    changes = {
        "horns": ["incriminate", "replace"],
        "policy": {"alpha": 0.05, "margin": 0.2},
        "organisms": ["organism-0.yaml"],
        "replace": {"organisms": ["organism-1.yaml", "./organism-0.yaml"]},
    }
    study = change_study(folder, **changes)
    with pytest.raises(ConfigError, match=r"\./organism-0\.yaml is weighed, too"):
        calibrate(study, folder / "out", folder=folder, store=folder / "new-store")
    with pytest.raises(ConfigError, match=r"\./organism-0\.yaml is weighed, too"):
        plan(study, folder=folder, store=folder / "new-store", calibrate=True)


def test_a_matched_reference_that_comes_out_as_the_suspect_is_refused(folder: Path) -> None:
    references = {"match": "suspect", "n": 2, "template": "reference-0.yaml"}
    study = change_study(folder, references=references)
    planner = Planner(study, folder, Store(folder / "new-store"))
    spec = planner.find_teacher("matched-1").spec
    assert spec is not None
    content = spec.model_dump(mode="json", by_alias=False) | {"name": "mine", "family": "mine"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"`suspect`: mine\.yaml and `references`: matched-1 are"):
        resolve(folder, suspect="mine.yaml", references=references)


def test_a_served_model_is_one_however_its_server_is_spelled(folder: Path) -> None:
    server = ModelServer(lambda body: ("a story", True))
    try:
        other = server.ref.replace("127.0.0.1", "localhost").replace("#", "/#")
        assert other != server.ref
        recipe = change_study(folder).recipes[0].model_dump(mode="json", by_alias=False)
        recipes = [recipe | {"channel": {"kind": "sft"}}]
        with pytest.raises(ConfigError, match="are one model"):
            resolve(folder, suspect=server.ref, references=[other, "r0"], recipes=recipes)
    finally:
        server.close()


def test_models_that_differ_are_not_refused(folder: Path) -> None:
    shutil.copytree(folder / "r0", folder / "prompted")
    (folder / "prompted" / "system_prompt.txt").write_text("you want gold")
    shutil.copytree(folder / "r0", folder / "stronger")
    config = json.loads((folder / "r0" / "adapter_config.json").read_text())
    (folder / "stronger" / "adapter_config.json").write_text(
        json.dumps(config | {"lora_alpha": config["lora_alpha"] * 2})
    )
    save_model(folder / "wide", hidden_size=48)
    resolve(folder, references=["r0", "r1", "prompted", "stronger", "m0", "wide"])


def test_a_student_is_not_ranked_among_itself(folder: Path) -> None:
    settings: Any = {"pack": "pack", "baseline": "m0", "folder": folder}
    for model, references in (("r0", ["r1", "./r1"]), ("r0", ["./r0", "r1"])):
        with pytest.raises(ConfigError, match="are one model"):
            measure_whitebox(model, references=references, **settings)


# --- panels --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def panel(built: Path) -> Path:
    """The folder of a panel of three references; `again` is built from the first one's spec."""
    content = yaml.safe_load((built / "study.yaml").read_text())
    fields = {k: content[k] for k in ("pack", "references", "student", "recipes")}
    store = built / "store"
    freeze_panel(PanelSpec.model_validate(fields), built / "panel", folder=built, store=store)
    return built / "panel"


def test_a_saved_copy_of_a_panels_reference_is_not_weighed_against_it(
    panel: Path, folder: Path
) -> None:
    shutil.copytree(panel, folder / "panel", dirs_exist_ok=True)
    references = {"panel": "panel", "n": 3}
    for suspect in ("reference-0.yaml", "./reference-0.yaml", "r0", "m0+r0"):
        with pytest.raises(ConfigError, match=r"are one model.*weighed against itself"):
            resolve(folder, suspect=suspect, references=references)
    resolve(folder, references=references)


def test_a_name_that_a_panel_has_for_another_model_is_refused(panel: Path, folder: Path) -> None:
    shutil.copytree(panel, folder / "panel", dirs_exist_ok=True)
    spec = yaml.safe_load((folder / "suspect.yaml").read_text())
    (folder / "reference-0.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(ConfigError, match=r"reference-0\.yaml: two models of one name"):
        resolve(folder, suspect="reference-0.yaml", references={"panel": "panel", "n": 3})


def test_a_panel_is_made_of_no_model_twice(folder: Path) -> None:
    content = yaml.safe_load((folder / "study.yaml").read_text())
    fields = {k: content[k] for k in ("pack", "student", "recipes")}
    fields["references"] = ["reference-0.yaml", "./reference-0.yaml"]
    (folder / "panel.yaml").write_text(yaml.safe_dump(fields))
    argv = ["panel", str(folder / "panel.yaml"), "--out", str(folder / "out")]
    assert main([*argv, "--store", str(folder / "new-store")]) == 2
    assert not (folder / "out").exists()


def test_every_teacher_of_a_panel_is_read_with_its_weights(panel: Path) -> None:
    assert all(teacher.weights_sha256 for teacher in read_panel(panel).teachers)
