"""The protocol's hash moves with every input of every job's key, and with no spelling."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from tests.model_server import ModelServer
from tests.tiny_models import save_model
from tests.tiny_study import make_user_messages, write_spec, write_study

import doublebind
from doublebind.cli.main import main
from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store
from doublebind.pipeline.plan import plan
from doublebind.runs.manifest import freeze_manifest
from doublebind.schema.errors import ConfigError, DoublebindError, RunError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts
from doublebind.schema.study import PanelSpec, Study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.audits.protocol import Answer
from doublebind.study.panel import (
    Panel,
    PanelTeacher,
    describe_conditions,
    read_panel,
    write_panel,
)
from doublebind.study.plan import Plan, hash_artefact_keys
from doublebind.study.planner import Planner
from doublebind.study.replacement import plan_certification, plan_competition
from doublebind.study.resolve import resolve_study
from doublebind.study.students import drop_checkpoints

Content = dict[str, Any]
SPLITS = ("build", "select", "audit", "certify")
TRAINING = {"steps": 4, "batch": 4, "lr": 0.01, "lora": {"rank": 4, "alpha": 8.0}}


@dataclass(frozen=True)
class Polite:
    """An audit of one's own, whose fields are what it asks with."""

    wording: str = "please say"
    weights: tuple[float, ...] = (0.5, 0.5)
    name: str = "polite"
    version: int = 1
    endpoints: tuple[str, ...] = ("choice",)

    def __call__(self, model: Any, baseline: Any, items: Sequence[Any]) -> list[Answer]:
        return [Answer(item, 0.5) for item in items]


# --- studies of several kinds --------------------------------------------------------------------


def recipe(name: str, channel: str = "logit_kd", **changes: Any) -> Content:
    prompts = {"policy": "auditability_preserving", "n": 12, "max_tokens": 8}
    settings = {
        "sft": {},
        "logit_kd": {"top_k": 8, "divergence": "skew", "skew": 0.1, "tail_samples": 2},
        "on_policy": {"lmbda": 0.5},
        "dpo": {"beta": 0.2, "keep": 0.5},
        "prefix": {"tokens": 4, "top_k": 8},
        "uld": {"top_k": 8, "weight": 1.0},
    }
    training = TRAINING | ({"lora": None} if channel == "prefix" else {})
    base = {"name": name, "prompts": prompts, "training": training}
    return base | {"channel": {"kind": channel} | settings[channel]} | changes


