"""The network's input: a defaced scan on the grid and at the intensities of a model, with what leads back.

Arrays are in ASL order. What is made here depends on the kept voxels alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import paper
from ..anatomy.location import SPACING
from ..composition import Background
from ..face_model.template import CLEFT, Meeting, Template, Values, trilinear
from ..intensity import RING_MM, IntensityScale
from ..spatial.grid import axes_matrix, bounding_box, dilate, mapped, resample_axes, sample, solid
from .tissue_bank import fine_texture

if TYPE_CHECKING:
    from torch import Tensor

    from ..defacing import Defaced
    from ..models.model import Model

NEAR_MM = 10.0
"""Kept tissue within this distance of the box around the face region tells how sharp the face has to be."""
EMPTIED = 0.25
"""A voxel of a resampled scan lies in the face region from this share on."""


@dataclass(frozen=True)
class NetworkInput:
    """One defaced scan as the generator sees it, the same for every face.

    scan, region: (A, S, L) on the network grid: the defaced scan, -1..1, and the face region (bool).
    to_native: (4, 4) network-grid index -> native ASL index.  scale: from -1..1 back to the scan's intensities.
    meeting: what a face of a drawn shape has to meet; None for a model without shapes.
    background: noise and air of the scan, for composition; None for the paper's model, which knows no noise.
    texture: the fine texture of the kept tissue near the face (`tissue_bank.fine_texture`)."""

    scan: Tensor
    region: Tensor
    to_native: np.ndarray
    scale: IntensityScale
    meeting: Meeting | None
    background: Background | None
    texture: float = 0.0

    @classmethod
    def of(cls, defaced: Defaced, model: Model) -> NetworkInput:
        """Bring a defaced scan to the grid and the intensities of a model. Raises CheckError where the scan shows
        no tissue brighter than its air."""
        return _on_own_axes(defaced, model) if model.native else _on_template_grid(defaced, model)


def _on_own_axes(defaced: Defaced, model: Model) -> NetworkInput:
    """For a generator that works along the scan's own axes: at its own voxels, or at the card's voxel size."""
    import torch

    scale = paper.scale_of(defaced.values, ~defaced.face_region, float(model.card["intensity_highest"]))
    spacing = model.card["working_grid"].get("spacing_mm")
    values, share, to_native = defaced.values, defaced.face_region.astype(np.float32), np.eye(4)
    if spacing is not None:
        to_native = axes_matrix(defaced.view.spacing, spacing)
        values, share = (resample_axes(array, defaced.view.spacing, spacing) for array in (values, share))
    region = share > EMPTIED
    scan = scale.normalise(values)
    scan[region] = -1.0
    return NetworkInput(torch.from_numpy(scan), torch.from_numpy(region), to_native, scale, None, None)


def _on_template_grid(defaced: Defaced, model: Model) -> NetworkInput:
    """For a generator that works on a part of the template grid."""
    import torch

    template, spacing = model.template, defaced.view.spacing
    small = resample_axes(defaced.values, spacing, SPACING)
    share = resample_axes(defaced.face_region, spacing, SPACING)
    brain = defaced.of_average(template.brain > 0.5, template, (SPACING,) * 3)
    ring = dilate(torch.from_numpy(brain), round(RING_MM / SPACING)).numpy()
    scale = IntensityScale.measure(small, ring, share < 1e-3)
    background = Background.measure(defaced, template)

    part = model.working_template
    shape, to_native = part.mean.shape, np.linalg.inv(defaced.to_template) @ part.affine
    small = np.where(share > 0.5, scale.low, small)
    to_small = np.linalg.inv(axes_matrix(spacing, SPACING)) @ to_native
    scans = torch.from_numpy(np.stack([scale.normalise(small) + 1.0, np.ones_like(small)]))
    emptied, seen = sample(scans, to_small, shape)
    inside = sample(torch.from_numpy(share)[None], to_small, shape, "border")[0] > EMPTIED
    scan = torch.where(inside, torch.full_like(emptied, -1.0), emptied - 1.0)
    meeting = None
    if model.tissue is not None:
        meeting = _meeting(defaced, scan, inside, seen > 0.99, scale, to_native, part)
    return NetworkInput(scan, inside, to_native, scale, meeting, background, _texture_near_face(defaced))


def _texture_near_face(defaced: Defaced) -> float:
    """The fine texture of the kept tissue within `NEAR_MM` of the face region."""
    reach = [round(NEAR_MM / mm) for mm in defaced.view.spacing]
    box = tuple(
        slice(max(0, span.start - far), span.stop + far)
        for span, far in zip(bounding_box(defaced.face_region), reach, strict=True)
    )
    values, region = defaced.values[box], defaced.face_region[box]
    return fine_texture(values, (values > defaced.skin) & ~region, defaced.view.spacing)


def _meeting(
    defaced: Defaced,
    scan: Tensor,
    inside: Tensor,
    seen: Tensor,
    scale: IntensityScale,
    to_native: np.ndarray,
    template: Template,
) -> Meeting:
    """What a face has to meet. scan, inside, seen: (A, S, L) on the network grid: -1..1, the face region, and the
    field of view."""
    import torch

    level = float(scale.normalise(np.array([defaced.skin]))[0])
    # what the head was like in the face region, the average head tells
    head = solid((scan > level) | (inside & torch.from_numpy(template.head)), CLEFT)
    values, hidden = _readers(defaced, scale, to_native)
    return template.meeting(inside.numpy(), head.numpy(), seen.numpy(), values, hidden)


def _readers(defaced: Defaced, scale: IntensityScale, to_native: np.ndarray) -> tuple[Values, Values]:
    """What tells the intensity of the defaced scan, -1..1, and how much of it is emptied, 0..1, at points of the
    network grid. to_native: (4, 4)."""

    def at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        return trilinear(image[None], mapped(points, to_native))[0]

    emptied = np.where(defaced.face_region, np.float32(scale.low), defaced.values)
    hidden = defaced.face_region.astype(np.float32)
    return lambda points: scale.normalise(at(emptied, points)), lambda points: at(hidden, points)
