"""Makes the sharp sample head: python Testing/Python/slicer_module/sharp_head.py SOURCE OUT.nii.gz SEED

SOURCE is a T1-weighted scan of a real head whose licence lets it be passed on (see
Resources/SampleData/README.md). It gets a new face with the checks of `refacecgan reface`, then what lies
outside the head is set to 0, empty borders are cut off, and intensities are rounded to few values, so that the
file is small. Prints its size and its SHA-256, which belongs into RefaceCGAN.py.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.rendering.skin_surface import skin_threshold
from scipy import ndimage

MARGIN_MM = 3.0
"""What stays around the skin, so that its blurred edge does; and empty voxels around the head."""
LEVELS = 100
"""Grey values: noise needs no more, and each bit of noise makes the file larger."""
BRIGHTEST = 99.95
"""Percentile of the head that gets the highest value; brighter voxels, which are vessels, are clipped."""
LARGEST = 3_000_000
"""Bytes."""


def small(scan: Volume) -> Volume:
    """The head alone, in 8 bits."""
    spacing = np.array(scan.spacing)
    tissue = scan.array > skin_threshold(scan.array, scan.spacing)
    parts, _count = ndimage.label(ndimage.binary_opening(tissue, iterations=1))
    head = parts == np.bincount(parts[parts > 0]).argmax()
    near = ndimage.distance_transform_edt(~head, sampling=spacing) <= MARGIN_MM
    head = ndimage.binary_fill_holes(ndimage.binary_closing(near, iterations=4) | near)
    top = np.percentile(scan.array[head], BRIGHTEST)
    values = np.where(head, np.rint((scan.array / top * LEVELS).clip(0, LEVELS)), 0).astype(np.uint8)
    at = np.argwhere(head)
    pad = np.ceil(MARGIN_MM / spacing).astype(int)
    first = np.maximum(at.min(axis=0) - pad, 0)
    last = np.minimum(at.max(axis=0) + 1 + pad, head.shape)
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [*first, 1.0])[:3]
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    return Volume.from_array(np.ascontiguousarray(values[box]), affine)


def make(source: Path, target: Path, seed: int) -> None:
    refacer = Refacer.from_pretrained(device="cpu", threads=1)
    result = refacer.reface(Volume.read(source), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        small(result.volume).write(Path(folder) / "head.nii")
        content = gzip.compress((Path(folder) / "head.nii").read_bytes(), 9, mtime=0)
    target.write_bytes(content)
    print(f"{target}: {len(content) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}")
    if len(content) > LARGEST:
        sys.exit(f"It is larger than {LARGEST / 1e6:.0f} MB.")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
