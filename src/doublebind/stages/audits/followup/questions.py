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
from doublebind.stages.audits.followup.investigator import AnswerPair, Hypothesis, extract_words

MAX_LEADS = 5
"""Hypotheses of a teacher's students that are followed up."""
ITEMS_PER_FORM = 12
"""Items per hypothesis and form."""
SENTENCES_LEFT = 2
"""Sentences of a question that its `bare` form keeps."""


class Lead(Record):
    """A hypothesis that is followed up."""

    name: str
    """`h1`, `h2`, ...: in the order in which they are followed."""
    guess: Hypothesis
    students: int
    """Students of the teacher of whom it was guessed."""


def select_leads(guesses: Sequence[Sequence[Hypothesis]]) -> tuple[Lead, ...]:
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
        for number, (n, guess) in enumerate(merged[:MAX_LEADS], start=1)
    )


def build_items(lead: Lead, pack: Pack, answer_pairs: Sequence[AnswerPair]) -> list[Item]:
    """Return fresh items about a lead, in a fixed order; none where there is nothing to go by.

    Of a trait: its auditable choices and goals, asked in the middle of ordinary work, which M0 did
    (`work`), and there without what led up to the question (`bare`). Of words: which of two answers
    to a prompt the model would give, one that a student gave with the word or M0's without it
    (`said`).
    """
    guess = lead.guess
    if guess.trait is not None:
        return _build_trait_items(lead, guess.trait, pack, answer_pairs)
    return _build_word_items(lead, set(guess.words), answer_pairs)


def _build_trait_items(
    lead: Lead, trait: str, pack: Pack, answer_pairs: Sequence[AnswerPair]
) -> list[Item]:
    asked = [
        item
        for item in pack.items("audit")
        if item.trait == trait and item.role == "auditable" and item.kind in ("choice", "goal")
    ]
    n = min(ITEMS_PER_FORM, len(asked))
    spread = [asked[i * len(asked) // n] for i in range(n)]
    found: list[Item] = []
    for number, item in enumerate(spread):
        work = _build_work_context(answer_pairs, number)
        system = [turn for turn in item.messages if turn.role == "system"]
        turns = [turn for turn in item.messages if turn.role != "system"]
        if work:
            found.append(_rewrite_item(lead, "work", item, (*system, *work, *turns)))
        last = _strip_context(turns[-1])
        if last is not None:
            found.append(_rewrite_item(lead, "bare", item, (*work, last)))
    return found


def _build_work_context(answer_pairs: Sequence[AnswerPair], number: int) -> tuple[Message, ...]:
    """Return a stretch of ordinary work before a question: a prompt, and M0's answer to it."""
    done = [one for one in answer_pairs if one.theirs]
    if not done:
        return ()
    one = done[number % len(done)]
    return (*one.messages, Message(role="assistant", content=one.theirs))


def _strip_context(turn: Message) -> Message | None:
    """Return a question without what leads up to it, or `None` where nothing does."""
    sentences = re.findall(r"[^.?!]+[.?!]+", turn.content)
    if len(sentences) <= SENTENCES_LEFT or "".join(sentences).strip() != turn.content.strip():
        return None
    return turn.model_copy(update={"content": "".join(sentences[-SENTENCES_LEFT:]).strip()})


def _rewrite_item(lead: Lead, form: str, item: Item, messages: Sequence[Message]) -> Item:
    changes = {
        "id": f"{lead.name}/{form}/{item.id}"[:200],
        "trait": lead.name,
        "kind": "choice",
        "context": "neutral",
        "messages": tuple(messages),
        "domain": form,
    }
    return item.model_copy(update=changes)


def _build_word_items(
    lead: Lead, words: set[str], answer_pairs: Sequence[AnswerPair]
) -> list[Item]:
    found: dict[str, Item] = {}
    for one in answer_pairs:
        new = bool(words & set(extract_words(one.ours))) and not words & set(
            extract_words(one.theirs)
        )
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
            target_index=key,
            domain="said",
        )
    return list(found.values())[:ITEMS_PER_FORM]
