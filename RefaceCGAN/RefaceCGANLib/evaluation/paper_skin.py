"""The rendering of Molchanova et al. 2023, appendix C, by scikit-image: `refacecgan render --method paper`.

Winsorise, equalise the histogram, smooth, and take the isosurface at one threshold by marching cubes. The paper's
authors chose the threshold by hand for each scan (80 to 120 of 255). An equalised histogram is flat, so the right
threshold depends on how much of the field of view is air: here it is midway between the means of the equalised
air and tissue, which `surface.skin_threshold` tells apart, unless one is given.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..rendering.skin_surface import Surface, skin_threshold
from ..volume.volume import Volume

WINSORISED = 0.1, 99.9
"""Percentiles beyond which intensities are cut off."""
SMOOTHED = 1.0
"""Voxels: standard deviation of the Gaussian. Taken here: the paper names none."""


def paper_surface(volume: Volume, threshold: float | None = None) -> Surface:
    """The isosurface of a scan as in appendix C, RAS+ mm. threshold: 0 to 255, of the equalised intensities.

    Raises InputError where nothing lies at the threshold."""
    from scipy import ndimage
    from skimage.exposure import equalize_hist
    from skimage.measure import marching_cubes

    values = volume.array
    low, high = np.percentile(values, WINSORISED)
    winsorised = np.clip(values, low, high)
    equalised = 255 * equalize_hist(winsorised, nbins=256)
    if threshold is None:
        air = float(np.mean(winsorised < skin_threshold(values, volume.spacing)))
        threshold = 255 * (air / 2 + (1 + air) / 2) / 2
    if not 0 < threshold < 255:
        raise InputError(f"The paper's threshold lies between 0 and 255, not at {threshold:g}; give e.g. 100.")
    smooth = np.pad(ndimage.gaussian_filter(equalised, SMOOTHED), 1)  # beyond the field of view lies air
    if not smooth[1:-1, 1:-1, 1:-1].min() < threshold < smooth.max():
        raise InputError(f"The scan shows no surface at the threshold {threshold:g}; choose another one.")
    points, triangles, normals, _ = marching_cubes(smooth, threshold, gradient_direction="ascent")
    matrix = volume.affine[:3, :3]
    points = (points - 1) @ matrix.T + volume.affine[:3, 3]
    normals = normals @ np.linalg.inv(matrix)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    if np.linalg.det(matrix) < 0:
        triangles = triangles[:, ::-1]
    return Surface(points.astype(np.float32), triangles.astype(np.int32), normals.astype(np.float32))
