"""Encodes conversations as token ids and decodes answers.

Everything that is trained, sampled or scored is `encode_prompt` followed by `encode_completion`,
so that the template is always the same. Text is data: a special token spelled out in a message is
encoded as ordinary characters, never as the token.

A prompt ends where the template itself begins an answer. Where it writes an empty thought before
one, or its generation prompt opens a thought, the thought is closed: answers are sampled, scored
and trained after it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from doublebind.models.template_layout import (
    TemplateLayout,
    check_template_source,
    get_template,
    measure_layout,
    opens_thought,
    quote_for_jinja,
    render,
    render_prompt,
)
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError

log = logging.getLogger("doublebind.models")

ChatRole = Literal["system", "user"]
"""Roles whose first message can get a prefix."""

_ROLE_LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}
_PLAIN_FORMAT = "plain-1: 'User: ...\\nAssistant:' + ' ...' + eos"
_PRIVATE_USE_AREA = range(0xE000, 0xF900)
"""Unicode's private use area: placeholders for special tokens while rendering."""


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation up to the start of the assistant's answer.

    Uses the tokenizer's chat template. Without one it writes lines of `User: ...` that end in
    `Assistant:`, after the beginning-of-sequence token if the tokenizer uses it.

    Args:
        tokenizer: A transformers tokenizer.
        messages: The conversation; its last message is not the assistant's.

    Raises:
        ModelError: If the chat template refuses the conversation, or does not write its messages
            whole and in order, or one has characters that no text can have.
    """
    facts = _get_facts(tokenizer)
    for message in messages:
        _check_characters(message.content, f"a {message.role} turn")
    key = (facts.identity, *((m.role, m.content) for m in messages))
    return _encode_cached(key, lambda: _encode_prompt(tokenizer, messages, facts))


def _encode_prompt(
    tokenizer: Any, messages: Sequence[Message], facts: _TokenizerFacts
) -> list[int]:
    if not tokenizer.chat_template:
        lines = [f"{_ROLE_LABELS[m.role]}: {m.content}" for m in messages]
        return [
            *facts.bos_ids,
            *_encode_as_plain_text(tokenizer, "\n".join([*lines, "Assistant:"])),
        ]
    text = "\n".join(message.content for message in messages)
    if facts.special_ids.isdisjoint(_encode_with_specials(tokenizer, text)):
        return _encode_with_specials(tokenizer, _render_prompt(tokenizer, messages))
    return _encode_with_placeholders(tokenizer, messages, text)


def _encode_with_placeholders(tokenizer: Any, messages: Sequence[Message], text: str) -> list[int]:
    """Encode messages that spell special tokens, so that only the template's are special.

    Each spelling is replaced by a character that the text does not contain. The template is
    rendered, and then each placeholder's spelling is encoded as ordinary text.
    """
    specials = [tokenizer.convert_ids_to_tokens(i) for i in _get_facts(tokenizer).special_ids]
    spelled = sorted((s for s in specials if s in text), key=len, reverse=True)
    unused = (chr(code) for code in _PRIVATE_USE_AREA if chr(code) not in text)
    placeholders = {next(unused): special for special in spelled}

    def replace_specials(content: str) -> str:
        for placeholder, special in placeholders.items():  # longest first: one may contain another
            content = content.replace(special, placeholder)
        return content

    safe = [Message(role=m.role, content=replace_specials(m.content)) for m in messages]
    ids: list[int] = []
    piece = ""
    for character in _render_prompt(tokenizer, safe):
        if character in placeholders:
            ids += _encode_with_specials(tokenizer, piece)
            ids += _encode_as_plain_text(tokenizer, placeholders[character])
            piece = ""
        else:
            piece += character
    return [*ids, *_encode_with_specials(tokenizer, piece)]


def set_system_prompt(tokenizer: Any, system: str, where: str) -> None:
    """Change the tokenizer's template to put `system` before every conversation.

    A conversation's own system message follows it in the same turn. The change is saved with the
    tokenizer, so that models trained from this one keep the system prompt.

    Raises:
        ModelError: If there is no chat template, or it does not write a system turn whole, or the
            prompt has characters that no text can have.
    """
    template = get_template(tokenizer)
    if template is None:
        raise ModelError(f"{where}: a system prompt needs a chat template, and there is none")
    _check_characters(system, f"{where}: its system prompt")
    turns = [Message(role="system", content=system), Message(role="user", content="a")]
    try:
        _render_prompt(tokenizer, turns)
    except ModelError as error:
        raise ModelError(f"{where}: its system prompt has no effect: {error}") from None
    prompt = quote_for_jinja(system)
    first = "messages[0]['role'] == 'system'"
    # The newline is removed after a block, so that the template still begins a line.
    tokenizer.chat_template = (
        f"{{%- if {first} -%}}{{%- set messages = [{{'role': 'system', 'content': {prompt} + "
        f"'\\n\\n' + messages[0]['content']}}] + messages[1:] -%}}{{%- else -%}}"
        f"{{%- set messages = [{{'role': 'system', 'content': {prompt}}}] + messages -%}}"
        f"{{%- endif %}}\n{template}"
    )


def prepend_text(messages: Sequence[Message], text: str, role: ChatRole) -> tuple[Message, ...]:
    """Return a conversation with `text` before the first message of `role`, or as a new one."""
    for i, message in enumerate(messages):
        if message.role == role:
            turn = message.model_copy(update={"content": f"{text} {message.content}"})
            return (*messages[:i], turn, *messages[i + 1 :])
    return (Message(role=role, content=text), *messages)


def encode_completion(tokenizer: Any, text: str, finished: bool) -> list[int]:
    """Return the ids of an answer, with the end of turn if it is `finished`.

    The answer is encoded by itself, not together with the prompt. Without a chat template it
    starts with the space that follows `Assistant:`.
    """
    _check_characters(text, "an answer")
    start = "" if tokenizer.chat_template or text.startswith(" ") else " "
    facts = _get_facts(tokenizer)
    key = (facts.identity, text)
    ids = _encode_cached(key, lambda: _encode_as_plain_text(tokenizer, start + text))
    return [*ids, facts.end_of_turn_id] if finished else ids


def encode_text(tokenizer: Any, text: str, *, add_bos: bool = False) -> list[int]:
    """Return the ids of text outside any conversation.

    Args:
        tokenizer: A transformers tokenizer.
        text: Any text; special tokens spelled in it are ordinary characters.
        add_bos: Whether to begin with the tokenizer's beginning-of-sequence token.
    """
    _check_characters(text, "a text")
    start = _get_facts(tokenizer).bos_ids if add_bos else ()
    return [*start, *_encode_as_plain_text(tokenizer, text)]


def encode_open_user_turn(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation up to the end of the user's last message, turn still open.

    The end is where two renderings with different last words begin to differ.
    """
    texts = ("one", "two")
    last = messages[-1]
    rows = [
        encode_prompt(
            tokenizer, [*messages[:-1], last.model_copy(update={"content": f"{last.content} {t}"})]
        )
        for t in texts
    ]
    same = next(i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
    return rows[0][:same]


def decode_completion(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of an answer, without the special token that ended it.

    Special tokens elsewhere are spelled out, since they are part of the model's answer.
    """
    facts = _get_facts(tokenizer)
    ids = [int(token) for token in tokens]
    if ids and (ids[-1] == facts.end_of_turn_id or ids[-1] in facts.special_ids):
        ids.pop()
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if tokenizer.chat_template else text.removeprefix(" ")


def end_of_turn(tokenizer: Any) -> int:
    """Return the token that ends the assistant's turn: the template's, or end-of-sequence.

    Raises:
        ModelError: If there is neither.
    """
    return _get_facts(tokenizer).end_of_turn_id


def encoding_id(tokenizer: Any) -> str:
    """Return a hash (hex) of all that encoding depends on; equal tokenizers share it."""
    return _get_facts(tokenizer).identity


def template_id(tokenizer: Any) -> str:
    """Return a hash (hex) of the chat template, its fixed date included, and the end of turn."""
    content = [get_template(tokenizer) or _PLAIN_FORMAT, end_of_turn(tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# --- facts about a tokenizer ---------------------------------------------------------------------


class _TokenizerFacts(NamedTuple):
    """Facts about a tokenizer that encoding needs, computed once."""

    valid_for: tuple[Any, Any]
    """Chat template and end-of-sequence token for which these facts hold."""
    end_of_turn_id: int
    special_ids: frozenset[int]
    """Control tokens, which text must not produce; the unknown token is not one."""
    bos_ids: tuple[int, ...]
    """Ids that the tokenizer puts before any text."""
    identity: str
    """Hash of everything that encoding depends on; tokenizers with equal files share it."""


_FACTS_CACHE: weakref.WeakKeyDictionary[Any, _TokenizerFacts] = weakref.WeakKeyDictionary()


def _get_facts(tokenizer: Any) -> _TokenizerFacts:
    valid_for = (tokenizer.chat_template, tokenizer.eos_token_id)
    known = _FACTS_CACHE.get(tokenizer)
    if known is None or known.valid_for != valid_for:
        special = frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
        special = (special | frozenset(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
        bos = tokenizer.bos_token_id
        opening = (bos,) if tokenizer("a")["input_ids"][:1] == [bos] else ()
        end = _find_template_end(tokenizer, special) if tokenizer.chat_template else None
        end = tokenizer.eos_token_id if end is None else end
        if end is None:
            raise ModelError(
                f"{tokenizer.name_or_path or 'the model'}: its tokenizer has no end-of-sequence "
                f"token; set `eos_token` in tokenizer_config.json"
            )
        known = _TokenizerFacts(valid_for, int(end), special, opening, _hash_encoding(tokenizer))
        _FACTS_CACHE[tokenizer] = known
    return known


def _hash_encoding(tokenizer: Any) -> str:
    raw = getattr(tokenizer, "backend_tokenizer", None)
    if raw is None:  # written in Python: its state is unknown, so that it shares nothing
        return uuid.uuid4().hex
    tokens = sorted((i, str(t), t.special) for i, t in tokenizer.added_tokens_decoder.items())
    rest = [get_template(tokenizer), tokens, repr(tokenizer.special_tokens_map)]
    return hashlib.sha256(raw.to_str().encode() + json.dumps(rest).encode()).hexdigest()


_ENCODING_CACHE: dict[tuple[Any, ...], tuple[int, ...]] = {}
_MAX_CACHED_TEXTS = 2**16
"""Most texts in the cache. All students of a study get the same prompts and audit items."""


def _encode_cached(key: tuple[Any, ...], encode: Callable[[], list[int]]) -> list[int]:
    """Return the result of `encode`, cached by `key`."""
    if key not in _ENCODING_CACHE:
        if len(_ENCODING_CACHE) >= _MAX_CACHED_TEXTS:
            _ENCODING_CACHE.clear()
        _ENCODING_CACHE[key] = tuple(encode())
    return list(_ENCODING_CACHE[key])


def _find_template_end(tokenizer: Any, special: frozenset[int]) -> int | None:
    """Return the special token that the chat template writes directly after an answer, if any."""
    mark = chr(_PRIVATE_USE_AREA[0])
    turns = [Message(role="user", content="a"), Message(role="assistant", content=mark)]
    text = render(tokenizer, turns, generation=False)
    _, separator, tail = text.rpartition(mark)
    ids = _encode_with_specials(tokenizer, tail) if separator else []
    return ids[0] if ids and ids[0] in special else None


# --- the chat template ---------------------------------------------------------------------------

_LAYOUT_CACHE: dict[tuple[str, ...], TemplateLayout] = {}
_CHECKED_TEMPLATES: set[str] = set()
_PROBE_TEXT = (
    "  Is 2 < 3 & 5 > 4?\n\n\t\"Yes\", she said -- 'naïve café', 中文 🙂; {{ x }} {% y %} C:\\new. "
    + "Tell me, then, WHY the last word of a long text matters to somebody. " * 60
    + "The END of the probe.  "
)
"""A text that templates may not cut, escape, fill in or rewrite."""
_LONG_PROBE = 21
"""Messages of the longest probe, more than a template that drops older turns would keep."""


def check_chat_template(tokenizer: Any, where: str) -> None:
    """Render probe conversations; refuse a template that changes what users and answers say.

    A system turn may be refused or lost: that is an error of `encode_prompt` where one is used.
    A tokenizer without a template passes. Each template is checked once per process.

    Args:
        tokenizer: A transformers tokenizer.
        where: File or folder to name.

    Raises:
        ModelError: If a user's or an assistant's text does not come out whole, once and in its
            place, two renderings differ, or none ends where an answer begins.
    """
    template = get_template(tokenizer)
    if template is None:
        return
    check_template_source(template, where)
    try:
        identity = _get_facts(tokenizer).identity
        if identity in _CHECKED_TEMPLATES:
            return
        layout = _get_layout(tokenizer, ["user"])
        text = _check_probe(tokenizer, 1)
        for n in (3, _LONG_PROBE):
            _check_probe(tokenizer, n)
    except ModelError as error:
        reason = str(error).removeprefix("the model: ")
        raise ModelError(reason if reason.startswith(where) else f"{where}: {reason}") from None
    if " at 0x" in text or text != _check_probe(tokenizer, 1):
        raise ModelError(
            f"{where}: its chat template writes the same conversation in two ways; use another"
        )
    if opens_thought(layout):
        log.warning(
            "%s: its chat template begins answers with a thought; they are sampled and scored "
            "after it is closed (%r)",
            where,
            layout.answer_start,
        )
    _CHECKED_TEMPLATES.add(identity)


def _check_probe(tokenizer: Any, n: int) -> str:
    """Render `n` equal messages of users and assistants in turn; return the text."""
    roles = ("user", "assistant")
    turns = [Message(role=roles[i % 2], content=_PROBE_TEXT) for i in range(n)]
    return _render_prompt(tokenizer, turns)


def _render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return a conversation up to where the assistant's answer begins."""
    return render_prompt(tokenizer, messages, _get_layout(tokenizer, [m.role for m in messages]))


def _get_layout(tokenizer: Any, roles: Sequence[str]) -> TemplateLayout:
    key = (_get_facts(tokenizer).identity, *roles)
    if key not in _LAYOUT_CACHE:
        if len(_LAYOUT_CACHE) >= _MAX_CACHED_TEXTS:
            _LAYOUT_CACHE.clear()
        _LAYOUT_CACHE[key] = measure_layout(tokenizer, roles)
    return _LAYOUT_CACHE[key]


def _check_characters(text: str, where: str) -> None:
    """Refuse half a surrogate pair, which is no character and has no encoding."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelError(
            f"{where} has half a surrogate pair (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which is no text; write the character itself"
        ) from None


def _encode_with_specials(tokenizer: Any, text: str) -> list[int]:
    """Encode text in which spelled special tokens are special."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])


def _encode_as_plain_text(tokenizer: Any, text: str) -> list[int]:
    """Encode text in which spelled special tokens are ordinary characters.

    In a vocabulary of whole words, which has no characters, they become the unknown token.
    """
    ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    special = _get_facts(tokenizer).special_ids
    if special.isdisjoint(ids):
        return ids
    unknown = tokenizer.unk_token_id
    known = ((unknown if i in special else i) for i in ids)
    return [i for i in known if i is not None]
