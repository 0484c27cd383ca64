"""Defacing: the face region is emptied, and from here on nobody sees what was in it.

`Defaced` is all that later stages are given of a scan: the kept voxels, which voxels are to be generated, and how
both lie in the template. Nothing in it depends on the emptied voxels once the face region is fixed: their values
are overwritten first, and what anatomy found with the help of the face (the map to the template, the skin's
intensity) is found again without it. So whatever a face region holds, the refaced scan is the same, byte for byte.

Arrays are in ASL order (`AslView`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .anatomy import location as locating
from .anatomy.location import SPACING, Anatomy
from .errors import CheckError, InputError
from .rendering.skin_surface import skin_threshold
from .spatial.grid import AslView, axes_matrix, dilate, largest_part, mapped, resample_axes, sample
from .volume.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

    from .face_model.template import Template
    from .generation.networks import AnatomyNetwork

ALIGN_MM = 4.0
"""Voxel size of the grid on which a face region is aligned with the template's."""
ALIGN_SMOOTHINGS, ALIGN_ROUNDS = ((4, False), (1, True)), 10
"""Times that both regions are smoothed over 3x3x3 voxels, coarse to fine, and whether the map is affine then, or a
similarity; and Gauss-Newton steps for each."""
MOST_STRETCH = 1.25
"""An alignment that stretches the guess more (1.15 at most in the 15 heads of val/) has gone astray."""
PLACED_MM = 15.0
"""The map found without the face places the average face no further than this (root mean square) from where the
whole head has it: 8 mm at most in the 15 heads of val/."""
SKIN_NEAR = 4
"""Voxels of 2 mm around the face region whose tissue tells where the skin begins."""
ALIGNED = 0.7
"""Dice, within the field of view, of a face region and the template's, from which on their alignment is trusted:
0.87 and more in the 15 heads of val/; a region painted by hand may be anything."""


@dataclass(frozen=True)
class Defaced:
    """A scan without its face, and its anatomy without anything of the emptied voxels.

    scan: the scan with its face region at the level of air.  air: that level, real values, from the kept voxels.
    face_region: bool (A, S, L).  to_template: (4, 4) ASL index -> template RAS mm.  skin: intensity above `air`
    where kept tissue begins near the face region.  already_defaced: it came without a face, or with part of
    one."""

    scan: Volume
    air: float
    view: AslView
    face_region: np.ndarray
    to_template: np.ndarray
    skin: float
    already_defaced: bool

    @classmethod
    def of(
        cls, original: Volume, found: Anatomy, network: AnatomyNetwork, template: Template, aligned: bool = False
    ) -> Defaced:
        """Empty the face region that was `found`. aligned: its map to the template was found without the face
        already (as on another series of the same head), and is taken as it is."""
        import torch

        scan, air = empty_face(original, found)
        values = np.ascontiguousarray(found.view.to_asl(scan.array)) - np.float32(air)
        small = resample_axes(values, found.view.spacing, SPACING)
        level, tissue = locating.tissue_threshold(small)
        to_template = found.to_template
        if not aligned:
            guess = _guess(small, tissue, found.view, network, template)
            to_template = _align(found.face_region, found.view, guess, template)
            apart = locating.face_moved(found.to_template, to_template, found.view.spacing, template)
            if apart > PLACED_MM:  # tells that something went wrong, and nothing else of the face
                raise CheckError(
                    f"The place of the face could not be found without the face (off by {apart:.0f} mm); "
                    "give a face region, or a scan with less artefact."
                )
        region = resample_axes(found.face_region, found.view.spacing, SPACING) > 0
        near = dilate(torch.from_numpy(region), SKIN_NEAR).numpy() & ~region & tissue
        skin = skin_threshold(small, (SPACING,) * 3)
        if near.any():
            skin = min(skin, float(np.median(level[near])))
        return cls(scan, air, found.view, found.face_region, to_template, skin, found.already_defaced)

    @cached_property
    def values(self) -> np.ndarray:
        """Real values above `air`, (A, S, L) float32, of the defaced scan."""
        return np.ascontiguousarray(self.view.to_asl(self.scan.array)) - np.float32(self.air)

    @property
    def kept_range(self) -> tuple[float, float]:
        """The lowest and the highest stored value of the kept voxels."""
        kept = self.view.to_asl(self.scan.stored)[~self.face_region]
        return np.nanmin(kept), np.nanmax(kept)

    def of_average(self, mask: np.ndarray, template: Template, spacing: tuple[float, ...]) -> np.ndarray:
        """A mask (A, S, L) of the average head, as it lies in this scan at another voxel size: bool (a, s, l) on
        the grid that `resample_axes` makes."""
        import torch

        matrix = np.linalg.inv(template.affine) @ self.to_template @ axes_matrix(self.view.spacing, spacing)
        shape = tuple(
            max(1, round(length * mm / target))
            for length, mm, target in zip(self.values.shape, self.view.spacing, spacing, strict=True)
        )
        carried = sample(torch.from_numpy(mask.astype(np.float32))[None], matrix, shape)[0]
        return np.asarray((carried > 0.5).numpy())


