"""Files: a refaced scan and what belongs to it, written together or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..volume.volume import SUFFIXES, Volume, check_output

PICTURE_VIEWS = "frontal", "three-quarter"


@dataclass(frozen=True)
class Reported:
    """A report without its result, for the functions of `report`."""

    report: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """The files that were written; None for what was not asked for or is not there."""

    scan: Path
    mask: Path | None = None
    report: Path | None = None
    sidecar: Path | None = None
    picture: Path | None = None


def write(
    path: str | os.PathLike[str],
    scan: Volume,
    region: Volume | None = None,
    report: dict[str, Any] | None = None,
    source: Path | None = None,
    picture: bool = False,
    protected: Sequence[Path] = (),
) -> Written:
    """Write a refaced scan to `path` (.nii.gz, .nii, .nrrd, .mgh, .mgz) and what belongs to it beside it.

    With "head.nii.gz": head_face-region.nii.gz (region), head_report.json (report; source is the file that was
    refaced, if that is known), head.json (BIDS sidecar, where the report tells of a face; fields are added to a
    sidecar that is there) and head.png (the refaced face, and only that). All of them appear, or none.

    Raises InputError where one of the files cannot be written or is one of `protected`.
    """
    path = check_output(path, protected)
    suffix = next(ending for ending in SUFFIXES if path.name.lower().endswith(ending))
    stem = path.name[: -len(suffix)]

    def beside(ending: str, wanted: bool) -> Path | None:
        target = path.with_name(stem + ending)
        return check_output(target, protected, (target.suffix,)) if wanted else None

    written = Written(
        path,
        mask=beside(f"_face-region{suffix}", region is not None),
        report=beside("_report.json", bool(report)),
        sidecar=beside(".json", bool(report and "seed" in report)),
        picture=beside(".png", picture),
    )
    fields = _read_sidecar(written.sidecar) if written.sidecar else {}
    hidden = path.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".refacecgan-", dir=path.parent) as folder:
            hidden = Path(folder)
            scan.write(hidden / path.name)
            if written.mask and region is not None:
                region.write(hidden / written.mask.name)
            if written.report and report:
                _write_report(report, source, hidden / path.name, hidden / written.report.name)
            if written.sidecar and report:
                _write_sidecar(report, fields, hidden / written.sidecar.name)
            if written.picture:
                _draw(scan, hidden / written.picture.name)
            for target in filter(None, vars(written).values()):
                os.replace(hidden / target.name, target)
    except InputError as error:
        raise InputError(str(error).replace(str(hidden), str(path.parent))) from error
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path} cannot be written ({why}); choose another place.") from error
    return written


def write_dicom(
    folder: str | os.PathLike[str],
    scan: Volume,
    region: np.ndarray,
    sources: Sequence[Path],
    uid_key: bytes,
    seed: int | None,
) -> tuple[Path, list[str]]:
    """Write a refaced scan as the DICOM series that its original was read from, into a new folder, all or nothing.

    scan: may have its axes in another order or direction than the series, as another program has read it; region:
    bool (I, J, K), outside which it must be the series.  sources: the files of the series.  uid_key: decides the
    new UIDs (`volume.dicom_output.new_uid`).  seed: None where the face was emptied.

    Returns the folder and warnings. Raises InputError where the scan is not of this series, or where something
    cannot be written."""
    from ..volume import dicom_output

    folder = Path(folder)
    original = dicom_output.read_files(sources)
    array, inside = (_on_grid(part, scan.affine, original) for part in (scan.array, region))
    same = np.isclose(array, original.array, rtol=1e-4, atol=max(abs(original.slope), 1e-6) / 2)
    if not same[~inside].all():
        raise InputError("The scan differs from its DICOM files outside the face; save it in another format.")
    stored = original.stored.copy()
    stored[inside & ~same] = original.to_stored(array[inside & ~same])
    dicom_output.check_folder(folder, Path(os.path.commonpath([str(file.parent) for file in sources])))
    what = "face region emptied" if seed is None else "face replaced by a generated one"
    try:
        with tempfile.TemporaryDirectory(prefix=".refacecgan-", dir=folder.parent) as hidden:
            made = Path(hidden) / folder.name
            made.mkdir()
            targets = [made / f"{number:05d}.dcm" for number in range(1, len(sources) + 1)]
            dicom_output.write_series(sources, targets, original, original.with_stored(stored), uid_key, what)
            tags = dicom_output.identifying(targets[0])
            if folder.exists():
                folder.rmdir()  # it is empty
            os.replace(made, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another place.") from error
    return folder, [dicom_output.NOT_ANONYMOUS.format(tags=", ".join(tags))] if tags else []


def _on_grid(array: np.ndarray, affine: np.ndarray, like: Volume) -> np.ndarray:
    """Voxels (I, J, K) in the axes of another volume that holds them at the same places. Raises InputError where
    it does not."""
    step = np.linalg.inv(like.affine) @ affine  # from index to index
    axes = np.abs(step[:3, :3]).argmax(axis=0)
    if sorted(axes) == [0, 1, 2]:
        turned = array.transpose(np.argsort(axes))
        turned = turned[
            tuple(slice(None, None, int(np.sign(step[axis, list(axes).index(axis)]))) for axis in range(3))
        ]
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float).T
        corners[:3] *= np.array(array.shape)[:, None] - 1
        lowest = (step @ corners)[:3].min(axis=1)
        there = np.abs(step[:3, :3]).round(3)
        if (
            turned.shape == like.shape
            and np.abs(lowest).max() < 0.05
            and np.allclose(there, there.round(), atol=1e-2)
        ):
            return np.ascontiguousarray(turned)
    raise InputError("The scan lies otherwise than its DICOM files; save it in another format.")


def _write_report(report: dict[str, Any], source: Path | None, scan: Path, target: Path) -> None:
    from ..report import file_sha256, report_of, write_json

    if source:
        report = report_of(Reported(report), source, scan)
    else:
        report = report | {"output": scan.name, "output_sha256": file_sha256(scan)}
    write_json(report, target)


def _read_sidecar(path: Path) -> dict[str, Any]:
    """The fields of a sidecar; {} where there is none."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no BIDS sidecar; move it away or choose another name for the scan.")
    return content


def _write_sidecar(report: dict[str, Any], fields: dict[str, Any], target: Path) -> None:
    from ..report import bids_sidecar, write_json

    write_json(fields | bids_sidecar(Reported(report)), target)


def _draw(scan: Volume, target: Path) -> None:
    from ..rendering.skin_surface import render, skin_surface, write_png

    pictures = render(skin_surface(scan.array, scan.affine), PICTURE_VIEWS)
    write_png(np.concatenate(pictures, axis=1), target)
