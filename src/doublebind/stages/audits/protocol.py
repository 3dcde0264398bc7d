"""The public audit protocol: questions, answers, and the audit that asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from doublebind.schema.content import Item, name_endpoint


class Answer(NamedTuple):
    """What one item yielded."""

    item: Item
    value: float | None
    """In [0, 1]; `None` where the item could not be scored."""
    unscored_reason: str | None = None
    transcript: str = ""
    """What was said or compared, as text for the report; hostile until escaped."""


class Question(NamedTuple):
    """An item as an audit asks it, and the endpoint that the answer belongs to."""

    endpoint: str
    item: Item
    """One of the pack's, or one made from it, whose id is then its own."""


@runtime_checkable
class Audit(Protocol):
    """A measurement of one model; module-level objects of this shape can be passed to `run`.

    Hashed by `identity`, `version` and fields, so a changed audit never meets cached scores.
    """

    @property
    def name(self) -> str:
        """Short name, in the `audit` column of the scores."""
        ...

    @property
    def version(self) -> int:
        """Raise it when the same model would get another value."""
        ...

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Item kinds this audit answers."""
        ...

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is M0, for audits that compare.

        An audit that asks in its own way, under endpoints of its own, has a method `questions`,
        too, from items to `Question`s; it then returns one answer per question.
        """
        ...


def list_questions(audit: Audit, items: Sequence[Item]) -> list[Question]:
    """Return what `audit` asks when it is given a pack's `items`."""
    mine = [item for item in items if item.kind in audit.endpoints]
    own = getattr(audit, "questions", None)
    if own is not None:
        return list(own(mine))
    return [Question(name_endpoint(item), item) for item in mine]


def identify_audit(audit: Audit) -> tuple[str, str]:
    """Return the module and qualified name by which `audit` enters keys and protocols.

    An audit of this package declares them as `identity`, which never changes: its class may move or
    be renamed. Any other is identified by its class as it is now.
    """
    audit_type = type(audit)
    is_ours = audit_type.__module__.startswith("doublebind.")
    declared: str | None = getattr(audit, "identity", None) if is_ours else None
    if declared is None:
        return audit_type.__module__, audit_type.__qualname__
    module, _, name = declared.rpartition(".")
    return module, name
