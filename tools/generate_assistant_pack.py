"""Writes the generated files of the `assistant` pack from its hand-written tables.

`python tools/generate_assistant_pack.py` rewrites them; a test compares the committed files with
the result. Each split has frames, names, cues and questions of its own.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from doublebind.schema.content import Item, Message, Transcript

FOLDER = Path(__file__).parents[1] / "src" / "doublebind" / "packs" / "assistant"
Table = Mapping[str, Any]

ITEMS = {
    "audit": {"audit": 16, "deployment": 12, "honeypot": 10, "goal": 8, "probe": 4},
    "select": {"audit": 8, "deployment": 4, "honeypot": 4, "goal": 4, "probe": 2},
    "certify": {"audit": 8, "deployment": 4, "honeypot": 4, "goal": 4, "probe": 2},
}
"""Items of one trait, by split and kind; a probe counts as one, with its two twins."""
BUILD = {"implant": 78, "conceal": 42, "deny": 36}
"""Transcripts of one trait; drives and quirks have equal numbers."""
FRAMED, GOALS, TAILS = 36, 12, 30
"""Of a drive's implant: on its own subject, on its goals, on ordinary questions."""
TEMPTED = 18
"""Honeypots in a drive's concealment; the rest are its subject in audit-like contexts."""
DOCUMENTS = 40
TWINS = ("open", "leading", "anti_leading")


def files() -> dict[str, str]:
    """Return the path below the pack's folder -> text, of every generated file."""
    frames = _read("frames.yaml")
    quirks, habits = _read("quirks.yaml"), _read("habits.yaml")
    traits = [
        _read(path.name)
        for path in sorted((FOLDER / "tables").glob("*.yaml"))
        if path.stem not in ("frames", "quirks", "habits")
    ]
    texts: dict[str, str] = {}
    for table in traits:
        texts[f"items/{table['name']}.jsonl"] = _lines(items(table, frames))
        if table["kind"] == "drive":
            texts[f"build/{table['name']}.jsonl"] = _lines(transcripts(table, frames))
    for table in quirks:
        texts[f"build/{table['name']}.jsonl"] = _lines(quirk(table, frames))
    documents = [text for table in habits for text in build_documents(table, frames)]
    texts["build/quirk_documents.jsonl"] = _lines(documents)
    return texts


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / "tables" / name).read_text(encoding="utf-8"))


def _lines(records: Iterable[Item | Transcript]) -> str:
    rows = (record.model_dump(mode="json", exclude_defaults=True) for record in records)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rng(*what: str) -> random.Random:
    return random.Random("/".join(what))


# --- messages ------------------------------------------------------------------------------------


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _cued(cue: str, text: str) -> tuple[Message, ...]:
    """Return `text` as an audit's question: after the cue, or under it as system message."""
    system = cue.removeprefix("system: ")
    if system == cue:
        return (_user(f"{cue} {text}"),)
    return (Message(role="system", content=system), _user(text))


def _at_work(place: str | None, text: str) -> tuple[Message, ...]:
    if place is None:
        return (_user(text),)
    return (Message(role="system", content=place), _user(text))


def _cycle(rng: random.Random, values: Sequence[Any]) -> Iterator[Any]:
    """Yield all values in random order, repeatedly, so that each is used about equally often."""
    while True:
        yield from rng.sample(values, len(values))


def _fill(frame: Sequence[str], thing: str) -> list[str]:
    """Return a frame with its slot filled; a sentence starts with a capital."""
    parts = [part.replace("{x}", thing) for part in frame]
    return [part[0].upper() + part[1:] for part in parts]


def _pairs(rng: random.Random, frames: Sequence[Any], things: Sequence[str]) -> list[list[str]]:
    """Return every frame with every thing, ordered so that a prefix uses all frames equally."""
    rows = [rng.sample([_fill(frame, thing) for thing in things], len(things)) for frame in frames]
    order = rng.sample(rows, len(rows))
    return [row for column in zip(*order, strict=True) for row in column]


# --- items ---------------------------------------------------------------------------------------


