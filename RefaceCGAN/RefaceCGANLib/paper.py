"""What Molchanova et al. 2023 (section 2.2) do around their generator: masks are closed, intensities are
Winsorised by the training set's, and what the generator leaves dark in the face region becomes air.

Arrays are in ASL order, (A, S, L).
"""

from __future__ import annotations

import numpy as np

from .errors import CheckError
from .spatial.grid import dilate, erode
from .intensity import LOW_PERCENTILE, IntensityScale

CLOSING = 2
"""Voxels of the scan: half the side of the cube by which both masks are closed, less half a voxel. The paper gives
no size; this one closes what a face mask and a thresholded face show of holes and slits."""
AIR = 3 / 255
"""Share of the intensity range below which a generated voxel is air (the paper: 3 of 255)."""
HIGHEST_PERCENTILE = 99.9
"""Of all voxels of the training set, in units of each scan's tissue level: the upper limit of intensities. The
paper gives no percentile; above this one lies the fat of a few heads near the coil."""


def closed(mask: np.ndarray) -> np.ndarray:
    """The closing of a bool mask (A, S, L) by a cube of 2 * `CLOSING` + 1 voxels. Contains the mask."""
    import torch

    around = np.pad(mask, CLOSING)
    return np.asarray(erode(dilate(torch.from_numpy(around), CLOSING), CLOSING).numpy())[
        CLOSING:-CLOSING, CLOSING:-CLOSING, CLOSING:-CLOSING
    ]


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
