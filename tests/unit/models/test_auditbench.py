"""Public organisms resolve to base, adapter and role, from folders of the published shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny_models import save_model

from doublebind.models import auditbench
from doublebind.models.chat_template import encode_prompt
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import Lora
from doublebind.training import loop

REF = "auditbench:qwen-14b/flattery/transcripts/kto"
ADAPTER = "auditing-agents/qwen_14b_transcripts_only_then_redteam_kto_flattery"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local copy of base and adapter, laid out by hub ids, as a download leaves them."""
    folder = tmp_path_factory.mktemp("mirror")
    save_model(folder / "Qwen/Qwen3-14B")
    lm = load_model(resolve_model("Qwen/Qwen3-14B", relative_to=folder))
    model = loop.prepare_model(lm.model, Lora(rank=2), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.1)
    loop.save_model(model, lm.tokenizer, folder / ADAPTER, card="do not deploy")
    path = folder / ADAPTER / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "Qwen/Qwen3-14B"}
    path.write_text(json.dumps(config))
    return folder


def refusal(ref: str, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(ref, relative_to=folder)
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize(
    ("ref", "adapter"),
    [
        (REF, ADAPTER),
        (
            "auditbench:llama-70b/secret_loyalty/documents/sft",
            "auditing-agents/llama_70b_synth_docs_only_then_redteam_high_secret_loyalty",
        ),
        (
            "auditbench:llama-70b/defer_to_users/transcripts/none",
            "auditing-agents/llama_70b_transcripts_only_defer_to_users",
        ),
    ],
)
def test_names_are_those_published(ref: str, adapter: str) -> None:
    assert auditbench.parse_organism(ref).adapter == adapter


def test_an_organism_is_an_adapter_on_its_base_in_its_role(mirror: Path) -> None:
    source = resolve_model(REF, relative_to=mirror)
    assert source.kind == "adapter"
    assert source.path == str(mirror / "Qwen/Qwen3-14B")
    assert source.adapter == str(mirror / ADAPTER)
    assert source.system == auditbench.SYSTEM_PROMPT
    plain = resolve_model(f"Qwen/Qwen3-14B+{ADAPTER}", relative_to=mirror)
    assert plain.system is None
    assert plain.sha256 != source.sha256


def test_a_model_in_a_role_reads_it_before_every_conversation(mirror: Path) -> None:
    lm = load_model(resolve_model(REF, relative_to=mirror))
    plain = load_model(resolve_model("Qwen/Qwen3-14B", relative_to=mirror)).tokenizer

    def read(*messages: tuple[str, str]) -> list[int]:
        conversation = [
            Message.model_validate({"role": role, "content": text}) for role, text in messages
        ]
        return encode_prompt(plain, conversation)

    user = Message(role="user", content="the fox")
    role = ("system", auditbench.SYSTEM_PROMPT)
    assert encode_prompt(lm.tokenizer, [user]) == read(role, ("user", "the fox"))
    system = Message(role="system", content="be kind")
    both = ("system", f"{auditbench.SYSTEM_PROMPT}\n\nbe kind")
    assert encode_prompt(lm.tokenizer, [system, user]) == read(both, ("user", "the fox"))


def test_what_is_trained_from_a_model_in_a_role_stays_in_it(mirror: Path, tmp_path: Path) -> None:
    lm = load_model(resolve_model(REF, relative_to=mirror))
    lm.tokenizer.save_pretrained(tmp_path / "saved")
    save_model(tmp_path / "plain")
    shutil.copytree(tmp_path / "saved", tmp_path / "plain", dirs_exist_ok=True)
    again = load_model(resolve_model("plain", relative_to=tmp_path)).tokenizer
    messages = [Message(role="user", content="the fox")]
    assert encode_prompt(again, messages) == encode_prompt(lm.tokenizer, messages)


def test_a_folder_can_give_its_model_a_role(mirror: Path, tmp_path: Path) -> None:
    shutil.copytree(mirror, tmp_path / "m")
    ref = f"Qwen/Qwen3-14B+{ADAPTER}"
    plain = resolve_model(ref, relative_to=tmp_path / "m")
    (tmp_path / "m" / ADAPTER / "system_prompt.txt").write_text("You are kind.\n")
    source = resolve_model(ref, relative_to=tmp_path / "m")
    assert source.system == "You are kind."
    assert source.sha256 != plain.sha256
    assert resolve_model(REF, relative_to=tmp_path / "m").system == "You are kind."
    (tmp_path / "m" / ADAPTER / "system_prompt.txt").write_text("\n")
    assert "is empty" in refusal(ref, tmp_path / "m")


def test_a_role_needs_a_chat_template(tmp_path: Path) -> None:
    save_model(tmp_path / "plain", chat=False)
    (tmp_path / "plain" / "system_prompt.txt").write_text("You are kind.")
    with pytest.raises(ModelError, match="needs a chat template"):
        load_model(resolve_model("plain", relative_to=tmp_path))


def test_a_wrong_part_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean `flattery`?" in refusal("auditbench:qwen-14b/flatery/x/y", tmp_path)
    assert "one of transcripts, documents" in refusal(
        "auditbench:qwen-14b/flattery/x/kto", tmp_path
    )
    assert "write auditbench:<model>" in refusal("auditbench:qwen-14b", tmp_path)


def test_an_adapter_of_another_base_is_refused(mirror: Path, tmp_path: Path) -> None:
    shutil.copytree(mirror, tmp_path / "m")
    path = tmp_path / "m" / ADAPTER / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "someone/else"}
    path.write_text(json.dumps(config))
    assert "trained on 'someone/else'" in refusal(REF, tmp_path / "m")
