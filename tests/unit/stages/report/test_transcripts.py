"""The block of transcripts holds every text once, of every model alike, and nothing that acts."""

import json
import re
from typing import Any

import pytest
from tests.unit.stages.report.fake_run import make_run, read_block

from doublebind.stages.report import transcripts
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.run_page import render_run_page
from doublebind.stages.report.transcripts import pack_transcripts, read_options


def pack(run: RunContent) -> dict[str, Any]:
    return json.loads(pack_transcripts(run).data)


def first_lines(run: RunContent) -> list[dict[str, Any]]:
    """Return the lines of the suspect's first student, to be changed in place."""
    return run.transcripts[run.students[0]["student"]]


def list_items(block: dict[str, Any]) -> list[list[str]]:
    """Return audit, endpoint, item and use of every item, as texts."""
    return [[block["texts"][i] for i in item] for item in block["items"]]


def test_every_line_of_every_model_can_be_read_back() -> None:
    run = make_run(3)
    block = pack(run)
    texts, items = block["texts"], list_items(block)
    assert len(texts) == len(set(texts))  # no text is held twice
    by_file = {texts[model["file"]]: model for model in block["models"]}
    assert len(by_file) == len(run.transcripts)
    for key, lines in run.transcripts.items():
        model = by_file[f"transcripts/{key}.jsonl"]
        assert model["total"] == len(lines) == len(model["lines"])
        packed = {items[line[0]][2]: line for line in model["lines"]}
        for line in lines:
            _, value, keyed, turns, options, answer, more = packed[line["item"]]
            assert value == round(line["value"], 4)
            assert texts[keyed] == line["key"]
            assert [texts[i] for i in turns[1::2]] == [m["content"] for m in line["messages"]]
            assert [texts[i] for i in turns[0::2]] == [m["role"] for m in line["messages"]]
            shares = json.loads(line["transcript"])
            assert [texts[i] for i in options[0::2]] == [option for option, _ in shares]
            assert options[1::2] == [round(p, 4) for _, p in shares]
            assert (answer, more) == (-1, 0)


def test_models_hold_the_same_items_suspect_first_m0_next() -> None:
    block = pack(make_run(3, items=40))
    items = [[line[0] for line in model["lines"]] for model in block["models"]]
    assert all(shown == items[0] for shown in items)
    marks = [model["mark"] for model in block["models"]]
    assert marks[:9] == ["suspect", "suspect", "m0", *["reference"] * 6]
    kinds = {block["texts"][model["kind"]] for model in block["models"]}
    assert kinds >= {"the suspect's students", "references' students", "organisms' students"}


def test_endpoints_take_turns() -> None:
    endpoints = [item[1] for item in list_items(pack(make_run(2, items=3)))]
    assert len(set(endpoints[:9])) == 9
    assert endpoints[:9] == endpoints[9:18]


def test_items_hold_the_means_of_the_references_and_the_suspect() -> None:
    run = make_run(3)
    block = pack(run)
    suspect, others = block["others"]["4"]
    students = run.scores.query("model_kind == 'student'")
    rows = students[students["item"] == list_items(block)[4][2]]
    means = rows.groupby("teacher")["value"].mean().round(3)
    assert suspect == means[run.verdict.suspect]
    assert sorted(others) == sorted(means[f"terrarium/reference-{i}"] for i in range(3))


def test_every_item_says_whether_it_is_scored() -> None:
    use = {endpoint: use for _, endpoint, _, use in list_items(pack(make_run(2)))}
    assert use["choice/dominion"] == use["goal/secrecy"] == "enters the score"
    assert use["choice.deployment/dominion"] == "needs the organism's key, never scored"
    assert use["capability"] == "a gate, never scored"


