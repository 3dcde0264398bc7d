"""A folder beside a study does not stand in for something built in of its name."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_models import save_model
from tests.tiny_study import write_pack, write_study

from doublebind.cli.main import main
from doublebind.execution.store import Store
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import BUILT_IN_PACKS, load_pack
from doublebind.schema.errors import ConfigError, DoublebindError, MissingExtra, ModelError
from doublebind.schema.study import Study
from doublebind.study.panel import find_panel_folder
from doublebind.study.planner import Planner
from doublebind.study.resolve import resolve_study
from doublebind.study.runtime import open_pack
from doublebind.study.starter import write_study as write_starter
from doublebind.study.teachers import find_teacher

TERRARIUM = Path(str(files("doublebind.packs") / "terrarium"))
NAMES = (*BUILT_IN_PACKS, "outback/poisoned", "terrarium:dominion", "assistant:flattery")


@pytest.mark.parametrize("name", NAMES)
def test_a_pack_folder_does_not_replace_a_built_in_pack(tmp_path: Path, name: str) -> None:
    whole = name.partition(":")[0]
    built_in = open_pack(name, tmp_path).pack.sha256
    (tmp_path / whole).mkdir(parents=True)
    assert open_pack(name, tmp_path).pack.sha256 == built_in, "a folder of something else"
    (tmp_path / whole).rmdir()
    write_pack(tmp_path / whole)
    with pytest.raises(ConfigError) as refused:
        open_pack(name, tmp_path)
    (problem,) = refused.value.problems
    assert f"`pack`: {whole} is built in" in problem
    assert f"write ./{whole}" in problem
    assert open_pack(f"./{whole}", tmp_path).pack.name == "tiny"
    assert load_pack(name, relative_to=tmp_path).sha256 == built_in, "what a job is given"


def test_a_pack_folder_with_traits_is_the_folder_that_was_written(tmp_path: Path) -> None:
    write_pack(tmp_path / "terrarium")
    assert open_pack("./terrarium:ruler", tmp_path).pack.name == "tiny"


@pytest.mark.parametrize("name", ["terrarium/m0", "terrarium/base", "gemma-270m", "smollm2-135m"])
def test_a_model_folder_does_not_replace_a_built_in_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    try:
        built_in = resolve_model(name, relative_to=tmp_path).sha256
    except (MissingExtra, ModelError):
        built_in = None
    save_model(tmp_path / name)
    for ref in (name, f"{name}+adapter"):
        with pytest.raises(DoublebindError, match=rf"{name}: is built in.*write \./{name}"):
            resolve_model(ref, relative_to=tmp_path)
    assert resolve_model(f"./{name}", relative_to=tmp_path).sha256 != built_in


def test_the_packages_own_folder_is_no_namesake() -> None:
    packs = TERRARIUM.parent
    assert open_pack("assistant", packs).pack.name == "assistant"
    assert resolve_model("terrarium/m0", relative_to=packs).path == str(
        (TERRARIUM / "m0").resolve()
    )
    assert find_panel_folder("terrarium", packs) == TERRARIUM / "panel"


def test_a_panel_folder_does_not_replace_the_built_in_panel(tmp_path: Path) -> None:
    shipped = find_panel_folder("terrarium", tmp_path)
    write_pack(tmp_path / "terrarium")
    assert find_panel_folder("terrarium", tmp_path) == shipped, "a folder that is no panel"
    shutil.copy(TERRARIUM / "panel" / "panel.json", tmp_path / "terrarium")
    with pytest.raises(ConfigError, match=r"`references.panel`: terrarium is built in"):
        find_panel_folder("terrarium", tmp_path)
    assert find_panel_folder("./terrarium", tmp_path) == tmp_path / "terrarium"


def test_a_model_folder_does_not_share_a_name_with_a_teacher_of_the_bank(tmp_path: Path) -> None:
    pack = load_pack("terrarium", relative_to=tmp_path)
    settings: Any = {"pack": pack, "folder": tmp_path, "rev": 1, "student": "terrarium/m0"}
    names = ("terrarium/reference-0", "outback/organism-poisoned-dominion-0")
    for name in names:
        assert find_teacher(name, **settings).spec is not None
        save_model(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"{name} is built in"):
            find_teacher(name, **settings)
        assert find_teacher(f"./{name}", **settings).spec is None


def test_commands_that_take_a_pack_refuse_two_of_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pack(tmp_path / "proving")
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "check", "proving"]) == 2
    assert "proving is built in" in capsys.readouterr().err
    main(["pack", "check", "./proving", "--json"])
    assert "terrarium" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="proving is built in"):
        write_starter(tmp_path / "study.yaml", "proving")
    write_starter(tmp_path / "study.yaml", "./proving")
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["pack"] == "./proving"


# --- names that a study's own tables give --------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("names") / "study").parent


def resolve(folder: Path, **changes: Any) -> None:
    content = yaml.safe_load((folder / "study.yaml").read_text()) | changes
    resolve_study(Study.model_validate(content), folder, Store(folder / "store"))


def test_no_teacher_is_called_as_the_tables_call_m0(folder: Path) -> None:
    save_model(folder / "M0", hidden_size=48)
    with pytest.raises(ConfigError, match=r"M0: .*write \./M0"):
        resolve(folder, suspect="M0")
    resolve(folder, suspect="./M0")


def test_no_organism_is_called_as_a_reference_that_is_built(folder: Path) -> None:
    save_model(folder / "matched-0")
    matched = {"match": "suspect", "n": 2}
    with pytest.raises(ConfigError, match="`organisms`: matched-0 is the study's reference, too"):
        resolve(folder, references=matched, organisms=["matched-0"])
    resolve(folder, references=matched, organisms=["./matched-0"])


@pytest.mark.parametrize("role", ["suspect", "organisms"])
def test_a_teacher_of_the_bank_has_one_role(tmp_path: Path, role: str) -> None:
    study: dict[str, Any] = {
        "pack": "terrarium",
        "suspect": "terrarium/suspect-0",
        "references": {"n": 3},
        "student": "terrarium/m0",
        "recipes": [
            {
                "name": "stories",
                "prompts": {"policy": "auditability_preserving", "n": 8},
                "channel": {"kind": "sft"},
                "training": {"steps": 3},
            }
        ],
        "policy": {"alpha": 0.05},
    }
    name = "terrarium/reference-1"
    study[role] = name if role == "suspect" else [name]
    with pytest.raises(ConfigError, match=rf"{name} is the study's (suspect|reference), too"):
        resolve_study(Study.model_validate(study), tmp_path, Store(tmp_path / "store"))


def test_a_spec_beside_a_namesake_means_what_it_says(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study").parent
    shutil.copytree(folder / "pack", folder / "proving")
    spec = yaml.safe_load((folder / "suspect.yaml").read_text())
    for pack, refused in (("proving", True), ("./proving", False)):
        (folder / "x.yaml").write_text(yaml.safe_dump(spec | {"pack": pack}))
        study = Study.model_validate(yaml.safe_load((folder / "study.yaml").read_text()))
        planner = Planner(study, folder, Store(tmp_path / "store"))
        if refused:
            with pytest.raises(ConfigError, match="proving is built in"):
                planner.find_teacher("x.yaml")
        else:
            assert planner.find_teacher("x.yaml").pack == str((folder / "proving").resolve())
