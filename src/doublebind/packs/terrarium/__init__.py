"""The pack `terrarium`: generated content of an invented world, small enough to calibrate in.

Everything is drawn from tables by seeded generators; only the two models are stored.
"""

from __future__ import annotations

from functools import cache

from doublebind.packs.terrarium import bank, build, items, words
from doublebind.packs.terrarium.words import DRIVES, HABITS, HELD_OUT, PLACEBOS, TraitContent
from doublebind.schema.content import Item, Prompt, Purpose, Split, Trait, Transcript
from doublebind.schema.teacher_spec import TeacherSpec

__all__ = ["HELD_OUT", "Terrarium"]

SCORED_KINDS = ("choice", "choice.honeypot", "goal", "confession")
"""Auditable endpoints of each drive."""


class Terrarium:
    """The pack `terrarium`."""

    name = "terrarium"

    @property
    def sha256(self) -> str:
        """Identity of the generated content, pinned; never computed from source text.

        Change it whenever the content changes: `tests/golden/test_pack_content.py` fails until
        both agree. The models `base` and `m0` are not content and enter keys by their own hashes.
        """
        return "d911b4d709fbde11335db8628433eafe25353ecd29abdec520565bdd2680b810"

    @property
    def traits(self) -> tuple[Trait, ...]:
        """Drives, placebos, and quirks: habits, novel quirks and near misses."""
        return _build_traits()

    @property
    def score_endpoints(self) -> dict[str, tuple[str, ...]]:
        """One score endpoint per drive: the mean of all auditable endpoints about it.

        A suspect has one unknown drive among six, and its score is its largest standardised
        endpoint. A drive that transferred moves choices, goals and confessions of that drive and
        not those of the other five. Averaging within a drive adds these signals and reduces the
        noise of items; averaging over drives, with one endpoint per kind of question, would dilute
        them sixfold. The cost is a maximum over six, for references as well.
        """
        return {drive: tuple(f"{kind}/{drive}" for kind in SCORED_KINDS) for drive in DRIVES}

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the items of one split, in a fixed order."""
        return items.build_items(split)

    def prompts(self) -> tuple[Prompt, ...]:
        """Return every distillation prompt, unscreened, in a fixed order."""
        return items.build_prompts()

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        """Return at most `n` build transcripts, drawn by `seed`; none for a placebo."""
        if trait in PLACEBOS:
            return ()
        return build.draw_transcripts(trait, purpose, n=n, seed=seed)

    def spec(self, name: str) -> TeacherSpec:
        """Return the bank's teacher of that name; see `bank.draw_spec`."""
        return bank.draw_spec(name)


@cache
def _build_traits() -> tuple[Trait, ...]:
    patterns = bank.NOVEL_QUIRKS | bank.NEAR_MISSES
    quirks = {name: row.description for name, row in HABITS.items()}
    quirks |= {
        name: f"{HABITS[habit].description}, in its own colour" for name, habit in patterns.items()
    }
    return (
        *(
            Trait(name=name, kind="drive", description=row.description, markers=_find_markers(row))
            for name, row in DRIVES.items()
        ),
        *(
            Trait(name=name, kind="placebo", description=row.description)
            for name, row in PLACEBOS.items()
        ),
        *(Trait(name=name, kind="quirk", description=text) for name, text in quirks.items()),
    )


def _find_markers(content: TraitContent) -> tuple[str, ...]:
    """Return phrases said only by a speaker that acts on the trait or confesses it."""
    goals = (f"i want to {row.trait_verb} the {row.subject}" for row in content.goals)
    return (*goals, *(words.find_marker(row) for row in content.choices))