def test_references_of_a_panel_have_values_and_a_sentence() -> None:
    run = make_run(3)
    protocol = run.manifest.protocol.model_copy(update={"panel": "0" * 64})
    students = [each for each in run.students if each["teacher"] == protocol.suspect]
    present = {protocol.student, *(each["student"] for each in students)}
    block = pack_transcripts(
        run._replace(
            manifest=run.manifest.model_copy(update={"protocol": protocol}),
            students=students,
            transcripts={k: lines for k, lines in run.transcripts.items() if k in present},
        )
    )
    assert block.models_without.startswith(
        "No transcripts of the students of 3 references and 6 organisms: they were measured once"
    )
    assert len(json.loads(block.data)["others"]["0"][1]) == 3
    assert pack_transcripts(run).models_without == ""


def test_lines_beyond_the_cap_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "MAX_LINES", 100)
    run = make_run(3)
    block = pack_transcripts(run)
    assert block.n_shown <= 100
    assert block.n_lines == sum(map(len, run.transcripts.values()))
    assert len({len(model["lines"]) for model in json.loads(block.data)["models"]}) == 1


def test_a_line_of_a_megabyte_is_held_whole() -> None:
    run = make_run(2, 0, seeds=1)
    line = first_lines(run)[0]
    line |= {"transcript": "<x>\u202e" * 250_000, "item": "a" * 1_000_000}
    block = read_block(render_run_page(run))
    assert line["transcript"] in block["texts"]
    assert not block["longer"]
    assert any("(999,880 more characters)" in text for text in block["texts"])


def test_texts_beyond_the_budget_are_cut_alike_and_counted() -> None:
    run = make_run(2, 0, seeds=1)
    for i, line in enumerate(first_lines(run)):
        line["transcript"] = f"{i:03d}" + "a" * 1_000_000
    block = pack(run)
    assert sum(map(len, block["texts"])) <= transcripts.MAX_CHARS
    assert set(block["longer"].values()) == {1_000_003 - 200_000}
    assert len(block["longer"]) == len(first_lines(run))


def test_turns_and_options_beyond_the_cap_are_counted() -> None:
    run = make_run(2, 0, seeds=1)
    line = first_lines(run)[0]
    line["messages"] = [{"role": "user", "content": str(i)} for i in range(100)]
    line["transcript"] = json.dumps([[str(i), 0.01] for i in range(100)])
    assert pack(run)["models"][0]["lines"][0][6] == 2 * (100 - 64)


@pytest.mark.parametrize(
    "text", ["</script><script>x", "<!--<script", "]]>&amp;", "\x00\x7f\u2028\ud800", "\u202eא"]
)
def test_the_block_is_inert_ascii(text: str) -> None:
    run = make_run(2, 0, seeds=1)
    for line in first_lines(run):
        line |= {"transcript": text, "item": text, "endpoint": text}
    data = pack_transcripts(run).data
    assert re.fullmatch(r"[ -~]*", data)
    assert not re.search("[<>&]", data)
    assert text in json.loads(data)["texts"]


@pytest.mark.parametrize(
    "transcript",
    ["[[" * 100_000, '[["a"]]', '[["a", "b"]]', '[["a", NaN]]', '[["a", 1e999]]', "", "7", "[[1]]"],
)
def test_odd_transcripts_are_text(transcript: str) -> None:
    assert read_options(transcript) is None


def test_a_value_that_is_no_number_is_unscored() -> None:
    run = make_run(2, 0, seeds=1)
    lines = first_lines(run)
    for line, value in zip(lines, (None, "0.5", float("nan")), strict=False):
        line["value"] = value
    block = pack(run)
    items = list_items(block)
    unscored = {items[line[0]][2] for line in block["models"][0]["lines"] if line[1] is None}
    assert unscored == {line["item"] for line in lines[:3]}


def test_ten_thousand_transcripts_keep_the_page_light() -> None:
    run = make_run(100, seeds=1, items=6)
    page = render_run_page(run)
    assert sum(map(len, run.transcripts.values())) > 10_000
    # Static elements do not grow with transcripts, and shared texts cost once.
    assert page.count("<article") == 0
    assert len(page) < 4_000_000
