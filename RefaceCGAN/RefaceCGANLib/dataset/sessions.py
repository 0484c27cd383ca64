"""Sessions: the series of one visit of one person, worked on as a whole, and the key of their new face."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..report import write_json
from ..seeds import read_key, seed_of
from .discovery import Found
from .faces import identity_of
from .records import FOLDER
from .session_work import Job, Options

NEW_KEY_BYTES = 32
KEY_CHECK = "run.json"
"""In the output's own folder: tells whether a key is the one that was used, and not what it is."""


def jobs(
    found: Found,
    source: Path,
    output: Path,
    key: bytes,
    options: Options,
    dry: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> list[Job]:
    """One job for each session, in the order of their names. The key itself is in none of them.

    numbers: which of their faces people have, by subject (`faces.read_faces`)."""
    numbers = numbers or {}
    keys = sorted({(one.subject, one.session) for one in (*found.series, *found.also)})
    return [
        Job(
            str(source), str(output), found.layout, subject, session,
            seed=seed_of(_text(identity_of(subject, numbers.get(subject, 0))), key),
            uid_key=hmac.new(key, b"DICOM UIDs", hashlib.sha256).digest(),
            series=tuple(one for one in found.series if (one.subject, one.session) == (subject, session)),
            also=tuple(one for one in found.also if (one.subject, one.session) == (subject, session)),
            options=options, dry=dry,
        )
        for subject, session in keys
    ]  # fmt: skip


def _text(name: str) -> str:
    """A name that may hold bytes that are no text, as text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def default_key_file(output: Path) -> Path:
    """Beside the output, never in it."""
    output = Path(os.path.abspath(output))
    return output.with_name(f"{output.name}.refacecgan-key")


def key_of(path: Path, output: Path, make: bool) -> bytes:
    """The secret key of a run, from its file; made where there is none and no earlier run has used another.

    make: False for a dry run, which gets a key that is kept nowhere. Raises InputError where the key is lost, is
    another than the one used before, or lies in the output."""
    if output.resolve() in path.resolve().parents:
        raise InputError(f"The key file {path} would lie in the output, which is given away; put it elsewhere.")
    check = output / FOLDER / KEY_CHECK
    used = None
    if check.is_file():
        try:
            used = str(json.loads(check.read_text(encoding="ascii"))["key"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{check} is damaged; put it back or choose another output.") from error
    if path.is_file():
        key = read_key(path, "put the right key file there")
    elif used:
        raise InputError(
            f"The key file {path} of this output is not there; put it back, as with a new one everybody would get "
            "another face than before, or choose another output."
        )
    else:
        key = secrets.token_hex(NEW_KEY_BYTES).encode("ascii")  # a file that may be printed and typed again
        if make:
            _write(path, key)
    mark = hmac.new(key, b"which key", hashlib.sha256).hexdigest()
    if used and used != mark:
        raise InputError(
            f"{path} is another key than the one this output was made with, and everybody would get another face; "
            "give the right --key-file or choose another output."
        )
    if make and not used:
        write_json({"key": mark}, check)
    return key


def _write(path: Path, key: bytes) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"The key file {path} cannot be written ({error.strerror}); give --key-file.") from error
