"""Data sets made of the real heads, for the tests: scans of other contrasts on other grids, series, sidecars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from RefaceCGANLib import Volume
from scipy import ndimage
from scipy.spatial.transform import Rotation


def other_contrast(
    head: Volume,
    spacing: Sequence[float] = (1.5, 1.5, 4.0),
    turn: float = 4.0,
    move: Sequence[float] = (3, -4, 5),
    bright: bool = True,
) -> tuple[Volume, np.ndarray]:
    """A head as it looks T2-weighted (bright: what is dark in T1) or much like T1-weighted, turned (degrees) and
    moved (mm) in the scanner and on another grid, RAS; and the map (4, 4) from the head's to its millimetres."""
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("xyz", [turn, -turn, turn / 2], degrees=True).as_matrix()
    moved[:3, 3] = move
    shape = [round(extent / step) for extent, step in zip((190, 240, 220), spacing, strict=True)]
    affine = np.diag([*spacing, 1.0])
    middle = (head.affine @ [*((np.array(head.shape) - 1) / 2), 1.0])[:3]
    affine[:3, 3] = middle - np.array(spacing) * (np.array(shape) - 1) / 2
    values = head.array / np.percentile(head.array, 99)
    values = values.clip(0, 1.2)
    values = (
        np.where(values > 0.08, 1.1 - 0.8 * values, values * 0.5) if bright else 0.2 * values + 0.8 * values**2
    )
    index = np.linalg.inv(head.affine) @ np.linalg.inv(moved) @ affine
    made = ndimage.affine_transform(1000 * values, index[:3, :3], index[:3, 3], output_shape=shape, order=1)
    made += np.random.default_rng(0).rayleigh(8, made.shape)
    return Volume.from_array(made.astype(np.int16), affine), moved


def without_face(head: Volume, brain: np.ndarray) -> Volume:
    """A head whose face was taken off by a plane below and in front of the brain, as some tools do it. brain: bool
    (I, J, K)."""
    index = np.indices(head.shape).reshape(3, -1)
    y, z = (head.affine @ np.vstack([index, np.ones(index.shape[1])]))[1:3].reshape(2, *head.shape)
    lowest, foremost = z[brain].min(), y[brain].max()
    back = y[brain & (z < lowest + 12)].min()
    # from the back of the cerebellum's floor to the forehead, 6 mm away from the brain
    slope = (z[brain & (y > foremost - 4)].min() - lowest) / (foremost - back)
    height = (z - slope * (y - back))[brain].min() - 6 / np.cos(np.arctan(slope))
    face = (z < slope * (y - back) + height) & (y > back + 40) | (y > foremost + 10)
    stored = head.stored.copy()
    stored[face] = 0
    return head.with_stored(stored)


def time_series(volume: Volume, count: int, path: Path) -> None:
    """A NIfTI file of `count` volumes that differ in noise alone."""
    random = np.random.default_rng(1)
    frames = [volume.stored + random.integers(0, 9, volume.shape) for _ in range(count)]
    image = nib.Nifti1Image(np.stack(frames, axis=3).astype(np.int16), volume.affine)
    image.header.set_zooms((*volume.spacing, 2.0))
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write(path: Path, content: Volume | dict | str | bytes) -> Path:
    """Any kind of file of a data set, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Volume):
        content.write(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return path


def describe(root: Path) -> None:
    """What every BIDS data set has at its top."""
    write(root / "dataset_description.json", {"Name": "Heads", "BIDSVersion": "1.9.0", "DatasetType": "raw"})
    write(root / "README", "Heads of people who consented.\n" * 8)
    write(root / "CHANGES", "1.0.0 2026-01-01\n  - First version.\n")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
