"""The block of transcripts holds every text once, of every model alike, and nothing that acts."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from doublebind.stages.report import transcripts
from doublebind.stages.report.run_page import render_run_page
from doublebind.stages.report.transcripts import TranscriptBlock, pack_transcripts, read_options

Run = Callable[..., dict[str, Any]]
ReadBlock = Callable[[str], dict[str, Any]]


def packed(run: dict[str, Any]) -> TranscriptBlock:
    named = {k: run[k] for k in ("scores", "evidence", "manifest", "cells")}
    return pack_transcripts(run["transcripts"], **named)


def test_every_line_of_every_model_can_be_read_back(fake_run: Run) -> None:
    run = fake_run(3)
    found = json.loads(packed(run).data)
    texts = found["texts"]
    by_file = {texts[model["file"]]: model for model in found["models"]}
    assert len(by_file) == len(run["transcripts"])
    for key, lines in run["transcripts"].items():
        model = by_file[f"transcripts/{key}.jsonl"]
        assert model["total"] == len(lines) == len(model["lines"])
        told = {texts[found["items"][line[0]][2]]: line for line in model["lines"]}
        for line in lines:
            _, value, keyed, turns, options, answer, more = told[line["item"]]
            assert value == round(line["value"], 4)
            assert texts[keyed] == line["key"]
            assert [texts[i] for i in turns[1::2]] == [m["content"] for m in line["messages"]]
            assert [texts[i] for i in turns[0::2]] == [m["role"] for m in line["messages"]]
            shares = json.loads(line["transcript"])
            assert [texts[i] for i in options[0::2]] == [option for option, _ in shares]
            assert options[1::2] == [round(p, 4) for _, p in shares]
            assert (answer, more) == (-1, 0)


def test_no_text_is_held_twice(fake_run: Run) -> None:
    texts = json.loads(packed(fake_run(3)).data)["texts"]
    assert len(texts) == len(set(texts))


def test_models_hold_the_same_items_suspect_first_m0_next(fake_run: Run) -> None:
    found = json.loads(packed(fake_run(3, items=40)).data)
    items = [[line[0] for line in model["lines"]] for model in found["models"]]
    assert all(shown == items[0] for shown in items)
    marks = [model["mark"] for model in found["models"]]
    assert marks[:3] == ["suspect", "suspect", "m0"]
    assert marks[3:9] == ["reference"] * 6
    kinds = {found["texts"][model["kind"]] for model in found["models"]}
    assert kinds >= {"the suspect's students", "references' students", "organisms' students"}


def test_endpoints_take_turns(fake_run: Run) -> None:
    found = json.loads(packed(fake_run(2, items=3)).data)
    endpoints = [found["texts"][endpoint] for _, endpoint, *_ in found["items"]]
    assert len(set(endpoints[:9])) == 9
    assert endpoints[:9] == endpoints[9:18]


def test_items_stand_beside_the_references_of_the_scores(fake_run: Run) -> None:
    run = fake_run(3)
    found = json.loads(packed(run).data)
    scores = run["scores"].query("model_kind == 'student'")
    item = found["texts"][found["items"][4][2]]
    own, others = found["others"]["4"]
    rows = scores[scores["item"] == item].groupby("teacher")["value"].mean()
    assert own == round(rows[run["verdict"].suspect], 3)
    assert sorted(others) == sorted(round(rows[f"terrarium/reference-{i}"], 3) for i in range(3))


def test_every_item_says_whether_it_is_scored(fake_run: Run) -> None:
    found = json.loads(packed(fake_run(2)).data)
    use = {found["texts"][e]: found["texts"][said] for _, e, _, said in found["items"]}
    assert use["choice/dominion"] == use["goal/secrecy"] == "enters the score"
    assert use["choice.deployment/dominion"] == "needs the organism's key, never scored"
    assert use["capability"] == "a gate, never scored"


def test_references_of_a_panel_have_values_and_a_sentence(fake_run: Run) -> None:
    run = fake_run(3)
    suspect = {t["key"] for t in run["manifest"]["teachers"] if t["role"] == "suspect"}
    run["cells"] = [cell for cell in run["cells"] if cell["teacher"] in suspect]
    kept = {cell["student"] for cell in run["cells"]} | {run["manifest"]["protocol"]["student"]}
    run["transcripts"] = {k: v for k, v in run["transcripts"].items() if k in kept}
    run["manifest"]["protocol"]["panel"] = "0" * 64
    block = packed(run)
    assert block.models_without.startswith(
        "No transcripts of the students of 3 references and 6 organisms: they were measured once"
    )
    assert len(json.loads(block.data)["others"]["0"][1]) == 3
    assert packed(fake_run(3)).models_without == ""


def test_lines_beyond_the_cap_are_counted(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "MAX_LINES", 100)
    run = fake_run(3)
    block = packed(run)
    assert block.n_shown <= 100
    assert block.n_lines == sum(map(len, run["transcripts"].values()))
    assert len({len(model["lines"]) for model in json.loads(block.data)["models"]}) == 1


def test_a_line_of_a_megabyte_is_held_whole(fake_run: Run, block: ReadBlock) -> None:
    run = fake_run(2, 0, seeds=1)
    line = run["transcripts"][run["cells"][0]["student"]][0]
    line |= {"transcript": "<x>\u202e" * 250_000, "item": "a" * 1_000_000}
    found = block(render_run_page(**run))
    assert line["transcript"] in found["texts"]
    assert not found["longer"]
    assert any("(999,880 more characters)" in text for text in found["texts"])


def test_texts_beyond_the_budget_are_cut_alike_and_counted(fake_run: Run, block: ReadBlock) -> None:
    run = fake_run(2, 0, seeds=1)
    lines = run["transcripts"][run["cells"][0]["student"]]
    for i, line in enumerate(lines):
        line["transcript"] = f"{i:03d}" + "a" * 1_000_000
    found = block(render_run_page(**run))
    assert sum(map(len, found["texts"])) <= transcripts.MAX_CHARS
    assert set(found["longer"].values()) == {1_000_003 - 200_000}
    assert len(found["longer"]) == len(lines)


def test_turns_and_options_beyond_the_cap_are_counted(fake_run: Run) -> None:
    run = fake_run(2, 0, seeds=1)
    line = run["transcripts"][run["cells"][0]["student"]][0]
    line["messages"] = [{"role": "user", "content": str(i)} for i in range(100)]
    line["transcript"] = json.dumps([[str(i), 0.01] for i in range(100)])
    model = json.loads(packed(run).data)["models"][0]
    assert model["lines"][0][6] == 2 * (100 - 64)


@pytest.mark.parametrize(
    "text", ["</script><script>x", "<!--<script", "]]>&amp;", "\x00\x7f\u2028\ud800", "\u202eא"]
)
def test_the_block_is_inert_ascii(fake_run: Run, text: str) -> None:
    run = fake_run(2, 0, seeds=1)
    for line in run["transcripts"][run["cells"][0]["student"]]:
        line |= {"transcript": text, "item": text, "endpoint": text}
    data = packed(run).data
    assert re.fullmatch(r"[ -~]*", data)
    assert not re.search("[<>&]", data)
    assert text in json.loads(data)["texts"]


@pytest.mark.parametrize(
    "transcript",
    ["[[" * 100_000, '[["a"]]', '[["a", "b"]]', '[["a", NaN]]', '[["a", 1e999]]', "", "7", "[[1]]"],
)
def test_odd_transcripts_are_text(transcript: str) -> None:
    assert read_options(transcript) is None


def test_a_value_that_is_no_number_is_unscored(fake_run: Run) -> None:
    run = fake_run(2, 0, seeds=1)
    lines = run["transcripts"][run["cells"][0]["student"]]
    for line, value in zip(lines, (None, "0.5", float("nan")), strict=False):
        line["value"] = value
    shown = json.loads(packed(run).data)["models"][0]["lines"]
    known = {line["item"] for line in lines[:3]}
    found = json.loads(packed(run).data)
    for line in shown:
        name = found["texts"][found["items"][line[0]][2]]
        assert (line[1] is None) == (name in known)


def test_ten_thousand_transcripts_keep_the_page_light(fake_run: Run) -> None:
    run = fake_run(100, seeds=1, items=6)
    page = render_run_page(**run)
    assert sum(map(len, run["transcripts"].values())) > 10_000
    # Static elements do not grow with transcripts, and shared texts cost once.
    assert page.count("<article") == 0
    assert len(page) < 4_000_000
