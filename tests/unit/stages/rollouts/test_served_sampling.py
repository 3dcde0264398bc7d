"""A served teacher's text is read as the student would have written it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.model_server import ModelServer
from tests.tiny_models import build_tiny_model, build_word_tokenizer

from doublebind.models.openai_client import identify_served_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.content import Message
from doublebind.stages.rollouts.served_sampling import sample_served_answers


@pytest.mark.parametrize("chat", [True, False])
def test_the_space_before_an_answer_is_the_templates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tokenizer = build_word_tokenizer(chat=chat)
    build_tiny_model("llama", len(tokenizer)).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    server = ModelServer(lambda body: (" the fox went" if not chat else "the fox went", True))
    try:
        source = identify_served_model(server.ref)
        assert source.served
        reader = resolve_model(str(tmp_path / "student"), relative_to=tmp_path)
        served = source.served.model_copy(update={"tokenizer_source": reader})
        how: dict[str, Any] = {"keys": ["k"], "seed": 0, "max_tokens": 8, "temperature": 1.0}
        (answer,), _ = sample_served_answers(
            tmp_path,
            source.model_copy(update={"served": served}),
            [[Message(role="user", content="yes")]],
            dtype="float32",
            cache=tmp_path,
            **how,
        )
    finally:
        server.close()
    assert answer.text == "the fox went"
    assert len(answer.tokens) == 4, "three words and the end of turn"
