"""Packs transcripts into the inert block of data that the page's script shows, slice by slice.

Knows the lines of `transcripts.jsonl`, all of them hostile, and the rows of the same items in the
scores. Does not know HTML: the block is ASCII JSON in which no character can end a script element.
A page holds the same items of every model, in turn from each endpoint, so that none is shown at its
worst.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.schema.evidence import Evidence
from doublebind.schema.score_table import M0
from doublebind.stages.report.hostile_text import HIDDEN_IN_SCRIPT, shorten
from doublebind.stages.report.tables.run import ROLES

if TYPE_CHECKING:
    import pandas as pd

MAX_LINES = 40_000
"""Lines of all models together; a page holds equally many of each."""

MAX_CHARS = 16_000_000
"""Characters of text on a page."""

TEXT_CAPS = (2_000_000, 200_000, 20_000, 4_000, 1_000)
"""Characters of one text: the first under which all texts keep to the budget, else the last."""

MAX_TURNS, MAX_OPTIONS = 64, 64
"""Turns of a conversation, and options of an item, that the page holds."""


class TranscriptModel(NamedTuple):
    """Whose transcripts a file holds."""

    name: str
    kind: str
    """Group that the page lists it under: whose student, or the teacher itself, or M0."""
    role: str
    """What stands beside its answers."""
    mark: str
    """Sign beside its answers, as in figures."""


class TranscriptBlock(NamedTuple):
    """What the page's script shows."""

    data: str
    """JSON in ASCII, free of `<`, `>` and `&`."""
    n_models: int
    n_shown: int
    n_lines: int
    models_without: str
    """Which models of the run have no transcripts here, in a sentence; empty where all do."""


def pack_transcripts(
    transcripts: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    scores: pd.DataFrame,
    evidence: Evidence,
    manifest: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
) -> TranscriptBlock:
    """Return the run's transcripts as a block, the suspect's first.

    The block holds `hidden` (pattern of what has no ink), `texts` (each once), `longer` (text ->
    characters left out), `items` (`[audit, endpoint, item, use]`, texts each), `others` (item ->
    `[mean of the suspect's students, [means of each reference's students]]`), and `models`:
    `{name, kind, role, mark, file, total, lines}`. A line is `[item, value, key, turns, options,
    answer, more]`, with turns `[who, text, ...]`, options `[text, probability, ...]`, and answer a
    text or -1.
    """
    who = _identify_models(evidence, manifest, cells)
    keys = [key for key in who if key in transcripts]
    unknown = sorted(key for key in transcripts if key not in who)
    who |= {
        key: TranscriptModel(f"model {shorten(key, 16)}", "others", "other", "itself")
        for key in unknown
    }
    keys += unknown
    n = MAX_LINES // max(1, len(keys))
    shown = {key: _interleave_endpoints(transcripts[key])[:n] for key in keys}
    texts = _TextTable(_choose_cap(shown))
    items: dict[tuple[str, str, str], int] = {}
    models = [
        {
            "name": texts.index_of(who[key].name),
            "kind": texts.index_of(who[key].kind),
            "role": texts.index_of(who[key].role),
            "mark": who[key].mark,
            "file": texts.index_of(f"transcripts/{shorten(key, 80)}.jsonl"),
            "total": len(transcripts[key]),
            "lines": [_pack_line(line, texts, items) for line in shown[key]],
        }
        for key in keys
    ]
    beside = _average_others(scores, evidence, items)
    use = _describe_use(scores, manifest["protocol"]["score_endpoints"])
    content = {
        "hidden": HIDDEN_IN_SCRIPT,
        "items": [
            [
                *(texts.index_of(shorten(part)) for part in item),
                texts.index_of(use.get(item[1], "")),
            ]
            for item in items
        ],
        "others": beside,
        "models": models,
        "texts": texts.texts,
        "longer": texts.n_cut,
    }
    return TranscriptBlock(
        _encode_inert_json(content),
        len(models),
        sum(len(lines) for lines in shown.values()),
        sum(len(transcripts[key]) for key in keys),
        _describe_models_without(evidence, manifest, cells, transcripts),
    )


