"""The study's secret key for pseudonyms: where it lies, how it is made, and that it is the right one."""

import hashlib
import os
import secrets
from pathlib import Path
from typing import Literal

from pipeline.errors import PipelineError
from pipeline.params import StrictParams, load_params

KEY_VARIABLE = "PIPELINE_KEY"
KEY_FILE = Path(".pipeline-key")
NEVER = "never"

# Not a secret. For the demo, whose patients do not exist, and for data that is public as it stands: there a
# pseudonym hides nothing, and a fixed key lets everybody reproduce the tables to the byte.
PUBLIC_KEY = hashlib.sha256(b"public data: these pseudonyms hide nothing").digest()


class PrivacyParams(StrictParams):
    """Section ``privacy``.

    ``key``: "private" for anything of patients; "public" only for simulated data and data sets that anyone
    can download. ``key_fingerprint`` is committed, so that a changed key is seen: DVC cannot see a secret.
    ``remote``: where DVC may push outputs that hold rows or pixels: null for its default remote, a remote's name, or
    "never" (a remote that takes nothing).
    """

    key: Literal["public", "private"]
    key_fingerprint: str | None = None
    remote: str | None = NEVER


def fingerprint(key: bytes) -> str:
    """What may be published of a key: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(b"fingerprint" + key).hexdigest()[:16]


def load_key(params_path: Path) -> bytes:
    """The key of the study whose params.yaml this is, checked against its committed fingerprint.

    Raises:
        PipelineError: there is no key, or it is not the one the pseudonyms of this study were made with.
    """
    params = load_params(PrivacyParams, "privacy", params_path)
    key = PUBLIC_KEY if params.key == "public" else _private_key(params_path.parent)
    if params.key_fingerprint is None:
        raise PipelineError(
            f"privacy.key_fingerprint is missing in {params_path}: write key_fingerprint: {fingerprint(key)} there "
            "and commit it, so that a changed key is seen; then run again"
        )
    if params.key_fingerprint != fingerprint(key):
        raise PipelineError(
            f"privacy.key_fingerprint in {params_path} is {params.key_fingerprint}, but the key at hand has "
            f"{fingerprint(key)}. Another key gives other pseudonyms, so nothing was run. Either put the study's "
            f"own key in place ({KEY_VARIABLE} or {KEY_FILE}), or, to start all pseudonyms anew, write "
            f"key_fingerprint: {fingerprint(key)}"
        )
    return key


def ensure_private_key(folder: Path) -> bool:
    """Make a key on first use, readable by its owner alone; True where one was made."""
    if os.environ.get(KEY_VARIABLE) or (folder / KEY_FILE).exists():
        return False
    descriptor = os.open(folder / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
    return True


def _private_key(folder: Path) -> bytes:
    text = os.environ.get(KEY_VARIABLE, "")
    origin = KEY_VARIABLE
    if not text:
        path = folder / KEY_FILE
        origin = str(KEY_FILE)
        if not path.is_file():
            raise PipelineError(
                f"no key: neither the environment variable {KEY_VARIABLE} nor {KEY_FILE} is there. "
                "`python -m pipeline.commands.inventory` makes one on first use; for a study that has results, "
                "bring the key they were made with"
            )
        if path.stat().st_mode & 0o077:
            raise PipelineError(f"{KEY_FILE} can be read by others than its owner; run: chmod 600 {KEY_FILE}")
        text = path.read_text(encoding="ascii")
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) < 16:  # 128 bits
        raise PipelineError(f"{origin}: expected at least 32 hexadecimal digits")
    return key
