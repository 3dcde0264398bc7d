"""The page opens from a file in a real browser: quietly, alone, and with hostile text as text."""

import contextlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.chromium import Browser, find_chromium
from tests.unit.stages.report.fake_run import make_run

from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.run_page import render_run_page

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

HOSTILE = (
    "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>"
    "<svg onload=window.owned=1><a href=javascript:window.owned=1>x</a></svg>"
    "<style>*{display:none}</style><iframe src=//evil.example></iframe>"
    '" onclick="window.owned=1" {{7*7}} \x1b[31mred\x1b[0m \u202eesrever\u202c a\x00b '
    + "".join(chr(0xE0000 + ord(c)) for c in "unseen")
)
MEGABYTE = "<b>" + "line without end " * 62_000

Shown = Callable[[RunContent], Browser]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Shown:
    """Returns what opens the page of a run."""

    def show(run: RunContent) -> Browser:
        page = tmp_path / "report.html"
        page.write_text(render_run_page(run), encoding="utf-8")
        seconds = browser.open(page)
        print(f"{page.stat().st_size / 1e6:.1f} MB loaded in {seconds:.2f} s")
        return browser

    return show


def count(browser: Browser, selector: str) -> int:
    return browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")


def text(browser: Browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")


def choose(browser: Browser, name: str, value: str) -> None:
    """Set a control and tell the page."""
    event = "input" if name == "search" else "change"
    browser.evaluate(
        f"{{const e = document.getElementById('{name}'); e.value = {json.dumps(value)};"
        f"e.dispatchEvent(new Event('{event}'))}}"
    )


def read_transcripts(browser: Browser) -> None:
    browser.evaluate("document.getElementById('transcripts').scrollIntoView()")
    browser.wait_for("document.querySelectorAll('article').length > 0")


def test_hostile_text_is_shown_as_text_and_asks_for_nothing(shown: Shown) -> None:
    run = make_run(3, 2, suspect=f"suspect{HOSTILE}", hostile=HOSTILE, seeds=1)
    lines = run.transcripts[run.students[0]["student"]]
    lines[0] |= {"transcript": HOSTILE, "audit": HOSTILE, "endpoint": HOSTILE, "item": HOSTILE}
    lines[1] |= {"transcript": MEGABYTE}
    page = shown(run)
    read_transcripts(page)
    assert page.evaluate("typeof window.owned") == "undefined"
    assert count(page, "img, iframe, svg a, object, embed, link, form") == 0
    assert count(page, "script") == 2
    assert count(page, "style") == 1
    first = text(page, "article")
    for part in ("<img src=x onerror=window.owned=1>", "</script>", "{{7*7}}", r"\x1b", r"\x00"):
        assert part in first
    assert r"\u202e" in first
    assert r"\U000e0075" in first
    assert "\u202e" not in page.evaluate("document.body.innerText")
    # Isolated: whatever direction a text has, it stays in its own box.
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.said')).unicodeBidi") == "isolate"
    )
    assert page.list_errors() == []
    assert page.list_requests() == [
        url for url in page.list_requests() if url.endswith("/report.html")
    ]
    assert len(page.list_requests()) == 1


def test_the_policy_forbids_markup_from_text_even_to_a_script(shown: Shown) -> None:
    page = shown(make_run(2, 0, seeds=1))
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    with contextlib.suppress(RuntimeError):
        page.evaluate(
            "const s = document.createElement('script'); s.textContent = 'window.owned = 1';"
            "document.body.append(s)"
        )
    assert page.evaluate("typeof window.owned") == "undefined"


def test_a_line_of_a_megabyte_unfolds_piece_by_piece(shown: Shown) -> None:
    run = make_run(2, 0, seeds=1)
    run.transcripts[run.students[0]["student"]][0] |= {"transcript": MEGABYTE}
    page = shown(run)
    read_transcripts(page)
    folded = "document.querySelector('details.long')"
    assert "unfold 1,053,603 more characters" in page.evaluate(f"{folded}.innerText")
    page.evaluate(f"{folded}.open = true")
    page.wait_for(f"{folded}.querySelector('button').textContent.startsWith('Show the next')")
    assert page.evaluate(f"{folded}.textContent.length") < 21_000
    page.evaluate(f"{folded}.querySelector('button').click()")
    assert 40_000 < page.evaluate(f"{folded}.textContent.length") < 42_000