def empty_face(original: Volume, anatomy: Anatomy) -> tuple[Volume, float]:
    """The scan with its face region set to the level of air (NaN where that is how the scan shows air), everything
    else bit-identical, and that level in real values, from the kept voxels.

    Raises CheckError where nothing of the scan would be kept."""
    stored = original.stored.copy()
    in_asl = anatomy.view.to_asl(stored)
    if anatomy.face_region.all():
        raise CheckError("The face region is the whole scan; give a region that leaves the head.")
    air = locating.air_level(anatomy.view.to_asl(original.array)[~anatomy.face_region])
    in_asl[anatomy.face_region] = np.nan if original.has_nan else original.to_stored(np.array(air))
    return original.with_stored(stored), air


def given_region(volume: Volume, mask: Volume) -> np.ndarray:
    """The face region of a mask: bool (I, J, K), where it is above 0.

    Raises InputError where the mask lies on another grid than the scan, or is empty."""
    if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-3):
        raise InputError("The face region lies on another grid than the scan; give a mask of the scan's voxels.")
    region = np.asarray(mask.stored > 0)
    if not region.any():
        raise InputError("The face region is empty; give a mask that is above 0 in the face.")
    return region


def _guess(
    small: np.ndarray, tissue: np.ndarray, view: AslView, network: AnatomyNetwork, template: Template
) -> np.ndarray:
    """The map (4, 4) ASL index -> template mm that brain and skull of a defaced scan at 2 mm tell. tissue: bool,
    same shape."""
    probability, coordinates = locating.apply_network(network, small)
    matrix, _ = locating.fit(coordinates, tissue, template)
    brain_map = np.where(locating.main_part(probability > 0.5), probability, 0.0)
    noisy_air = float(tissue.mean()) > locating.FULL
    outline = None if noisy_air else largest_part(tissue)
    matrix = locating.refine(matrix, brain_map, outline, template, with_face=False)
    return np.asarray(matrix @ np.linalg.inv(axes_matrix(view.spacing, SPACING)))


def _align(region: np.ndarray, view: AslView, guess: np.ndarray, template: Template) -> np.ndarray:
    """The affine map (4, 4) ASL index -> template mm that lays a face region (A, S, L) onto the template's, from
    a guess, by Gauss-Newton on the smoothed regions; the guess where they cannot be laid onto each other."""
    import torch
    from torch.nn import functional

    def smoothed(image: Tensor, times: int) -> Tensor:
        for _ in range(times):
            image = functional.avg_pool3d(image[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
        return image

    moving = torch.from_numpy(resample_axes(region, view.spacing, ALIGN_MM))
    step = round(ALIGN_MM / template.spacing)
    fixed = functional.avg_pool3d(_usual_region(template).float()[None], step)[0]
    to_mm = template.affine @ axes_matrix((1.0,) * 3, float(step))
    points = mapped(np.argwhere(np.ones(fixed.shape, bool)), to_mm)
    middle = np.abs(points[:, 0]) < locating.EAR_MM  # ears are in the region of some
    scaled = np.c_[points / 100, np.ones(len(points))][middle]  # parameters of like size
    mapping = locating.nearest_similarity(np.linalg.inv(guess @ axes_matrix(view.spacing, ALIGN_MM)))
    seen = torch.ones_like(moving)
    for times, affine in ALIGN_SMOOTHINGS:
        image, target = smoothed(moving, times), smoothed(fixed, times).numpy().ravel()[middle]
        stack = torch.stack([image, *torch.gradient(image), seen])
        for _ in range(ALIGN_ROUNDS):
            at = sample(stack, mapping @ to_mm, tuple(fixed.shape)).reshape(5, -1).numpy()[:, middle]
            use = at[4] > 0.99
            jacobian = (at[1:4, use].T[:, :, None] * scaled[use][:, None, :]).reshape(-1, 12)
            normal = jacobian.T @ jacobian
            normal += (1e-3 * np.trace(normal) / 12 + 1e-9) * np.eye(12)
            free = np.eye(12) if affine else locating.similar_steps(mapping)
            right = jacobian.T @ (target[use] - at[0, use])
            change = (free @ np.linalg.solve(free.T @ normal @ free, free.T @ right)).reshape(3, 4)
            mapping[:3] += change / np.array([100.0, 100.0, 100.0, 1.0])
            if np.abs(change).max() < 0.01:
                break
    both = (
        sample(torch.stack([moving, seen]), mapping @ to_mm, tuple(fixed.shape)).reshape(2, -1).numpy()[:, middle]
    )
    target = fixed.numpy().ravel()[middle] * both[1]
    dice = 2 * float(np.minimum(both[0], target).sum()) / max(float((both[0] + target).sum()), 1e-6)
    aligned = np.asarray(np.linalg.inv(mapping) @ np.linalg.inv(axes_matrix(view.spacing, ALIGN_MM)))
    return guess if dice < ALIGNED or locating.stretch(guess, aligned) > MOST_STRETCH else aligned


def _usual_region(template: Template) -> Tensor:
    """What `anatomy.locate` empties in a head that is the average one, but for its ears: bool (A, S, L)."""
    import torch

    brain = torch.from_numpy(template.brain.astype(np.float32)) > 0.5
    shallow = dilate(~torch.from_numpy(template.head), locating.SHALLOW)
    wanted = torch.from_numpy(template.face_region) & (shallow | ~dilate(brain, locating.DEEP_MARGIN))
    return wanted & ~dilate(brain, locating.BRAIN_MARGIN)
