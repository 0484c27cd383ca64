"""BIDS: what a copy of a data set needs besides its images, so that it is valid and says what was done."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from .. import __version__
from ..errors import InputError
from ..report import write_json
from ..volume.volume import SUFFIXES, atomic_path
from .plan import Action, Row

DESCRIPTION = "dataset_description.json"
BESIDE = (".json", ".bval", ".bvec")
"""Endings of the files that belong to one image, in place of the image's own."""
IGNORED = "qc/"
DONE = "Faces were replaced by generated ones"


def without_orphans(rows: Sequence[Row]) -> list[Row]:
    """The rows, in which sidecars of a withheld scan are left out: a sidecar without its scan is no valid BIDS."""
    stems = set()
    for row in rows:
        suffix = next((suffix for suffix in SUFFIXES if row.path.lower().endswith(suffix)), None)
        if row.action == "withhold" and suffix:
            stems.add(row.path[: -len(suffix)])
    beside = {stem + end for stem in stems for end in BESIDE}
    reason = "Belongs to a scan that is withheld."
    return [
        replace(row, action="leave", reason=reason) if row.action == "copy" and row.path in beside else row
        for row in rows
    ]


def target_name(path: str, action: Action) -> str:
    """What a scan is called in a derivatives folder: sub-1_T1w.nii.gz -> sub-1_desc-refaced_T1w.nii.gz."""
    folder, slash, name = path.rpartition("/")
    suffix = next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    entities, _, contrast = name[: -len(suffix)].rpartition("_")
    kept = [part for part in entities.split("_") if part and not part.startswith("desc-")]
    done = "refaced" if action == "reface" else "defaced"
    return f"{folder}{slash}{'_'.join([*kept, f'desc-{done}', contrast])}{suffix}"


def sidecars_of(root: Path, path: str) -> list[str]:
    """The JSON files that describe an image by BIDS's inheritance principle, the nearest to the image last; paths
    relative to the root."""
    image = PurePosixPath(path)
    words = image.name.split(".")[0].split("_")
    found = []
    for folder in reversed(image.parents):
        described = [file.stem.split("_") for file in (root / folder).glob(f"*{words[-1]}.json") if file.is_file()]
        fitting = [each for each in described if each[-1] == words[-1] and set(each) <= set(words)]
        found += [(folder / ("_".join(each) + ".json")).as_posix() for each in sorted(fitting, key=len)]
    return found


def finish(source: Path, output: Path, rows: Sequence[Row], derivatives: bool = False) -> None:
    """dataset_description.json, README, CHANGES, .bidsignore and the lists of scans; of a derivatives folder
    description, README and .bidsignore. They are made anew from the input's at each run.

    Raises InputError where one cannot be read or written."""
    _describe(source, output, derivatives)
    readme = next((path for path in sorted(source.glob("README*")) if path.is_file()), source / "README")
    note = (
        f"{DONE} by RefaceCGAN {__version__}; voxels of the brain are as they were acquired. Scans that could "
        "not be handled are not in this copy.\n"
    )
    _write(output / readme.name, _text(readme).rstrip("\n") + "\n\n" + note)
    changes = source / "CHANGES"
    if changes.is_file() and not derivatives:
        today = datetime.now(UTC).date().isoformat()
        _write(output / "CHANGES", f"Refaced {today}\n  - {DONE} by RefaceCGAN {__version__}.\n\n{_text(changes)}")
    ignored = _text(source / ".bidsignore").splitlines()
    if IGNORED not in ignored:
        ignored.append(IGNORED)
    _write(output / ".bidsignore", "\n".join(ignored) + "\n")
    missing = {row.path for row in rows if row.action in ("withhold", "leave")}
    for row in rows:
        if row.action == "copy" and row.path.endswith("_scans.tsv"):
            _shorten(source / row.path, output / row.path, PurePosixPath(row.path).parent, missing)


def _describe(source: Path, output: Path, derivatives: bool) -> None:
    path = source / DESCRIPTION
    content: dict[str, Any] = {"Name": source.resolve().name, "BIDSVersion": "1.9.0"}
    if path.is_file():
        try:
            content = json.loads(_text(path))
            made = list(content.get("GeneratedBy", []))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no JSON object; mend it first.") from error
    else:
        made = []
    entry = {"Name": "RefaceCGAN", "Version": __version__, "Description": f"{DONE}."}
    content["GeneratedBy"] = [*made, entry]
    if derivatives:
        content["DatasetType"] = "derivative"
        if doi := content.pop("DatasetDOI", None):
            content["SourceDatasets"] = [{"DOI": doi}]
    write_json(content, output / DESCRIPTION)


def _shorten(source: Path, target: Path, folder: PurePosixPath, missing: set[str]) -> None:
    """A list of scans without those that are not in the output."""
    lines = _text(source).splitlines(keepends=True)
    kept = lines[:1]
    for line in lines[1:]:
        name = next(csv.reader(io.StringIO(line), delimiter="\t"), [""])[0]
        if (folder / name).as_posix() not in missing:
            kept.append(line)
    if kept != lines:
        _write(target, "".join(kept))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
