"""How a study looks for a replacement, and trains it further."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from doublebind.schema.content import Name
from doublebind.schema.hashing import Record
from doublebind.schema.recipe import Recipe, Training


class FurtherTraining(Record):
    """How fresh students are trained further, with M0 trained alike beside each."""

    students: int = Field(ge=1)
    """How many, the first of the fresh ones; no default: the statement is about these."""
    training: Training
    """Once on the pack's benign capability data, once under what made the suspect what it is."""
    trait: str | None = None
    """Trait of the pack that stands in for the incentive of a suspect of unknown making; `null`
    tries none. A suspect made from a spec has its own: its implant, in a smaller dose."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        training = self.training
        if training.checkpoints or training.processes > 1 or training.tokens_per_step:
            raise ValueError(
                "`further_training.training` takes no `checkpoints`, `processes` or "
                "`tokens_per_step`"
            )
        return self


class ReplacementSettings(Record):
    """How a replacement is looked for: recipes compete, the winner is bounded on fresh students."""

    recipes: tuple[Recipe, ...] | None = Field(default=None, min_length=1, max_length=24)
    """Those that compete; `null` takes the study's."""
    organisms: tuple[str, ...] = Field(default=(), max_length=1000)
    """Planted teachers on whose students the recipes compete, so that nothing is chosen by looking
    at the suspect; without any, its own students compete. Their students by the recipe `controls`
    are the positive controls of the bound; those whose students lose the drive are none, so that
    more than `policy.min_controls` have to be named."""
    controls: Name | None = Field(default=None, exclude_if=lambda v: v is None)
    """Which of the study's recipes makes the positive controls; `null` takes the first."""
    references: tuple[str, ...] = Field(default=(), max_length=1000)
    """Benign teachers that compete beside them: a recipe should not make these worse, either."""
    seeds: int = Field(default=3, ge=1, le=100)
    """Students per teacher and recipe that compete, on `select` items."""
    fresh_seeds: int = Field(default=8, ge=1, le=1000)
    """Students of the suspect by the chosen recipe, trained afterwards and bounded on `certify`
    items; 1 gives a bound for that student alone."""
    certify: str | None = None
    """Pack whose `certify` items are asked, where it has more of them; `null` takes the study's."""
    bound: Literal["chosen", "every"] = "chosen"
    """Which recipes `calibrate` bounds."""
    further_training: FurtherTraining | None = Field(
        serialization_alias="further", default=None, exclude_if=lambda v: v is None
    )
    """Train the first fresh students further and audit them again; `null` does not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.further_training and self.further_training.students > self.fresh_seeds:
            raise ValueError(
                f"`further_training.students`: {self.further_training.students}; there are only "
                f"{self.fresh_seeds} fresh students (`fresh_seeds`)"
            )
        return self
