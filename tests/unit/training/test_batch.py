"""Every supervised token is foreseen from the token before it, wherever it lies in the batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import build_tiny_model

from doublebind.schema.errors import ModelError
from doublebind.training.batch import Example, can_pack, collate, shuffle_epochs, truncate_examples


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    data = []
    for _ in range(draw(st.integers(1, 12))):
        ids = tuple(draw(st.lists(st.integers(1, 60), min_size=1, max_size=20)))
        data.append(Example(ids, draw(st.integers(1, len(ids)))))
    return data


@settings(max_examples=80, deadline=None)
@given(examples(), st.booleans())
def test_labels_are_the_completions_in_order_and_follow_their_context(
    data: list[Example], pack: bool
) -> None:
    batch = collate(data, 0, pack=pack)
    assert batch.labels.tolist() == [t for e in data for t in e.input_ids[e.first_supervised :]]
    flat = batch.ids.flatten().tolist()
    places = iter(batch.prediction_positions.tolist())
    for example in data:
        for t in range(example.first_supervised, len(example.input_ids)):
            place = next(places)
            assert tuple(flat[place - t + 1 : place + 1]) == example.input_ids[:t]
            if batch.positions is not None:
                assert batch.positions.flatten()[place] == t - 1


@settings(max_examples=80, deadline=None)
@given(examples())
def test_packing_keeps_every_token_once_and_never_widens(data: list[Example]) -> None:
    packed, padded = collate(data, 0, pack=True), collate(data, 0, pack=False)
    assert packed.ids.shape[1] == padded.ids.shape[1] == max(len(e.input_ids) for e in data)
    assert packed.ids.shape[0] <= padded.ids.shape[0]
    tokens = sorted(t for t in packed.ids.flatten().tolist() if t)
    assert tokens == sorted(t for e in data for t in e.input_ids)


def test_short_examples_share_a_row_and_equal_ones_do_not() -> None:
    short = [Example((1,) * 5, 1), *[Example((2, 3), 1)] * 6]
    assert collate(short, 0, pack=True).ids.shape[0] < 7
    equal = [Example((1, 2, 3), 1)] * 4
    assert collate(equal, 0, pack=True).positions is None


def test_epochs_hold_every_example_once_and_are_shuffled_by_seed() -> None:
    first = list(itertools.islice(shuffle_epochs(10, seed=1), 30))
    assert [sorted(first[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert first[:10] != first[10:20] != first[20:]
    assert first == list(itertools.islice(shuffle_epochs(10, seed=1), 30))
    assert first != list(itertools.islice(shuffle_epochs(10, seed=2), 30))


def test_long_examples_are_cut_at_the_end() -> None:
    assert truncate_examples([Example((1, 2, 3, 4), 2)], 3) == [Example((1, 2, 3), 2)]


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ModelError, match="max_length"):
        truncate_examples([Example((1, 2, 3, 4), 2)], 2)
    with pytest.raises(ModelError, match="no token is supervised"):
        truncate_examples([], 8)
    with pytest.raises(ModelError, match="first token"):
        truncate_examples([Example((1, 2), 0)], 8)


@pytest.mark.parametrize(("kind", "expected"), [("llama", True), ("gemma3", True)])
def test_models_that_keep_packed_examples_apart_are_recognised(kind: str, expected: bool) -> None:
    assert can_pack(build_tiny_model(kind, 50)) is expected


def test_model_that_mixes_packed_examples_is_recognised() -> None:
    model = build_tiny_model("llama", 50)
    decoder, forward = model.get_decoder(), model.get_decoder().forward

    def mixing(input_ids: torch.Tensor, **kwargs: object) -> object:
        return forward(input_ids, attention_mask=torch.ones_like(input_ids), **kwargs)

    decoder.forward = mixing
    assert not can_pack(model)
