"""A finished run as a person looks through it, scan after scan: what to look at first, the verdicts, and the scans
themselves beside their originals where those are at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, RefaceError
from ..volume.volume import Volume, atomic_path
from .records import Records
from .verdicts import plain_note, read_verdicts, write_verdicts

QC = "qc"
SCANS, QC_TABLE = "scans.json", "qc.tsv"
"""In the folder QC of an output: the list of the scans as the page shows them, and the verdicts."""


@dataclass
class Reviewed:
    """One scan of a run. path: as in the plan.  look: why it is worth a look, the most important reason first.
    checks: one line each.  verdict: "pass", "fail" or "" for none yet."""

    path: str
    subject: str
    session: str
    action: str
    reason: str
    look: tuple[str, ...]
    checks: tuple[str, ...]
    verdict: str = ""
    note: str = ""


class Review:
    """The scans of a run in the order of the page, those with the greatest risk first, and the verdicts on them,
    which are kept in its qc.tsv. `folder` is the output of the run."""

    def __init__(self, folder: Path, scans: Sequence[Reviewed]) -> None:
        self.folder, self.scans = folder, list(scans)

    @classmethod
    def open(cls, folder: Path) -> Review:
        """Raises InputError where the folder holds no finished run."""
        try:
            entries = json.loads((folder / QC / SCANS).read_text(encoding="utf-8"))
            verdicts = read_verdicts(folder / QC / QC_TABLE)
            scans = [
                Reviewed(
                    str(entry["path"]), str(entry["subject"]), str(entry["session"]), str(entry["action"]),
                    str(entry["reason"]), tuple(map(str, entry["look"])), tuple(map(str, entry["checks"])),
                )
                for entry in entries
            ]  # fmt: skip
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} holds no finished run; choose the output folder of refacecgan dataset."
            ) from error
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({error.strerror}); choose another folder.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / QC / SCANS} is damaged; run refacecgan dataset again.") from error
        for scan in scans:
            scan.verdict, scan.note = verdicts.get(scan.path, ("", ""))
        return cls(folder, scans)

    def judge(self, scan: Reviewed, verdict: str | None = None, note: str | None = None) -> None:
        """Keep a verdict, a note or both, at once on disk. Raises InputError where that cannot be written; then
        the scan keeps the verdict and note it had."""
        before = scan.verdict, scan.note
        scan.verdict = scan.verdict if verdict is None else verdict
        scan.note = scan.note if note is None else plain_note(note)
        if (scan.verdict, scan.note) == before:
            return
        try:
            write_verdicts(self.folder / QC / QC_TABLE, ((one.path, one.verdict, one.note) for one in self.scans))
        except InputError:
            scan.verdict, scan.note = before
            raise


def write_scans(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the list of scans that `Review.open` reads. Raises InputError where it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def read_scan(output: Path, path: str, originals: Path | None) -> tuple[Volume, Volume | None, str]:
    """One scan of a run, its original where that is at hand, and else why it is not. originals: the input of the
    run. Of a time series the volume that stands for it.

    Raises InputError where the scan cannot be read."""
    outcome = Records(output).find(path)
    if outcome is None or not outcome.image:
        raise InputError(f"{output} holds no scan {path}; open it again.")
    scan = _volume([output / name for name in outcome.image])
    if originals is None:
        return scan, None, "Name the folder of the originals to see both."
    try:
        original = _volume([originals / name for name in outcome.sources])
    except RefaceError as error:
        return scan, None, str(error)
    if original.shape != scan.shape:
        return scan, None, f"{path} in {originals} is another scan than the one that was refaced."
    return scan, original, ""


def _volume(files: Sequence[Path]) -> Volume:
    from .timeseries import read_typical

    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is not there.")
    return read_typical(files)
