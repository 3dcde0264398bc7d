"""The public audit protocol: questions, answers, and the audit that asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from doublebind.schema.content import Item, name_endpoint


class Answer(NamedTuple):
    """The value of one item, or why there is none."""

    item: Item
    value: float | None
    """In [0, 1]; `None` where the item could not be scored."""
    unscored_reason: str | None = None
    transcript: str = ""
    """What was said or compared, as text for the report; hostile until escaped."""


class Question(NamedTuple):
    """An item as an audit presents it, and the endpoint of its answer."""

    endpoint: str
    item: Item
    """An item of the pack, or one made from it under an id of its own."""


@runtime_checkable
class Audit(Protocol):
    """A measurement of one model; module-level objects of this shape can be passed to `run`.

    Scores are cached by identity, version and fields, so that a changed audit runs again.
    """

    @property
    def name(self) -> str:
        """Short name, in the `audit` column of the scores."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever the same model would get another value."""
        ...

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Kinds of items that the audit answers."""
        ...

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is M0, for audits that compare.

        An audit with endpoints of its own also has a method `questions`, from items to `Question`s,
        and then returns one answer per question.
        """
        ...


def list_questions(audit: Audit, items: Sequence[Item]) -> list[Question]:
    """Return the questions of `audit` about a pack's `items`."""
    matching = [item for item in items if item.kind in audit.endpoints]
    build_questions = getattr(audit, "questions", None)
    if build_questions is not None:
        return list(build_questions(matching))
    return [Question(name_endpoint(item), item) for item in matching]


def select_auditable(items: Sequence[Item], kind: str | None = None) -> list[Item]:
    """Return the auditable items, of one kind if `kind` is given."""
    return [item for item in items if item.role == "auditable" and kind in (None, item.kind)]


def add_item_suffix(item: Item, suffix: str) -> Item:
    """Return `item` under the id `ID~suffix`."""
    return item.model_copy(update={"id": f"{item.id}~{suffix}"})


def name_variant_endpoint(item: Item, variant: str) -> str:
    """Return the endpoint `kind[.context].variant/trait` of an item asked in another way."""
    kind, slash, trait = name_endpoint(item).partition("/")
    return f"{kind}.{variant}{slash}{trait}"


def identify_audit(audit: Audit) -> tuple[str, str]:
    """Return the module and qualified name by which `audit` enters keys and protocols.

    Audits of this package declare them as `identity`, so that their classes can move. Any other is
    identified by its class.
    """
    audit_type = type(audit)
    is_ours = audit_type.__module__.startswith("doublebind.")
    declared: str | None = getattr(audit, "identity", None) if is_ours else None
    if declared is None:
        return audit_type.__module__, audit_type.__qualname__
    module, _, name = declared.rpartition(".")
    return module, name


def describe_audit(audit: Audit) -> tuple[str, str, dict[str, Any]]:
    """Return what of an audit enters keys and protocols: its module, its name and its fields."""
    return (*identify_audit(audit), vars(audit))
