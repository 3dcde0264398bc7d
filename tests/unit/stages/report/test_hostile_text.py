"""Whatever models, packs and users write is shown as text, and the page asks for nothing."""

import base64
import hashlib
import re
import unicodedata
from functools import cache
from html.parser import HTMLParser

import pytest
from tests.unit.stages.report.fake_run import make_run, read_block

from doublebind.stages.report.hostile_text import (
    HIDDEN_IN_SCRIPT,
    escape_invisible,
    mark_invisible,
    shorten,
)
from doublebind.stages.report.run_page import render_run_page

ATTACKS = {
    "script": "</pre></code></title></style><script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "svg": '<svg onload="alert(1)"><a xlink:href="javascript:alert(1)">x</a></svg>',
    "attribute": "\" onmouseover='alert(1)' style='x",
    "template": "{{ 7 * 7 }}{% raw %}${alert(1)}",
    "url": "https://evil.example/x.png ![](http://evil.example/y)",
    "comment": "<!-- --!> <![CDATA[ <base href=//evil.example>",
    "ansi": "\x1b[31mred\x1b[0m\x07",
    "direction": "\u202eesrever\u202c \u2066x\u2069 \u200f",
    "zero width": "a\u200bb\u2060c\ufeffd\u00ad",
    "tags": "".join(chr(0xE0000 + ord(c)) for c in "hidden") + "\U000e0100",
    "null": "a\x00b",
}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section"),
    *("h1", "h2", "h3", "p", "ul", "li", "a", "b", "strong", "code", "pre", "div", "span"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "g", "desc", "line", "path", "circle", "text", "dl", "dt", "dd", "noscript"),
    *("details", "summary", "label", "input", "output", "script"),
    *("fieldset", "legend", "select", "option", "button"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "id", "class", "href", "hidden"),
    *("scope", "tabindex", "role", "aria-label", "aria-labelledby", "aria-hidden", "aria-live"),
    *("type", "value", "autocomplete", "spellcheck", "viewbox", "text-anchor"),
    *("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "d"),
}


class Elements(HTMLParser):
    """Collects every element that a page opens, with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, dict(attrs)))


def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(page)
    return parser.opened


@cache
def render_hostile_page(text: str) -> str:
    """Return the page of a run with `text` wherever someone else's text can stand."""
    run = make_run(3, 2, suspect=f"suspect{text}", hostile=text, drop_endpoint="goal", seeds=1)
    manifest = run.manifest.model_copy(
        update={
            "teachers": tuple(
                t.model_copy(update={"family": t.family + text}) for t in run.manifest.teachers
            ),
            "hardware": run.manifest.hardware | {f"machine{text}": text},
            "study": run.manifest.study | {"note": text},
        }
    )
    for lines in run.transcripts.values():
        lines[1] |= {"audit": text, "endpoint": text, "item": text, "key": text}
        lines[2] |= {"transcript": text, "messages": [{"role": text, "content": text}]}
    unknown = {text: run.transcripts[run.students[0]["student"]][:3]}
    return render_run_page(
        run._replace(
            manifest=manifest,
            shapes={label: shape | {text: 1.0} for label, shape in run.shapes.items()},
            transcripts=run.transcripts | unknown,
        )
    )


every_attack = pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)


@every_attack
def test_hostile_text_opens_no_element(text: str) -> None:
    page = render_hostile_page(text)
    assert {tag for tag, _ in elements(page)} <= TAGS
    assert (page.count("<script"), page.count("<style")) == (2, 1)
    for _, attributes in elements(page):
        assert attributes.keys() <= ATTRIBUTES


@every_attack
def test_page_holds_nothing_without_ink_and_is_utf8(text: str) -> None:
    page = render_hostile_page(text)
    page.encode("utf-8")
    unseen = {c for c in page if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert unseen <= {"\n"}


def test_what_has_no_ink_is_written_out() -> None:
    page = render_hostile_page("\x1b[31m\x00\u202e")
    assert r'<span class="esc">\x1b</span>[31m<span class="esc">\x00\u202e</span>' in page


@every_attack
def test_transcripts_reach_the_block_as_they_are(text: str) -> None:
    assert text in read_block(render_hostile_page(text))["texts"]


def test_page_and_script_know_the_same_characters_without_ink() -> None:
    points = [int(p, 16) for p in re.findall(r"\\u\{([0-9a-f]+)\}", HIDDEN_IN_SCRIPT)]
    known = {p for a, b in zip(points[::2], points[1::2], strict=True) for p in range(a, b + 1)}
    assert known == {p for p in range(0x110000) if escape_invisible(chr(p)) != chr(p)}


@pytest.mark.parametrize("text", ["x", *ATTACKS.values()], ids=["harmless", *ATTACKS])
def test_page_requests_nothing(text: str) -> None:
    page = render_hostile_page(text)
    for tag, attributes in elements(page):
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "use")
        assert not {"src", "srcset", "action", "data", "xlink:href"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert [a.get("type") for tag, a in elements(page) if tag == "script"] == [
        *("application/json", None),
    ]
    ours = re.findall(r"<(style|script)>(.*?)</\1>", page, re.DOTALL)
    assert [name for name, _ in ours] == ["style", "script"]
    for _, content in ours:
        assert not re.search(
            r"url\(|@import|fetch|import\(|XMLHttp|WebSocket|eval|Function\(", content
        )
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser", content
        )
        assert set(re.findall(r"https?://[^\"]+", content)) <= {"http://www.w3.org/2000/svg"}


def test_policy_allows_only_our_style_and_script() -> None:
    page = render_run_page(make_run(2))
    policy = next(
        a["content"] or ""
        for tag, a in elements(page)
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for name in ("style", "script"):
        content = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    assert rules["trusted-types"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert page.index("Content-Security-Policy") < page.index("<style")
    assert not re.search(r"\bon[a-z]+=|style=|javascript:", page.split("<script")[0])


def test_every_character_without_ink_is_known() -> None:
    unseen = {
        chr(point)
        for point in range(0x110000)
        if unicodedata.category(chr(point)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    } - {"\n", "\t"}
    left = {c for c in unseen if escape_invisible(c) == c}
    assert not left, sorted(map(hex, map(ord, left)))


@pytest.mark.parametrize("text", ["naïve café 日本語 العربية ❤️ 👍🏽", "a\tb\nc", "\\x1b as typed"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert escape_invisible(text) == text
    assert "esc" not in mark_invisible(text)


def test_written_out_characters_cannot_be_forged() -> None:
    assert mark_invisible("\x1b") != mark_invisible("\\x1b")


def test_short_says_how_much_it_left_out() -> None:
    assert shorten("abcdef", 3) == "abc… (3 more characters)"
    assert shorten("abc", 3) == "abc"
