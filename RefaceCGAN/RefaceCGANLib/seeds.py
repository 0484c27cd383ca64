"""Seeds: one integer fixes the randomness of one face, and that of a person follows from identity and key."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from pathlib import Path

from .errors import InputError

SEEDS = 2**63
"""Seeds lie from 0 to below this: they fit a signed integer of 64 bits."""
RANDOM_SEEDS = 10**6
"""Random seeds lie below this, so that a person can type them again."""
KEY_BYTES = 2**20
"""The largest key file that is read: a larger one is a scan given by mistake."""


def seed_of(identity: str, key: bytes = b"") -> int:
    """The seed of a person, 0 to below 2**63: HMAC-SHA-256 of the identity (a text, Unicode NFC) under a key.
    Without the secret key nobody can find out which identity a seed belongs to.

    Raises InputError for an empty identity."""
    if not identity.strip():
        raise InputError("The identity is empty; give a text that stands for the person.")
    text = unicodedata.normalize("NFC", identity).encode()
    return int.from_bytes(hmac.digest(key, text, hashlib.sha256)[:8], "big") % SEEDS


def chosen_seed(seed: int | None = None, identity: str | None = None, key: bytes | None = None) -> int:
    """The seed to draw with: the given one, that of a person, or a random one.

    Raises InputError for a seed out of range, for a seed and an identity together, and for a key alone."""
    if identity is not None:
        if seed is not None:
            raise InputError("Give a seed or an identity, not both.")
        return seed_of(identity, key or b"")
    if key is not None:
        raise InputError("A key is of no use without an identity; give both.")
    if seed is None:
        return secrets.randbelow(RANDOM_SEEDS)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(f"Seed {seed} is no whole number from 0 to below 2**63.")
    return seed


def read_key(path: Path, remedy: str) -> bytes:
    """The bytes of a key file. remedy: what the user is to do where it cannot be used, for the InputError."""
    try:
        with path.open("rb") as file:
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error
    if not 0 < len(key) <= KEY_BYTES:
        raise InputError(f"{path} is empty or no key; {remedy}.")
    return key
