"""What a person found in the scans of a run: qc.tsv, as the page exports it and the panel in Slicer writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..volume.volume import atomic_path

VERDICTS = ("pass", "fail")
COLUMNS = ("path", "verdict", "note")
NONE = "n/a"

Verdict = tuple[str, str]
"""A verdict, "pass", "fail" or "" for none yet, and a note."""


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """Verdict and note by the path of the scan, from a qc.tsv; nothing where it is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        return {}
    table = [line.split("\t") for line in lines]  # a note may hold quotation marks, which mean nothing here
    if not table or "path" not in table[0]:
        return {}
    found = {}
    for cells in table[1:]:
        line = dict(zip(table[0], cells, strict=False))
        verdict, note = line.get("verdict", "").strip(), line.get("note", "").strip()
        if line.get("path"):
            found[line["path"]] = (verdict if verdict in VERDICTS else "", "" if note == NONE else note)
    return found


def write_verdicts(path: Path, scans: Iterable[tuple[str, str, str]]) -> None:
    """Write a qc.tsv of (path, verdict, note), in this order; it appears complete or not at all.

    Raises InputError where it cannot be written."""
    lines = [(name, verdict or NONE, plain_note(note) or NONE) for name, verdict, note in scans]
    text = "".join("\t".join(cells) + "\n" for cells in (COLUMNS, *lines))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def plain_note(note: str) -> str:
    """A note as it fits in a table: in one line, without tabs."""
    return " ".join(note.split())