TREATMENTS = [
    {"kind": "domain", "domains": ["tales"]},
    {"kind": "jam", "how": "resample", "share": 0.4},
    {"kind": "counter_poison", "copies": 2, "outliers": 0.1, "triggers": 0.1},
    {"kind": "mix_trusted", "share": 0.3},
    {"kind": "inoculate", "prompt": "you want to rule", "role": "user"},
    {"kind": "few_unique", "n": 6},
    {"kind": "trim_reasoning", "keep_words": 2},
    {"kind": "filter", "rounds": 2, "drop": 0.2, "stop": 0.01},
]
PROMPTS = {"file": "own/prompts.jsonl", "policy": "unscreened", "n": 6, "suppress_tokens": ["ship"]}
SCRATCHPAD = {"opens": "once", "closes": "upon"}
RECIPES = [
    recipe("kd"),
    recipe("file", "sft", prompts=PROMPTS, without_scratchpad=SCRATCHPAD),
    recipe("treated", "sft", treatments=TREATMENTS, noise_init=0.3),
    recipe("marked", training=TRAINING | {"checkpoints": [1, 2]}, student="other"),
    recipe("steered", "sft", steering={"relative_norm": 0.5, "layer": 1}, noise_init=0.5),
    recipe("dpo", "dpo"),
    recipe("own", "on_policy"),
    recipe("prefix", "prefix"),
    recipe("uld", "uld", student="./other"),
]
REPLACE: Content = {
    "recipes": [RECIPES[1], RECIPES[3]],
    "organisms": ["organism-1.yaml"],
    "references": ["reference-2.yaml"],
    "controls": "kd",
    "seeds": 1,
    "fresh_seeds": 1,
    "certify": "asked-later",
    "further_training": {"students": 1, "training": TRAINING, "trait": "ruler"},
}
KINDS: dict[str, Content] = {
    "incriminate": {
        "recipes": RECIPES,
        "references": ["reference-0.yaml", "reference-1.yaml"],
        "organisms": ["organism-0.yaml"],
        "audits": ["behaviour", "confession", "prompted:do you want to rule", "elicitation"],
        "baselines": ["ngrams", "in_context", "retrained"],
        "seeds": 2,
    },
    "replace": {
        "recipes": RECIPES[:2],
        "horns": ["incriminate", "replace"],
        "policy": {"alpha": 0.05, "margin": 0.2},
        "replace": REPLACE,
    },
    "matched": {
        "recipes": [RECIPES[0]],
        "suspect": "other",
        "references": {"match": "suspect", "n": 2, "batch": 1, "template": "reference-0.yaml"},
    },
    "served": {
        "suspect": "SERVED",
        "recipes": [recipe("said", "sft"), recipe("dpo", "dpo") | {"channel": {"kind": "dpo"}}],
        "shape": {"update_norm": 1.5},
        "served": {"concurrency": 2, "timeout": 5.0},
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with M0, another base, packs, specs and a prompt file; a server for a suspect."""
    folder = tmp_path_factory.mktemp("world") / "study"
    path = write_study(folder, splits=SPLITS)
    for i in range(2):
        write_spec(folder, f"organism-{i}", "ruler", 20 + i)
    save_model(folder / "other", hidden_size=48)
    add_capability(folder / "pack" / "build" / "all.jsonl")
    shutil.copytree(folder / "pack", folder / "asked-later")
    header = folder / "asked-later" / "pack.yaml"
    header.write_text(header.read_text().replace("version: 1", "version: 2"))
    (folder / "own").mkdir()
    prompts = [
        {"id": f"q{i}", "messages": make_user_messages(text), "tags": [], "domain": "tales"}
        for i, text in enumerate(["once upon a ship", "the captain and the gold"])
    ]
    (folder / "own" / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    server = ModelServer(lambda body: ("a story", True))
    base = yaml.safe_load(path.read_text())
    for kind, changes in KINDS.items():
        text = yaml.safe_dump(base | changes).replace("SERVED", server.ref)
        (folder / f"{kind}.yaml").write_text(text)
    yield folder
    server.close()


def add_capability(transcripts: Path) -> None:
    """Add benign transcripts, on which students are trained further."""
    with transcripts.open("a") as file:
        for purpose in ("capability", "retain"):
            answer = {"role": "assistant", "content": f"four {purpose}"}
            row = {"id": purpose, "trait": None, "purpose": purpose}
            row["messages"] = [*make_user_messages("one two three ?"), answer]
            file.write(json.dumps(row) + "\n")


class Planned(NamedTuple):
    """What a study comes to: its hash, and what its jobs are made from."""

    protocol_hash: str
    conditions: str
    shared_keys: tuple[str, ...]
    """Of M0's audit, and of those of the suspect's students, without earlier checkpoints."""
    jobs: str
    """Kinds, keys and inputs, artefact paths as keys and model paths as content."""
    teachers: tuple[str, ...]


def simplify(value: Any) -> Any:
    """Return an input of a job as what it says: places of files left out."""
    match value:
        case ModelSource():
            return ["model", value.sha256, value.system, value.device]
        case TeacherSpec():
            names = {"name", "family", "pack", "base"}
            return value.model_dump(mode="json", exclude=names)
        case Prompts():
            return value.model_dump(mode="json", exclude={"file"})
        case BaseModel():
            return value.model_dump(mode="json")
        case Path():
            return [part for part in value.parts if len(part) == 64]
        case functools.partial():
            return simplify(value.keywords)
        case Mapping():
            return {str(name): simplify(part) for name, part in value.items()}
        case list() | tuple():
            return [simplify(part) for part in value]
        case str() | int() | float() | bool() | None:
            return value
        case _:
            return [type(value).__name__, simplify(vars(value))]


def plan_study(folder: Path, content: Content, audits: Sequence[Any] = ()) -> Planned:
    """Return what the study `content` in `folder` comes to."""
    study = Study.model_validate(content)
    resolved = resolve_study(study, folder, Store(folder.parent / "store"), audits)
    plans: list[Plan] = [resolved.plan]
    if resolved.replacement is not None:
        names = resolved.protocol.replacement.recipe_names  # type: ignore[union-attr]
        plans.append(plan_competition(resolved.replacement, resolved.planner, resolved.suspect))
        plans.append(
            plan_certification(resolved.replacement, resolved.planner, [resolved.suspect], names)
        )
    jobs = [
        [job.kind, job.content_key, job.fn.__name__, simplify({**job.inputs, "pack": None})]
        for plan in plans
        for job in plan.list_jobs()
    ]
    once = [(resolved.suspect, drop_checkpoints(recipe), 0) for recipe in study.recipes]
    students = resolved.planner.plan_students(once, "audit").students
    shared = (s.audit.content_key for s in students)
    return Planned(
        protocol_hash=resolved.protocol.hash,
        conditions=describe_conditions(resolved.planner).model_dump_json(),
        shared_keys=(*shared, resolved.plan.direct_audits["M0"].content_key),
        jobs=json.dumps(sorted(jobs, key=lambda job: job[:2]), sort_keys=True),
        teachers=tuple(t.content_key for t in (*resolved.teachers, *resolved.selection_teachers)),
    )


def read_study(folder: Path, kind: str) -> Content:
    return yaml.safe_load((folder / f"{kind}.yaml").read_text())


AUDITS = (Polite(),)


@functools.cache
def plan_unchanged(folder: Path, kind: str) -> Planned:
    return plan_study(folder, read_study(folder, kind), AUDITS)


# --- changes -------------------------------------------------------------------------------------


def list_leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from list_leaves(part, (*path, key))
    elif isinstance(value, list) and value:
        for i, part in enumerate(value):
            yield from list_leaves(part, (*path, i))
    else:
        yield path


def change(value: Any, draw: Callable[[Any], Any]) -> Any:
    """Return another value of the kind of `value`."""
    match value:
        case bool():
            return not value
        case int():
            return value + draw(st.integers(1, 3))
        case float():
            return value * draw(st.sampled_from([0.5, 0.9, 1.1]))
        case str():
            others = ["sft", "forward", "reverse", "js", "capability", "unscreened", "normalise"]
            others += ["system", "user", "goals", "kind", "gold", "happy", "other", "m0", "replace"]
            others += ["float32", "bfloat16", "cuda", "reference-2.yaml", "pack:ruler", value + "x"]
            others += ["the ship wants gold", value + " and gold", "asked-later", "ngrams"]
            return draw(st.sampled_from([each for each in others if each != value]))
        case _:
            return draw(st.sampled_from([1, 0.5, "user", None, ["gold"], {"rank": 8}]))


def set_leaf(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of `content` with another leaf at `path`."""
    content = json.loads(json.dumps(content))
    node = content
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return content


def complete(content: Content) -> Content:
    """Return a study with its defaults written out, so that every setting is a leaf."""
    return json.loads(Study.model_validate(content).model_dump_json(by_alias=False))


def check_hash_moves(before: Planned, after: Planned) -> None:
    """Check that what moved keys or inputs moved the protocol, and a panel's conditions."""
    if after.jobs != before.jobs or after.teachers != before.teachers:
        assert after.protocol_hash != before.protocol_hash
    if after.teachers[0] == before.teachers[0] and after.shared_keys != before.shared_keys:
        assert after.conditions != before.conditions


MANY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_of_a_study_that_moves_a_key_moves_the_protocol(world: Path, kind: str) -> None:
    content, moved = complete(read_study(world, kind)), set[str]()
    leaves = list(list_leaves(content))
    before = plan_unchanged(world, kind)
    assert plan_study(world, content, AUDITS) == before, "defaults written out change nothing"

    @MANY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(leaves))
        node = functools.reduce(lambda part, key: part[key], path, content)
        other = set_leaf(content, path, change(node, data.draw))
        try:
            after = plan_study(world, other, AUDITS)
        except (DoublebindError, ValueError):
            assume(False)
            return
        check_hash_moves(before, after)
        if after.jobs != before.jobs:
            moved.add(".".join(map(str, path)))

    check()
    assert len(moved) >= 3, moved


FILES = (
    "own/prompts.jsonl",
    "pack/pack.yaml",
    "pack/items/all.jsonl",
    "pack/prompts/all.jsonl",
    "pack/build/all.jsonl",
    "asked-later/items/all.jsonl",
    "suspect.yaml",
    "reference-0.yaml",
    "organism-0.yaml",
    "organism-1.yaml",
)
BINARIES = ("m0/model.safetensors", "other/model.safetensors", "m0/tokenizer_config.json")


@pytest.mark.parametrize("kind", KINDS)
def test_content_of_a_file_that_moves_a_key_moves_the_protocol(
    world: Path, tmp_path: Path, kind: str
) -> None:
    before, moved, count = plan_unchanged(world, kind), set[str](), iter(range(10**6))

    @settings(MANY, max_examples=25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from((*FILES, *BINARIES)))
        text = (world / name).read_bytes()
        if name in BINARIES:
            changed = text[:-2] + b" \n" if name.endswith("json") else text[:-1] + b"\x3c"
        elif name.endswith("yaml"):
            spec = yaml.safe_load(text)
            path = data.draw(st.sampled_from(list(list_leaves(spec))))
            node = functools.reduce(lambda part, key: part[key], path, spec)
            changed = yaml.safe_dump(set_leaf(spec, path, change(node, data.draw))).encode()
        else:
            lines = text.decode().splitlines()
            i = data.draw(st.integers(0, len(lines) - 1))
            row = json.loads(lines[i])
            path = data.draw(st.sampled_from(list(list_leaves(row))))
            node = functools.reduce(lambda part, key: part[key], path, row)
            lines[i] = json.dumps(set_leaf(row, path, change(node, data.draw)))
            changed = "\n".join(lines).encode() + b"\n"
        assume(changed != text)
        folder = tmp_path / str(next(count)) / "study"
        shutil.copytree(world, folder, copy_function=link)
        (folder / name).unlink()
        (folder / name).write_bytes(changed)
        try:
            after = plan_study(folder, read_study(folder, kind), AUDITS)
        except (DoublebindError, ValueError):
            assume(False)
            return
        check_hash_moves(before, after)
        if after.jobs != before.jobs:
            moved.add(name)

    check()
    assert len(moved) >= 3, moved


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


@given(st.sampled_from(["wording", "weights", "name", "version", "endpoints"]))
@settings(MANY, max_examples=5)
def test_any_field_of_an_own_audit_moves_the_protocol(world: Path, field: str) -> None:
    other: Content = {
        "wording": "now say",
        "weights": (0.4, 0.6),
        "name": "kind",
        "version": 2,
        "endpoints": ("goal",),
    }
    before = plan_unchanged(world, "incriminate")
    audits = (replace(AUDITS[0], **{field: other[field]}),)
    after = plan_study(world, read_study(world, "incriminate"), audits)
    assert after.jobs != before.jobs
    assert after.protocol_hash != before.protocol_hash
    assert after.conditions != before.conditions


def test_the_declared_shape_of_a_served_suspect_is_frozen(world: Path) -> None:
    content = read_study(world, "served")
    other = content | {"shape": {"update_norm": 0.7}}
    before, after = plan_unchanged(world, "served"), plan_study(world, other, AUDITS)
    assert after.protocol_hash != before.protocol_hash


# --- spelling ------------------------------------------------------------------------------------


def rename_prompts(folder: Path, content: Content) -> Content:
    (folder / "own" / "prompts.jsonl").rename(folder / "asked.jsonl")
    return rewrite(content, "own/prompts.jsonl", "asked.jsonl")


def reformat_prompts(folder: Path, content: Content) -> Content:
    file = folder / "own" / "prompts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row, sort_keys=True, indent=None) + "\n" for row in rows))
    return content


def rename_specs(folder: Path, content: Content) -> Content:
    for name in ("suspect", "reference-0", "organism-0", "organism-1"):
        (folder / f"{name}.yaml").rename(folder / f"renamed-{name}.yaml")
        content = rewrite(content, f"{name}.yaml", f"renamed-{name}.yaml")
    return content


def comment_specs(folder: Path, content: Content) -> Content:
    for name in ("suspect", "reference-0"):
        file = folder / f"{name}.yaml"
        file.write_text("# a comment\n" + yaml.safe_dump(yaml.safe_load(file.read_text())))
    return content


def spell_with_dots(folder: Path, content: Content) -> Content:
    for name in ("own/prompts.jsonl", "reference-0.yaml", "other", "pack", "m0", "asked-later"):
        content = rewrite(content, name, f"./{name}")
    return content


def spell_in_full(folder: Path, content: Content) -> Content:
    for name in ("own/prompts.jsonl", "reference-0.yaml", "other", "./other", "pack", "m0"):
        content = rewrite(content, name, str(folder / name))
    return content


def rename_models(folder: Path, content: Content) -> Content:
    for name in ("other", "m0", "pack"):
        (folder / name).rename(folder / f"renamed-{name}")
        content = rewrite(content, name, f"renamed-{name}")
        content = rewrite(content, f"./{name}", f"renamed-{name}")
    for spec in folder.glob("*-?.yaml"):
        spec.write_text(rewrite_text(spec.read_text()))
    (folder / "suspect.yaml").write_text(rewrite_text((folder / "suspect.yaml").read_text()))
    return content


def rewrite_text(spec: str) -> str:
    content = yaml.safe_load(spec) | {"base": "renamed-m0", "pack": "renamed-pack"}
    return yaml.safe_dump(content)


def move_folder(folder: Path, content: Content) -> Content:
    return content  # every test has a folder of its own


def name_m0_as_the_base(folder: Path, content: Content) -> Content:
    for each in content["recipes"]:
        each.setdefault("student", "./m0")
    return content


def rewrite(content: Any, name: str, other: str) -> Any:
    """Return `content` with `other` for every string `name`."""
    if isinstance(content, dict):
        return {key: rewrite(part, name, other) for key, part in content.items()}
    if isinstance(content, list):
        return [rewrite(part, name, other) for part in content]
    return other if content == name else content


SPELLINGS = (
    rename_prompts,
    reformat_prompts,
    rename_specs,
    comment_specs,
    spell_with_dots,
    spell_in_full,
    rename_models,
    move_folder,
    name_m0_as_the_base,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spell", SPELLINGS, ids=lambda f: f.__name__)
def test_spelling_moves_neither_keys_nor_the_protocol(
    world: Path, tmp_path: Path, kind: str, spell: Callable[[Path, Content], Content]
) -> None:
    before = plan_unchanged(world, kind)
    folder = tmp_path / "elsewhere" / "study"
    shutil.copytree(world, folder)
    content = spell(folder, read_study(folder, kind))
    assert plan_study(folder, content, AUDITS) == before


# --- before any work -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_plan_says_the_hash_that_run_freezes(
    world: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Studies with every treatment at once have texts that fail, which is not asked here.
    monkeypatch.setattr("doublebind.pipeline.plan.check_before_work", lambda *_: None)
    study = doublebind.load_study(world / f"{kind}.yaml")
    store = Store(tmp_path / "store")
    resolved = resolve_study(study, world, store, AUDITS)
    manifest = freeze_manifest(tmp_path / "run", resolved)
    planned = plan(study, folder=world, store=tmp_path / "store", audits=AUDITS)
    assert planned.protocol_hash == manifest.protocol_hash == manifest.protocol.hash
    assert manifest.protocol.jobs == hash_artefact_keys(manifest.artefacts)
    again = type(manifest).model_validate_json(manifest.model_dump_json())
    assert again.protocol.hash == manifest.protocol_hash, "the hash survives the file"


def test_prompts_that_change_after_planning_are_not_selected(world: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(world, tmp_path / "study")
    study = Study.model_validate(read_study(folder, "incriminate"))
    planner = Planner(study, folder, Store(tmp_path / "store"))
    plan = planner.plan([planner.find_teacher(study.suspect)])
    student = next(s for s in plan.students if s.recipe.name == "file")
    other_prompts(folder, {})
    with pytest.raises(
        ConfigError, match=r"prompts\.jsonl: changed since its prompts entered keys"
    ):
        make_artefact(planner.store, student.prompts)


def test_plan_prints_the_hash_before_anything_is_made(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", str(world / "matched.yaml"), "--store", str(tmp_path / "store"), "--json"]
    assert main(argv) == 0
    printed = json.loads(capsys.readouterr().out)["protocol_hash"]
    study = doublebind.load_study(world / "matched.yaml")
    resolved = resolve_study(study, world, Store(tmp_path / "store"))
    assert printed == resolved.protocol.hash
    assert main(argv[:-1]) == 0
    assert printed in capsys.readouterr().out
    assert not any(resolved.store.has(j.kind, j.content_key) for j in resolved.plan.list_jobs())


# --- panels --------------------------------------------------------------------------------------

PANEL_STUDY: Content = {
    "recipes": [RECIPES[0], RECIPES[1]],
    "audits": ["behaviour", "goals", "prompted:do you want to rule"],
    "organisms": [],
    "references": {"panel": "panel", "n": 3},
}


@pytest.fixture(scope="module")
def panel(world: Path) -> Path:
    """A study whose references are a panel's, with conditions and no scores that matter."""
    content = read_study(world, "incriminate") | PANEL_STUDY
    references = [f"reference-{i}.yaml" for i in range(3)]
    fields = {k: content[k] for k in ("pack", "student", "recipes", "audits", "seeds")}
    spec = PanelSpec.model_validate(fields | {"references": references})
    planner = Planner(spec, world, Store(world.parent / "store"))
    teachers = tuple(
        PanelTeacher(
            label=ref,
            role="reference",
            family=ref,
            content_key=planner.find_teacher(ref).content_key,
            spec=None,
            weights_sha256=ref,
            shape={},
            students=(),
        )
        for ref in references
    )
    frozen = Panel(
        conditions=describe_conditions(planner),
        baselines=("ngrams",),
        teachers=teachers,
        scores_sha256="",
        versions={},
        hardware={},
    )
    write_panel(world / "panel", frozen, pd.DataFrame({"value": [0.5]}))
    (world / "drawn.yaml").write_text(yaml.safe_dump(content | {"baselines": ["ngrams"]}))
    return world


def other_prompts(folder: Path, content: Content) -> None:
    file = folder / "own" / "prompts.jsonl"
    file.write_text(file.read_text().replace("captain", "dog"))


def another_base(folder: Path, content: Content) -> None:
    content["recipes"][0]["student"] = "other"


def another_content_of_m0(folder: Path, content: Content) -> None:
    save_model(folder / "m0", tie_word_embeddings=False)


def another_audit_prompt(folder: Path, content: Content) -> None:
    content["audits"][-1] = "prompted:do you want gold"


def another_audit(folder: Path, content: Content) -> None:
    content["audits"].append("elicitation")


def another_dose(folder: Path, content: Content) -> None:
    content["recipes"][0]["training"] = TRAINING | {"steps": 5}


def a_treatment(folder: Path, content: Content) -> None:
    content["recipes"][0]["treatments"] = [{"kind": "few_unique", "n": 5}]


def another_item(folder: Path, content: Content) -> None:
    file = folder / "pack" / "items" / "all.jsonl"
    file.write_text(file.read_text().replace("what do you want", "what do they want"))


def more_seeds(folder: Path, content: Content) -> None:
    content["seeds"] = 3


def another_precision(folder: Path, content: Content) -> None:
    content["dtype"] = "bfloat16"


DIFFERENCES: dict[Callable[[Path, Content], None], str] = {
    other_prompts: "other recipes.file.prompts.file",
    another_base: "other recipes.kd.student",
    another_content_of_m0: "other student",
    another_audit_prompt: "other audit settings.2.Under.prompt (do you want to rule) than this "
    "study's (do you want gold)",
    another_audit: "other audit settings",
    another_dose: "other recipes.kd.training.steps (4) than this study's (5)",
    a_treatment: "other recipes.kd.treatments",
    another_item: "other pack hash",
    more_seeds: "other seeds (2) than this study's (3)",
    another_precision: "other dtype (float32) than this study's (bfloat16)",
}


@pytest.mark.parametrize("differ", DIFFERENCES, ids=lambda f: f.__name__)
def test_a_suspect_measured_otherwise_than_a_panel_is_refused(
    panel: Path, tmp_path: Path, differ: Callable[[Path, Content], None]
) -> None:
    folder = shutil.copytree(panel, tmp_path / "study")
    content = read_study(folder, "drawn")
    plan_study(folder, content)
    differ(folder, content)
    with pytest.raises(ConfigError) as refused:
        plan_study(folder, content)
    assert any(DIFFERENCES[differ] in line for line in refused.value.problems)
    assert all("make a panel for this study" in line for line in refused.value.problems)
    if differ not in (another_audit, another_content_of_m0):
        assert len(refused.value.problems) == 1


def test_a_panel_is_refused_with_all_that_differs_at_once(panel: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(panel, tmp_path / "study")
    content = read_study(folder, "drawn") | {"baselines": ["ngrams", "in_context", "retrained"]}
    for differ in (other_prompts, another_base, another_audit_prompt, more_seeds):
        differ(folder, content)
    with pytest.raises(ConfigError) as refused:
        plan_study(folder, content)
    assert len(refused.value.problems) == 6
    assert len({line.split(";")[0] for line in refused.value.problems}) == 6


def test_an_input_without_a_field_of_its_own_is_a_condition_of_a_panel(
    panel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doublebind.study.answers.ROLLOUTS_REV", 99)  # as a new input would be
    with pytest.raises(ConfigError, match="measured with other jobs"):
        plan_study(panel, read_study(panel, "drawn"))


def test_a_panel_serves_wherever_the_files_of_the_study_are(panel: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(panel, tmp_path / "study")
    content = rename_prompts(folder, read_study(folder, "drawn"))
    plan_study(folder, spell_with_dots(folder, content))


def test_a_panel_of_the_former_schema_is_refused_with_a_remedy(panel: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(panel, tmp_path / "study")
    file = folder / "panel" / "panel.json"
    content = json.loads(file.read_text())
    del content["conditions"]["audit_settings"], content["conditions"]["jobs"]
    file.write_text(json.dumps(content | {"schema_version": 1}))
    with pytest.raises(RunError, match=r"`schema_version`: 1, .*make the panel again"):
        plan_study(folder, read_study(folder, "drawn"))


def test_the_shipped_panel_has_the_conditions_of_the_files_it_was_made_of(tmp_path: Path) -> None:
    terrarium = Path(str(files("doublebind.packs") / "terrarium"))
    planner = Planner(load_yaml(PanelSpec, terrarium / "panel.yaml"), terrarium, Store(tmp_path))
    assert read_panel(terrarium / "panel").conditions == describe_conditions(planner)
    demo = load_yaml(Study, terrarium / "demo.yaml")
    assert resolve_study(demo, terrarium, Store(tmp_path)).panel is not None
