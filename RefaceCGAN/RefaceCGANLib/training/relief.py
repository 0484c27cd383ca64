"""The relief of faces: what a smooth registration leaves over at the skin, and the modes of it.

Demons fields are smooth; eyelids, lips and the ridge of the nose are not. Once a head is carried to the template,
its skin is looked up along the normals of the average skin, and the heights found are a head's relief. A random
relief is what makes random faces differ as real ones do.
"""

from __future__ import annotations

import numpy as np

from ..face_model.template import Template, heights, trilinear, unit

OUTLIER_VOXELS = 1.5
"""Voxels: heights further than this from the median of their neighbours are replaced by it."""
NEIGHBOURS, NEAR = 21, 3.0
"""The neighbours of a skin point: their greatest number, and their greatest distance in voxels."""
SMOOTH = 0.8
"""Voxels: standard deviation of the smoothing of heights along the skin."""
FULL_WEIGHT = 0.05
"""The weight of a random shape from which a head's own shape counts in full."""
INVERSE_ITERATIONS = 30
MODES = 64
LEAST_MM = 0.07
"""Least standard deviation of a height."""
OUTLIER_DEVIATIONS = 2.5
"""Robust standard deviations of a point's height beyond which heads do not count in full: dental artefacts."""


def skin_points(mean: np.ndarray, skin: tuple[np.ndarray, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Points (N, 3) on the skin of an average head (A, S, L), -1..1, wherever random shapes may move it
    (`weight` above 0). skin: distance to it and direction (`Template.skin`). In voxels."""
    distance, normal = skin
    voxels = np.argwhere((distance < 0) & (distance > -1.01) & (weight > 0.01))
    outward = unit(normal[:, *voxels.T].T)
    height = heights(mean, np.ones_like(mean), voxels.astype(float), outward)
    found = np.isfinite(height) & (np.abs(height) < 3)
    return (voxels[found] + height[found, None] * outward[found]).astype(np.float32)


class Relief:
    """Measures heads against one template (cropped to the working grid)."""

    def __init__(self, template: Template) -> None:
        from scipy.spatial import cKDTree

        self.template = template
        self.points = template.relief_points.astype(np.float64)
        self.near = cKDTree(self.points).query(self.points, NEIGHBOURS)

    def of(self, image: np.ndarray, valid: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """The relief (N,) in mm of a head (A, S, L), -1..1, of shape (3, a, s, l) RAS mm as in `WorkingHead`.
        Where the skin is not seen it is that of the neighbours, or 0."""
        displacement = self.template.weighted(shape, FULL_WEIGHT).numpy()
        at = self.points.copy()
        for _ in range(INVERSE_ITERATIONS):
            at = self.points - trilinear(displacement, at).T
        height = heights(image, valid, at, self.template.relief_normals)
        distance, nearest = self.near
        around = np.where(distance < NEAR, height[nearest], np.nan)
        seen = np.isfinite(around).any(axis=1)
        middle = np.zeros(len(height))
        middle[seen] = np.nanmedian(around[seen], axis=1)
        trusted = np.abs(height - middle) < OUTLIER_VOXELS  # False where the skin was not found
        height = np.where(trusted, height, middle)
        shares = np.exp(-0.5 * (distance / SMOOTH) ** 2)
        return (height[nearest] * shares).sum(axis=1) / shares.sum(axis=1) * self.template.spacing


def relief_modes(reliefs: np.ndarray) -> np.ndarray:
    """Principal components (M, N) of reliefs (heads, N); a unit of code is one standard deviation."""
    middle = np.median(reliefs, axis=0)
    usual = OUTLIER_DEVIATIONS * (1.4826 * np.median(np.abs(reliefs - middle), axis=0) + LEAST_MM)
    reliefs = middle + np.clip(reliefs - middle, -usual, usual)
    _, singular, modes = np.linalg.svd(reliefs - reliefs.mean(axis=0), full_matrices=False)
    count = min(MODES, int(np.sum(singular > 1e-4 * singular[0])))
    return modes[:count] * singular[:count, None] / np.sqrt(len(reliefs))
