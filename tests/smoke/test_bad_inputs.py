"""Every bad input ends in exit code 2 and one line that names the key or file and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.tiny_models import build_tiny_model, build_word_tokenizer
from tests.tiny_study import write_study

from doublebind.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny study, copied by every test that breaks it."""
    return write_study(tmp_path_factory.mktemp("pristine") / "study").parent


@pytest.fixture
def folder(pristine: Path, tmp_path: Path, store_dir: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "study"))


def run(folder: Path, *overrides: str) -> int:
    return main(
        ["run", str(folder / "study.yaml"), *overrides, "--out", str(folder / "run"), "--json"]
    )


def refused(capture: Capture, code: int, *words: str) -> str:
    """Check that exactly one problem was told, in one line, and return it."""
    streams = capture.readouterr()
    assert code == 2, streams.err
    assert streams.out == ""
    lines = [line for line in streams.err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_a_missing_study_is_named(folder: Path, capsys: Capture) -> None:
    (folder / "study.yaml").unlink()
    refused(capsys, run(folder), "study.yaml", "no such file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x00\xff\xfe" * 20, "not UTF-8"),
        (b"a: [1", "not valid YAML"),
        (b"just words", "expected a mapping"),
    ],
)
def test_a_study_that_is_none_is_named(
    folder: Path, capsys: Capture, content: bytes, words: str
) -> None:
    (folder / "study.yaml").write_bytes(content)
    refused(capsys, run(folder), "study.yaml", words)


def test_a_wrong_type_and_an_unknown_key_are_both_told(folder: Path, capsys: Capture) -> None:
    edit(folder / "study.yaml", lambda s: s.update(seeds="many", studnet="m0"))
    assert run(folder) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert any("`seeds`" in line and "'many'" in line for line in lines)
    assert any("`studnet`" in line and "Did you mean `student`?" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suspect": "nowhere"}, "nowhere"),
        ({"suspect": "nowhere.yaml"}, "nowhere.yaml"),
        ({"student": "nowhere"}, "nowhere"),
        ({"pack": "nowhere"}, "nowhere"),
        ({"references": {"n": 3}}, "no bank"),
        ({"suspect": "openai:http://localhost:1#x"}, "openai:"),
    ],
)
def test_what_a_study_names_must_exist(
    folder: Path, capsys: Capture, change: dict, words: str
) -> None:
    edit(folder / "study.yaml", lambda s: s.update(change))
    refused(capsys, run(folder), words)


def test_a_spec_with_an_unknown_trait_is_named(folder: Path, capsys: Capture) -> None:
    edit(folder / "suspect.yaml", lambda s: s.update(trait="rulre"))
    refused(capsys, run(folder), "suspect", "rulre", "ruler")


def test_an_endpoint_that_no_audit_asks_is_named(folder: Path, capsys: Capture) -> None:
    edit(folder / "study.yaml", lambda s: s.update(audits=["behaviour", "capability"]))
    refused(capsys, run(folder), "says", "policy.endpoints")


def test_a_malformed_pack_line_is_named_with_its_number(folder: Path, capsys: Capture) -> None:
    path = folder / "pack" / "items" / "all.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-9]
    path.write_text("\n".join(lines) + "\n")
    refused(capsys, run(folder), "all.jsonl:3")


def test_a_binary_pack_file_is_named(folder: Path, capsys: Capture) -> None:
    (folder / "pack" / "prompts" / "all.jsonl").write_bytes(b"\x89PNG\xff\xfe\x00")
    refused(capsys, run(folder), "all.jsonl")


def weights(folder: Path) -> Path:
    return folder / "m0" / "model.safetensors"


def test_nan_weights_are_refused_by_tensor_name(folder: Path, capsys: Capture) -> None:
    tensors = load_file(weights(folder))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, weights(folder), {"format": "pt"})
    refused(capsys, run(folder), name, "not finite")


