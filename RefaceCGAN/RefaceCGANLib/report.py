"""Reports: what was done to one scan, as report.json and as fields for a BIDS sidecar.

Nothing in them says where a file lay: a folder's name may be a person's.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import __version__
from .checks import Check, value_of
from .volume.files import atomic_path
from .volume.volume import Volume

if TYPE_CHECKING:
    from .refacer import Prepared, Refacer

VISUAL_FEATURES = {
    "CodeValue": "113102",
    "CodeMeaning": "Clean Recognizable Visual Features Option",
    "CodingSchemeDesignator": "DCM",
}
"""What DICOM calls a removed face (PS3.16, CID 7050)."""


class Reported(Protocol):
    """A refacer.Result, a service.DefacedScan, or what else has a report."""

    @property
    def report(self) -> dict[str, Any]: ...


def report_of(result: Reported, source: Path, output: Path | None = None) -> dict[str, Any]:
    """What report.json holds: the report of a refaced or defaced scan, and which files it is about.

    source: the file or DICOM folder that was read.  output: the file that was written, if any.
    Raises OSError where one of them cannot be read.
    """
    return {**result.report, **_files(source, output)}


def scan_report(
    refacer: Refacer,
    prepared: Prepared,
    after: Volume,
    checks: list[Check],
    seconds: dict[str, float],
    seed: int | None = None,
    dropout: float = 0.0,
    force: bool = False,
) -> dict[str, Any]:
    """What report.json holds of a scan, but for the names of files.

    after: the refaced scan, or without a seed the defaced one, which needs the weights of the anatomy alone.
    checks: what was measured (`checks.check`).  seconds: of each stage.  force: a failed check did not stop it."""
    import torch

    original, anatomy = prepared.original, prepared.anatomy
    voxel_ml = float(np.prod(original.spacing)) / 1000
    face: dict[str, Any] = {} if seed is None else {"seed": seed, "dropout": dropout}
    forced = {} if seed is None else {"forced": force and not all(entry.passed for entry in checks)}
    weights = refacer.model.generator_sha256 if face else refacer.model.card["files"]["anatomy"]["sha256"]
    return {
        "program": "RefaceCGAN",
        "version": __version__,
        "model": refacer.model.id,
        "model_sha256": str(weights),
        **face,
        "device": str(refacer.device),
        "threads": torch.get_num_threads(),
        "seconds": rounded(seconds),
        "shape": list(original.shape),
        "voxel_size_mm": [round(mm, 4) for mm in original.spacing],
        "already_defaced": anatomy.already_defaced,
        "brain_voxels_changed": int(value_of(checks, "brain_voxels_changed")),
        "voxels_changed": int(np.count_nonzero(after.stored != original.stored)),
        "face_region_ml": round(float(np.count_nonzero(anatomy.face_region)) * voxel_ml, 1),
        "brain_agreement_dice": round(anatomy.agreement, 3),
        "template_misfit_mm": round(anatomy.misfit_mm, 2),
        "checks": [entry.report() for entry in checks],
        **forced,
        "warnings": [*original.warnings, *anatomy.warnings, *refacer.warnings],
    }


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage, to the millisecond."""
    return {stage: round(value, 3) for stage, value in seconds.items()}


def bids_sidecar(result: Reported) -> dict[str, Any]:
    """Fields to add to the BIDS sidecar (sub-*_T1w.json) of a refaced scan.

    DeidentificationMethod and DeidentificationMethodCodeSequence are BIDS's own (bids-specification #1772),
    after DICOM (0012,0063) and (0012,0064). BIDS has no field for a drawn face, but allows for fields of
    one's own: those that begin with Refac.
    """
    report = result.report
    tool = f"{report['program']} {report['version']}"
    return {
        "DeidentificationMethod": [f"{tool}: face replaced by a generated one (model {report['model']})"],
        "DeidentificationMethodCodeSequence": [dict(VISUAL_FEATURES)],
        "Refaced": True,
        "RefacingMethod": f"{tool}, a 3D conditional GAN (Molchanova et al. 2023)",
        "RefacingModel": report["model"],
        "RefacingModelSHA256": report["model_sha256"],
        "RefacingSeed": report["seed"],
        "RefacingDropout": report["dropout"],
    }


def write_json(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON file; it appears complete or not at all.

    Raises InputError where it cannot be written, and ValueError for NaN, which JSON does not know.
    """
    text = json.dumps(content, indent=2, allow_nan=False)  # ASCII: file names may hold anything
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def _files(source: Path, output: Path | None) -> dict[str, str | None]:
    return {
        "input": os.path.basename(os.path.abspath(source)),
        "input_sha256": file_sha256(source),
        "output": output.name if output else None,
        "output_sha256": file_sha256(output) if output else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of those of all files in a DICOM folder, one after the other by name."""
    parts = sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
