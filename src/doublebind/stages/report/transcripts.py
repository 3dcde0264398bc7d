"""Packs transcripts into the inert block of data that the page's script shows, slice by slice.

All lines of `transcripts.jsonl` are hostile: the block is ASCII JSON in which no character can end
a script element. A page holds the same items of every model, in turn from each endpoint, so that
no model is shown at its worst.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from doublebind.schema.score_table import M0, select_counted
from doublebind.stages.report.hostile_text import HIDDEN_IN_SCRIPT, shorten
from doublebind.stages.report.run_content import ROLES, RunContent

MAX_LINES = 40_000
"""Lines of all models together; a page holds equally many of each."""

MAX_CHARS = 16_000_000
"""Characters of text on a page."""

TEXT_CAPS = (2_000_000, 200_000, 20_000, 4_000, 1_000)
"""Characters of one text: the first under which all texts keep to the budget, else the last."""

MAX_TURNS, MAX_OPTIONS = 64, 64
"""Turns of a conversation, and options of an item, that the page holds."""

Line = Mapping[str, Any]
"""A line of `transcripts.jsonl`."""
ItemKey = tuple[str, str, str]
"""Audit, endpoint and id of an item."""


class TranscriptModel(NamedTuple):
    """The model whose transcripts a file holds."""

    name: str
    kind: str
    """Group in which the page lists it: students by the role of their teacher, teachers, or M0."""
    role: str
    """Shown next to its answers."""
    mark: str
    """Symbol next to its answers, as in figures."""


class TranscriptBlock(NamedTuple):
    """The content that the page's script shows."""

    data: str
    """JSON in ASCII, free of `<`, `>` and `&`."""
    n_models: int
    n_shown: int
    n_lines: int
    models_without: str
    """A sentence about the models without transcripts; empty where all have some."""


def pack_transcripts(run: RunContent) -> TranscriptBlock:
    """Return the run's transcripts as a block, the suspect's first.

    The block holds `hidden` (pattern of invisible characters), `texts` (each once), `longer` (text
    -> characters left out), `items` (`[audit, endpoint, item, use]`, texts each), `others` (item ->
    `[mean of the suspect's students, [means of each reference's students]]`), and `models`:
    `{name, kind, role, mark, file, total, lines}`. A line is `[item, value, key, turns, options,
    answer, more]`, with turns `[role, text, ...]`, options `[text, probability, ...]`, and answer a
    text or -1.
    """
    identities = _identify_models(run)
    models = {key: model for key, model in identities.items() if key in run.transcripts}
    for key in sorted(key for key in run.transcripts if key not in identities):
        name = f"model {shorten(key, 16)}"
        models[key] = TranscriptModel(name, "others", "other", "itself")
    n = MAX_LINES // max(1, len(models))
    shown = {key: _interleave_endpoints(run.transcripts[key])[:n] for key in models}
    texts = _TextTable(_choose_cap(shown))
    items: dict[ItemKey, int] = {}
    packed_models = [
        {
            "name": texts.index_of(model.name),
            "kind": texts.index_of(model.kind),
            "role": texts.index_of(model.role),
            "mark": model.mark,
            "file": texts.index_of(f"transcripts/{shorten(key, 80)}.jsonl"),
            "total": len(run.transcripts[key]),
            "lines": [_pack_line(line, texts, items) for line in shown[key]],
        }
        for key, model in models.items()
    ]
    uses = _describe_uses(run)
    content = {
        "hidden": HIDDEN_IN_SCRIPT,
        "items": [
            [texts.index_of(text) for text in (*map(shorten, item), uses.get(item[1], ""))]
            for item in items
        ],
        "others": _average_students(run, items),
        "models": packed_models,
        "texts": texts.texts,
        "longer": texts.n_cut,
    }
    return TranscriptBlock(
        _encode_inert_json(content),
        len(models),
        sum(len(lines) for lines in shown.values()),
        sum(len(run.transcripts[key]) for key in models),
        _describe_models_without(run),
    )


class _TextTable:
    """Holds every text once, cut to a cap."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.texts: list[str] = []
        self.n_cut: dict[int, int] = {}
        self._known: dict[str, int] = {}

    def index_of(self, text: str) -> int:
        """Return the index of `text`."""
        index = self._known.setdefault(text, len(self.texts))
        if index == len(self.texts):
            self.texts.append(text[: self.cap])
            if len(text) > self.cap:
                self.n_cut[index] = len(text) - self.cap
        return index


def _encode_inert_json(content: Any) -> str:
    """Return JSON that cannot end an HTML element, and that hides no character."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&\x7f":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _choose_cap(shown: Mapping[str, Sequence[Line]]) -> int:
    """Return the cap on a text's length, so that all together stay within the budget."""
    texts = {text for lines in shown.values() for line in lines for text in _list_texts(line)}
    lengths = [len(text) for text in texts]
    for cap in TEXT_CAPS:
        if sum(min(cap, length) for length in lengths) <= MAX_CHARS:
            return cap
    return TEXT_CAPS[-1]


def _list_texts(line: Line) -> list[str]:
    turns = [str(turn.get("content", "")) for turn in line.get("messages", ())]
    return [*turns, str(line.get("transcript", ""))]