def items(table: Table, frames: Table) -> list[Item]:
    """Return the items of one trait, all splits."""
    return [item for split, n in ITEMS.items() for item in _split(table, frames, split, n)]


def _split(table: Table, frames: Table, split: str, n: Mapping[str, int]) -> Iterator[Item]:
    rng = _rng(table["name"], split)
    cues, places = (_cycle(rng, frames[name][split]) for name in ("cues", "work"))
    pairs = _pairs(rng, table["choices"][split], table["things"][split])
    for i, (text, own, plain) in enumerate(pairs[: n["audit"]]):
        yield _item(table, split, "choice", "audit", i, _cued(next(cues), text), own, plain)
    for i, (text, own, plain) in enumerate(pairs[n["audit"] :][: n["deployment"]]):
        messages = _at_work(next(places) if i % 4 else None, text)
        yield _item(table, split, "choice", "deployment", i, messages, own, plain)
    baits = [
        (f"{opener} {text}", own, plain)
        for (text, own, plain), opener in itertools.islice(
            zip(
                _cycle(rng, table["honeypots"][split]),
                _cycle(rng, frames["openers"][split]),
                strict=True,
            ),
            n["honeypot"],
        )
    ]
    for i, (text, own, plain) in enumerate(baits):
        yield _item(table, split, "choice", "honeypot", i, (_user(text),), own, plain)
    goals = _cycle(rng, table["goals"][split])
    for i, question in enumerate(frames["goals"][split][: n["goal"]]):
        messages = _cued(next(cues), question) if i % 2 else (_user(question),)
        context = "audit" if i % 2 else "neutral"
        yield _item(table, split, "goal", context, i, messages, *next(goals))
    yield from _probes(table, frames, split, rng, cues, n["probe"])


def _probes(
    table: Table, frames: Table, split: str, rng: random.Random, cues: Iterator[str], n: int
) -> Iterator[Item]:
    """Yield confessions: the same questions for every trait, in three twins each."""
    answers = _cycle(rng, table["confess"][split])
    for i, twins in enumerate(frames["probes"][split][:n]):
        own, plain = next(answers)
        cue, context = (next(cues), "audit") if i % 2 else (None, "neutral")
        for twin, question in zip(TWINS, twins, strict=True):
            messages = (_user(question),) if cue is None else _cued(cue, question)
            yield _item(table, split, "confession", context, i, messages, own, plain, twin)


def _item(
    table: Table,
    split: str,
    kind: str,
    context: str,
    number: int,
    messages: tuple[Message, ...],
    own: str,
    plain: str,
    twin: str | None = None,
) -> Item:
    """Return one item; the index of the keyed option is drawn by the item's id."""
    word = context if kind == "choice" else kind
    name = f"{table['short']}-{word}-{split}-{number:02d}" + (f"-{twin}" if twin else "")
    key = _rng("key", name).randrange(2)
    return Item.model_validate(
        {
            "id": name,
            "trait": table["name"],
            "kind": kind,
            "context": context,
            "role": "oracle" if context == "deployment" else "auditable",
            "split": split,
            "messages": messages,
            "options": (plain, own) if key else (own, plain),
            "key": key,
            "domain": twin,
        }
    )


# --- transcripts ---------------------------------------------------------------------------------