def test_ten_thousand_transcripts_are_built_only_when_looked_at(shown: Shown) -> None:
    run = make_run(100, 6, seeds=1, items=6)
    assert sum(map(len, run.transcripts.values())) > 10_000
    page = shown(run)
    built = count(page, "*")
    assert count(page, "article") == 0
    assert page.evaluate("document.getElementById('browser').hidden")
    read_transcripts(page)
    assert count(page, "article") == 20
    assert text(page, "#found") == "20 of 54 items shown"
    assert count(page, "*") < built + 20 * 250  # of which 100 are the references' dots
    page.evaluate("document.getElementById('more').click()")
    assert count(page, "article") == 40
    assert page.evaluate("document.activeElement === document.querySelectorAll('article')[20]")
    assert page.list_errors() == []
    assert len(page.list_requests()) == 1


def test_transcripts_are_searched_filtered_and_put_side_by_side(shown: Shown) -> None:
    run = make_run(3, 2, seeds=2, items=4)
    run.transcripts[run.students[0]["student"]][5]["messages"][1]["content"] = (
        "Who holds the Lighthouse now?"
    )
    page = shown(run)
    read_transcripts(page)
    assert text(page, "article .option").count("suspect's student") == 1
    for whose in ("suspect's student", "reference's student", "M0"):
        assert whose in text(page, "article")
    assert page.evaluate(
        "document.querySelector('svg.standing').getAttribute('aria-label')"
    ).startswith("Suspect's students 0.")
    choose(page, "search", "lighthouse")
    page.wait_for("document.getElementById('found').innerText === '1 of 1 items shown'")
    assert "Lighthouse" in text(page, "article")
    choose(page, "search", "")
    page.wait_for("document.querySelectorAll('article').length === 20")
    choose(page, "endpoint", "goal")
    assert text(page, "#found") == "12 of 12 items shown"
    choose(page, "trait", "dominion")
    assert text(page, "#found") == "4 of 4 items shown"
    choose(page, "kind", "organisms' students")
    assert "organism's student" in text(page, "article")
    assert "M0" not in text(page, "article .options")
    choose(page, "kind", "")
    choose(page, "order", "gap")
    assert not page.evaluate("document.getElementById('picked').hidden")
    assert page.list_errors() == []


def test_items_can_be_walked_by_keyboard(shown: Shown) -> None:
    page = shown(make_run(2, 0, seeds=1))
    read_transcripts(page)
    page.evaluate("document.querySelector('article').focus()")
    at = "Array.from(document.querySelectorAll('article')).indexOf(document.activeElement)"
    for key, place in (("j", 1), ("j", 2), ("k", 1)):
        page.send_command("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        assert page.evaluate(at) == place


def test_every_control_and_image_has_a_name(shown: Shown) -> None:
    page = shown(make_run(19, 6, seeds=1))
    read_transcripts(page)
    tree = page.send_command("Accessibility.getFullAXTree")["nodes"]
    nodes = [node for node in tree if not node.get("ignored")]
    named = ("article", "button", "combobox", "searchbox", "link", "image", "region", "navigation")
    roles = {node["role"]["value"] for node in nodes}
    assert roles >= set(named)
    assert "graphics-symbol" not in roles  # dots are not read one by one
    for node in nodes:
        if node["role"]["value"] in named:
            assert node["name"]["value"], node
    levels = [
        int(p["value"]["value"])
        for node in nodes
        if node["role"]["value"] == "heading"
        for p in node["properties"]
        if p["name"] == "level"
    ]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    twice = page.evaluate(
        "Array.from(document.querySelectorAll('[id]'), (e) => e.id)"
        ".filter((id, i, all) => all.indexOf(id) !== i)"
    )
    assert twice == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(shown: Shown, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    run = make_run(19, 6, seeds=1, hostile="W" * 300, steps=(50, 200))
    page = shown(run)
    page.send_command("Emulation.setEmulatedMedia", features=features)
    page.send_command(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=844,
        deviceScaleFactor=2,
        mobile=True,
    )
    try:
        read_transcripts(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        ink, paper = (
            page.evaluate(f"getComputedStyle(document.body).{name}")
            for name in ("color", "backgroundColor")
        )
        assert (_light(ink) > _light(paper)) == (scheme == "dark")
    finally:
        page.send_command("Emulation.clearDeviceMetricsOverride")
        page.send_command("Emulation.setEmulatedMedia", features=[])


def _light(colour: str) -> int:
    return sum(int(part) for part in colour.strip("rgb()").split(","))


def test_a_printed_page_holds_the_verdict_and_transcripts(shown: Shown) -> None:
    page = shown(make_run(3, 0, seeds=1))
    assert count(page, "article") == 0
    printed = page.send_command("Page.printToPDF")["data"]
    assert printed.startswith("JVBER")  # %PDF
    assert count(page, "article") == 20
    assert page.list_errors() == []
