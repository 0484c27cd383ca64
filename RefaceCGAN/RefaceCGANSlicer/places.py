"""Places of a face that are worth a look in the slices: eyes, nose, mouth, ears, and the border of the face
region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from RefaceCGANLib.rendering.skin_surface import Surface, turned

from .child_process import _

FROM_NOSE: dict[str, tuple[tuple[float, float, float], str]] = {
    "left eye": ((-32.0, -38.0, 38.0), "Axial"),
    "right eye": ((32.0, -38.0, 38.0), "Axial"),
    "nose": ((0.0, -14.0, 4.0), "Sagittal"),
    "mouth": ((0.0, -18.0, -22.0), "Axial"),
}
"""Where the places of an average head lie from the tip of its nose, in mm to its right, front and crown, and how
the slices lie there. Rounded from the shipped average head."""
BEHIND = 85.0
"""mm behind the tip of the nose: there the ears begin, and the face in front of them has ended."""
MIDLINE = 6.0
"""mm to each side of the tip of the nose, where the border is looked for."""


@dataclass(frozen=True)
class Place:
    """A point (RAS+ mm of the world) and the orientation of the slices that shows it best."""

    point: tuple[float, float, float]
    orientation: str


def label_of(name: str) -> str:
    """A place in the user's language."""
    return {
        "left eye": _("Left eye"), "right eye": _("Right eye"), "nose": _("Nose"), "mouth": _("Mouth"),
        "left ear": _("Left ear"), "right ear": _("Right ear"), "upper border": _("Upper border"),
        "lower border": _("Lower border"),
    }.get(name, name)  # fmt: skip


def places_of(
    skin: Surface, upright: np.ndarray | None, region: np.ndarray | None, affine: np.ndarray
) -> dict[str, Place]:
    """The places of a head, by name, in the order in which to look at them.

    skin: of the original; upright: the rotation (3, 3) from RAS to the head's own axes, where it is known; region:
    bool (I, J, K), the face region, if there is one; affine: (4, 4) voxel index -> RAS+ mm."""
    turn = np.eye(3) if upright is None else upright
    points = turned(skin, turn).points
    nose = _tip(points)
    found = {name: (nose + offset, orientation) for name, (offset, orientation) in FROM_NOSE.items()}
    if region is not None and region.any():
        at = np.argwhere(region[::2, ::2, ::2]) * 2
        voxels = (at @ affine[:3, :3].T + affine[:3, 3]) @ turn.T
        found |= _ears(voxels, nose) | _borders(voxels, points, nose)
    return {
        name: Place((float(ras[0]), float(ras[1]), float(ras[2])), orientation)
        for name, (point, orientation) in found.items()
        for ras in [turn.T @ point]
    }


def _tip(points: np.ndarray) -> np.ndarray:
    """The tip of the nose: what lies farthest to the front in the middle third of the head's width."""
    low, high = np.percentile(points[:, 0], (33, 67))
    middle = points[(points[:, 0] > low) & (points[:, 0] < high)]
    tip: np.ndarray = middle[np.argmax(middle[:, 1])].astype(float)
    return tip


def _ears(voxels: np.ndarray, nose: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
    """The middles of the two parts of the face region that lie behind the face."""
    behind, ears = voxels[voxels[:, 1] < nose[1] - BEHIND], {}
    for name, side in (("left ear", -1), ("right ear", 1)):
        beside = behind[side * (behind[:, 0] - nose[0]) > 0]
        if len(beside):
            ears[name] = beside.mean(axis=0), "Coronal"
    return ears


def _borders(voxels: np.ndarray, points: np.ndarray, nose: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
    """Where the skin of the midline enters the face region, above and below."""
    middle = voxels[np.abs(voxels[:, 0] - nose[0]) < MIDLINE]
    front = points[(np.abs(points[:, 0] - nose[0]) < MIDLINE) & (points[:, 1] > nose[1] - BEHIND)]
    borders = {}
    heights = {"upper border": middle[:, 2].max(), "lower border": middle[:, 2].min()} if len(middle) else {}
    for name, height in heights.items():
        level = front[np.abs(front[:, 2] - height) < MIDLINE]
        if len(level):
            borders[name] = np.array([nose[0], level[:, 1].max(), height]), "Sagittal"
    return borders
