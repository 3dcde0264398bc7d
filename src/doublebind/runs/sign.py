"""Signs the seal of a finished run that agrees with itself."""

from __future__ import annotations

from pathlib import Path

from doublebind.runs.signature import sign_seal
from doublebind.runs.verify import verify
from doublebind.schema.errors import RunError
from doublebind.schema.hashing import Record


class SignedSeal(Record):
    """A signed seal: what to publish."""

    signature: str
    """Path of the signature."""
    seal_sha256: str
    """Hash of the sealed run, for `doublebind verify --seal`."""
    protocol_hash: str
    """For `doublebind verify --protocol-hash`."""


def sign_run(path: str | Path, key: str | Path) -> SignedSeal:
    """Sign the seal of a finished run that agrees with itself.

    Args:
        path: A finished run.
        key: SSH key: a private one without a passphrase, or the public one of a key in `ssh-agent`.

    Raises:
        RunError: If the run has problems; nothing is signed.
        ConfigError: If `ssh-keygen` is not installed, or the key cannot sign.
    """
    verification = verify(path)
    if verification.problems:
        raise RunError(
            f"{path}: not signed, {len(verification.problems)} problems: "
            f"{verification.problems[0]}; `doublebind verify` lists them"
        )
    signature = sign_seal(Path(path), Path(key))
    return SignedSeal(
        signature=str(signature),
        seal_sha256=str(verification.seal_sha256),
        protocol_hash=str(verification.protocol_hash),
    )
