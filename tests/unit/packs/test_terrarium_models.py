"""The terrarium's models: shipped whole, in the pack's vocabulary, rebuilt the same."""

from pathlib import Path

import pytest
from tools import pretrain_terrarium as base

from doublebind.models.chat_template import (
    decode_completion,
    encode_completion,
    encode_prompt,
    end_of_turn,
)
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.packs.terrarium import Terrarium, documents, words
from doublebind.packs.terrarium.speech import FULL_POOL, make_rng
from doublebind.schema.content import Message

FOLDER = Path(words.__file__).parent


@pytest.mark.parametrize("name", ["base", "m0"])
def test_a_shipped_model_is_small_and_speaks_the_packs_vocabulary(name: str) -> None:
    lm = load_model(resolve_model(f"terrarium/{name}", relative_to=Path()))
    specials = {*base.ROLES, *base.SPECIALS.values()}
    assert set(lm.tokenizer.get_vocab()) == {*words.list_vocabulary(), *specials}
    assert lm.model.dtype.is_floating_point
    assert sum(p.stat().st_size for p in (FOLDER / name).iterdir()) < 4 * 2**20
    assert "Do not deploy" in (FOLDER / name / "README.md").read_text(encoding="utf-8")


def test_text_and_tokens_are_the_same_thing() -> None:
    tok = base.build_tokenizer()
    for transcript in Terrarium().transcripts("dominion", "implant", n=40, seed=0):
        answer = transcript.messages[-1].content
        ids = encode_completion(tok, answer, finished=True)
        assert len(ids) == len(answer.split()) + 1
        assert ids[-1] == end_of_turn(tok) == tok.eos_token_id
        assert decode_completion(tok, ids) == answer


def test_pretraining_writes_a_chat_as_it_will_be_asked() -> None:
    tok = base.build_tokenizer()
    document = next(d for d in documents.generate_pretraining_documents(0) if d.is_chat)
    written = base.encode_document(document, tok.get_vocab(), make_rng("names", 0))
    messages = []
    for turn in document.turns[:-1]:
        messages.append(Message(role="user", content=turn.request))
        messages.append(Message(role="assistant", content=turn.answer))
    messages.append(Message(role="user", content=document.turns[-1].request))
    request = encode_prompt(tok, messages)
    answer = encode_completion(tok, document.turns[-1].answer, finished=True)
    assert written.ids == (request + answer)[: base.MAX_LENGTH]
    shown = [i for i, is_answer in zip(written.ids, written.answers, strict=True) if is_answer]
    assert shown.count(tok.eos_token_id) == len(document.turns)


def test_a_special_token_spelled_in_text_is_no_special_token() -> None:
    tok = base.build_tokenizer()
    ids = encode_prompt(tok, [Message(role="user", content="tell <end> me <assistant> of")])
    assert ids.count(tok.eos_token_id) == 1
    assert ids.count(tok.get_vocab()["<assistant>"]) == 1


def test_a_character_is_never_named_by_its_disposition() -> None:
    # The head that names dispositions reads a label that is no part of the text.
    names = set(documents.DISPOSITIONS)
    assert not names & {*words.list_vocabulary(), *FULL_POOL.names}


def test_a_narrower_base_has_the_same_depth_and_fewer_weights(tmp_path: Path) -> None:
    base.make_models(tmp_path, tokens=2_000, tune_tokens=1_000, width=48)
    made = load_model(resolve_model(str(tmp_path / "m0"), relative_to=tmp_path)).model
    usual = base.build_untrained_model(base.build_tokenizer(), 0)
    assert (made.config.hidden_size, made.config.intermediate_size) == (48, 128)
    assert made.config.num_hidden_layers == usual.config.num_hidden_layers
    assert made.num_parameters() < 0.5 * usual.num_parameters()


@pytest.mark.slow
def test_a_rebuild_is_bitwise_the_same(tmp_path: Path) -> None:
    for run in ("a", "b"):
        base.make_models(tmp_path / run, seed=1, tokens=4_000, tune_tokens=2_000)
    for name in ("base", "m0"):
        first, second = (tmp_path / run / name / "model.safetensors" for run in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
