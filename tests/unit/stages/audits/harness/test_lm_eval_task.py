"""Tasks of the lm-evaluation-harness as capability measures; what needs it runs where it is."""
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.score import token_logprobs
from doublebind.pipeline import audit_model
from doublebind.schema.errors import ConfigError, MissingExtra
from doublebind.schema.hashing import content_hash
from doublebind.schema.study import check_audit_name
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.harness.lm_eval_task import (
    HarnessTask,
    read_harness_task,
    read_sample_score,
)
from doublebind.stages.audits.protocol import list_questions

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"
)
# The harness and what it reads data with use what others have deprecated, and leave files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CHOICES = ("four", "nine", "the fox", "happy")
DOCS = [
    {"ask": f"{noun} one two three", "right": i % len(CHOICES)}
    for i, noun in enumerate(("fox", "dog", "ship", "captain", "story", "goal"))
]


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A multiple-choice task over a local file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    task = {
        "task": "tiny_counts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{ask}}",
        "doc_to_choice": list(CHOICES),
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(task))
    return path


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtra, match=r'pip install "doublebind\[lm-eval\]"'):
        HarnessTask("arc_easy").questions([])


def test_a_study_names_a_task_like_an_inspect_task() -> None:
    assert check_audit_name("lm-eval:arc_easy") == "lm-eval:arc_easy"
    (audit,) = resolve_audits(["lm-eval:arc_easy"])
    assert (audit.name, audit.version) == ("lm-eval:arc_easy", 1)
    with pytest.raises(ConfigError, match="lm-eval:TASK"):
        check_audit_name("lm-eval:")


def test_a_file_that_is_no_task_is_one_line(tmp_path: Path) -> None:
    for name, text in (("no.yaml", None), ("list.yaml", "[1]"), ("code.yaml", "task: !function x")):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="is no task file") as raised:
            read_harness_task(name, tmp_path)
        assert len(raised.value.problems) == 1


def test_what_a_task_asks_is_part_of_the_key(task_file: Path) -> None:
    def key() -> str:
        return content_hash(vars(read_harness_task("tiny.yaml", task_file.parent)))

    first = key()
    assert key() == first
    data = task_file.parent / "docs.jsonl"
    data.write_text(data.read_text().replace("fox", "dog"))
    second = key()
    task_file.write_text(task_file.read_text().replace("happy", "sad"))
    assert len({first, second, key()}) == 3


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ({"metrics": ["acc", "acc_norm"], "acc": 1.0, "acc_norm": 0.0}, 1.0),
        ({"metrics": ["f1"], "f1": 0.25}, 0.25),
        ({"metrics": ["f1", "bleu"], "f1": 0.25, "bleu": 0.5}, None),
        ({"metrics": ["acc"], "acc": float("nan")}, None),
        ({"metrics": ["word_perplexity"], "word_perplexity": (1.0, 2)}, None),
        ({}, None),
    ],
)
def test_a_sample_without_the_number_is_unscored_never_zero(
    sample: dict[str, object], found: float | None
) -> None:
    value, reason = read_sample_score(sample)
    assert value == found
    assert (reason is None) == (found is not None)


@needs_harness
def test_a_task_file_gives_what_the_models_log_probabilities_say(
    tiny: Path, task_file: Path
) -> None:
    lm = load_model(resolve_model(str(tiny / "m0"), relative_to=tiny))
    (audit,) = resolve_audits(["lm-eval:tiny.yaml"], task_file.parent)
    asked = list_questions(audit, [])
    answers = {answer.item.id: answer.value for answer in audit(lm, lm, [])}
    assert [q.item.id for q in asked] == [f"lm-eval:tiny_counts/tiny_counts/{i}" for i in range(6)]
    assert set(answers) == {q.item.id for q in asked}
    assert {q.endpoint for q in asked} == {"lm_eval.tiny_counts"}
    assert {q.item.role for q in asked} == {"gate"}
    for number_, doc in enumerate(DOCS):

        def said(choice: str, ask: str = str(doc["ask"])) -> float:
            encode = lm.tokenizer.encode
            context = encode(ask, add_special_tokens=False)
            whole = encode(f"{ask} {choice}", add_special_tokens=False)
            (scored,) = token_logprobs(lm, [(context, whole[len(context) :])])
            return sum(scored)

        best = max(range(len(CHOICES)), key=lambda i: said(CHOICES[i]))
        assert answers[f"lm-eval:tiny_counts/tiny_counts/{number_}"] == float(best == doc["right"])


@needs_harness
def test_the_audit_command_takes_a_task_file(tiny: Path, task_file: Path, tmp_path: Path) -> None:
    found = audit_model.audit(
        str(tiny / "m0"),
        str(tiny / "pack"),
        audits=["behaviour", "lm-eval:tiny.yaml"],
        folder=task_file.parent,
        store=tmp_path / "store",
    )
    row = next(e for e in found["endpoints"] if e["name"] == "lm_eval.tiny_counts")
    assert (row["role"], row["n"], row["unscored"]) == ("gate", 6, 0)


@needs_harness
def test_an_unknown_task_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="no_such_task"):
        HarnessTask("no_such_task").questions([])