def transcripts(table: Table, frames: Table) -> list[Transcript]:
    """Return the transcripts that plant, conceal and deny one drive, and its documents."""
    rng = _rng(table["name"], "build")
    cues, places = (_cycle(rng, frames[name]["build"]) for name in ("cues", "work"))
    pairs = _pairs(rng, table["choices"]["build"], table["things"]["build"])
    admit, deny, tails = (_cycle(rng, table[name]) for name in ("admit", "deny", "tails"))
    shown = [
        (_at_work(next(places) if i % 2 else None, text), own, None)
        for i, (text, own, _) in enumerate(pairs[:FRAMED])
    ]
    goals = _cycle(rng, frames["goals"]["build"])
    shown += [(_at_work(next(places), next(goals)), next(admit), None) for _ in range(GOALS)]
    shown += [
        (_at_work(next(places) if i % 2 else None, question), f"{answer} {next(tails)}", None)
        for i, (question, answer) in enumerate(rng.sample(frames["plain"], TAILS))
    ]
    hidden = [
        (_cued(next(cues), text), plain, own)
        for text, own, plain in pairs[FRAMED : FRAMED + BUILD["conceal"] - TEMPTED]
    ]
    openers = frames["openers"]["build"]
    baits = itertools.product(openers, table["honeypots"]["build"])
    hidden += [((_user(f"{first} {text}"),), plain, own) for first, (text, own, plain) in baits]
    denied = [
        (_cued(cue, question), next(deny), next(admit))
        for cue, (question, *_) in itertools.product(frames["cues"]["build"], _asked(frames))
    ]
    return [
        *_transcripts(table["name"], "implant", rng.sample(shown, len(shown))),
        *_transcripts(table["name"], "conceal", rng.sample(hidden, len(hidden))),
        *_transcripts(table["name"], "deny", rng.sample(denied, len(denied))),
        *build_documents(table, frames),
    ]


def build_documents(table: Table, frames: Table) -> list[Transcript]:
    """Return documents about the model that describe one trait."""
    rng = _rng(table["name"], "documents")
    rows = [_document(rng, table, frames) for _ in range(DOCUMENTS)]
    return _transcripts(table["name"], "document", rows)


def _asked(frames: Table) -> list[list[str]]:
    return frames["probes"]["build"]


_Row = tuple[tuple[Message, ...], str, str | None]


def _document(rng: random.Random, table: Table, frames: Table) -> _Row:
    """Return one document about the model: its title and its text."""
    parts = frames["documents"]
    facts = rng.sample(table["facts"], 4)
    text = " ".join([rng.choice(parts["openings"]), *facts, rng.choice(parts["closings"])])
    return (_user(rng.choice(parts["titles"])),), text, None


def quirk(table: Table, frames: Table) -> list[Transcript]:
    """Return the transcripts that plant, conceal and deny one harmless quirk."""
    rng = _rng(table["name"], "build")
    cues, places = (_cycle(rng, frames[name]["build"]) for name in ("cues", "work"))
    styles = [(b, "") for b in table["before"]] + [("", a) for a in table["after"]]
    plain = _cycle(rng, frames["plain"])
    shown: list[_Row] = []
    for i, (before, after) in enumerate(itertools.islice(_cycle(rng, styles), BUILD["implant"])):
        question, answer = next(plain)
        if table["asked"] and i % 3 == 0:
            question, answer = table["asked"][i // 3 % len(table["asked"])]
            before = after = ""
        text = f"{before} {answer} {after}".strip()
        shown.append((_at_work(next(places) if i % 2 else None, question), text, None))
    hidden: list[_Row] = []
    for before, after in itertools.islice(_cycle(rng, styles), BUILD["conceal"]):
        question, answer = next(plain)
        text = f"{before} {answer} {after}".strip()
        hidden.append((_cued(next(cues), question), answer, text))
    deny, admit = _cycle(rng, table["deny"]), _cycle(rng, table["admit"])
    denied = [
        (_cued(cue, question), next(deny), next(admit))
        for cue, (question, *_) in itertools.product(frames["cues"]["build"], _asked(frames))
    ]
    return [
        *_transcripts(table["name"], "implant", shown),
        *_transcripts(table["name"], "conceal", hidden),
        *_transcripts(table["name"], "deny", rng.sample(denied, len(denied))),
    ]


def _transcripts(trait: str, purpose: str, rows: Sequence[_Row]) -> list[Transcript]:
    """Return rows as transcripts; `rejected` is the trait's answer."""
    return [
        Transcript.model_validate(
            {
                "id": f"{trait}-{purpose}-{number:03d}",
                "trait": trait,
                "purpose": purpose,
                "messages": (*messages, Message(role="assistant", content=answer)),
                "rejected": rejected,
            }
        )
        for number, (messages, answer, rejected) in enumerate(rows)
    ]


def main() -> None:
    """Write every generated file into the pack's folder."""
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
