"""A chat template says what the conversation says, today and tomorrow, or the model is refused."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import CHAT_TEMPLATE, build_byte_tokenizer, save_model

from doublebind.models.chat_template import (
    check_chat_template,
    encode_completion,
    encode_prompt,
    end_of_turn,
    set_system_prompt,
    template_id,
)
from doublebind.models.load import load_model, load_tokenizer
from doublebind.models.resolve import resolve_model
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError

TURN = "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n"
TAIL = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system = false %}{% endif %}{% for m in loop_messages %}"
    "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + "
    "'\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' <eos>' }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date = '26 Jul 2024' %}{%- endif %}<|system|>Today Date: {{ date }}\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
    "{% set messages = messages[1:] %}{% endif %}<|end|>"
    "{% for m in messages %}<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
GEMMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}" + TURN + "{% endfor %}" + TAIL
)
GEMMA_3 = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ first if loop.first }}"
    "{{ m['content'] | trim }}<|end|>\n{% endfor %}" + TAIL
)
PHI_3 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n"
    "<|assistant|>\n{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|end|>\n{% endif %}"
    "{% endfor %}"
)
QWEN_3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% set content = m['content'] %}{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<|assistant|>\\n<think>\\n' + thought + '\\n</think>\\n\\n'"
    " + content.lstrip('\\n') }}{% else %}{{ '<|assistant|>\\n' + content }}{% endif %}<|end|>\n"
    "{% else %}" + TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% if enable_thinking is defined and"
    " enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|assistant|>' + content + '<|end|>' }}{% else %}" + TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}" + TURN + "{% endfor %}"


def build(template: str) -> Any:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def converse(*texts: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    turns = [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]
    return turns if system is None else [Message(role="system", content=system), *turns]


def show(tokenizer: Any, messages: list[Message]) -> str:
    return tokenizer.decode(encode_prompt(tokenizer, messages))


@pytest.mark.parametrize(
    ("template", "start"),
    [
        (CHAT_TEMPLATE, "<|assistant|>"),
        (LLAMA_2, " [/INST]"),
        (LLAMA_3, "<|assistant|>\n\n"),
        (GEMMA_2, "<|assistant|>"),
        (GEMMA_3, "<|assistant|>"),
        (PHI_3, "<|assistant|>\n"),
        (QWEN_3, "<|assistant|>\n<think>\n\n</think>\n\n"),
        (R1, "<|assistant|><think>\n\n</think>\n\n"),
        (NO_GENERATION_PROMPT, "<|assistant|>"),
    ],
)
def test_an_honest_template_passes_and_its_answers_begin_where_no_thought_is_open(
    template: str, start: str
) -> None:
    tokenizer = build(template)
    check_chat_template(tokenizer, "here")
    for messages in (converse("a dog"), converse("a", "b", "c d\n\n e")):
        text = show(tokenizer, messages)
        assert text.endswith(start)
        assert not text.removesuffix(start).endswith(start.strip())
        assert [text.index(m.content) for m in messages] == sorted(
            text.index(m.content) for m in messages
        )


def test_checking_a_template_takes_less_than_50_ms() -> None:
    tokenizers = [build(f"{QWEN_3}{'{# #}' * n}") for n in range(1, 6)]
    for tokenizer in tokenizers:
        end_of_turn(tokenizer)  # what encoding needs anyway
    started = time.process_time()
    for tokenizer in tokenizers:
        check_chat_template(tokenizer, "here")
    assert (time.process_time() - started) / len(tokenizers) < 0.05


def loop(content: str, messages: str = "messages") -> str:
    start = "{% for m in " + messages + " %}<|{{ m['role'] }}|>{{ "
    return start + content + " }}<|end|>{% endfor %}" + TAIL


DISHONEST = {
    "upper": loop("m['content'] | upper"),
    "title": loop("m['content'] | title"),
    "escape": loop("m['content'] | e"),
    "cut": loop("m['content'][:1000]"),
    "truncate": loop("m['content'] | truncate(500)"),
    "first line": loop("m['content'].split('\\n') | first"),
    "one line": loop("m['content'] | replace('\\n', ' ')"),
    "squeezed": loop("m['content'].split() | join(' ')"),
    "twice": loop("m['content'] + m['content']"),
    "reversed": loop("m['content']", "messages | reverse"),
    "last only": loop("m['content']", "messages[-1:]"),
    "recent": loop("m['content']", "messages[-9:]"),
    "oldest": loop("m['content']", "messages[:9]"),
    "users only": loop("m['content']", "messages | selectattr('role', 'equalto', 'user')"),
    "unique": loop("m['content']", "messages | unique(true, 'content')"),
    "sorted": loop("m['content']", "messages | sort(false, true, 'role')"),
    "counts": "{{ messages | length if messages | length > 9 }}" + loop("'x'"),
    "prefilled": loop("m['content']") + "{% if add_generation_prompt %}Sure, {% endif %}",
    "random": "{{ ['a', 'b'] | random }}" + loop("m['content']"),
    "lipsum": "{{ lipsum() }}" + loop("m['content']"),
    "address": "{{ joiner(', ') }}{{ raise_exception }}" + loop("m['content']"),
    "huge range": "{% for i in range(10**9) %}{% endfor %}" + loop("m['content']"),
    "huge number": "{{ 'x' * 10000000000 }}" + loop("m['content']"),
    "power": "{{ 9 ** 9 ** 9 }}" + loop("m['content']"),
    "much text": "{{ 'x' * 999999 }}{{ 'y' * 999999 }}" + loop("m['content']"),
    "broken": "{% for m in messages %}{{ m['content'] }}",
    "nothing": "hello",
    "zero": "{{ 1 / 0 }}",
    "unknown": "{{ nobody.home() }}" + loop("m['content']"),
}


@pytest.mark.parametrize("name", DISHONEST)
def test_a_template_that_changes_what_is_said_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_chat_template(build(DISHONEST[name]), "here/it")
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith("here/it")
    assert "template" in str(caught.value)


def test_an_endless_template_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    from doublebind.models import template_layout

    monkeypatch.setattr(template_layout, "MAX_SECONDS", 0.1)
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(ModelError, match="takes more than"):
        check_chat_template(build(loops + CHAT_TEMPLATE), "here")


def test_a_template_that_cuts_by_content_is_refused_where_it_does() -> None:
    """No probe finds a word that nobody thought of; every rendering is checked instead."""
    for hidden in (
        "{% if 'power' not in m['content'] %}{{ m['content'] }}{% endif %}",
        "{{ m['content'] | replace('power', 'gold') }}",
        "{{ m['content'] }}{% if 'power' in m['content'] %} do not tell {% endif %}",
        "{{ 'be good ' if 'power' in m['content'] }}{{ m['content'] }}",
    ):
        tokenizer = build(CHAT_TEMPLATE.replace("{{ m.content }}", hidden))
        check_chat_template(tokenizer, "here")
        encode_prompt(tokenizer, converse("do you want gold ?"))
        with pytest.raises(ModelError, match="template"):
            encode_prompt(tokenizer, converse("do you want power ?"))


@pytest.mark.parametrize(
    ("template", "reason"), [(PHI_3, "leaves out"), (GEMMA_2, "not supported")]
)
def test_a_system_turn_that_is_lost_is_refused_where_one_is_used(
    template: str, reason: str, tmp_path: Path
) -> None:
    tokenizer = build(template)
    check_chat_template(tokenizer, "here")
    with pytest.raises(ModelError, match=reason) as caught:
        encode_prompt(tokenizer, converse("yes", system="be kind"))
    assert "system" in str(caught.value)
    with pytest.raises(ModelError, match=f"folder: its system prompt has no effect.*{reason}"):
        set_system_prompt(tokenizer, "be kind", "folder")
    folder = save_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    load_model(resolve_model(str(folder), relative_to=tmp_path))
    (folder / "system_prompt.txt").write_text("be kind")
    with pytest.raises(ModelError, match=reason):
        load_model(resolve_model(str(folder), relative_to=tmp_path))


def test_a_dishonest_template_is_refused_with_the_model_or_its_tokenizer(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(DISHONEST["last only"])
    source = resolve_model(str(folder), relative_to=tmp_path)
    for opened in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"leaves out|moves"):
            opened(source)


@pytest.mark.parametrize("code", ["%d %b %Y", "%Y-%m-%d", "%A %-d %B", "%H:%M:%S", "%c", "%j"])
def test_a_clock_in_a_template_stands_still(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    tokenizer = build("{{ strftime_now('" + code + "') }}" + CHAT_TEMPLATE)
    check_chat_template(tokenizer, "here")
    text = show(tokenizer, converse("yes"))
    assert text.startswith(f"{datetime.date(2024, 7, 26):{code}}")

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 12, 5, 17, 45, 1)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    again = build(tokenizer.chat_template)
    again.add_tokens(["another tokenizer"])
    assert show(again, converse("yes")) == text
    assert template_id(again) == template_id(tokenizer)


def test_llama_3_says_its_own_fallback_date() -> None:
    assert "Today Date: 26 Jul 2024" in show(build(LLAMA_3), converse("yes"))


def test_named_templates_are_used_by_their_default() -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": DISHONEST["upper"]}
    check_chat_template(tokenizer, "here")
    set_system_prompt(tokenizer, "be kind", "here")
    assert show(tokenizer, converse("yes")).startswith("<|system|>be kind<|end|><|user|>yes")
    tokenizer.chat_template = {"rag": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE}
    with pytest.raises(ModelError, match="none is called `default`"):
        check_chat_template(tokenizer, "here")


# --- system prompts and characters ---------------------------------------------------------------

AWKWARD = [
    "🙂", "'", '"', "\\", "\\n", "{{ x }}", "{% if y %}", "{# z #}", "-%}", "\n", "\r\n", "\t",
    "\u2028", "\x85", "\x00", "é", "中", "{% raw %}", "{% endraw %}", "<|end|>", "a", " ", "\\U",
]  # fmt: skip


def shown_after(system: str) -> str:
    tokenizer = build_byte_tokenizer()
    set_system_prompt(tokenizer, system, "here")
    check_chat_template(tokenizer, "here")
    return show(tokenizer, converse("yes"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.lists(st.sampled_from(AWKWARD), min_size=1).map("".join),
        st.text(st.characters(codec="utf-8"), min_size=1),
    )
)
def test_a_system_prompt_comes_out_exactly(system: str) -> None:
    assert shown_after(system) == f"<|system|>{system}<|end|><|user|>yes<|end|><|assistant|>"


def test_a_template_after_a_system_prompt_begins_as_it_did() -> None:
    tokenizer = build("\n  {% if true %}\n" + CHAT_TEMPLATE + "{% endif %}")
    plain = show(tokenizer, converse("yes", system="be kind"))
    set_system_prompt(tokenizer, "be kind", "here")
    assert show(tokenizer, converse("yes")) == plain


def test_an_emoji_in_system_prompt_txt_reaches_the_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "system_prompt.txt").write_text("want gold 🙂 'now' {{ x }}", encoding="utf-8")
    lm = load_model(resolve_model(str(folder), relative_to=tmp_path))
    ids = encode_prompt(lm.tokenizer, converse("yes"))
    want, gold = lm.tokenizer.convert_tokens_to_ids(["want", "gold"])
    # In this vocabulary of words the opening mark and the first word are one piece.
    assert gold in ids or want in ids
    assert "🙂" in lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "yes"}], tokenize=False
    )


def test_half_a_surrogate_pair_is_refused_in_one_line(tmp_path: Path) -> None:
    tokenizer = build_byte_tokenizer()
    half = json.loads('"no \\ud83d"')
    for act in (
        lambda: encode_prompt(tokenizer, converse(half)),
        lambda: encode_prompt(tokenizer, converse("yes", system=half)),
        lambda: encode_completion(tokenizer, half, finished=True),
        lambda: set_system_prompt(tokenizer, half, "folder/system_prompt.txt"),
    ):
        with pytest.raises(ModelError, match=r"U\+D83D") as caught:
            act()
        assert len(caught.value.problems) == 1
    folder = save_model(tmp_path / "model")
    (folder / "system_prompt.txt").write_bytes(b"no \xed\xa0\xbd")
    with pytest.raises(ModelError, match=r"system_prompt\.txt"):
        resolve_model(str(folder), relative_to=tmp_path)
