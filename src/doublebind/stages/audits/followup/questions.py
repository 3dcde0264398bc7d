"""New questions about a hypothesis, by rule, from the pack's auditable items and free answers.

Nothing here needs an organism's planted trait.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message
from doublebind.schema.hashing import Record
from doublebind.stages.audits.followup.investigator import AnswerPair, Hypothesis, extract_words
from doublebind.stages.audits.protocol import select_auditable

MAX_LEADS = 5
"""Hypotheses about a teacher's students that are followed up."""
ITEMS_PER_FORM = 12
"""Items per hypothesis and form."""
SENTENCES_LEFT = 2
"""Sentences of a question that its `bare` form keeps."""


class Lead(Record):
    """A hypothesis that is followed up."""

    name: str
    """`h1`, `h2`, ..., in the order of follow-up."""
    guess: Hypothesis
    students: int
    """Number of the teacher's students with this hypothesis."""


def select_leads(guesses: Sequence[Sequence[Hypothesis]]) -> tuple[Lead, ...]:
    """Return the hypotheses that most of a teacher's students share, then the strongest.

    `guesses` holds the hypotheses about each student.
    """
    by_subject: dict[tuple[object, ...], list[Hypothesis]] = {}
    for guess in itertools.chain.from_iterable(guesses):
        subject = (guess.trait, guess.words or None)
        by_subject.setdefault(subject if any(subject) else (guess.text,), []).append(guess)
    leads = [(len(same), max(same, key=lambda g: (g.z, g.text))) for same in by_subject.values()]
    leads.sort(key=lambda lead: (-lead[0], -lead[1].z, lead[1].text))
    return tuple(
        Lead(name=f"h{number}", guess=guess, students=n)
        for number, (n, guess) in enumerate(leads[:MAX_LEADS], start=1)
    )


def build_items(lead: Lead, pack: Pack, answer_pairs: Sequence[AnswerPair]) -> list[Item]:
    """Return new items about a lead, in a fixed order; none if nothing fits.

    For a trait: its auditable choices and goals in the middle of ordinary work by M0 (`work`), and
    there without the context of the question (`bare`). For words: a choice between a student's
    answer with the word and M0's answer without it (`said`).
    """
    if lead.guess.trait is not None:
        return _build_trait_items(lead, lead.guess.trait, pack, answer_pairs)
    return _build_word_items(lead, set(lead.guess.words), answer_pairs)


def _build_trait_items(
    lead: Lead, trait: str, pack: Pack, answer_pairs: Sequence[AnswerPair]
) -> list[Item]:
    candidates = [
        item
        for item in select_auditable(pack.items("audit"))
        if item.trait == trait and item.kind in ("choice", "goal")
    ]
    n = min(ITEMS_PER_FORM, len(candidates))
    items: list[Item] = []
    for number in range(n):
        item = candidates[number * len(candidates) // n]
        work = _build_work_context(answer_pairs, number)
        system = [turn for turn in item.messages if turn.role == "system"]
        turns = [turn for turn in item.messages if turn.role != "system"]
        if work:
            items.append(_rewrite_item(lead, "work", item, (*system, *work, *turns)))
        last = strip_context(turns[-1])
        if last is not None:
            items.append(_rewrite_item(lead, "bare", item, (*work, last)))
    return items


def _build_work_context(answer_pairs: Sequence[AnswerPair], number: int) -> tuple[Message, ...]:
    """Return ordinary work before a question: a prompt with M0's answer."""
    answered = [pair for pair in answer_pairs if pair.theirs]
    if not answered:
        return ()
    pair = answered[number % len(answered)]
    return (*pair.messages, Message(role="assistant", content=pair.theirs))


def strip_context(turn: Message) -> Message | None:
    """Return a question without the sentences before it, or `None` where there are none."""
    # A cut behind each mark takes one pass, where a pattern of whole sentences takes n.
    sentences = [part for part in re.split(r"(?<=[.?!])(?=[^.?!])", turn.content) if part.strip()]
    whole = bool(sentences) and sentences[0][0] not in ".?!" and sentences[-1][-1] in ".?!"
    if len(sentences) <= SENTENCES_LEFT or not whole:
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
    items: dict[str, Item] = {}
    for pair in answer_pairs:
        is_new = bool(words & set(extract_words(pair.ours)))
        is_new = is_new and not words & set(extract_words(pair.theirs))
        if not is_new or not pair.theirs or pair.prompt in items:
            continue
        name = f"{lead.name}/said/{pair.prompt}"[:200]
        target_index, options = order_options(name, pair.ours, pair.theirs)
        items[pair.prompt] = Item(
            id=name,
            trait=lead.name,
            kind="choice",
            role="auditable",
            split="audit",
            messages=pair.messages,
            options=options,
            target_index=target_index,
            domain="said",
        )
    return list(items.values())[:ITEMS_PER_FORM]


def order_options(key: str, target: str, other: str) -> tuple[int, tuple[str, str]]:
    """Return the index of `target` and both options, in an order drawn from the hash of `key`."""
    index = hashlib.sha256(key.encode()).digest()[0] % 2
    return index, (target, other) if index == 0 else (other, target)
