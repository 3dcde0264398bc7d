"""The three steps of a follow-up, each with its artefact: guess, write questions, ask them.

Knows who may guess and write: the rules, or a model of Inspect's. Does not know whom the models
asked are students of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doublebind.execution.store import read_records, write_records
from doublebind.packs.load import load as load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Item
from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.audits.battery import TranscriptLine, row, write
from doublebind.stages.audits.followup.investigator import Heard, Hypothesis, investigate, listen
from doublebind.stages.audits.followup.questions import Lead, leads, questions
from doublebind.stages.audits.option_scores import choose

RULES = "rules"
HEARD, GUESSES, LEADS, ITEMS = "heard.jsonl", "hypotheses.jsonl", "leads.jsonl", "items.jsonl"
AUDIT = "followup@1"


def check(by: str) -> str:
    """Return `by` if it names an investigator.

    Raises:
        ConfigError: If it does not.
    """
    if by == RULES or (by.startswith("inspect:") and by != "inspect:"):
        return by
    raise ConfigError(f"`--by`: {by}; choose {RULES} or inspect:MODEL")


def guess(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    pack: str,
    by: str,
    budget: int,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write what a model was heard to say, and the hypotheses about it."""
    from doublebind.models.load import load

    model, m0 = (load(one, dtype=dtype, cache=cache) for one in (source, baseline))
    content = load_pack(pack, relative_to=Path())
    heard = listen(model, m0, content, budget=budget)
    write_records(out / HEARD, heard)
    write_records(out / GUESSES, guesses(model, m0, content, heard, by))


def guesses(
    model: object, m0: object, pack: Pack, heard: Sequence[Heard], by: str
) -> tuple[Hypothesis, ...]:
    """Return the hypotheses about `model` of whoever `by` names."""
    if by == RULES:
        return investigate(model, m0, pack, heard)
    from doublebind.stages.audits.followup.inspect_investigator import Investigator

    return Investigator(by.partition(":")[2]).hypotheses(heard)


def prepare(out: Path, *, guessed: tuple[Path, ...], pack: str, by: str) -> None:
    """Write the leads that follow from hypotheses about a teacher's students, and items."""
    content = load_pack(pack, relative_to=Path())
    followed = leads([read_records(folder / GUESSES, Hypothesis) for folder in guessed])
    heard = [one for folder in guessed for one in read_records(folder / HEARD, Heard)]
    if by == RULES:
        items = [item for lead in followed for item in questions(lead, content, heard)]
    else:
        from doublebind.stages.audits.followup.inspect_investigator import Investigator

        writer = Investigator(by.partition(":")[2])
        items = [item for lead in followed for item in writer.questions(lead)]
    write_records(out / LEADS, followed)
    write_records(out / ITEMS, items)


def ask(out: Path, *, source: ModelSource, questions: Path, dtype: Dtype, cache: Path) -> None:
    """Write `scores.parquet` and `transcripts.jsonl` of a model that was asked the items."""
    from doublebind.models.load import load
    from doublebind.stages.audits.protocol import Answer

    items = read_records(questions / ITEMS, Item)
    if source.served:
        reason = "a server gives log-probabilities of its own answers only, not of given options"
        answers = [Answer(item, None, reason) for item in items]
    else:
        answers = choose(load(source, dtype=dtype, cache=cache), items)
    write(out, [row(AUDIT, answer, f"followup/{answer.item.trait}") for answer in answers])
    lines = [
        TranscriptLine(
            audit=AUDIT,
            endpoint=f"followup/{answer.item.trait}",
            item=answer.item.id,
            messages=tuple(m.model_dump() for m in answer.item.messages),
            key=answer.item.options[answer.item.key],
            value=answer.value,
            transcript=answer.transcript,
        )
        for answer in answers
    ]
    write_records(out / "transcripts.jsonl", lines)


def read_leads(folder: Path) -> list[Lead]:
    """Return the leads in an artefact of `prepare`."""
    return read_records(folder / LEADS, Lead)
