"""Distil a model you cannot audit into models you can, and weigh what came along.

The public surface: `load_study`, then `plan`, `run` and `calibrate` it; `audit` one model; read a
`Run` and its `Verdict`, and `verify` it. An `Audit` of your own takes an `Item` and gives an
`Answer`. Importing the package loads no model library.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must not spin: with the default policy every small parallel region of a tiny
# model costs milliseconds. Only effective before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from doublebind.pipeline.calibrate import calibrate
from doublebind.pipeline.run import audit, plan, run
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
