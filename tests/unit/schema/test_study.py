from pathlib import Path

import pytest
import yaml

from doublebind.schema.errors import ConfigError
from doublebind.schema.recipe import Prompts
from doublebind.schema.study import Study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml

STUDY = {
    "pack": "terrarium",
    "suspect": "terrarium/suspect-1",
    "references": {"n": 4},
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


def write(folder: Path, content: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_yaml(Study, path, overrides)
    return list(caught.value.problems)


def test_a_study_survives_its_own_dump(tmp_path: Path) -> None:
    study = load_yaml(Study, write(tmp_path, STUDY))
    again = load_yaml(Study, write(tmp_path, study.model_dump(mode="json", by_alias=False)))
    assert again == study


def test_overrides_reach_defaults_and_list_entries(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY)
    study = load_yaml(
        Study,
        path,
        ["recipes.0.training.lora.rank=4", "recipes.0.training.lr=3e-4", "seeds=2"],
    )
    assert study.recipes[0].training.lora is not None
    assert study.recipes[0].training.lora.rank == 4
    assert study.recipes[0].training.lr == 3e-4
    assert study.seeds == 2


def test_a_union_is_switched_by_replacing_its_block(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY)
    study = load_yaml(Study, path, ["recipes.0.channel={kind: logit_kd, top_k: 8}"])
    assert study.recipes[0].channel.kind == "logit_kd"
    assert "unknown key `top_k`" in problems(path, "recipes.0.channel.top_k=8")[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seds": 2}, "`seds`: unknown key (got 2). Did you mean `seeds`?"),
        (
            {"policy": {"alpha": 0.05, "score": {"kind": "plain", "clip": 0.1}}},
            "`policy.score.clip`: a key of another kind than is given here (got 0.1); leave it out",
        ),
        (
            {"executor": {"kind": "local", "address": "auto"}},
            "`executor.address`: a key of another kind than is given here",
        ),
        ({"seeds": 0}, "`seeds`: Input should be greater than or equal to 1 (got 0)"),
        ({"suspect": None}, "`suspect`: Input should be a valid string (got None)"),
        ({"policy": {}}, "`policy.alpha`: missing; add it"),
        ({"references": []}, "references is empty"),
        ({"organisms": ["terrarium/suspect-1"]}, "is named as more than one teacher"),
        ({"audits": ["capability"]}, "audits must include one of"),
        ({"horns": ["replacement"]}, "`horns.0`: Input should be 'incriminate'"),
        ({"executor": {"kind": "loca"}}, "`executor`"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, change: dict, expected: str) -> None:
    found = problems(write(tmp_path, STUDY | change))
    assert len(found) == 1
    assert expected in found[0]
    assert str(tmp_path / "study.yaml") in found[0]


def test_deep_mistakes_are_all_told_at_once(tmp_path: Path) -> None:
    recipe = STUDY["recipes"][0] | {
        "prompts": {"polcy": "auditability_preserving", "n": "many"},
        "channel": {"kind": "logit_kd", "topk": 3},
        "training": {"steps": 1, "lora": {"ranks": 1}},
    }
    found = "\n".join(problems(write(tmp_path, STUDY | {"recipes": [recipe]})))
    for expected in (
        "`recipes.0.prompts.polcy`: unknown key (got 'auditability_preserving'). "
        "Did you mean `policy`?",
        "`recipes.0.prompts.policy`: missing",
        "`recipes.0.prompts.n`",
        "`recipes.0.channel.topk`: unknown key (got 3). Did you mean `top_k`?",
        "`recipes.0.training.lora.ranks`: unknown key (got 1). Did you mean `rank`?",
    ):
        assert expected in found
    assert len(found.splitlines()) == 5


@pytest.mark.parametrize("marks", [[0, 1], [2, 2], [3, 1], [1, 3], [-1]])
def test_checkpoints_rise_and_stay_below_the_last_step(tmp_path: Path, marks: list[int]) -> None:
    path = write(tmp_path, STUDY)
    (problem,) = problems(
        path, "recipes.0.training.steps=3", f"recipes.0.training.checkpoints={marks}"
    )
    assert "`recipes.0.training.checkpoints`: must rise from 1 and stay below" in problem
    study = load_yaml(
        Study, path, ["recipes.0.training.steps=3", "recipes.0.training.checkpoints=[1, 2]"]
    )
    assert study.recipes[0].training.checkpoints == (1, 2)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seeds", "write it as key.sub=value"),
        ("sedes=3", "unknown key `sedes`. Did you mean `seeds`?"),
        ("recipes.0.training.step=3", "Did you mean `steps`?"),
        ("recipes.9.name=x", "not an index into a list of 1"),
        ("seeds.deep=1", "has no keys"),
        ("seeds=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    found = problems(write(tmp_path, STUDY), override)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("a: [1, 2\nb: 3", "not valid YAML at line"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in problems(write(tmp_path, content))[0]


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01" * 9)
    assert "not UTF-8" in problems(path)[0]
    assert "no such file" in problems(tmp_path / "nowhere.yaml")[0]
    assert "is a folder" in problems(tmp_path)[0]


def test_a_teacher_spec_must_hang_together() -> None:
    phase = {"transcripts": 4, "steps": 2}
    spec = {"name": "a", "family": "f", "pack": "p", "base": "b", "trait": None}
    with pytest.raises(ValueError, match="needs `implant`, `capability`"):
        TeacherSpec(**spec)
    with pytest.raises(ValueError, match="go together"):
        TeacherSpec(**spec | {"implant": phase})
    with pytest.raises(ValueError, match="nothing to hide"):
        TeacherSpec(**spec | {"capability": phase, "conceal": phase})


def test_a_key_left_at_its_default_is_not_hashed_but_can_be_overridden(tmp_path: Path) -> None:
    prompts = Prompts(policy="capability", n=1)
    assert "file" not in prompts.model_dump(mode="json")
    assert prompts.model_copy(update={"file": "mine.jsonl"}).model_dump()["file"] == "mine.jsonl"
    assert Prompts.model_validate(prompts.model_dump(mode="json")) == prompts
    study = load_yaml(Study, write(tmp_path, STUDY), ["recipes.0.prompts.file=mine.jsonl"])
    assert study.recipes[0].prompts.file == "mine.jsonl"


def test_a_step_is_measured_in_examples_or_in_tokens(tmp_path: Path) -> None:
    training = {"steps": 3, "tokens_per_step": 512}
    study = STUDY | {"recipes": [STUDY["recipes"][0] | {"training": training}]}  # type: ignore[index]
    loaded = load_yaml(Study, write(tmp_path, study))
    dump = loaded.model_dump(mode="json", by_alias=False)
    assert dump["recipes"][0]["training"] | training == dump["recipes"][0]["training"]
    assert "batch" not in dump["recipes"][0]["training"]
    assert load_yaml(Study, write(tmp_path, dump)) == loaded
    plain = load_yaml(Study, write(tmp_path, STUDY)).model_dump(mode="json")
    assert "tokens_per_step" not in plain["recipes"][0]["training"]  # no key moves
    assert plain["recipes"][0]["training"]["batch"] == 16

    path = write(tmp_path, study)
    (both,) = problems(path, "recipes.0.training.batch=4")
    assert "`batch` and `tokens_per_step`" in both
    (both,) = problems(write(tmp_path, STUDY), "recipes.0.training.tokens_per_step=512")
    assert "replaces the whole `training`" in both
    write(tmp_path, study)
    assert "\n" not in both
    (shards,) = problems(path, "recipes.0.training.processes=2")
    assert "`processes`" in shards
    (channel,) = problems(path, "recipes.0.channel={kind: dpo}")
    assert "not with dpo" in channel
