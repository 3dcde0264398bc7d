"""Signs a run's seal, and checks the signature, with `ssh-keygen -Y`.

A signature is of `seal.json`, byte for byte, in the namespace `doublebind-seal`; any tool that
knows SSH signatures can check it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from doublebind.execution.store import write_atomic
from doublebind.runs.files import read_file
from doublebind.runs.seal import SEAL
from doublebind.schema.errors import ConfigError, RunError

NAMESPACE = "doublebind-seal"
SIGNATURE = f"{SEAL}.sig"
_TIMEOUT = 30.0
"""Seconds that a key in an agent or on a token may take."""


def sign_seal(run: Path, key: Path) -> Path:
    """Sign the seal of a run, and return the path of the signature, `seal.json.sig`.

    Args:
        run: A finished run.
        key: Private key without a passphrase, or the public key of one in `ssh-agent`.

    Raises:
        RunError: If the run has no seal.
        ConfigError: If there is no `ssh-keygen`, or the key cannot sign.
    """
    if not key.is_file():
        raise ConfigError(f"`--key`: no file {key}; make one with `ssh-keygen -t ed25519`")
    seal = _read_signed(run, SEAL)
    command = ["-Y", "sign", "-n", NAMESPACE, "-f", str(key.absolute())]
    result = _call_ssh_keygen(command, seal)
    if result.returncode or b"SIGNATURE" not in result.stdout:
        raise ConfigError(
            f"`--key`: {key} cannot sign ({_last_line(result)}); name a private key without a "
            "passphrase, or add it to ssh-agent and name its .pub file"
        )
    path = run / SIGNATURE
    write_atomic(path, result.stdout.decode("ascii", "replace"))
    return path


def check_signature(run: Path, allowed_signers: Path, identity: str | None = None) -> str:
    """Check the signature of a run's seal, and return who signed.

    Args:
        run: A finished run.
        allowed_signers: File of names and public keys (`ssh-keygen(1)`, ALLOWED SIGNERS).
        identity: Who has to have signed; default anybody in the file.

    Raises:
        RunError: If the seal is not signed, or not by a signer who is allowed.
        ConfigError: If there is no `ssh-keygen`, or no file of signers.
    """
    if not allowed_signers.is_file():
        raise ConfigError(
            f"`--allowed-signers`: no file {allowed_signers}; each line is a name and a public key"
        )
    seal, signature = _read_signed(run, SEAL), _read_signed(run, SIGNATURE)
    signers = str(allowed_signers.absolute())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SIGNATURE  # a copy, of the bytes that were looked at
        file.write_bytes(signature)
        names = [identity] if identity else _find_principals(file, signers)
        for name in names:
            command = ["-Y", "verify", "-n", NAMESPACE, "-f", signers, "-I", name, "-s", str(file)]
            if _call_ssh_keygen(command, seal).returncode == 0:
                return name
    who = identity or f"anybody in {allowed_signers}"
    raise RunError(f"{run / SIGNATURE}: is no signature of {SEAL} by {who}; the seal was renewed")


def _find_principals(signature: Path, signers: str) -> list[str]:
    """Return the names to whom a file of signers gives the key of a signature."""
    result = _call_ssh_keygen(["-Y", "find-principals", "-s", str(signature), "-f", signers], b"")
    text = result.stdout.decode("utf-8", "replace") if result.returncode == 0 else ""
    return [name for line in text.splitlines() for name in line.split(",") if name]


def _read_signed(run: Path, name: str) -> bytes:
    try:
        return read_file(run, name)
    except FileNotFoundError:
        remedy = "`doublebind seal RUN --key KEY` signs" if name == SIGNATURE else "rerun the study"
        raise RunError(f"{run / name}: missing; {remedy}") from None


def _call_ssh_keygen(
    arguments: Sequence[str], content: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Run `ssh-keygen` on `content`; it can ask nobody for anything.

    Raises:
        ConfigError: If it is not installed, or does not end.
    """
    # No terminal and no dialogue: a passphrase that is asked for is an error, not a wait.
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "SSH_ASKPASS")}
    environment |= {"SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=content,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ConfigError(
            "ssh-keygen: not found; install OpenSSH 8.2 or later to sign seals and check signatures"
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"ssh-keygen: gave no answer in {_TIMEOUT:g} s; unlock the key and try again"
        ) from None


def _last_line(result: subprocess.CompletedProcess[bytes]) -> str:
    lines = result.stderr.decode("utf-8", "replace").split("\n")
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "no reason")
