"""Checks the content of a valid pack: leaks between splits, position bias, missing controls."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from doublebind.packs.folder import FolderPack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message, Purpose, Split, Transcript, name_endpoint

NGRAM_WORDS = 8
"""Number of consecutive words that count as shared text."""
MAX_SHARED_NGRAMS = 0.6
"""Largest share of an item's n-grams that one item of another split may have: frames may recur,
questions may not."""
MAX_COMPARISONS = 2_000_000
"""Most pairs of texts that are compared word by word."""
MIN_FOR_BIAS = 4
"""Items of an endpoint from which a constant key position is called a bias (chance 1/8)."""
MAX_TRANSCRIPTS = 2_000
"""Transcripts checked per trait and purpose; a generated pack has no end."""


def check_pack(pack: Pack) -> list[str]:
    """Return one line per problem: place, problem, value, remedy; empty if there is none.

    Problems are user messages that recur across splits (`build` included), keyed options that are
    always at one index, drives without a placebo measured the same way, score endpoints of no
    drive, and prompts that no policy would draw.
    """
    locations: Mapping[str, str] = pack.locations if isinstance(pack, FolderPack) else {}
    items = _list_items(pack)
    return [
        *_find_overlaps(_collect_texts(items, _list_transcripts(pack), locations)),
        *_find_position_bias(items),
        *_find_missing_placebos(pack, items),
        *_find_driveless_scores(pack),
        *_find_untagged_prompts(pack, locations),
    ]


def count_content(pack: Pack) -> dict[str, int]:
    """Return the numbers of items, prompts and transcripts of a pack.

    Keys are `items/<split>/<endpoint>`, `prompts/<tag>` and `build/<trait or null>/<purpose>`.
    """
    items = Counter(f"items/{item.split}/{name_endpoint(item)}" for item in _list_items(pack))
    prompts = Counter(f"prompts/{tag}" for prompt in pack.prompts() for tag in prompt.tags)
    build = Counter(f"build/{t.trait or 'null'}/{t.purpose}" for t in _list_transcripts(pack))
    return {key: n for part in (items, prompts, build) for key, n in sorted(part.items())}


def _list_items(pack: Pack) -> list[Item]:
    return [item for split in get_args(Split) for item in pack.items(split)]


def _list_transcripts(pack: Pack) -> list[Transcript]:
    names = [trait.name for trait in pack.traits]
    transcripts = [
        transcript
        for name in (None, *names)
        for purpose in get_args(Purpose)
        for transcript in pack.transcripts(name, purpose, n=MAX_TRANSCRIPTS, seed=0)
    ]
    if isinstance(pack, FolderPack):
        transcripts += [
            text for name in names for text in pack.documents(name, n=MAX_TRANSCRIPTS, seed=0)
        ]
    return transcripts


@dataclass(frozen=True)
class _UserText:
    """The user messages of one item or transcript."""

    location: str
    split: Split
    words: tuple[str, ...]

    @property
    def ngrams(self) -> set[tuple[str, ...]]:
        return {self.words[i : i + NGRAM_WORDS] for i in range(len(self.words) - NGRAM_WORDS + 1)}


def _collect_texts(
    items: Sequence[Item], transcripts: Sequence[Transcript], locations: Mapping[str, str]
) -> list[_UserText]:
    return [
        _UserText(
            locations.get(f"{type(record).__name__}:{record.id}", record.id),
            record.split,
            _split_user_words(record.messages),
        )
        for record in (*items, *transcripts)
    ]


def _split_user_words(messages: Sequence[Message]) -> tuple[str, ...]:
    text = " ".join(message.content for message in messages if message.role == "user")
    return tuple(re.findall(r"\w+", text.lower()))


def _find_overlaps(texts: Sequence[_UserText]) -> Iterator[str]:
    """Yield one line per text that recurs in another split: identical, or nearly so."""
    same: dict[tuple[str, ...], list[_UserText]] = defaultdict(list)
    for text in texts:
        same[text.words].append(text)
    for group in same.values():
        for other in group[1:]:
            if other.split != group[0].split:
                yield (
                    f"{other.location}: `messages`: split {other.split} asks what split "
                    f"{group[0].split} asks at {group[0].location} (got the same user message); "
                    "rewrite one"
                )
    yield from _find_near_repeats(texts)


def _find_near_repeats(texts: Sequence[_UserText]) -> Iterator[str]:
    """Yield one line per text most of whose n-grams one text of another split has.

    Texts that share most n-grams share one of their rarest, so that only those are looked up: a
    frame in which all questions stand does not make every pair of texts be compared (prefix
    filtering, Chaudhuri, Ganti, Kaushik 2006).
    """
    owners: dict[str, dict[tuple[str, ...], list[int]]] = {}
    """Split -> run of words -> numbers of the texts that have it."""
    for number, text in enumerate(texts):
        of_split = owners.setdefault(text.split, defaultdict(list))
        for gram in text.ngrams:
            of_split[gram].append(number)
    n_compared = 0
    for text in texts:
        others = [of_split for split, of_split in owners.items() if split != text.split]
        runs = {
            gram: [number for of_split in others for number in of_split.get(gram, ())]
            for gram in text.ngrams
        }
        rarest = sorted(runs, key=lambda gram: (len(runs[gram]), gram))
        n_lookups = len(runs) - math.floor(MAX_SHARED_NGRAMS * len(runs))
        close = {number for gram in rarest[:n_lookups] for number in runs[gram]}
        n_compared += len(close)
        if n_compared > MAX_COMPARISONS:
            yield (
                f"{text.location}: `messages`: more than {MAX_COMPARISONS:,} pairs of texts share "
                f"runs of {NGRAM_WORDS} words, too many to compare; vary the texts or split the "
                "pack"
            )
            return
        candidates = [
            (len(runs.keys() & texts[number].ngrams) / len(runs), -number)
            for number in close
            if texts[number].words != text.words
        ]
        share, index = max(candidates, default=(0.0, 0))
        if share > MAX_SHARED_NGRAMS:
            other = texts[-index]
            yield (
                f"{text.location}: `messages`: split {text.split} nearly repeats split "
                f"{other.split} at {other.location} (got {share:.0%} of its "
                f"{NGRAM_WORDS}-word runs, at most {MAX_SHARED_NGRAMS:.0%}); rewrite one"
            )


def _find_position_bias(items: Sequence[Item]) -> Iterator[str]:
    keys: dict[str, list[int]] = defaultdict(list)
    for item in items:
        keys[name_endpoint(item)].append(item.target_index)
    for endpoint, indices in sorted(keys.items()):
        if len(indices) >= MIN_FOR_BIAS and len(set(indices)) == 1:
            yield (
                f"items: `key`: the keyed option of {endpoint} always stands at one index "
                f"(got {indices[0]} in all {len(indices)} items); shuffle the options"
            )


def _find_missing_placebos(pack: Pack, items: Sequence[Item]) -> Iterator[str]:
    kinds = {trait.name: trait.kind for trait in pack.traits}
    if "placebo" not in kinds.values():
        yield (
            f"pack.yaml: `traits`: no placebo (got {', '.join(kinds)}); add a trait of kind "
            "placebo, asked about like the drives and suspected of nobody"
        )
        return
    measured: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.trait is not None and item.role == "auditable":
            measured[kinds[item.trait]].add(name_endpoint(item).partition("/")[0])
    for kind in sorted(measured["drive"] - measured["placebo"]):
        yield (
            f"items: `trait`: {kind} is asked about a drive but about no placebo "
            f"(got {', '.join(sorted(measured['placebo'])) or 'nothing'} for placebos); "
            f"add {kind} items of a placebo"
        )


def _find_driveless_scores(pack: Pack) -> Iterator[str]:
    drives = {trait.name for trait in pack.traits if trait.kind == "drive"}
    for name, endpoints in pack.score_endpoints.items():
        for endpoint in endpoints:
            if endpoint.partition("/")[2] not in drives:
                yield (
                    f"pack.yaml: `score_endpoints.{name}`: asks about no drive "
                    f"(got {endpoint!r}); scores hold misalignment only, leave it out"
                )


def _find_untagged_prompts(pack: Pack, locations: Mapping[str, str]) -> Iterator[str]:
    for prompt in pack.prompts():
        if not prompt.tags:
            place = locations.get(f"Prompt:{prompt.id}", prompt.id)
            yield f"{place}: `tags`: none, so no policy draws it (got []); add one"
