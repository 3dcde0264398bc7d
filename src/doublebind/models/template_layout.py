"""Renders conversations by a chat template, and refuses a template that changes what they say.

A conversation is rendered twice: once with its own texts, and once, per sequence of roles, with
marks in their places. The second rendering says what the template writes around the messages; the
first has to be that with the texts filled in, up to whitespace at a text's ends.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError

FIXED_DATE = {
    **{"%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%d": "26", "%-d": "26", "%e": "26"},
    **{"%b": "Jul", "%h": "Jul", "%B": "July", "%a": "Fri", "%A": "Friday", "%j": "208"},
    **{"%H": "00", "%-H": "0", "%I": "12", "%-I": "12", "%M": "00", "%S": "00", "%p": "AM"},
    **{"%f": "000000", "%z": "", "%Z": "", "%u": "5", "%w": "5", "%V": "30", "%G": "2024"},
    **{"%U": "29", "%W": "30", "%s": "1721952000", "%F": "2024-07-26", "%T": "00:00:00"},
    **{"%R": "00:00", "%D": "07/26/24", "%x": "07/26/24", "%X": "00:00:00"},
    **{"%c": "Fri Jul 26 00:00:00 2024", "%n": "\n", "%t": "\t", "%%": "%"},
}
"""What `strftime_now` gives in every template, on any day: midnight of 26 July 2024, the date that
Llama 3's templates fall back on where there is no clock."""
MAX_ADDED_CHARS = 1_000_000
"""Most characters that a template may write besides the messages."""
MAX_SECONDS = 5.0
"""Most CPU time of one rendering, which otherwise takes about a millisecond."""
MAX_INTEGER = 1_000_000
"""Largest number in a template; `range` is limited by Jinja's sandbox, repeated text is not."""
THOUGHT_MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<reflection>": "</reflection>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "◁think▷": "◁/think▷",
}
"""Marks by which templates open a thought, each with the mark that closes it."""


_TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What Python raises where a template computes what it cannot."""


class TemplateLayout(NamedTuple):
    """What a template writes around the messages of a conversation, given their roles."""

    before: tuple[str, ...]
    """Text before each message."""
    generation_prompt: str
    """Text after the last message, by the template."""
    answer_start: str
    """The same up to where an answer begins: a thought is closed."""


class _RenderingTimeout(Exception):
    """A rendering that takes too long."""


def get_template(tokenizer: Any) -> str | None:
    """Return the tokenizer's chat template with its clock stopped, or `None` without one.

    `strftime_now` gives `FIXED_DATE`, so that a model is asked the same on every day.

    Raises:
        ModelError: If there are several templates and none is the default.
    """
    template = tokenizer.chat_template
    if not template:
        return None
    if isinstance(template, dict):
        if "default" not in template:
            raise ModelError(
                f"{_name(tokenizer)}: it has the chat templates {', '.join(sorted(template))} and "
                f"none is called `default`; keep the one that is meant"
            )
        template = template["default"]
    return f"{_build_clock()}{template}" if "strftime_now" in template else template


def _build_clock() -> str:
    """Return a macro that takes the place of `strftime_now`; it writes nothing itself."""
    dates = "".join(
        f"|replace({quote_for_jinja(code)}, {quote_for_jinja(text)})"
        for code, text in FIXED_DATE.items()
    )
    # The newline is removed after a block, so that the template still begins a line.
    return f"{{%- macro strftime_now(format) -%}}{{{{- format{dates} -}}}}{{%- endmacro %}}\n"


def quote_for_jinja(text: str) -> str:
    """Return a Jinja string literal that yields exactly `text`.

    All but letters, digits and spaces are escaped, since Jinja reads a literal's escapes as
    Python does, but those of characters beyond U+FFFF not as JSON writes them.
    """
    escaped = (c if c.isascii() and (c.isalnum() or c == " ") else f"\\U{ord(c):08x}" for c in text)
    return f"'{''.join(escaped)}'"


def check_template_source(template: str, where: str) -> None:
    """Refuse a template whose text cannot be rendered alike every time, or without end.

    Raises:
        ModelError: If it draws at random, has a power or a huge number, or cannot be read.
    """
    from jinja2 import Environment, TemplateError

    try:
        tokens = list(Environment().lex(template))
    except TemplateError as error:
        raise ModelError(f"{where}: its chat template cannot be read ({error}); mend it") from None
    for line, kind, value in tokens:
        random = kind == "name" and value in ("random", "lipsum")
        if random or (kind == "string" and value[1:-1] in ("random", "lipsum")):
            raise ModelError(
                f"{where}: line {line} of its chat template draws at random (`{value}`), so that "
                f"no two prompts are alike; use another template"
            )
        too_large = kind == "integer" and int(value.replace("_", ""), 0) > MAX_INTEGER
        if too_large or (kind == "operator" and value == "**"):
            raise ModelError(
                f"{where}: line {line} of its chat template counts to huge numbers (`{value}`), "
                f"which may take for ever; use another template"
            )


def render(tokenizer: Any, messages: Sequence[Message], *, generation: bool) -> str:
    """Return a conversation as the template writes it.

    Raises:
        ModelError: If the template refuses it, takes too long, or writes too much.
    """
    from jinja2 import TemplateError

    turns = [{"role": m.role, "content": m.content} for m in messages]
    roles = _list_roles(messages)
    try:
        with _limit_cpu_time(MAX_SECONDS):
            text = tokenizer.apply_chat_template(
                turns,
                chat_template=get_template(tokenizer),
                tokenize=False,
                add_generation_prompt=generation,
            )
    except _RenderingTimeout:
        raise ModelError(
            f"{_name(tokenizer)}: its chat template takes more than {MAX_SECONDS:g} s for a "
            f"conversation of {roles}; use another template"
        ) from None
    except (TemplateError, *_TEMPLATE_FAULTS) as error:
        raise ModelError(
            f"{_name(tokenizer)}: its chat template refuses a conversation of {roles} ({error}); "
            f"reword the messages or use another template"
        ) from None
    except (MemoryError, RecursionError) as error:
        raise ModelError(
            f"{_name(tokenizer)}: its chat template fails on a conversation of {roles} "
            f"({type(error).__name__}); use another template"
        ) from None
    if len(text) > MAX_ADDED_CHARS + 4 * sum(len(m.content) for m in messages):
        raise ModelError(
            f"{_name(tokenizer)}: its chat template writes {len(text)} characters for a "
            f"conversation of {roles}; use another template"
        )
    return text


def render_prompt(tokenizer: Any, messages: Sequence[Message], layout: TemplateLayout) -> str:
    """Return a conversation up to where the assistant's answer begins.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.
        layout: What its template writes around messages of these roles.

    Raises:
        ModelError: If the template refuses the conversation, or writes anything but its messages,
            whole and in order, into the layout.
    """
    text = render(tokenizer, messages, generation=True)
    position = 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, position)
        if start < 0:
            raise ModelError(_describe_loss(tokenizer, messages, message, text, content))
        position = start + len(content)
    pieces = zip(layout.before, (m.content for m in messages), strict=True)
    expected = "".join(before + content for before, content in pieces) + layout.generation_prompt
    # Templates leave out turns without text, and that loses nothing.
    is_filled = all(m.content.strip() for m in messages)
    if is_filled and _remove_whitespace(text) != _remove_whitespace(expected):
        raise ModelError(
            f"{_name(tokenizer)}: its chat template writes something else around the messages of "
            f"this conversation of {_list_roles(messages)} than around others; reword them or use "
            f"another template"
        )
    if layout.answer_start == layout.generation_prompt:
        return text
    if not text.endswith(layout.generation_prompt):
        raise ModelError(
            f"{_name(tokenizer)}: its chat template ends this conversation of "
            f"{_list_roles(messages)} unlike others; reword the messages or use another template"
        )
    return text[: len(text) - len(layout.generation_prompt)] + layout.answer_start


def measure_layout(tokenizer: Any, roles: Sequence[Any]) -> TemplateLayout:
    """Return what the template writes around messages of these roles, and where an answer begins.

    The answer begins where the template itself writes one. Where it writes an empty thought
    before it, that belongs to the prompt; a thought that its generation prompt opens is closed.

    Raises:
        ModelError: If the template refuses the roles, loses, changes, repeats or reorders texts,
            or does not write an answer after its own generation prompt.
    """
    marks = [Message(role=role, content=f"Mk{i}qZ") for i, role in enumerate(roles)]
    asked = render(tokenizer, marks, generation=True)
    before: list[str] = []
    position = 0
    for mark in marks:
        start = asked.find(mark.content, position)
        if start < 0 or asked.count(mark.content) > 1:
            raise ModelError(_describe_loss(tokenizer, marks, mark, asked, mark.content))
        before.append(asked[position:start])
        position = start + len(mark.content)
    generation_prompt = asked[position:]
    answer = Message(role="assistant", content="MkAqZ")
    answered = render(tokenizer, [*marks, answer], generation=False)
    for mark in (turns := [*marks, answer]):
        if answered.count(mark.content) != 1:
            raise ModelError(_describe_loss(tokenizer, turns, mark, answered, mark.content))
    whole = answered[: answered.index(answer.content)]
    if not whole.startswith(asked[:position]):
        raise ModelError(
            f"{_name(tokenizer)}: its chat template writes a conversation of {_list_roles(marks)} "
            f"in another way once an answer follows, so that no prompt is a beginning of it; use "
            f"another template"
        )
    start = _find_answer_start(generation_prompt, whole[position:])
    if start is None:
        raise ModelError(
            f"{_name(tokenizer)}: its chat template writes {generation_prompt!r} as generation "
            f"prompt and {whole[position:]!r} before an answer, so that no prompt is a beginning "
            f"of a conversation with its answer; use another template"
        )
    return TemplateLayout(tuple(before), generation_prompt, start)


def _find_answer_start(generation_prompt: str, before_answer: str) -> str | None:
    """Return the text between the last message and an answer; `None` where the two contradict."""
    if before_answer.strip() == generation_prompt.strip():
        return _close_thought(generation_prompt)
    if before_answer.startswith(generation_prompt.rstrip()):
        return _close_thought(before_answer)
    if generation_prompt.startswith(before_answer.rstrip()):
        added = generation_prompt[len(before_answer.rstrip()) :]
        if any(mark in added for pair in THOUGHT_MARKS.items() for mark in pair):
            return _close_thought(generation_prompt)
    return None


def _close_thought(text: str) -> str:
    """Return `text`, with the thought that it leaves open closed."""
    for opening, closing in THOUGHT_MARKS.items():
        _, is_open, thought = text.rpartition(opening)
        if is_open and closing not in thought:
            return f"{text.rstrip()}\n\n{closing}\n\n"
    return text


def opens_thought(layout: TemplateLayout) -> bool:
    """Return whether answers begin after a thought that the template leaves to the model."""
    return layout.answer_start != layout.generation_prompt and any(
        mark in layout.answer_start for mark in THOUGHT_MARKS.values()
    )


def _describe_loss(
    tokenizer: Any, turns: Sequence[Message], lost: Message, text: str, content: str
) -> str:
    """Return what the template does to the text of one message."""
    if text.count(content) > 1:
        what = f"repeats, or moves, the text of the {lost.role} turn"
    elif content in text:
        what = f"moves the text of the {lost.role} turn to another place"
    elif _remove_whitespace(content).lower() in _remove_whitespace(text).lower():
        what = f"changes the text of the {lost.role} turn"
    else:
        what = f"leaves out the text of the {lost.role} turn, or a part of it,"
    return (
        f"{_name(tokenizer)}: its chat template {what} in a conversation of {_list_roles(turns)}; "
        f"leave the {lost.role} turn out or use another template"
    )


def _remove_whitespace(text: str) -> str:
    return "".join(text.split())


def _list_roles(messages: Sequence[Message]) -> str:
    roles = [m.role for m in messages]
    return ", ".join(roles) if len(roles) <= 6 else f"{', '.join(roles[:5])}, ... ({len(roles)})"


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "the model")


@contextlib.contextmanager
def _limit_cpu_time(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, where the system can: in the main thread, not on Windows."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(*_: object) -> None:
        raise _RenderingTimeout

    earlier = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)