class _TextTable:
    """Holds every text once, cut to a cap."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.texts: list[str] = []
        self.n_cut: dict[int, int] = {}
        self._known: dict[str, int] = {}

    def index_of(self, text: str) -> int:
        """Return the place of `text`."""
        place = self._known.setdefault(text, len(self.texts))
        if place == len(self.texts):
            self.texts.append(text[: self.cap])
            if len(text) > self.cap:
                self.n_cut[place] = len(text) - self.cap
        return place


def _encode_inert_json(content: Any) -> str:
    """Return JSON that no parser of HTML can leave, and that shows nothing unseen."""
    said = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    said = said.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return said.replace("\x7f", "\\u007f")


def _choose_cap(shown: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """Return how long a text may be, so that all together stay within the budget."""
    lengths = [
        len(text)
        for text in {
            text for lines in shown.values() for line in lines for text in _list_texts(line)
        }
    ]
    for cap in TEXT_CAPS:
        if sum(min(cap, length) for length in lengths) <= MAX_CHARS:
            return cap
    return TEXT_CAPS[-1]


def _list_texts(line: Mapping[str, Any]) -> list[str]:
    turns = [str(turn.get("content", "")) for turn in line.get("messages", ())]
    return [*turns, str(line.get("transcript", ""))]


def _pack_line(
    line: Mapping[str, Any], texts: _TextTable, items: dict[tuple[str, str, str], int]
) -> list[Any]:
    item = (
        str(line.get("audit", "")),
        str(line.get("endpoint", "")),
        str(line.get("item", "")),
    )
    transcript, value = str(line.get("transcript", "")), line.get("value")
    options = read_options(transcript) or []
    turns = [(str(m.get("role", "")), str(m.get("content", ""))) for m in line.get("messages", ())]
    more = max(0, len(turns) - MAX_TURNS) + max(0, len(options) - MAX_OPTIONS)
    return [
        items.setdefault(item, len(items)),
        round(float(value), 4) if isinstance(value, int | float) and value == value else None,
        texts.index_of(str(line.get("key", ""))),
        list(
            chain.from_iterable(
                (texts.index_of(who), texts.index_of(said)) for who, said in turns[:MAX_TURNS]
            )
        ),
        list(
            chain.from_iterable(
                (texts.index_of(said), round(p, 4)) for said, p in options[:MAX_OPTIONS]
            )
        ),
        -1 if options else texts.index_of(transcript),
        more,
    ]


def read_options(transcript: str) -> list[tuple[str, float]] | None:
    """Return (option, probability) pairs where that is what a transcript holds, else `None`."""
    if not transcript.startswith("[["):
        return None
    try:
        pairs = json.loads(transcript)
        found = [(str(option), float(probability)) for option, probability in pairs]
    except (ValueError, TypeError, RecursionError):
        return None
    return found if all(0 <= probability <= 1 for _, probability in found) else None


def _interleave_endpoints(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return `lines` one from each endpoint, then a second from each, and so on."""
    by_endpoint: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_endpoint.setdefault(str(line.get("endpoint")), []).append(line)
    turns = chain.from_iterable(zip_longest(*by_endpoint.values()))
    return [line for line in turns if line is not None]


# --- who is who ----------------------------------------------------------------------------------

_STUDENT_GROUPS = {
    "suspect": "the suspect's students",
    "reference": "references' students",
    "organism": "organisms' students",
}


