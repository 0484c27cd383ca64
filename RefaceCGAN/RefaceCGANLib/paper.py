"""What Molchanova et al. 2023 (section 2.2) do around their generator: masks are closed, intensities are
Winsorised by the training set's, and what the generator leaves dark in the face region becomes air.

Arrays are in ASL order, (A, S, L), on the scan's own grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .composition import Composed
from .errors import CheckError
from .intensity import LOW_PERCENTILE, IntensityScale
from .spatial.grid import bounding_box

if TYPE_CHECKING:
    from .anatomy.location import Anatomy

AIR = 3 / 255
"""Share of the intensity range below which a generated voxel is air, where the card names none (the paper: 3 of
255). Heads whose air is noisier need a higher one."""
HIGHEST_PERCENTILE = 99.9
"""Of all voxels of the training set, in units of each scan's tissue level: the upper limit of intensities. The
paper gives no percentile; above this one lies the fat of a few heads near the coil."""


def closed(mask: np.ndarray) -> np.ndarray:
    """The closing of a bool mask (A, S, L) by a voxel and its six neighbours, the usual element: the paper gives
    none. Contains the mask."""
    from scipy import ndimage

    if not mask.any():
        return mask
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in bounding_box(mask))
    result = mask.copy()
    result[box] = ndimage.binary_closing(np.pad(mask[box], 1))[1:-1, 1:-1, 1:-1]
    return result


def face_mask(found: Anatomy) -> np.ndarray:
    """The closed face region of a scan, without the voxels of the brain: bool (A, S, L)."""
    return closed(found.face_region) & ~(found.brain_mask | found.second_brain)


def compose(face: np.ndarray, region: np.ndarray, scale: IntensityScale, dark: float = AIR) -> Composed:
    """Put a generated face into the scan: where it is dark it becomes air, of the level 0 above air, and the air
    is closed; nothing else is changed. face: (N,) -1..1, at the True voxels of `region` (A, S, L), in C order.
    dark: share of the intensity range below which a voxel is air."""
    air = np.zeros(region.shape, bool)
    air[region] = (face + 1) / 2 < dark
    air = closed(air) & region
    values = np.where(air[region], np.float32(0), scale.restore(face))
    return Composed(values=values, air_mask=air)


def tissue_level(values: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """The level of air and that of tissue above it, from the voxels `outside` the face region (bool, same
    shape): the 1st percentile, and the median of what is brighter than the mean.

    Raises CheckError where no tissue is brighter than the air."""
    kept = values[outside]
    low = float(np.percentile(kept, LOW_PERCENTILE))
    tissue = kept[kept > kept.mean()]
    if not tissue.size or not np.median(tissue) > low:
        raise CheckError("Head and background have the same intensity; give a scan that shows the head.")
    return low, float(np.median(tissue)) - low


def scale_of(values: np.ndarray, outside: np.ndarray, highest: float) -> IntensityScale:
    """The map of a scan's intensities to -1..1. highest: the training set's upper limit, in units of the tissue
    level; the rest as in `tissue_level`. Raises CheckError."""
    low, tissue = tissue_level(values, outside)
    return IntensityScale(low, low + highest * tissue)
