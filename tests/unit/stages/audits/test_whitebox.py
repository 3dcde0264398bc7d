from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.pipeline import audit_model
from doublebind.schema.errors import ConfigError
from doublebind.stages.audits import whitebox


@pytest.fixture(scope="module")
def pack(tiny: Path) -> Pack:
    return load_pack(str(tiny / "pack"), relative_to=tiny)


@pytest.fixture(scope="module")
def m0(tiny: Path) -> LM:
    return load_model(resolve_model(str(tiny / "m0"), relative_to=tiny))


def changed(lm: LM, by: Any) -> LM:
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        by(model)
    return LM(model, lm.tokenizer, lm.source)


def test_m0_beside_itself_has_not_moved(m0: LM, pack: Pack) -> None:
    found = whitebox.measure_whitebox(m0, m0, pack)
    assert found["weights.norm"] == found["lens.norm"] == 0.0
    assert found["lens/ruler"] == pytest.approx(0.0)


def test_the_update_of_one_matrix_by_rank_one_is_seen_as_such(m0: LM) -> None:
    def by(model: Any) -> None:
        weight = model.model.layers[0].mlp.up_proj.weight
        weight += torch.outer(torch.ones(weight.shape[0]), torch.arange(1.0, weight.shape[1] + 1))

    found = whitebox.measure_weight_update(changed(m0, by), m0)
    assert found["weights.stable_rank"] == pytest.approx(1.0, abs=1e-3)
    assert found["weights.top_share"] == pytest.approx(1.0)
    assert found["weights.norm"] > 0


def test_the_lens_reads_what_a_shift_spells(m0: LM, pack: Pack) -> None:
    vocabulary = m0.tokenizer.get_vocab()
    head = m0.model.get_output_embeddings().weight.detach().float()
    shift = head[vocabulary["rule"]]
    read = whitebox.read_logit_lens(m0, shift, {"ruler": ("rule",), "friend": ("help",)})
    assert read["ruler"] > read["friend"]
    assert read["ruler"] > 2.0


def test_amplifying_a_shift_makes_it_larger(m0: LM, pack: Pack) -> None:
    def by(model: Any) -> None:
        model.get_input_embeddings().weight += 0.02

    items = pack.items("audit")
    other = changed(m0, by)
    from doublebind.stages.audits.option_scores import choose

    def plain(lm: LM) -> float:
        values = [
            a.value or 0.0
            for a in choose(lm, [i for i in items if i.kind == "choice" and i.trait == "ruler"])
        ]
        return sum(values) / len(values)

    pushed = whitebox.score_amplified(other, m0, items)["ruler"]
    assert whitebox.score_amplified(m0, m0, items).keys() == {"ruler", "gold"}
    assert 0.0 <= pushed <= 1.0
    assert pushed != pytest.approx(plain(other), abs=1e-3)


def test_measures_stand_beside_those_of_references(tiny: Path, tmp_path: Path, m0: LM) -> None:
    folders = []
    for i in range(3):
        lm = changed(m0, lambda model, i=i: model.get_input_embeddings().weight.mul_(1.0 + 0.1 * i))
        folders.append(str(tmp_path / f"student-{i}"))
        lm.model.save_pretrained(folders[-1])
        lm.tokenizer.save_pretrained(folders[-1])
    settings: dict[str, Any] = {"baseline": str(tiny / "m0"), "store": tmp_path / "store"}
    where = str(tiny / "pack")
    found = audit_model.measure_whitebox(folders[2], where, references=folders[:2], **settings)
    norm = next(m for m in found.measures if m.name == "weights.norm")
    assert norm.p_value == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match="each once"):
        audit_model.measure_whitebox(folders[2], where, references=[], **settings)
