"""The plan: what happens to every file of a data set, and why. `--dry-run` prints it and the run follows it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..volume.volume import atomic_path

Action = Literal["reface", "deface", "empty", "copy", "leave", "withhold"]
"""reface: gets the new face.  deface: its face region is emptied.  empty: a mask or derivative, its face region
set to 0.  copy: as it is.  leave: not wanted in the output.  withhold: wanted, but it may show a face and
could not be handled; the run ends with exit status 3."""
ACTIONS: dict[str, str] = {
    "reface": "get the new face",
    "deface": "get their face region emptied",
    "empty": "are masks or derivatives whose face region is set to 0",
    "copy": "are copied as they are",
    "leave": "are left out",
    "withhold": "may show a face, could not be handled and are withheld",
}


@dataclass(frozen=True)
class Row:
    """One file, or one DICOM series, of the data set.

    path: relative to the input, with slashes.  region_from: path of the scan whose face region it takes; its own
    path where it has an anatomy of its own; empty where there is no face region."""

    path: str
    subject: str
    session: str
    action: Action
    reason: str
    region_from: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What happened to one series. outputs: files written, relative to the output.  facts: what was measured,
    as JSON.  image: those of the outputs that are the scan itself.  sources: the files it was made of, relative to
    the input."""

    row: Row
    outputs: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    image: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def only_changed(row: Row) -> Row:
    """The row of a file in a derivatives folder, which holds nothing that is as it was."""
    if row.action != "copy":
        return row
    return replace(
        row, action="leave", reason=f"{row.reason} It stays in the source alone (--layout derivatives)."
    )


COLUMNS = tuple(entry.name for entry in fields(Row))


def as_tsv(rows: Iterable[Row]) -> str:
    """The plan as tab-separated values, one line a file, sorted by path; warnings are joined by a space."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: row.path):
        cells = (row.path, row.subject or "n/a", row.session or "n/a", row.action, row.reason)
        writer.writerow([*cells, row.region_from or "n/a", " ".join(row.warnings) or "n/a"])
    return text.getvalue()


def write(rows: Iterable[Row], path: Path) -> None:
    """Write the plan to a TSV file; it appears complete or not at all. Raises InputError where it cannot."""
    with atomic_path(path) as temporary:
        # a file name may hold bytes that are no text
        temporary.write_text(as_tsv(rows), encoding="utf-8", errors="backslashreplace")


def read(path: Path) -> list[Row]:
    """A plan from its TSV file; nothing where there is none or it is another table."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file, delimiter="\t"))
        rows = []
        for line in table:
            cells = {name: "" if line[name] == "n/a" else line[name] for name in COLUMNS}
            warnings = (cells["warnings"],) if cells["warnings"] else ()
            action = next(known for known in ACTIONS if known == cells["action"])
            rows.append(Row(**{**cells, "action": action, "warnings": warnings}))  # type: ignore[arg-type]
    except (OSError, KeyError, ValueError, TypeError, StopIteration, csv.Error):
        return []
    return rows


def summary(rows: Iterable[Row]) -> list[str]:
    """One line for each action that occurs: how many files, and what happens to them."""
    count: Counter[str] = Counter(row.action for row in rows)
    present = [(action, text) for action, text in ACTIONS.items() if count[action]]
    return [f"{count[action]:6d}  {action}: {text}" for action, text in present]
