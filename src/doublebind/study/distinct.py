"""Refuses a model that is named as two teachers: told apart by content, not by spelling."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from doublebind.execution.store import Store, weights_sha256
from doublebind.models.same_weights import identify_weights
from doublebind.schema.errors import ConfigError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.study.panel import PanelTeacher
from doublebind.study.teachers import TeacherSource

_THIS_MACHINE = ("127.0.0.1", "::1", "0.0.0.0")


class NamedModel(NamedTuple):
    """A model as a study names it, and what it may be known again by."""

    role: str
    """The study's key, such as `suspect` or `references`."""
    label: str
    hashes: frozenset[str]
    """Any one in common makes two models one."""
    built: str | None = None
    """Hash of the weights that a job made."""
    copied: str | None = None
    """The same hash of a model that exists: it may be a copy of what a job made."""

    def is_same(self, other: NamedModel) -> bool:
        """Return whether both are one model."""
        copies = ((self.built, other.copied), (other.built, self.copied))
        return bool(self.hashes & other.hashes) or any(a == b and a is not None for a, b in copies)


def name_model(role: str, label: str, source: ModelSource) -> NamedModel:
    """Return a model that exists: known by its content key, its weights or its server."""
    if source.served is not None:
        place = ["server", _normalise_url(source.served.url), source.served.model]
        return NamedModel(role, label, frozenset({source.sha256, content_hash(place)}))
    folder = Path(source.adapter or source.path)
    copied = weights_sha256(folder) if source.system is None and folder.is_dir() else None
    hashes = frozenset({source.sha256, identify_weights(source)})
    return NamedModel(role, label, hashes, copied=copied)


def name_teacher(role: str, teacher: TeacherSource, store: Store) -> NamedModel:
    """Return a study's teacher: known as the model that it is, or that a job builds."""
    if teacher.spec is None:
        return name_model(role, teacher.label, teacher.base)
    key = teacher.content_key
    built = _hash_built_weights(store, key)
    return NamedModel(role, teacher.label, frozenset({key}), built=built)


def _hash_built_weights(store: Store, key: str) -> str | None:
    """Return `weights_sha256` of a teacher that is built already, in a store on this machine."""
    if store.remote is not None or not store.has("teacher", key):
        return None
    files: dict[str, str] = store.read_seal("teacher", key)["files"]
    return content_hash(
        [files[name] for name in sorted(files) if Path(name).match("model/*.safetensors")]
    )


def name_panel_teacher(teacher: PanelTeacher) -> NamedModel:
    """Return a teacher of a panel: known by its content key and its weights."""
    hashes = frozenset({teacher.content_key})
    return NamedModel("references.panel", teacher.label, hashes, built=teacher.weights_sha256)


def check_distinct(models: Iterable[NamedModel]) -> None:
    """Check that every model is named once, and every label stands for one model.

    Raises:
        ConfigError: One line per pair.
    """
    problems: list[str] = []
    for first, second in itertools.combinations(models, 2):
        if first.is_same(second):
            problems.append(_explain_same_model(first, second))
        elif first.label == second.label:
            problems.append(
                f"`{first.role}` and `{second.role}`: {first.label}: two models of one name, whose "
                f"scores could not be told apart; rename the study's"
            )
    if problems:
        raise ConfigError(*problems)


def _explain_same_model(first: NamedModel, second: NamedModel) -> str:
    roles = (first.role, second.role)
    if second.role.startswith("replace") and not first.role.startswith("replace"):
        first, second = second, first
    names = f"`{first.role}`: {first.label}"
    other = f"`{second.role}`: {second.label}"
    if first.role.startswith("replace") and not second.role.startswith("replace"):
        return (
            f"{names} is weighed, too, as {other}, which is one model; name another to compete on"
        )
    draw = ", or draw others with `references.seed`" if "references.panel" in roles else ""
    return (
        f"{names} and {other} are one model, which would count twice or be weighed against "
        f"itself; name another in place of one{draw}"
    )


def _normalise_url(url: str) -> str:
    """Return a server's URL in one spelling: names of this machine and default ports alike."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    host = "localhost" if host in _THIS_MACHINE else host
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{host}:{port}{parts.path.rstrip('/')}"
