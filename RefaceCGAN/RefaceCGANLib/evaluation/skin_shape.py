"""The shape of the visible face as numbers that no tool under test has made: how far the skin lies along fixed
rays.

From one point in the middle of the template's head rays go out over the face, and along each the outermost
tissue is found. The scan is placed in the template by its original's anatomy, which an attacker can repeat:
brain and skull are kept. So the same numbers can be had of the original, of the refaced scan, and of the output
of any other tool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..models.model import DEFAULT
from ..spatial.grid import largest_part, mapped
from ..volume.volume import Volume
from .exclusion import FACE_MM

if TYPE_CHECKING:
    from ..anatomy.location import Anatomy

CENTRE = (0.0, 20.0, -45.0)
"""RAS mm of the template: in the middle of the head, at the height of the upper lip's root."""
AZIMUTHS, ELEVATIONS = np.arange(-75, 76, 5.0), np.arange(-45, 41, 5.0)
"""Degrees about the direction in which the face looks: from ear to ear and from the throat to the forehead."""
REACH, STEP = 150.0, 0.5
"""mm from the centre that are searched, and the steps in which they are."""
SAME_MM = 0.5
"""Skin that moved by less was left: a quarter of a voxel of 2 mm."""
SMOOTHED_MM = 0.85
"""Gaussian that takes the speckle out of the air."""


def rays() -> np.ndarray:
    """Unit vectors (R, 3), RAS."""
    azimuth, elevation = (part.ravel() for part in np.meshgrid(np.radians(AZIMUTHS), np.radians(ELEVATIONS)))
    return np.stack(
        [-np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], axis=1
    )


def skin_distances(array: np.ndarray, to_template: np.ndarray, threshold: float) -> np.ndarray:
    """How far the outermost tissue lies from `CENTRE` along each ray: (R,) float32, mm; NaN where the ray ends
    in the field of view's edge or meets no tissue.

    array: (I, J, K) real values.  to_template: (4, 4) voxel index -> template RAS mm.  threshold: where tissue
    begins.
    """
    from scipy import ndimage

    spacing = np.linalg.norm(to_template[:3, :3], axis=0)
    head = largest_part(ndimage.gaussian_filter(array.astype(np.float32), SMOOTHED_MM / spacing) > threshold)
    lengths = np.arange(0.0, REACH, STEP)
    points = np.array(CENTRE) + rays()[:, None, :] * lengths[:, None]
    index = mapped(points.reshape(-1, 3), np.linalg.inv(to_template))
    inside = ((index >= 0) & (index <= np.array(array.shape) - 1)).all(axis=1).reshape(points.shape[:2])
    values = ndimage.map_coordinates(head.astype(np.float32), index.T, order=1).reshape(points.shape[:2])
    tissue = (values > 0.5) & inside
    last = tissue.shape[1] - 1 - np.argmax(tissue[:, ::-1], axis=1)
    found = lengths[last].astype(np.float32)
    place = np.arange(len(last)), np.minimum(last + 1, tissue.shape[1] - 1)
    outer, inner = values[place], values[np.arange(len(last)), last]
    found += STEP * (inner - 0.5) / np.maximum(inner - outer, 1e-6)  # between the two steps
    found[~tissue.any(axis=1) | ~inside[place]] = np.nan
    return found


def place_in_template(volume: Volume) -> np.ndarray:
    """(4, 4) voxel index of an original -> template RAS mm, from its own anatomy by the default model. Raises
    CheckError where there is no head."""
    from .tools import loaded

    return place_of(loaded(DEFAULT, "cpu", average=True).prepare(volume, "no").anatomy, volume)


def place_of(anatomy: Anatomy, volume: Volume) -> np.ndarray:
    """The same of an anatomy that is known."""
    matrix: np.ndarray = anatomy.to_template @ np.linalg.inv(anatomy.view.asl_affine) @ volume.affine
    return matrix


def skin_left_percent(original: np.ndarray, output: np.ndarray) -> float:
    """How much of the original's skin is left where it was, by comparing the two surfaces: % of the face's rays
    around which, in all nine of three by three rays (about 2 cm), the skin moved by less than `SAME_MM`. A new
    face crosses the old one in lines, which do not count. original, output: (R,) of `skin_distances`; NaN
    without a face.
    """
    from scipy import ndimage

    points = np.array(CENTRE) + rays() * original[:, None]
    face = np.all([(low <= mm) & (mm <= high) for mm, (low, high) in zip(points.T, FACE_MM, strict=True)], axis=0)
    if not face.any():
        return float("nan")
    grid = len(ELEVATIONS), len(AZIMUTHS)
    same = (np.abs(output - original) < SAME_MM) | np.isnan(original)
    same = ndimage.binary_erosion(same.reshape(grid), np.ones((3, 3)), border_value=1)
    return 100 * float(same.ravel()[face].mean())
