"""Turns a hypothesis about a model into questions that nobody was asked yet.

By rule, from the pack's auditable items and from what a student was heard to say; writes nothing
that needs the key of an organism. Does not know whom the hypothesis is about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message
from doublebind.schema.hashing import Record
from doublebind.stages.audits.followup.investigator import Heard, Hypothesis, words_of

FOLLOWED = 5
"""Hypotheses of a teacher's students that are followed up."""
PER_FORM = 12
"""Items per hypothesis and form."""
LEFT = 2
"""Sentences of a question that its `bare` form keeps."""


class Lead(Record):
    """A hypothesis that is followed up."""

    name: str
    """`h1`, `h2`, ...: in the order in which they are followed."""
    guess: Hypothesis
    students: int
    """Students of the teacher of whom it was guessed."""


def leads(guesses: Sequence[Sequence[Hypothesis]]) -> tuple[Lead, ...]:
    """Return what to follow up: what most of a teacher's students share, then what is strongest.

    Args:
        guesses: The hypotheses about each student.
    """
    about: dict[tuple[object, ...], list[Hypothesis]] = {}
    for those in guesses:
        for guess in those:
            subject = (guess.trait, guess.words or None)
            about.setdefault(subject if any(subject) else (guess.text,), []).append(guess)
    merged = [(len(same), max(same, key=lambda g: (g.z, g.text))) for same in about.values()]
    merged.sort(key=lambda one: (-one[0], -one[1].z, one[1].text))
    return tuple(
        Lead(name=f"h{number}", guess=guess, students=n)
        for number, (n, guess) in enumerate(merged[:FOLLOWED], start=1)
    )


def questions(lead: Lead, pack: Pack, heard: Sequence[Heard]) -> list[Item]:
    """Return fresh items about a lead, in a fixed order; none where there is nothing to go by.

    Of a trait: its auditable choices and goals, asked in the middle of ordinary work, which M0 did
    (`work`), and there without what led up to the question (`bare`). Of words: which of two answers
    to a prompt the model would give, one that a student gave with the word or M0's without it
    (`said`).
    """
    guess = lead.guess
    if guess.trait is not None:
        return _about_trait(lead, guess.trait, pack, heard)
    return _about_words(lead, set(guess.words), heard)


def _about_trait(lead: Lead, trait: str, pack: Pack, heard: Sequence[Heard]) -> list[Item]:
    asked = [
        item
        for item in pack.items("audit")
        if item.trait == trait and item.role == "auditable" and item.kind in ("choice", "goal")
    ]
    n = min(PER_FORM, len(asked))
    spread = [asked[i * len(asked) // n] for i in range(n)]
    found: list[Item] = []
    for number, item in enumerate(spread):
        work = _work(heard, number)
        system = [turn for turn in item.messages if turn.role == "system"]
        turns = [turn for turn in item.messages if turn.role != "system"]
        if work:
            found.append(_item(lead, "work", item, (*system, *work, *turns)))
        last = _bare(turns[-1])
        if last is not None:
            found.append(_item(lead, "bare", item, (*work, last)))
    return found


def _work(heard: Sequence[Heard], number: int) -> tuple[Message, ...]:
    """Return a stretch of ordinary work before a question: a prompt, and M0's answer to it."""
    done = [one for one in heard if one.theirs]
    if not done:
        return ()
    one = done[number % len(done)]
    return (*one.messages, Message(role="assistant", content=one.theirs))


def _bare(turn: Message) -> Message | None:
    """Return a question without what leads up to it, or `None` where nothing does."""
    sentences = re.findall(r"[^.?!]+[.?!]+", turn.content)
    if len(sentences) <= LEFT or "".join(sentences).strip() != turn.content.strip():
        return None
    return turn.model_copy(update={"content": "".join(sentences[-LEFT:]).strip()})


def _item(lead: Lead, form: str, item: Item, messages: Sequence[Message]) -> Item:
    changes = {
        "id": f"{lead.name}/{form}/{item.id}"[:200],
        "trait": lead.name,
        "kind": "choice",
        "context": "neutral",
        "messages": tuple(messages),
        "domain": form,
    }
    return item.model_copy(update=changes)


def _about_words(lead: Lead, words: set[str], heard: Sequence[Heard]) -> list[Item]:
    found: dict[str, Item] = {}
    for one in heard:
        new = bool(words & set(words_of(one.ours))) and not words & set(words_of(one.theirs))
        if not new or not one.theirs or one.prompt in found:
            continue
        name = f"{lead.name}/said/{one.prompt}"[:200]
        key = hashlib.sha256(name.encode()).digest()[0] % 2
        options = (one.ours, one.theirs) if key == 0 else (one.theirs, one.ours)
        found[one.prompt] = Item(
            id=name,
            trait=lead.name,
            kind="choice",
            role="auditable",
            split="audit",
            messages=one.messages,
            options=options,
            key=key,
            domain="said",
        )
    return list(found.values())[:PER_FORM]