def _identify_models(
    evidence: Evidence, manifest: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> dict[str, TranscriptModel]:
    """Return what each content key is, in the order in which models are shown."""
    named = [(1, manifest["protocol"]["student"], TranscriptModel(M0, M0, M0, "m0"))]
    labels: dict[str, tuple[str, str]] = {}
    for teacher in manifest["teachers"]:
        label, key = teacher["label"], teacher["key"]
        role = str(evidence.roles.get(label, teacher["role"]))
        labels[key] = (role, shorten(label))
        place, name = len(ROLES) + 1 + ROLES.index(role), f"{shorten(label)}, itself"
        named.append(
            (
                place,
                key,
                TranscriptModel(name, "teachers themselves", f"the {role}, itself", "itself"),
            )
        )
    for cell in cells:
        role, label = labels.get(cell["teacher"], ("", f"teacher {shorten(cell['teacher'], 16)}"))
        # The suspect's students, then M0, then everyone else's.
        place = (0, 2, 3)[ROLES.index(role)] if role in ROLES else 9
        name = f"{cell['recipe']}, seed {cell['seed']}, of {label}"
        whose = f"{role}'s student" if role else "a student"
        model = TranscriptModel(name, _STUDENT_GROUPS.get(role, "others"), whose, role or "itself")
        named.append((place, cell["student"], model))
    # A key may be met twice: the same model under two names is the same file.
    found: dict[str, TranscriptModel] = {}
    for _, key, model in sorted(named, key=lambda entry: entry[0]):
        known = found.get(key)
        found[key] = model if known is None else known._replace(name=f"{known.name}; {model.name}")
    return found


def _describe_models_without(
    evidence: Evidence,
    manifest: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    transcripts: Mapping[str, Any],
) -> str:
    """Return whose transcripts the run does not hold."""
    made = {str(cell["teacher"]) for cell in cells if cell["student"] in transcripts}
    lacking = {
        role: sum(
            t["key"] not in made
            for t in manifest["teachers"]
            if evidence.roles.get(t["label"], t["role"]) == role
        )
        for role in ROLES
    }
    said = [f"{n} {role}{'s' * (n > 1)}" for role, n in lacking.items() if n]
    if not said:
        return ""
    why = (
        "they were measured once, in a panel that keeps scores and no transcripts"
        if manifest["protocol"].get("panel")
        else "the run directory holds no file of theirs"
    )
    return f"No transcripts of the students of {' and '.join(said)}: {why}."


def _describe_use(
    scores: pd.DataFrame, score_endpoints: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return, per endpoint, what the verdict makes of its items."""
    scored = {endpoint for listed in score_endpoints.values() for endpoint in listed}
    said = {"oracle": "needs the organism's key, never scored", "gate": "a gate, never scored"}
    pairs = scores[["endpoint", "role"]].drop_duplicates().itertuples(index=False)
    return {
        str(endpoint): "enters the score"
        if endpoint in scored
        else said.get(str(role), "measured, not in the score")
        for endpoint, role in pairs
    }


def _average_others(
    scores: pd.DataFrame, evidence: Evidence, items: Mapping[tuple[str, str, str], int]
) -> dict[int, list[Any]]:
    """Return, per item, the mean of the suspect's students and of each reference's."""
    frame: Any = scores[(scores["model_kind"] == "student") & (scores["split"] == "audit")]
    frame = frame[frame["teacher"].isin([t for t, r in evidence.roles.items() if r != "organism"])]
    frame = frame.dropna(subset=["value"])
    for order in ("round", "step"):
        if len(frame):
            frame = frame[frame[order] == frame.groupby("recipe")[order].transform("max")]
    means = frame.groupby(["audit", "endpoint", "item", "teacher"])["value"].mean()
    found: dict[int, list[Any]] = {}
    for (audit, endpoint, item, teacher), value in means.items():
        place = items.get((audit, endpoint, item))
        if place is None:
            continue
        entry = found.setdefault(place, [None, []])
        if evidence.roles[teacher] == "suspect":
            entry[0] = round(float(value), 3)
        else:
            entry[1].append(round(float(value), 3))
    return {place: found[place] for place in sorted(found)}