def _pack_line(line: Line, texts: _TextTable, items: dict[ItemKey, int]) -> list[Any]:
    audit, endpoint, item = (str(line.get(name, "")) for name in ("audit", "endpoint", "item"))
    index = items.setdefault((audit, endpoint, item), len(items))
    value: Any = line.get("value")
    is_number = isinstance(value, int | float) and value == value  # not NaN
    key = texts.index_of(str(line.get("key", "")))
    messages = line.get("messages", ())
    turns: list[int] = []
    for message in messages[:MAX_TURNS]:
        turns += [texts.index_of(str(message.get(name, ""))) for name in ("role", "content")]
    transcript = str(line.get("transcript", ""))
    options = read_options(transcript) or []
    packed_options: list[float] = []
    for option, probability in options[:MAX_OPTIONS]:
        packed_options += [texts.index_of(option), round(probability, 4)]
    return [
        index,
        round(float(value), 4) if is_number else None,
        key,
        turns,
        packed_options,
        -1 if options else texts.index_of(transcript),
        max(0, len(messages) - MAX_TURNS) + max(0, len(options) - MAX_OPTIONS),
    ]


def read_options(transcript: str) -> list[tuple[str, float]] | None:
    """Return the (option, probability) pairs of a transcript; `None` where it holds no pairs."""
    if not transcript.startswith("[["):
        return None
    try:
        pairs = [(str(option), float(share)) for option, share in json.loads(transcript)]
    except (ValueError, TypeError, RecursionError):
        return None
    return pairs if all(0 <= share <= 1 for _, share in pairs) else None


def _interleave_endpoints(lines: Sequence[Line]) -> list[Line]:
    """Return `lines` one from each endpoint, then a second from each, and so on."""
    by_endpoint: dict[str, list[Line]] = {}
    for line in lines:
        by_endpoint.setdefault(str(line.get("endpoint")), []).append(line)
    turns = chain.from_iterable(zip_longest(*by_endpoint.values()))
    return [line for line in turns if line is not None]


# --- identities of the models --------------------------------------------------------------------

_STUDENT_GROUPS = {
    "suspect": "the suspect's students",
    "reference": "references' students",
    "organism": "organisms' students",
}


def _identify_models(run: RunContent) -> dict[str, TranscriptModel]:
    """Return the model of each content key, in the order in which models are shown."""
    models: dict[str, TranscriptModel] = {}
    for _, key, model in sorted(_rank_models(run), key=lambda entry: entry[0]):
        known = models.get(key)
        # The same model under two names has one content key, and one file.
        models[key] = model if known is None else known._replace(name=f"{known.name}; {model.name}")
    return models


def _rank_models(run: RunContent) -> Iterator[tuple[int, str, TranscriptModel]]:
    """Yield rank, content key and model: the suspect's students, M0, other students, teachers."""
    yield 1, run.manifest.protocol.student, TranscriptModel(M0, M0, M0, "m0")
    teachers: dict[str, tuple[str, str]] = {}
    for teacher in run.manifest.teachers:
        role = run.evidence.roles.get(teacher.label, teacher.role)
        label = shorten(teacher.label)
        teachers[teacher.content_key] = (role, label)
        model = TranscriptModel(
            f"{label}, itself", "teachers themselves", f"the {role}, itself", "itself"
        )
        yield 4 + ROLES.index(role), teacher.content_key, model
    for student in run.students:
        unknown = ("", f"teacher {shorten(student['teacher'], 16)}")
        role, label = teachers.get(student["teacher"], unknown)
        rank = {"suspect": 0, "reference": 2, "organism": 3}.get(role, 9)
        model = TranscriptModel(
            f"{student['recipe']}, seed {student['seed']}, of {label}",
            _STUDENT_GROUPS.get(role, "others"),
            f"{role}'s student" if role else "a student",
            role or "itself",
        )
        yield rank, student["student"], model


def _describe_models_without(run: RunContent) -> str:
    """Return a sentence about the teachers whose students have no transcripts."""
    present = {str(s["teacher"]) for s in run.students if s["student"] in run.transcripts}
    counts = dict.fromkeys(ROLES, 0)
    for teacher in run.manifest.teachers:
        if teacher.content_key not in present:
            counts[run.evidence.roles.get(teacher.label, teacher.role)] += 1
    lacking = [f"{n} {role if n == 1 else f'{role}s'}" for role, n in counts.items() if n]
    if not lacking:
        return ""
    cause = (
        "they were measured once, in a panel that keeps scores and no transcripts"
        if run.manifest.protocol.panel
        else "the run directory holds no file of theirs"
    )
    return f"No transcripts of the students of {' and '.join(lacking)}: {cause}."


def _describe_uses(run: RunContent) -> dict[str, str]:
    """Return, per endpoint, how the verdict uses its items."""
    scored = run.manifest.protocol.listed_endpoints
    by_role = {"oracle": "needs the organism's key, never scored", "gate": "a gate, never scored"}
    pairs = run.scores[["endpoint", "role"]].drop_duplicates().itertuples(index=False)
    return {
        str(endpoint): "enters the score"
        if endpoint in scored
        else by_role.get(str(role), "measured, not in the score")
        for endpoint, role in pairs
    }


def _average_students(run: RunContent, items: Mapping[ItemKey, int]) -> dict[int, list[Any]]:
    """Return, per item, the mean of the suspect's students and of each reference's."""
    scores, roles = run.scores, run.evidence.roles
    compared = [teacher for teacher, role in roles.items() if role != "organism"]
    frame: Any = select_counted(scores, "audit")
    frame = frame[(frame["model_kind"] == "student") & frame["teacher"].isin(compared)]
    frame = frame.dropna(subset=["value"])
    means = frame.groupby(["audit", "endpoint", "item", "teacher"])["value"].mean()
    averages: dict[int, list[Any]] = {}
    for (audit, endpoint, item, teacher), value in means.items():
        index = items.get((audit, endpoint, item))
        if index is None:
            continue
        entry = averages.setdefault(index, [None, []])
        mean = round(float(value), 3)
        if roles[teacher] == "suspect":
            entry[0] = mean
        else:
            entry[1].append(mean)
    return dict(sorted(averages.items()))
