"""Slices of original and output side by side, at full resolution: no number replaces this look.

Their positions follow from the voxels that the tool changed: the middle of the face from side to side, and the
two heights and depths where it changed most.
"""

from __future__ import annotations

import numpy as np

from ..spatial.grid import AslView, bounding_box
from ..volume.volume import Volume
from .tissue_realism import changed_region

NAMES = "sagittal", "axial", "coronal"
FRONT, LOWER = 0.75, 0.35
"""How far forward (of back to front) the coronal slice, and how far up the axial one lies in what was changed."""
WINDOW = 0.5, 99.5
"""Percentiles of the original that are shown black and white."""
MARGIN_MM = 20.0
"""Around what was changed, of the head that is shown."""


def slices_of(original: Volume, output: Volume) -> dict[str, np.ndarray]:
    """Name of the plane -> original and output side by side, uint8 (H, 2 W), one pixel a voxel. Both are shown in
    the window of the original. Up is superior (axial: anterior), left is the patient's right. Empty where nothing
    was changed."""
    before = np.ascontiguousarray(AslView.of(original).to_asl(original.array))
    after = np.ascontiguousarray(AslView.of(original).to_asl(output.array))
    spacing = AslView.of(original).spacing
    region = changed_region(before, after, spacing)
    if not region.any():
        return {}
    low, high = np.percentile(before[::2, ::2, ::2], WINDOW)
    box = bounding_box(region)
    counts = [region.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    shares = [np.cumsum(count) / count.sum() for count in counts]
    at = [int(np.searchsorted(share, where)) for share, where in zip(shares, (FRONT, LOWER, 0.5), strict=True)]
    wide = [
        slice(max(0, span.start - round(MARGIN_MM / mm)), span.stop + round(MARGIN_MM / mm))
        for span, mm in zip(box, spacing, strict=True)
    ]
    a, s, _ = wide

    def shown(values: np.ndarray) -> dict[str, np.ndarray]:
        grey = (255 * np.clip((values - low) / max(high - low, 1e-9), 0, 1)).round().astype(np.uint8)
        return {
            "sagittal": grey[a, s, at[2]].T[::-1, ::-1],  # the face looks to the left
            "axial": grey[a, at[1], :][::-1],
            "coronal": grey[at[0], s, :][::-1],
        }

    left, right = shown(before), shown(after)
    return {name: np.concatenate([left[name], right[name]], axis=1) for name in NAMES}
