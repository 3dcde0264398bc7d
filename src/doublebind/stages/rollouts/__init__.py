"""Door of the rollouts stage: a teacher's answers, and its next-token distributions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype, Filter, Prompts, Scratchpad, Treatment
from doublebind.stages.rollouts.sampling import overt as overt

REV = 1
TREATMENTS_REV = 2
"""Of what is done to answers, in the keys of treated ones beside `REV`, on which panels depend."""


def generate(
    out: Path,
    *,
    source: ModelSource,
    prompts: Path,
    sampling: Prompts,
    markers: Mapping[str, Sequence[str]],
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write `trajectories.jsonl` and `checks.json` to `out`."""
    from doublebind.stages.rollouts import sampling as trajectories

    trajectories.generate(
        out,
        source=source,
        prompts=prompts,
        sampling=sampling,
        markers=markers,
        dtype=dtype,
        cache=cache,
    )


def score(
    out: Path,
    *,
    source: ModelSource,
    rollouts: Path,
    top_k: int,
    dtype: Dtype,
    cache: Path,
    tail_samples: int = 0,
) -> None:
    """Write the teacher's top-k distributions on its own trajectories to `out`."""
    from doublebind.stages.rollouts import targets

    events = {"top_k": top_k, "tail_samples": tail_samples}
    targets.score(out, source=source, rollouts=rollouts, **events, dtype=dtype, cache=cache)


def log_probabilities(
    out: Path, *, source: ModelSource, rollouts: Path, dtype: Dtype, cache: Path
) -> None:
    """Write how likely a model finds every token of someone's answers to `out`."""
    from doublebind.stages.rollouts import targets

    targets.log_probabilities(out, source=source, rollouts=rollouts, dtype=dtype, cache=cache)


def strip(out: Path, *, source: ModelSource, rollouts: Path, scratchpad: Scratchpad) -> None:
    """Write the answers without their scratchpads to `out`, as `generate` writes them."""
    from doublebind.stages.rollouts import scratchpads

    scratchpads.strip(out, source=source, rollouts=rollouts, scratchpad=scratchpad)


def count(out: Path, *, rollouts: Path) -> None:
    """Write how often the answers use which words to `out`."""
    from doublebind.stages.rollouts import ngram_baseline as ngrams

    ngrams.count(out, rollouts=rollouts)


def treat(
    out: Path,
    *,
    teacher: ModelSource,
    trusted: ModelSource,
    rollouts: Path,
    prompts: Path,
    sampling: Prompts,
    treatments: Sequence[Treatment],
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write the answers in `rollouts` after the treatments, and what each did, to `out`."""
    from doublebind.stages.rollouts.treatments import apply as order

    order.treat(
        out,
        teacher=teacher,
        trusted=trusted,
        rollouts=rollouts,
        prompts=prompts,
        sampling=sampling,
        treatments=treatments,
        dtype=dtype,
        cache=cache,
    )


def sieve(
    out: Path,
    *,
    rollouts: Path,
    student: ModelSource,
    audited: Path,
    m0: Path,
    pack: str,
    settings: Filter,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write what a round of filtering leaves of the answers in `rollouts` to `out`."""
    from doublebind.stages.rollouts.treatments import apply as order

    order.sieve(
        out,
        rollouts=rollouts,
        student=student,
        audited=audited,
        m0=m0,
        pack=pack,
        settings=settings,
        dtype=dtype,
        cache=cache,
    )
