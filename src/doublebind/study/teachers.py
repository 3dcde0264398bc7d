"""Finds what a teacher's name means: a spec to build, a bank entry, or a model that exists."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from doublebind.models.resolve import resolve_model
from doublebind.packs.folder import HEADER_FILE
from doublebind.packs.load import is_built_in, load_pack, refuse_namesake
from doublebind.packs.pack import Pack
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import Device, ModelSource, ServerOptions, Teacher
from doublebind.schema.protocol import HARD_CLASSES
from doublebind.schema.study import BankReferences, MatchedReferences, PanelSpec, StandInReferences
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml

BANK_PREFIXES = ("suspect-", "reference-", "organism-")
OUTBACK_PACK = "outback"
"""Pack whose organisms any study may name: its items are the terrarium's."""
MATCHED_PREFIX = "matched-"
"""Names of references matched to the suspect begin so, followed by their number."""


class TeacherSource(NamedTuple):
    """A teacher before it is built: a spec on a base, or a finished model."""

    label: str
    family: str
    content_key: str
    base: ModelSource
    """The model itself where there is no spec."""
    spec: TeacherSpec | None
    pack: str = ""
    """Name of the pack that the spec builds from."""
    scale_like: ModelSource | None = None
    """A model whose update norm the built teacher is scaled to."""

    def to_teacher(self, role: Literal["suspect", "reference", "organism"]) -> Teacher:
        """Return the record that the evidence uses, in a role."""
        return Teacher(
            label=self.label,
            ref=self.label,
            role=role,
            family=self.family,
            content_key=self.content_key,
            hard_class=find_hard_class(self.spec.pack)
            if self.spec and role == "organism"
            else None,
        )


def find_hard_class(pack: str) -> str | None:
    """Return the hard class of misalignment whose transcripts a spec's `pack` names."""
    bank, _, kind = pack.partition("/")
    return kind if bank == OUTBACK_PACK and kind in HARD_CLASSES else None


def list_reference_names(study: PanelSpec, pack: Pack) -> tuple[str, ...]:
    """Return the names of the references to build or open; none where they are a panel's."""
    match study.references:
        case BankReferences(panel=None, n=n):
            return tuple(f"{pack.name}/reference-{i}" for i in range(n))
        case BankReferences():
            return ()
        case MatchedReferences(n=n, batch=batch):
            return tuple(f"{MATCHED_PREFIX}{i}" for i in range(batch * n, (batch + 1) * n))
        case StandInReferences(models=models):
            return models
        case names:
            return names


def find_teacher(
    ref: str,
    *,
    pack: Pack,
    folder: Path,
    rev: int,
    student: str,
    device: Device = "cpu",
    served: ServerOptions = ServerOptions(),  # noqa: B008
) -> TeacherSource:
    """Return the teacher that `ref` names.

    Args:
        ref: A model, a teacher spec (`.yaml`), or a teacher of a bank: the pack's
            (`terrarium/...`), or the outback's (`outback/organism-...`).
        pack: The study's pack, for its bank.
        folder: What relative paths are relative to.
        rev: Revision of the build; part of a built teacher's key.
        student: The study's M0, which the bank's teachers are made from.
        device: Where the study computes.
        served: How a served model may be asked.

    Raises:
        ConfigError, PackError, ModelError: If there is no such teacher, or its spec is wrong.
    """
    prefix, _, name = ref.partition("/")
    if ref.endswith((".yaml", ".yml")):
        path = folder / ref
        return resolve_teacher_spec(
            ref, load_yaml(TeacherSpec, path), folder=path.parent, rev=rev, device=device
        )
    if prefix in (pack.name, OUTBACK_PACK) and name.startswith(BANK_PREFIXES):
        for marker in ("config.json", "adapter_config.json"):
            refuse_namesake(ref, folder / ref, marker, Path(), "teachers")
        bank = pack if prefix == pack.name else load_pack(prefix, relative_to=Path())
        spec = bank.spec(name).model_copy(update={"base": student})
        return resolve_teacher_spec(ref, spec, folder=folder, rev=rev, device=device)
    source = resolve_model(ref, relative_to=folder, served=served).with_device(device)
    return TeacherSource(ref, ref, source.sha256, source, None)


def resolve_teacher_spec(
    label: str,
    spec: TeacherSpec,
    *,
    folder: Path,
    rev: int,
    scale_like: ModelSource | None = None,
    device: Device = "cpu",
) -> TeacherSource:
    """Return a teacher that is to be built; its key covers its settings and content, no label.

    It is built on `device` unless its spec names another than the default.
    """
    if spec.device == "cpu":
        spec = spec.model_copy(update={"device": device})
    pack = resolve_pack_name(spec.pack, folder)
    base = resolve_model(spec.base, relative_to=folder).with_device(spec.device)
    scale_like = scale_like and scale_like.with_device(spec.device)
    shape = spec.model_dump(mode="json", exclude={"name", "family", "pack", "base"})
    depends = ["teacher", rev, shape, base.sha256, load_pack(pack, relative_to=Path()).sha256]
    key = content_hash(depends if scale_like is None else [*depends, scale_like.sha256])
    return TeacherSource(label, spec.family, key, base, spec, pack, scale_like)


def resolve_pack_name(name: str, folder: Path) -> str:
    """Return a pack's name, with an absolute path where it names a folder.

    Raises:
        ConfigError: If a built-in pack and a folder are called so.
    """
    if is_built_in(name):
        shipped = Path(str(files("doublebind.packs") / name))
        refuse_namesake(name, folder / name, HEADER_FILE, shipped, "`pack`")
        return name
    if (folder / name).is_dir():
        return str((folder / name).resolve())
    whole, colon, traits = name.rpartition(":")
    return f"{resolve_pack_name(whole, folder)}{colon}{traits}" if whole else name
