"""Training examples for a generator on the scans' own grid: sub-volumes of plain scans with face masks.

No template, no prior, no brain labels: any folder of heads will do, each with a mask of its face region as
`refacecgan deface --mask` writes it. This is how the paper trains (Molchanova et al. 2023, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ..errors import InputError
from ..paper import HIGHEST_PERCENTILE, closed, tissue_level
from ..spatial.grid import AslView, resample_axes, sample
from ..volume.volume import Volume
from .examples import Example

LARGEST = 256
"""Voxels along an axis, at most (section 2.2): longer axes are resampled."""


@dataclass(frozen=True)
class NativeHead:
    """One scan, arrays (A, S, L) with the scan's own voxels (at most `LARGEST` along an axis).

    image: float16, above air, in units of the scan's tissue level (`paper.tissue_level`).  region: bool, the
    closed face region.  Both may lie on disk.
    box: (2, 3), first and last voxel of the face region along each axis.  spacing: mm along each axis."""

    image: np.ndarray
    region: np.ndarray
    box: np.ndarray
    spacing: tuple[float, float, float]

    @classmethod
    def read(cls, scan: Path, mask: Path, cache: Path) -> NativeHead:
        """Read a scan and its face mask (above 0, same grid), and keep what is made of them in the folder
        `cache`: from there voxels are read when they are needed, so that a large data set fits.

        Raises InputError for a mask of another shape, and for an empty one."""
        parts = ("image", "region", "spacing")
        files = [cache / f"{scan.parent.name}-{scan.name}-{part}.npy" for part in parts]
        changed = max(path.stat().st_mtime for path in (scan, mask))
        if not all(file.exists() and file.stat().st_mtime >= changed for file in files):
            cache.mkdir(parents=True, exist_ok=True)
            for file, array in zip(files, _in_tissue_levels(scan, mask), strict=True):
                np.save(file.with_suffix(".part.npy"), array)
                file.with_suffix(".part.npy").replace(file)
        image, region, spacing = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        sides = [np.flatnonzero(region.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        box = np.array([[side[0] for side in sides], [side[-1] for side in sides]])
        return cls(image, region, box, (float(spacing[0]), float(spacing[1]), float(spacing[2])))


def _in_tissue_levels(scan: Path, mask: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan in ASL order in units of its tissue level, float16, its closed face region, bool, and its spacing."""
    volume, wanted = Volume.read(scan), Volume.read(mask)
    if wanted.shape != volume.shape:
        raise InputError(f"{mask} has another shape than {scan.name}; give a mask on the same grid.")
    view = AslView.of(volume)
    image, spacing = view.to_asl(volume.array), view.spacing
    region = view.to_asl(wanted.stored > 0)
    if max(image.shape) > LARGEST:
        shape = tuple(min(length, LARGEST) for length in image.shape)
        target = tuple(mm * n / m for mm, n, m in zip(spacing, image.shape, shape, strict=True))
        image = resample_axes(image, spacing, target, shape)
        region = resample_axes(region, spacing, target, shape) > 0.5
        spacing = target
    if not region.any():
        raise InputError(f"{mask} marks no face; give a mask that is above 0 in the face region.")
    region = closed(region)
    low, tissue = tissue_level(image, ~region)
    return ((image - low) / tissue).astype(np.float16), np.ascontiguousarray(region), np.array(spacing)


def highest_of(heads: Sequence[NativeHead]) -> float:
    """The upper limit of intensities of a training set, in units of the tissue level (`HIGHEST_PERCENTILE` of all
    its voxels, of which every eighth is looked at)."""
    some = np.concatenate([np.asarray(head.image[::2, ::2, ::2]).ravel() for head in heads])
    return float(np.percentile(some.astype(np.float32), HIGHEST_PERCENTILE))


def example(
    head: NativeHead,
    shape: tuple[int, int, int],
    rng: np.random.Generator,
    highest: float,
    spacing: float | None = None,
    mirror: bool = False,
) -> Example:
    """A random sub-volume of `shape` (A, S, L): its centre lies in the box around the face region.

    highest: the upper limit of intensities (`highest_of`).  spacing: mm, to which the scan is resampled; None: its
    own voxels.  mirror: left and right are exchanged in every second example.
    condition (1, 1, A, S, L) is the defaced block alone; the rest as in `Example`, but the loss regards the whole
    block. Where the scan is smaller than the block, what lies beyond its end is -1 and not part of the loss."""
    size = head.image.shape
    step = np.ones(3) if spacing is None else spacing / np.array(head.spacing)
    centre = rng.uniform(head.box[0], head.box[1] + 1)
    reach = np.array(shape) * step
    first = np.clip(np.round(centre - reach / 2), 0, np.maximum(np.array(size) - reach, 0)).astype(int)
    last = np.minimum(first + (shape if spacing is None else np.ceil(reach).astype(int) + 1), size)
    block = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    image = np.asarray(head.image[block], np.float32) * np.float32(2 / highest)
    parts = torch.from_numpy(np.stack([image.clip(0, 2), head.region[block], np.ones_like(image)]))
    if spacing is None:
        short = [side - length for side, length in zip(shape, image.shape, strict=True)]
        parts = functional.pad(parts, [amount for missing in reversed(short) for amount in (0, missing)])
    else:
        parts = sample(parts, np.diag([*step, 1.0]), shape)
    if mirror and rng.random() < 0.5:
        parts = parts.flip(3)
    target, region, seen = (part[None, None] for part in parts)
    target, region = target - 1, (region > 0.5).float()
    return Example(
        condition=torch.where(region > 0.5, torch.full_like(target, -1.0), target),
        target=target,
        region=region,
        loss_region=(seen > 0.99).float(),
    )
