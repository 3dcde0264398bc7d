"""How models are run and which pack is asked: the same for every job of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.model_source import Device, Engine, ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.study.teachers import resolve_pack_name


class PackRef(NamedTuple):
    """A pack, and the name by which a job in another process opens it."""

    name: str
    """Of a built-in pack, or an absolute path; with the traits that it is narrowed to."""
    pack: Pack


def open_pack(name: str, folder: Path) -> PackRef:
    """Open the pack `name`; a path is relative to `folder`."""
    absolute = resolve_pack_name(name, folder)
    return PackRef(absolute, load_pack(absolute, relative_to=folder))


@dataclass(frozen=True)
class Runtime:
    """Precision, device and engine of a study's models, and the cache of converted weights."""

    dtype: Dtype
    cache: Path
    device: Device = "cpu"
    engine: Engine | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of every job that loads a model."""
        return {"dtype": self.dtype, "cache": self.cache}

    @property
    def precision_keys(self) -> list[str]:
        """Part of the keys of what transformers computes."""
        return [self.dtype, *list_device_keys(self.device)]

    @property
    def engine_keys(self) -> list[str]:
        """Part of the keys of what the engine computes, besides the precision."""
        return [*([self.engine.kind] if self.engine else []), *list_device_keys(self.device)]

    def attach_engine(self, source: ModelSource) -> ModelSource:
        """Return the source, to be run by the engine; a served model keeps its server."""
        if self.engine is None or source.served:
            return source
        return source.model_copy(update={"engine": self.engine})


def list_device_keys(device: Device) -> list[str]:
    """Return the device's part of a key: none on the CPU, whose keys are older than devices."""
    return [] if device == "cpu" else [device]
