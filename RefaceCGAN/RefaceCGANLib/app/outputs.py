"""The outputs of one call: made in hidden folders beside their places, and moved there all at once or none."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import InputError


class Outputs:
    """The files of one call. They are made in hidden folders beside their places, and moved all at once."""

    def __init__(self) -> None:
        self._hidden: dict[Path, Path] = {}  # folder -> hidden folder in it
        self._planned: list[Path] = []
        self._made: list[Path] = []

    def plan(self, path: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> Path:
        """Announce an output, before any work is done, and return it. Raises InputError if it cannot be
        written there, is one of `inputs` or was announced before."""
        from ..volume.files import check_output

        check_output(path, inputs, suffixes)
        if any(real_name(path) == real_name(other) for other in self._planned):
            raise InputError(f"{path} is named for two outputs; give each a name of its own.")
        self._planned.append(path)
        return path

    def plan_scan(self, path: Path, source: Path) -> Path:
        """Announce a scan: a file, or for a DICOM folder (source) also a folder. Raises InputError as `plan`."""
        from ..volume.files import SUFFIXES

        if not source.is_dir() or path.name.lower().endswith(SUFFIXES):
            return self.plan(path, SUFFIXES, [source])
        from ..volume.dicom_output import check_folder

        self._planned.append(check_folder(path, source))
        return path

    def plan_folder(self, folder: Path) -> None:
        """Announce a folder. Raises InputError where there is something in its place, or no folder for it."""
        if os.path.lexists(folder):
            raise InputError(f"{folder} is there already; name a new folder.")
        if not folder.parent.is_dir():
            raise InputError(f"{folder.parent} is no folder; make it first, or name another place.")
        self._planned.append(folder)

    def hidden(self, path: Path) -> Path:
        """Where to write what is to become `path`. Raises InputError if nothing can be written there."""
        folder = path.parent
        if folder not in self._hidden:
            self._hidden[folder] = folder / f".refacecgan-{secrets.token_hex(4)}"
            try:
                self._hidden[folder].mkdir(mode=0o700)
            except OSError as error:
                why = f"{path} cannot be written ({error.strerror}); choose another folder."
                raise InputError(why) from error
        return self._hidden[folder] / path.name

    def make_folder(self, folder: Path) -> None:
        """Make a folder and its parents; they go again if the call fails."""
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        for place in reversed(missing):
            self._made.append(place)
            place.mkdir()

    def commit(self) -> None:
        """Put all outputs in their places, or none. Raises OSError where that fails."""
        moved: list[tuple[Path, Path | None]] = []
        try:
            for path in self._planned:
                new, old = self.hidden(path), None
                if os.path.lexists(path):
                    old = new.with_name(f"old-{len(moved)}")
                    os.replace(path, old)
                moved.append((path, old))
                os.replace(new, path)
        except BaseException:
            for path, old in reversed(moved):
                if old:
                    os.replace(old, path)
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise
        self._made.clear()

    def discard(self) -> None:
        """Remove what is not in its place."""
        for folder in self._hidden.values():
            shutil.rmtree(folder, ignore_errors=True)
        for place in reversed(self._made):
            with suppress(OSError):
                place.rmdir()

    def without_hidden_folders(self, sentence: str) -> str:
        for folder in self._hidden.values():
            sentence = sentence.replace(f"{folder.name}{os.sep}", "")
        return sentence


def real_name(path: Path) -> str:
    """A path without links, in the case that the file system tells apart."""
    return os.path.normcase(os.path.realpath(path))


def numbered(path: Path, number: int | None) -> Path:
    """head.nii.gz -> head_2.nii.gz; the path itself without a number."""
    if number is None:
        return path
    name = path.name
    stem = name[:-7] if name.lower().endswith(".nii.gz") else path.stem
    return path.with_name(f"{stem}_{number}{name[len(stem) :]}")