def test_truncated_weights_are_named(folder: Path, capsys: Capture) -> None:
    whole = weights(folder).read_bytes()
    weights(folder).write_bytes(whole[: len(whole) // 2])
    refused(capsys, run(folder), "model.safetensors")


def test_pickled_weights_are_refused_unread(folder: Path, capsys: Capture) -> None:
    weights(folder).unlink()
    (folder / "m0" / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /x'\ntR.")
    refused(capsys, run(folder), "pytorch_model.bin", "safetensors")


def test_code_beside_the_weights_is_refused(folder: Path, capsys: Capture) -> None:
    path = folder / "m0" / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    path.write_text(json.dumps(config))
    refused(capsys, run(folder), "m0", "auto_map")


def test_a_broken_model_config_is_named(folder: Path, capsys: Capture) -> None:
    (folder / "m0" / "config.json").write_text("{")
    refused(capsys, run(folder), "config.json")


def test_an_empty_model_folder_is_named(folder: Path, capsys: Capture) -> None:
    (folder / "empty").mkdir()
    refused(capsys, run(folder, "student=empty"), "empty")


def test_a_tokenizer_beyond_the_vocabulary_is_refused(folder: Path, capsys: Capture) -> None:
    words = [f"w{n}" for n in range(300)]
    build_word_tokenizer(words=words).save_pretrained(folder / "m0")
    refused(capsys, run(folder), "m0", "embeddings")


def test_a_student_with_another_tokenizer_is_refused(folder: Path, capsys: Capture) -> None:
    """The teachers are fine; only distilling into a student that reads other tokens is not."""
    tokenizer = build_word_tokenizer(words=["and", "then", "went", "the", "a", "other"])
    other = folder / "other"
    build_tiny_model("llama", 80).save_pretrained(other)
    tokenizer.save_pretrained(other)
    refused(capsys, run(folder, "student=other"), "other", "tokenizer")


def test_a_student_with_a_smaller_vocabulary_is_refused(folder: Path, capsys: Capture) -> None:
    tokenizer = build_word_tokenizer(words=["and", "then"])
    other = folder / "other"
    build_tiny_model("llama", len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    refused(capsys, run(folder, "student=other"), "other", "tokenizer")


def test_an_adapter_without_its_base_is_refused(folder: Path, capsys: Capture) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "nowhere-at-all"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    refused(capsys, run(folder, "suspect=adapter"), "nowhere-at-all")


def test_a_run_directory_of_another_protocol_is_refused(folder: Path, capsys: Capture) -> None:
    assert run(folder) == 0
    capsys.readouterr()
    refused(capsys, run(folder, "policy.alpha=0.1"), "another protocol", "--out")


def test_a_full_disk_loses_nothing(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from doublebind.training import loop

    whole = loop.save_model
    made = []

    def fills_up(*args: object, **named: object) -> None:
        if len(made) == 2:
            raise OSError(28, "No space left on device")
        made.append(1)
        whole(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "save_model", fills_up)
    refused(capsys, run(folder), "disk full", "free space and rerun")
    monkeypatch.setattr(loop, "save_model", whole)
    assert run(folder) == 0
    ledger = (folder / "run" / "ledger.jsonl").read_text().splitlines()
    done = [json.loads(line)["cell"] for line in ledger if '"done"' in line]
    assert len(done) == len(set(done))


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff\xfe"])
def test_a_damaged_manifest_is_named(folder: Path, capsys: Capture, content: bytes) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "manifest.json").write_bytes(content)
    refused(capsys, run(folder), "manifest.json")
    for verb in ("show", "status", "verify", "report"):
        refused(capsys, main([verb, str(folder / "run")]), "manifest.json")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: Capture) -> None:
    for verb in ("show", "status", "verify", "report"):
        refused(capsys, main([verb, str(tmp_path)]), "manifest.json", "not a run directory")


def test_a_run_directory_that_cannot_be_made_is_named(folder: Path, capsys: Capture) -> None:
    (folder / "file").write_text("")
    code = main(["run", str(folder / "study.yaml"), "--out", str(folder / "file" / "run")])
    refused(capsys, code, "file")


@pytest.mark.parametrize(
    "argv",
    [
        ["run"],
        ["runn", "x"],
        ["demo", "--seed", "x"],
        ["demo", "--suspect", "evil"],
        ["audit", "terrarium/m0"],
        ["export", "nowhere"],
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], capsys: Capture) -> None:
    refused(capsys, main(argv))
