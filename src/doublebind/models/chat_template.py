"""Encodes conversations as token ids and decodes answers.

Everything that is trained, sampled or scored is `encode_prompt` followed by `encode_completion`,
so that the template is always the same. Text is data: a special token spelled out in a message is
encoded as ordinary characters, never as the token.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError

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
        ModelError: If the chat template refuses the conversation.
    """
    facts = _get_facts(tokenizer)
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
        return _encode_with_specials(tokenizer, _render_template(tokenizer, messages))
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
    for character in _render_template(tokenizer, safe):
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
        ModelError: If there is no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(f"{where}: a system prompt needs a chat template, and there is none")
    prompt = json.dumps(system)
    first = "messages[0]['role'] == 'system'"
    tokenizer.chat_template = (
        f"{{%- if {first} -%}}{{%- set messages = [{{'role': 'system', 'content': {prompt} + "
        f"'\\n\\n' + messages[0]['content']}}] + messages[1:] -%}}{{%- else -%}}"
        f"{{%- set messages = [{{'role': 'system', 'content': {prompt}}}] + messages -%}}"
        f"{{%- endif %}}{tokenizer.chat_template}"
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


def template_id(tokenizer: Any) -> str:
    """Return a hash (hex) of the chat template and the end of turn."""
    content = [tokenizer.chat_template or _PLAIN_FORMAT, end_of_turn(tokenizer)]
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
    rest = [tokenizer.chat_template, tokens, repr(tokenizer.special_tokens_map)]
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
    text = _render_template(tokenizer, turns, add_generation_prompt=False)
    _, separator, tail = text.rpartition(mark)
    ids = _encode_with_specials(tokenizer, tail) if separator else []
    return ids[0] if ids and ids[0] in special else None


def _render_template(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    from jinja2 import TemplateError

    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(m.role for m in messages)
        raise ModelError(
            f"{tokenizer.name_or_path or 'the model'}: its chat template refuses a conversation "
            f"of {roles} ({error}); reword the messages or use another template"
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
