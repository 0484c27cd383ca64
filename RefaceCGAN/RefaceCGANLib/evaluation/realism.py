"""Realism: are the new faces like real ones, and can it be seen where they begin?"""

from __future__ import annotations

import numpy as np

from ..rendering.skin_surface import skin_threshold
from ..spatial.grid import largest_part, resample_axes
from ..volume.volume import Volume

AXES = 4
"""Principal axes the Frechet distance is measured along. A few faces do not determine the covariance of 256
numbers: between two samples of 15 originals in four views they give 0.60 (standard deviation 0.02) and between
originals and refaced scans 0.74; four axes give 0.02 (0.01) and 0.25."""
SEAM_STEP = 2.0  # mm; finer scans are resampled to this
SEAM_MM = 2.5  # from the border of the face region: the seam
ELSEWHERE_MM = 5.0, 20.0  # the skin on both sides that it is compared with
SKIN_MM = 6.0  # what is smaller is no part of the head's shape: a step in the skin does not turn its direction
BRIGHTEST = 2.0  # times the skin threshold: brighter tissue is all the same, as fat and muscle are no seam
CROSSING = 0.5  # sine of the least angle between border and skin; where they run side by side nothing is crossed


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two samples of embeddings (N, D) and (M, D), each taken for a normal distribution
    (Heusel et al. 2017), along the first `AXES` principal axes of both together.

    0 for equal samples; two small samples of the same faces still lie a little apart, so compare tools on one
    cohort. Rows with NaN (no face) are left out; NaN where fewer than two are left.
    """
    a, b = (rows[~np.isnan(rows).any(axis=1)].astype(np.float64) for rows in (a, b))
    if min(len(a), len(b)) < 2:
        return float("nan")
    both = np.concatenate([a, b])
    axes = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)[2][:AXES].T
    a, b = a @ axes, b @ axes
    apart = a.mean(axis=0) - b.mean(axis=0)
    # x.T @ x is the covariance, and the trace of (cov_a cov_b)^1/2 the nuclear norm of x_a @ x_b.T
    x_a, x_b = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
    spread = np.sum(x_a**2) + np.sum(x_b**2) - 2 * np.linalg.norm(x_a @ x_b.T, "nuc")
    return float(max(0.0, apart @ apart + spread))


def seam(volume: Volume, face_region: np.ndarray, threshold: float | None = None) -> float:
    """How visible the border of the face region is: the change of intensity across it, on the skin, over that in
    the same direction on the skin nearby. 1: as in an original; 2: twice as much, a visible edge.

    face_region: bool (I, J, K), the voxels that the tool changed, holes and loose voxels included. threshold:
    where the skin begins, in real values (default: `surface.skin_threshold`). "Across" is the direction away
    from the border along the skin; the skin is the layer of voxels on either side of the head's surface;
    intensities count between air and `BRIGHTEST` thresholds, so that a step in the surface weighs as much as one
    in the tissue under it. NaN where no border of the region lies on the skin.
    Raises InputError where the scan shows nothing.
    """
    from scipy import ndimage

    if threshold is None:
        threshold = skin_threshold(volume.array, volume.spacing)
    step = tuple(max(mm, SEAM_STEP) for mm in volume.spacing)
    values = resample_axes(volume.array, volume.spacing, step)
    region = resample_axes(face_region, volume.spacing, step)
    region = ndimage.gaussian_filter(region, np.divide(SEAM_STEP, step)) > 0.5
    if region.all() or not region.any():
        return float("nan")
    air = float(np.percentile(values, 1))
    values = np.clip((values - air) / (threshold - air), 0, BRIGHTEST)
    head = _solid(values >= 1, step)
    from_border = ndimage.distance_transform_edt(region, step) - ndimage.distance_transform_edt(~region, step)
    inward = _gradient(ndimage.gaussian_filter(head.astype(np.float32), np.divide(SKIN_MM, step)), step)
    inward /= np.maximum(np.linalg.norm(inward, axis=0), 1e-6)
    along = _gradient(ndimage.gaussian_filter(from_border, np.divide(SEAM_STEP, step)), step)
    along /= np.maximum(np.linalg.norm(along, axis=0), 1e-6)
    along -= np.sum(along * inward, axis=0) * inward
    length = np.linalg.norm(along, axis=0)
    skin = ndimage.binary_dilation(head) & ~ndimage.binary_erosion(head) & (length > CROSSING)
    skin &= np.pad(np.ones(np.subtract(skin.shape, 4), dtype=bool), 2)  # the field of view ends in an edge
    change = np.abs(np.sum(_gradient(values, step) * along, axis=0))[skin] / length[skin]
    away = np.abs(from_border[skin])
    at_border = change[away <= SEAM_MM]
    elsewhere = change[(away > ELSEWHERE_MM[0]) & (away < ELSEWHERE_MM[1])]
    if not (at_border.size and elsewhere.any()):
        return float("nan")
    return float(at_border.mean() / elsewhere.mean())


def _solid(tissue: np.ndarray, step: tuple[float, ...]) -> np.ndarray:
    """The largest piece of a mask (I, J, K), closed by `SKIN_MM` and filled."""
    from scipy import ndimage

    rounds = max(1, round(SKIN_MM / min(step)))
    padded = ndimage.binary_closing(np.pad(largest_part(tissue), rounds), iterations=rounds)
    filled: np.ndarray = ndimage.binary_fill_holes(padded)
    return filled[(slice(rounds, -rounds),) * 3]


def _gradient(array: np.ndarray, step: tuple[float, ...]) -> np.ndarray:
    """(I, J, K) -> (3, I, J, K) float32, per mm."""
    return np.stack([part.astype(np.float32) for part in np.gradient(array, *step)])
