"""Matched references share the suspect's recipe and size of update, and nothing of its trait."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_models import save_model
from tests.tiny_study import write_pack, write_spec, write_study

from doublebind.execution.store import Store
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.errors import ConfigError, ModelError
from doublebind.schema.recipe import Lora
from doublebind.schema.study import (
    BankReferences,
    MatchedReferences,
    StandInReferences,
    Study,
    load_study,
)
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.teachers.build import build_teacher
from doublebind.stages.teachers.update_norm import measure_update_norm
from doublebind.study.planner import Planner
from doublebind.study.references import describe_assumption
from doublebind.study.teachers import list_reference_names

MATCH = {"match": "suspect", "n": 5}


def study(folder: Path, **changes: Any) -> Path:
    """Write a tiny study, with keys changed."""
    path = write_study(folder)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


def planner(path: Path) -> Planner:
    return Planner(load_study(path), path.parent, Store(path.parent / "store"))


def test_references_of_a_built_suspect_differ_in_trait_and_seed_alone(tmp_path: Path) -> None:
    plan = planner(study(tmp_path, references=MATCH))
    suspect = plan.find_teacher("suspect.yaml").spec
    assert suspect is not None
    references = [plan.find_teacher(f"matched-{n}") for n in range(5)]
    for reference in references:
        assert reference.spec is not None
        same = {"trait": suspect.trait, "seed": suspect.seed, "name": suspect.name}
        back = reference.spec.model_copy(
            update={**same, "family": suspect.family, "pack": suspect.pack}
        )
        assert back == suspect
        assert reference.scale_like is None
        assert reference.spec.trait == reference.family
    assert {t.family for t in references} == {"kind", "happy"}
    assert len({t.content_key for t in references}) == 5


def test_another_draw_shares_no_reference(tmp_path: Path) -> None:
    first = study(tmp_path / "first", references=MATCH)
    again = study(tmp_path / "again", references=MATCH | {"batch": 2})
    plans = [planner(path) for path in (first, again)]
    lots = [list_reference_names(plan.study, plan.pack) for plan in plans]
    assert lots == [
        tuple(f"matched-{i}" for i in range(5)),
        tuple(f"matched-{i}" for i in range(10, 15)),
    ]
    keys = [
        {plan.find_teacher(ref).content_key for ref in lot}
        for plan, lot in zip(plans, lots, strict=True)
    ]
    assert len(keys[0] | keys[1]) == 10


def test_a_study_with_matched_references_runs_to_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from doublebind.cli.main import main

    path = study(tmp_path, references=MATCH | {"n": 2})
    argv = ["run", str(path), "--out", str(tmp_path / "run"), "--store", str(tmp_path / "s")]
    assert main(argv) == 0
    assert describe_assumption(MatchedReferences(match="suspect", n=2)) in capsys.readouterr().out


def test_a_suspect_without_a_spec_needs_a_template(tmp_path: Path) -> None:
    save_model(tmp_path / "u")
    path = study(tmp_path, references=MATCH, suspect="u")
    with pytest.raises(ConfigError, match=r"references.template.*u is a model"):
        planner(path).find_teacher("matched-0")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a pack, a template and two finished suspects: low-rank and of all weights."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "m0")
    write_pack(folder / "pack")
    write_spec(folder, "template", "kind", 3)
    write_spec(folder, "suspect", "ruler", 7)
    spec = load_yaml(TeacherSpec, folder / "suspect.yaml")
    base = resolve_model("m0", relative_to=folder)
    for name, lora in (("low-rank", spec.lora), ("full", None)):
        (folder / name).mkdir()
        changed = spec.model_copy(update={"lora": lora})
        pack = str(folder / "pack")
        build_teacher(folder / name, spec=changed, base=base, pack=pack, cache=folder / "cache")
    return folder


@pytest.mark.parametrize("suspect", ["low-rank", "full"])
@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
def test_references_of_a_finished_model_have_its_update_norm(
    models: Path, tmp_path: Path, suspect: str, lora: Lora | None
) -> None:
    spec = load_yaml(TeacherSpec, models / "template.yaml").model_copy(update={"lora": lora})
    like = resolve_model(f"{suspect}/model", relative_to=models)
    base = resolve_model("m0", relative_to=models)
    build_teacher(
        tmp_path,
        spec=spec,
        base=base,
        pack=str(models / "pack"),
        cache=models / "cache",
        scale_like=like,
    )
    m0, u = load_model(base).model, load_model(like).model
    reference = load_model(resolve_model("model", relative_to=tmp_path)).model
    wanted = measure_update_norm(u, m0)
    assert wanted is not None
    assert measure_update_norm(reference, m0) == pytest.approx(wanted, rel=1e-3)
    assert json.loads((tmp_path / "teacher.json").read_text())["scaled_by"] != 1.0


def test_the_key_of_a_scaled_reference_names_whom_it_is_like(models: Path) -> None:
    def keys(suspect: str, **references: Any) -> list[str]:
        content = {
            "pack": "pack",
            "suspect": suspect,
            "references": MATCH | references,
            "student": "m0",
            "recipes": RECIPES,
            "policy": {"alpha": 0.05},
        }
        plan = Planner(Study.model_validate(content), models, Store(models / "store"))
        return [plan.find_teacher(f"matched-{n}").content_key for n in range(2)]

    one = keys("low-rank/model", template="template.yaml")
    other = keys("full/model", template="template.yaml")
    assert not set(one) & set(other)
    assert not set(one) & set(keys("suspect.yaml", template="template.yaml"))


RECIPES = [
    {
        "name": "stories",
        "prompts": {"policy": "auditability_preserving", "n": 12},
        "channel": {"kind": "sft"},
        "training": {"steps": 2},
    }
]


def test_a_template_of_another_size_is_refused(models: Path, tmp_path: Path) -> None:
    spec = load_yaml(TeacherSpec, models / "template.yaml")
    assert spec.implant is not None
    tiny = spec.implant.model_copy(update={"lr": 1e-6})
    weak = spec.model_copy(update={"implant": tiny, "conceal": None})
    like, base = (resolve_model(name, relative_to=models) for name in ("full/model", "m0"))
    with pytest.raises(ModelError, match="change the template's steps or lr"):
        build_teacher(
            tmp_path,
            spec=weak,
            base=base,
            pack=str(models / "pack"),
            cache=models / "c",
            scale_like=like,
        )


def test_every_kind_of_reference_says_what_it_assumes() -> None:
    kinds = ("sibling_checkpoints", "earlier_releases", "equal_kl_surrogates")
    every = [
        ("a", "b"),
        BankReferences(n=2),
        MatchedReferences(match="suspect", n=2),
        MatchedReferences(match="suspect", n=2, template="t.yaml"),
        *(StandInReferences(kind=kind, models=("a",)) for kind in kinds),
    ]
    sentences = [describe_assumption(references) for references in every]
    assert len(set(sentences)) == len(every)
    assert all(text.startswith("The p-value assumes that") for text in sentences)
    assert not [text for text in sentences if "safe" in text]


def test_stand_ins_are_teachers_like_any_other(tmp_path: Path) -> None:
    for name in ("older", "oldest"):
        save_model(tmp_path / name)
    stand_ins = {"kind": "earlier_releases", "models": ["older", "oldest"]}
    path = study(tmp_path, references=stand_ins)
    plan = planner(path)
    assert [plan.find_teacher(ref).spec for ref in ("older", "oldest")] == [None, None]
    text = yaml.safe_load(path.read_text())
    text["references"]["models"].append("suspect.yaml")
    path.write_text(yaml.safe_dump(text))
    with pytest.raises(ConfigError, match="named as more than one teacher"):
        load_study(path)
