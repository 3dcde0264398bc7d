"""Two tokenisations meet where both stand at the same byte, and nowhere else."""

from __future__ import annotations

from tests.tiny_models import build_byte_tokenizer, build_word_tokenizer

from doublebind.models.chat_template import encode_completion
from doublebind.models.token_alignment import align_offsets, compute_byte_offsets


def test_a_words_tokens_meet_a_byte_tokenizer_at_every_word() -> None:
    words, pieces = build_word_tokenizer(), build_byte_tokenizer()
    text = "the fox went and then they were happy"
    a, b = (encode_completion(t, text, finished=True) for t in (words, pieces))
    word_offsets, byte_offsets = (
        compute_byte_offsets(words, a, text),
        compute_byte_offsets(pieces, b, text),
    )
    assert word_offsets[0] == byte_offsets[0] == 0
    assert word_offsets[-1] == byte_offsets[-1] == len(text)
    pairs = align_offsets(word_offsets, byte_offsets)
    assert [i for i, _ in pairs] == list(range(len(a)))
    assert all(word_offsets[i] == byte_offsets[j] for i, j in pairs)


def test_a_token_inside_a_character_meets_nothing() -> None:
    pieces = build_byte_tokenizer()
    text = "é ok"
    tokens = encode_completion(pieces, text, finished=True)
    offsets = compute_byte_offsets(pieces, tokens, text)
    assert offsets[0] == 0
    assert offsets[1] is None, "the second byte of é starts in the middle of it"
    assert offsets[2] == 2
    assert offsets[-1] == len(text.encode())


def test_tokens_that_spell_nothing_leave_the_last_to_say_what_follows() -> None:
    assert align_offsets([0, 0, 3, None, 5], [0, 2, 5, 5]) == [(1, 0), (4, 3)]
