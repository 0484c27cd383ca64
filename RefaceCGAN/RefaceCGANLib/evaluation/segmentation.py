"""A labelled scan, the volumes of its regions, and the Dice of two."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..volume.files import atomic_path


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One labelled scan. labels: uint8 (I, J, K), 0 is background.  affine: (4, 4) voxel index -> RAS+ mm.
    regions: name -> the labels (not 0) it is made of; a label may belong to several regions."""

    labels: np.ndarray
    affine: np.ndarray
    regions: dict[str, tuple[int, ...]]

    def volumes(self) -> dict[str, float]:
        """Region -> ml."""
        voxel_ml = abs(np.linalg.det(self.affine[:3, :3])) / 1000
        counts = np.bincount(self.labels[self.labels > 0], minlength=256)
        return {name: float(counts[list(ids)].sum() * voxel_ml) for name, ids in self.regions.items()}

    def write(self, path: Path) -> None:
        """Write a NIfTI file (.nii.gz) with the regions as JSON in its comment; complete or not at all."""
        import nibabel as nib

        image: Any = nib.Nifti1Image(self.labels, self.affine)
        comment = nib.nifti1.Nifti1Extension("comment", json.dumps(self.regions).encode())
        image.header.extensions.append(comment)
        with atomic_path(path) as temporary:
            nib.save(image, temporary)

    @classmethod
    def read(cls, path: Path) -> Segmentation:
        """Read what `write` wrote. Raises InputError for any other file."""
        import nibabel as nib

        try:
            image: Any = nib.load(path)
            (comment,) = image.header.extensions
            regions = {name: tuple(ids) for name, ids in json.loads(comment.get_content()).items()}
            return cls(np.asarray(image.dataobj, dtype=np.uint8), image.affine, regions)
        except Exception as error:  # whatever a library throws at a broken file
            raise InputError(f"{path} is no segmentation; remove it, so that it is made again.") from error


def dice(a: Segmentation, b: Segmentation) -> dict[str, float]:
    """Region -> Dice, for the regions that both know; NaN where neither has a voxel of it.

    Raises InputError unless both lie on one grid."""
    if a.labels.shape != b.labels.shape or not np.allclose(a.affine, b.affine, atol=1e-3):
        raise InputError("The segmentations lie on different grids; compare scans of one geometry.")
    used = (a.labels > 0) | (b.labels > 0)
    pairs = np.bincount(a.labels[used] * np.uint16(256) + b.labels[used], minlength=256 * 256).reshape(256, 256)
    result = {}
    for name in a.regions.keys() & b.regions.keys():
        in_a, in_b = list(a.regions[name]), list(b.regions[name])
        both, size = pairs[np.ix_(in_a, in_b)].sum(), pairs[in_a].sum() + pairs[:, in_b].sum()
        result[name] = float(2 * both / size) if size else math.nan
    return {name: result[name] for name in a.regions if name in result}
