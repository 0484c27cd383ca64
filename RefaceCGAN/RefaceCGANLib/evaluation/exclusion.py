"""The exclusion criteria of Molchanova et al. 2023, section 2.3, as measurements: C1, C2 and where to look.

C1, brain voxels changed, and C2, the face was not removed, are measured here against the original, for every tool
in the same way. C3, the segmentation of the original failed, follows from the volumetry, and the limits are set,
in `statistics`. None of them replaces a look at the render sheet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..refacer import Refacer
from ..spatial.grid import positions, sample
from ..volume.files import atomic_path
from ..volume.volume import Volume
from .tool_base import on_grid_of

if TYPE_CHECKING:
    from ..anatomy.location import Anatomy
    from ..face_model.template import Template

FACE_MM = ((-60.0, 60.0), (20.0, 120.0), (-100.0, -20.0))
"""RAS mm of the template: the face from below the brow to the chin, between the cheeks. Every tool is to remove
it, also those that leave forehead, ears and neck."""
SKIN_MM = 6.0
"""Depth below the skin, mm, to which tissue counts as visible face."""
SAME = 1e-5
"""Of the original's range: values nearer than this are equal (an output may be float32 where the original is
not), which is less than one step of 16 bits."""


@dataclass(frozen=True)
class Reference:
    """What the outputs for one scan are measured against, on the original's grid, bool (I, J, K).

    brain: its brain mask.  face: the tissue of its visible face."""

    brain: np.ndarray
    face: np.ndarray

    @classmethod
    def of(cls, volume: Volume, refacer: Refacer, brain_mask: Path | None = None) -> Reference:
        """Find brain and face of an original; brain_mask: a file that is > 0 in the brain, to take in place of
        the anatomy network's own.

        Raises CheckError where there is no head or no face in view, InputError for a mask on another grid."""
        return cls.of_anatomy(volume, refacer.prepare(volume).anatomy, refacer.model.template, brain_mask)

    @classmethod
    def of_anatomy(
        cls, volume: Volume, anatomy: Anatomy, template: Template, brain_mask: Path | None = None
    ) -> Reference:
        """The same of an anatomy that is known. Raises InputError."""
        view = anatomy.view
        if anatomy.already_defaced:
            raise InputError("The original has been defaced before; give scans with their faces.")
        if brain_mask:
            brain = on_grid_of(volume, Volume.read(brain_mask)).array > 0
        else:
            brain = view.to_native(anatomy.brain_mask)
        values = view.to_asl(volume.array)
        near = _carried_face(template, anatomy.to_template, values.shape)
        face = near & (values > anatomy.skin)
        face &= _depth(values > anatomy.skin, view.spacing) <= SKIN_MM
        return cls(np.ascontiguousarray(brain), np.ascontiguousarray(view.to_native(face)))

    def write(self, path: Path) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, brain=self.brain, face=self.face)

    @classmethod
    def read(cls, path: Path) -> Reference:
        with np.load(path) as data:
            return cls(data["brain"], data["face"])

    def brain_voxels_changed(self, changed: np.ndarray) -> int:
        """C1. changed: see `changed`."""
        return int(np.count_nonzero(changed & self.brain))

    def tissue_left_percent(self, changed: np.ndarray) -> float:
        """C2: how much of the visible face came out as it was, % of its tissue voxels; NaN without a face."""
        size = np.count_nonzero(self.face)
        return 100 * float(np.count_nonzero(self.face & ~changed)) / size if size else float("nan")


def changed(original: Volume, output: Volume) -> np.ndarray:
    """Where two scans on one grid differ by more than rounding: bool (I, J, K)."""
    before = original.array
    return np.asarray(np.abs(output.array - before) > SAME * float(np.ptp(before)))


def _carried_face(template: Template, to_template: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The average face, air in front of it included, on the scan's grid: bool (A, S, L)."""
    import torch

    points = np.moveaxis(positions(template.mean.shape, template.affine), -1, 0)
    inside = [(low <= mm) & (mm <= high) for mm, (low, high) in zip(points, FACE_MM, strict=True)]
    box = np.all(inside, axis=0) & template.face_region
    carried = sample(torch.from_numpy(box)[None], np.linalg.inv(template.affine) @ to_template, shape)
    return np.asarray(carried[0].numpy() > 0.5)


def _depth(tissue: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """How deep each voxel lies under the head's surface in mm: float (A, S, L), 0 outside. Nostrils, mouth and
    sinuses are inside."""
    from scipy import ndimage

    rounds = max(1, round(6.0 / min(spacing)))
    padded = np.pad(tissue, rounds, mode="edge")
    solid = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=rounds))
    inner = tuple(slice(rounds, -rounds) for _ in range(3))
    depth: np.ndarray = ndimage.distance_transform_edt(solid[inner], spacing)
    return depth
