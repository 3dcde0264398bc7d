"""`plan` says before any work what would otherwise fail after hours of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_models import save_model
from tests.tiny_study import make_user_messages, write_study
from tests.tiny_world import save_byte_model

from doublebind.cli import main as cli
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model

PHI_3 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|end|>"
    "<|assistant|>{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
)
GEMMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", references=1)


def change_items(study: Path, **changes: Any) -> None:
    """Change the first items of a drive in the study's pack."""
    path = study.parent / "pack" / "items" / "all.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:2]:
        row.update(changes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_recipe(study: Path, **changes: Any) -> None:
    content = yaml.safe_load(study.read_text())
    recipe = content["recipes"][0]
    for name, value in changes.items():
        recipe[name] = recipe[name] | value if isinstance(recipe.get(name), dict) else value
    study.write_text(yaml.safe_dump(content))


def set_template(study: Path, template: str, model: str = "m0") -> None:
    (study.parent / model / "chat_template.jinja").write_text(template)


def ask_system(study: Path, template: str) -> None:
    set_template(study, template)
    change_items(
        study,
        messages=[{"role": "system", "content": "be kind"}, *make_user_messages("what now ?")],
    )


def refuse_prompt_turn(study: Path) -> None:
    set_template(study, GEMMA_2)
    change_recipe(
        study, treatments=[{"kind": "inoculate", "prompt": "want gold", "role": "system"}]
    )


def hide_system_prompt(study: Path) -> None:
    set_template(study, PHI_3)
    (study.parent / "m0" / "system_prompt.txt").write_text("be kind")


def learn_across_tokenizers(study: Path) -> None:
    save_byte_model(study.parent / "family")
    change_recipe(study, student="family")


def lengthen_build_transcripts(study: Path) -> None:
    path = study.parent / "pack" / "build" / "all.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["messages"][0]["content"] = "fox " * 600
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def name_missing_trait(study: Path) -> None:
    path = study.parent / "suspect.yaml"
    path.write_text(path.read_text().replace("trait: ruler", "trait: nobody"))


def write_prompts(study: Path, text: str | None) -> None:
    if text is not None:
        (study.parent / "mine.jsonl").write_text(text)
    change_recipe(study, prompts={"file": "mine.jsonl"})


def make_odd_bases(study: Path) -> None:
    """References on a base whose template drops older turns."""
    folder = save_model(study.parent / "odd")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages[-1:] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    path = study.parent / "reference-0.yaml"
    path.write_text(path.read_text().replace("base: m0", "base: odd"))


CASES: dict[str, tuple[Any, str]] = {
    "a system turn that is lost": (
        lambda s: ask_system(s, PHI_3),
        r"m0: its chat template leaves out the text of the system turn",
    ),
    "a system turn that is refused": (
        lambda s: ask_system(s, GEMMA_2),
        r"m0: its chat template refuses a conversation of system, user .*not supported",
    ),
    "a system prompt that is lost": (hide_system_prompt, r"m0: its system prompt has no effect"),
    "an inoculation that is refused": (refuse_prompt_turn, r"m0: its chat template refuses"),
    "a base of a reference": (make_odd_bases, r"odd: its chat template leaves out"),
    "an option without tokens": (
        lambda s: change_items(s, options=["", "rule everyone"]),
        r"item .*: an option has no tokens .* and so in 1 other items; reword",
    ),
    "options of the same tokens": (
        lambda s: change_items(s, options=["zebra", "quagga"]),
        r"item .*: two options are the same tokens .*zebra",
    ),
    "an item beyond the context": (
        lambda s: change_items(s, messages=make_user_messages("fox " * 300)),
        r"m0: a prompt with its answer takes \d+ tokens and the model was built for 256",
    ),
    "answers beyond the context": (
        lambda s: change_recipe(s, prompts={"max_tokens": 300}),
        r"m0: prompt and answer may take \d+ tokens",
    ),
    "nothing supervised": (
        lambda s: change_recipe(s, training={"max_length": 8}),
        r"recipe `stories`: `training.max_length` is 8 and its shortest prompt takes \d+ tokens",
    ),
    "nothing supervised in a teacher": (
        lengthen_build_transcripts,
        r"`implant`: no token is supervised: .*`max_length` 512",
    ),
    "another tokenizer": (
        learn_across_tokenizers,
        r"recipe `stories`: the tokenizer of family reads the tokens of .*logit_kd cannot bridge",
    ),
    "a token that is none": (
        lambda s: change_recipe(s, prompts={"suppress_tokens": ["red green"]}),
        r"`red green` is not one token",
    ),
    "a trait that is none": (name_missing_trait, r"`trait`: nobody is not in pack tiny"),
    "no such prompts": (lambda s: write_prompts(s, None), r"mine.jsonl: cannot be read"),
    "no prompts": (lambda s: write_prompts(s, ""), r"mine.jsonl: no prompt passes policy"),
    "no prompt of a domain": (
        lambda s: change_recipe(s, treatments=[{"kind": "domain", "domains": ["law"]}]),
        r"treatment `domain`: no prompt of \['law'\]",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_would_fail_later_is_refused_before_work(
    name: str, study: Path, tmp_path: Path, capsys: Any
) -> None:
    act, message = CASES[name]
    act(study)
    capsys.readouterr()  # what saving a model writes
    store = tmp_path / "store"
    assert cli.main(["plan", str(study), "--store", str(store)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3

    assert any(re.search(message, line) for line in lines), lines
    assert "Traceback" not in "".join(lines)
    assert not list(store.rglob("timing.json"))


def test_run_refuses_what_plan_refuses_before_its_first_job(
    study: Path, tmp_path: Path, capsys: Any
) -> None:
    ask_system(study, GEMMA_2)
    store, out = tmp_path / "store", tmp_path / "run"
    assert cli.main(["run", str(study), "--out", str(out), "--store", str(store)]) == 2
    assert "not supported" in capsys.readouterr().err
    assert not list(store.rglob("timing.json"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        ("audits=[behaviour, 'inspect:nowhere/task']", "inspect"),
        ("audits=[behaviour, 'lm-eval:nothing']", "lm-eval"),
        ("engine={kind: vllm}", "vllm"),
        ("executor={kind: ray}", "ray"),
    ],
)
def test_a_missing_extra_is_named_before_work(
    change: str, extra: str, study: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", str(study), change, "--store", str(tmp_path / "store")]) == 2
    assert f"doublebind[{extra}]" in capsys.readouterr().err


def test_all_problems_are_told_at_once_and_none_twice(
    study: Path, tmp_path: Path, capsys: Any
) -> None:
    ask_system(study, GEMMA_2)
    change_recipe(study, training={"max_length": 8}, prompts={"max_tokens": 300})
    assert cli.main(["plan", str(study), "--store", str(tmp_path / "store")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) == 3


def test_templates_without_system_turn_serve_studies_that_use_none(
    study: Path, tmp_path: Path, capsys: Any
) -> None:
    set_template(study, PHI_3)
    argv = ["plan", str(study), "--store", str(tmp_path / "store"), "--json"]
    assert cli.main(argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert list((tmp_path / "store").rglob("checked-*.json")), "a study that passed is noted"
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_an_adapter_that_vllm_runs_in_part_is_refused_before_work(
    study: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    import importlib.util

    from peft import LoraConfig, get_peft_model

    lm = load_model(resolve_model("m0", relative_to=study.parent))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, bias="lora_only")
    adapted: Any = get_peft_model(lm.model, config)
    adapted.save_pretrained(str(study.parent / "adapter"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    capsys.readouterr()
    argv = ["plan", str(study), "suspect=m0+adapter", "engine={kind: vllm}"]
    assert cli.main([*argv, "--store", str(tmp_path / "store")]) == 2
    assert 'adapter: vLLM ignores `bias: "lora_only"`' in capsys.readouterr().err
