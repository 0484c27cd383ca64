"""Files: which formats there are, whether an output can be put in its place, and writing all or nothing."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError

FORMATS = {".nii.gz": "NIfTI", ".nii": "NIfTI", ".nrrd": "NRRD", ".mgh": "MGH", ".mgz": "MGH"}
SUFFIXES = tuple(FORMATS)
GZIPPED = (".nii.gz", ".mgz")
"""The whole file is gzipped; an NRRD file says so in its header."""


def check_output(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]] = (),
    suffixes: Sequence[str] = SUFFIXES,
) -> Path:
    """Return `path` if a file can be put there; to be called before any work is done.

    Raises InputError unless its folder exists and is writable, its name ends in one of `suffixes`, and it is
    none of `inputs`, neither by another name nor through a link.
    """
    path = Path(path)
    exists = os.path.exists(path)  # unlike Path.exists(), never raises
    if exists and not path.is_file():
        raise InputError(f"{path} is not a file; add a file name such as refaced{suffixes[0]}.")
    if not path.name.lower().endswith(tuple(suffixes)):
        raise InputError(f"{path} has no known suffix; end its name in {' or '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written as its folder does not exist; make the folder first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written as its folder is read-only; choose another folder.")
    for item in map(Path, inputs):
        if item.resolve() == path.resolve() or (exists and item.exists() and path.samefile(item)):
            raise InputError(f"{path} is the input itself, which is never overwritten; choose another name.")
    return path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, with its suffix; on success it becomes `path`.

    On any failure, KeyboardInterrupt included, the temporary is removed and what was at `path` stays.
    The permissions are those of any new file. Raises InputError for an OSError (disk full, ...).
    """
    path = Path(path)
    suffix = suffix_of(path) or path.suffix
    temporary = path.with_name(f".refacecgan-{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{path} cannot be written as no space is left; free some first.") from error
        why = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be written ({why}); choose another place.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def suffix_of(path: Path) -> str:
    """The ending of a scan's name, in lower case; "" where it is none of `SUFFIXES`."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
