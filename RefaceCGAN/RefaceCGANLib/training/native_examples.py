"""Training examples for a generator on the scans' own grid: sub-volumes of plain scans with face masks.

No template, no prior, no brain labels: any folder of heads will do, each with a mask of its face region as
`refacecgan deface --mask` writes it. This is how the paper trains (Molchanova et al. 2023, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..intensity import IntensityScale
from ..spatial.grid import AslView, resample_axes
from ..volume.volume import Volume
from .examples import OVERLAP, Example

LARGEST = 256
"""Voxels along an axis, at most (section 2.2): longer axes are resampled."""


@dataclass(frozen=True)
class NativeHead:
    """One scan, arrays (A, S, L) with the scan's own voxels (at most `LARGEST` along an axis).

    image: float16, -1 to 1 by the intensity rule.  region: bool, the face region.  Both may lie on disk.
    box: (2, 3), first and last voxel of the face region along each axis."""

    image: np.ndarray
    region: np.ndarray
    box: np.ndarray

    @classmethod
    def read(cls, scan: Path, mask: Path, cache: Path) -> NativeHead:
        """Read a scan and its face mask (above 0, same grid), and keep what is made of them in the folder
        `cache`: from there voxels are read when they are needed, so that a large data set fits.

        Raises InputError for a mask of another shape, and for an empty one."""
        files = [cache / f"{scan.parent.name}-{scan.name}-{part}.npy" for part in ("image", "region")]
        changed = max(path.stat().st_mtime for path in (scan, mask))
        if not all(file.exists() and file.stat().st_mtime >= changed for file in files):
            cache.mkdir(parents=True, exist_ok=True)
            for file, array in zip(files, _normalised(scan, mask), strict=True):
                np.save(file.with_suffix(".part.npy"), array)
                file.with_suffix(".part.npy").replace(file)
        image, region = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        sides = [np.flatnonzero(region.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        return cls(image, region, np.array([[side[0] for side in sides], [side[-1] for side in sides]]))


def _normalised(scan: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """A scan in ASL order, -1 to 1, float16, and its face region, bool."""
    volume, wanted = Volume.read(scan), Volume.read(mask)
    if wanted.shape != volume.shape:
        raise InputError(f"{mask} has another shape than {scan.name}; give a mask on the same grid.")
    view = AslView.of(volume)
    image = view.to_asl(volume.array)
    region = view.to_asl(wanted.stored > 0)
    if max(image.shape) > LARGEST:
        shape = tuple(min(length, LARGEST) for length in image.shape)
        target = tuple(mm * n / m for mm, n, m in zip(view.spacing, image.shape, shape, strict=True))
        image = resample_axes(image, view.spacing, target, shape)
        region = resample_axes(region, view.spacing, target, shape) > 0.5
    if not region.any():
        raise InputError(f"{mask} marks no face; give a mask that is above 0 in the face region.")
    outside = ~region
    tissue = image > image[outside].mean()  # in place of the ring around the brain, which is not known here
    scale = IntensityScale.measure(image, tissue, outside)
    return scale.normalise(image).astype(np.float16), np.ascontiguousarray(region)


def example(head: NativeHead, shape: tuple[int, int, int], rng: np.random.Generator) -> Example:
    """A random sub-volume of `shape` (A, S, L): its centre lies in the box around the face region.

    condition (1, 1, A, S, L) is the defaced block alone; the rest as in `Example`. Where the scan is smaller
    than the block, what lies beyond its end is -1 and not part of the loss."""
    size = head.image.shape
    centre = rng.uniform(head.box[0], head.box[1] + 1)
    span = []
    for length, side, middle in zip(size, shape, centre, strict=True):
        start = int(np.clip(round(middle - side / 2), 0, max(length - side, 0)))
        span.append(slice(start, min(start + side, length)))
    block = tuple(span)
    short = [side - (part.stop - part.start) for side, part in zip(shape, block, strict=True)]
    padding = [amount for missing in reversed(short) for amount in (0, missing)]

    def cut(array: np.ndarray, outside: float) -> Tensor:
        part = torch.from_numpy(array[block].astype(np.float32))
        return functional.pad(part, padding, value=outside)[None, None]

    target, region = cut(head.image, -1.0), cut(head.region, 0.0)
    seen = functional.pad(torch.ones([part.stop - part.start for part in block]), padding)[None, None]
    return Example(
        condition=torch.where(region > 0.5, torch.full_like(target, -1.0), target),
        target=target,
        region=region,
        loss_region=functional.max_pool3d(region, 2 * OVERLAP + 1, stride=1, padding=OVERLAP) * seen,
    )
