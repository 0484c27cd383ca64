"""The store: results on disk, each under a key of everything that decided it, so that a second run finds them.

What a key does not cover has to be deleted by hand: after an outside program was upgraded, its folders.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


class Store:
    """Folders `folder`/where/what-KEY, each with the files of one result. It appears complete or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, where: str, what: str, key: Any) -> Path:
        """Where the result is or will be. key: JSON values."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / _plain(where) / f"{_plain(what)}-{digest}"

    def get(self, where: str, what: str, key: Any, make: Callable[[Path], None]) -> Path:
        """The result's folder; `make` fills it where it is not there yet."""
        path = self.path(where, what, key)
        if not path.is_dir():
            hidden = path.with_name(f".{secrets.token_hex(4)}")
            hidden.mkdir(parents=True)
            try:
                make(hidden)
                hidden.rename(path)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
        return path


def stamp(path: Path) -> list[Any]:
    """What tells that a file, or a file in a folder, has changed: name, size, time of the last change."""
    if path.is_dir():
        return [stamp(part) for part in sorted(path.iterdir()) if part.is_file()]
    if not path.exists():
        return [path.name, None]
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


@cache
def code(*modules: str) -> str:
    """A digest of modules of the package, or of all modules of a folder: it changes when the program does."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for name in modules:
        folder = package / name
        for path in sorted(folder.glob("*.py")) if folder.is_dir() else [package / f"{name}.py"]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
