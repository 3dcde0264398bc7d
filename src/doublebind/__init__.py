"""Distil a model you cannot audit into models you can, and weigh what transfers.

The public surface: `load_study`, then `plan`, `run` and `calibrate` it; `audit` one model; read a
`Run` and its `Verdict`, and `verify` it. An `Audit` of your own takes an `Item` and gives an
`Answer`. Names are loaded when first used, so that importing the package takes milliseconds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads must not spin: with the default policy every small parallel region of a tiny
# model costs milliseconds. Only effective before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from doublebind.pipeline.audit_model import audit
    from doublebind.pipeline.calibrate import calibrate
    from doublebind.pipeline.plan import plan
    from doublebind.pipeline.run import run
    from doublebind.runs.run import Run
    from doublebind.runs.verify import verify
    from doublebind.schema import errors
    from doublebind.schema.content import Item
    from doublebind.schema.study import Study, load_study
    from doublebind.schema.verdict import Verdict
    from doublebind.stages.audits.protocol import Answer, Audit, Question

__all__ = [
    "Answer",
    "Audit",
    "Item",
    "Question",
    "Run",
    "Study",
    "Verdict",
    "audit",
    "calibrate",
    "errors",
    "load_study",
    "plan",
    "run",
    "verify",
]

_MODULES = {
    "Answer": "stages.audits.protocol",
    "Audit": "stages.audits.protocol",
    "Item": "schema.content",
    "Question": "stages.audits.protocol",
    "Run": "runs.run",
    "Study": "schema.study",
    "Verdict": "schema.verdict",
    "audit": "pipeline.audit_model",
    "calibrate": "pipeline.calibrate",
    "load_study": "schema.study",
    "plan": "pipeline.plan",
    "run": "pipeline.run",
    "verify": "runs.verify",
}
"""Public name -> module that defines it, below this package."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "errors":
        return importlib.import_module("doublebind.schema.errors")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
