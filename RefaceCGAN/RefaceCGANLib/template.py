"""The template: the average head, its face region, and the shapes real faces take around it.

Template space is RAS+ in mm with the orientation and origin of MNI152 and the size of the average training
head. Arrays lie on the template grid: 2 mm, axes Anterior, Superior, Left. A face shape is a short code of
independent standard normal numbers, one for each mode of the shape model (a principal component analysis of
the displacements that carry the average head onto each training head and its mirror image). Drawn at random,
it is the shape of nobody; this is where the variety of the faces comes from, and not from the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MODE_SPACING = 4
"""The modes lie on a grid this many times coarser than the template grid."""

MEETING = 3.0
"""Voxels; the average skin is moved this far at most to meet the scan's own."""
MEETING_SIGMA = 5.0
"""Voxels; how smoothly the average skin is led to the scan's own at the end of the face region."""


@dataclass(frozen=True)
class Template:
    """All arrays (A, S, L) on the template grid unless said otherwise.

    affine: (4, 4) template-grid index -> RAS+ mm.  mean: average head, -1 (air) to 1.  head: bool, inside the
    average skin.  brain: 0..1, how often a voxel is brain.  face_region: bool, the voxels to empty and generate in
    the average head.  window: bool, where skin counts as face.  weight: 0..1, how far a random shape may move a
    voxel (0 at the border to kept tissue).
    modes: (K, 3, a, s, l) and mode_mean: (3, a, s, l) displacements in RAS mm: the face of code c at y shows
    the average head at y + weight * (mode_mean + sum c_k modes_k)(y).
    """

    affine: np.ndarray
    mean: np.ndarray
    head: np.ndarray
    brain: np.ndarray
    face_region: np.ndarray
    window: np.ndarray
    weight: np.ndarray
    modes: np.ndarray
    mode_mean: np.ndarray

    @classmethod
    def read(cls, path: Path | IO[bytes]) -> Template:
        with np.load(path, allow_pickle=False) as data:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})

    def write(self, path: Path) -> None:
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @property
    def modes_count(self) -> int:
        return int(self.modes.shape[0])

    def crop(self, spans: tuple[slice, slice, slice]) -> Template:
        """The part of the template grid a working grid covers; starts and stops are multiples of 4."""
        first = np.array([span.start for span in spans])
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ np.r_[first, 1.0])[:3]
        coarse = tuple(slice(s.start // MODE_SPACING, s.stop // MODE_SPACING) for s in spans)
        names = ("mean", "head", "brain", "face_region", "window", "weight")
        return Template(
            affine=affine,
            modes=self.modes[(slice(None), slice(None), *coarse)],
            mode_mean=self.mode_mean[(slice(None), *coarse)],
            **{name: getattr(self, name)[spans] for name in names},
        )

    def displacement(self, code: np.ndarray, with_mean: bool = True) -> Tensor:
        """The displacement of a face of shape `code` (K,): tensor (3, A, S, L) in voxels along A, S, L,
        already multiplied by `weight`. Without the mean: how it differs from the average face."""
        modes = self.modes.reshape(len(self.modes), -1).astype(np.float32)
        field = (np.asarray(code, np.float32) @ modes).reshape(self.mode_mean.shape)
        return self.weighted(field + self.mode_mean if with_mean else field)

    def weighted(self, field: np.ndarray) -> Tensor:
        """A displacement field (3, a, s, l) in RAS mm, on a coarser grid over the same space, as tensor
        (3, A, S, L) in voxels along A, S, L, multiplied by `weight`."""
        import torch
        from torch.nn import functional

        to_voxels = np.linalg.inv(self.affine[:3, :3]).astype(np.float32)
        coarse = torch.from_numpy(np.tensordot(to_voxels, field.astype(np.float32), 1))[None]
        full = functional.interpolate(coarse, size=self.mean.shape, mode="trilinear", align_corners=False)[0]
        return full * torch.from_numpy(self.weight.astype(np.float32))

    def prior(self, code: np.ndarray, shift: Tensor | None = None) -> Tensor:
        """The average head with a face of shape `code` (K,): tensor (A, S, L), -1 to 1. `shift` (3, A, S, L) in
        voxels is added to the displacement: see `meet_skin`."""
        import torch

        mean = torch.from_numpy(self.mean.astype(np.float32))
        displacement = self.displacement(code)
        return warp(mean[None], displacement if shift is None else displacement + shift)[0]

    @cached_property
    def _skin(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the average skin (A, S, L) and its direction (3, A, S, L), in voxels."""
        from scipy import ndimage

        average = _distance(self.head)
        normal = np.stack(np.gradient(ndimage.gaussian_filter(average, 1.0)))
        normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
        return average, normal

    def meet_skin(self, head: np.ndarray, region: np.ndarray) -> Tensor:
        """The displacement (3, A, S, L) in voxels that lets the average skin meet the scan's own skin where the
        face region ends, and fades towards the middle of the face.

        head, region: bool (A, S, L), inside the scan's skin, and its face region. Only distances to the skin in a
        band just outside the region are used, which the refaced scan keeps anyway."""
        import torch
        from scipy import ndimage

        average, normal = self._skin
        own = _distance(head)
        band = ndimage.binary_dilation(region, iterations=3) & ~region & (np.abs(own) < 4) & (np.abs(average) < 8)
        amount = ndimage.gaussian_filter(
            np.where(band, (own - average).clip(-MEETING, MEETING), 0.0), MEETING_SIGMA
        )
        amount /= np.maximum(ndimage.gaussian_filter(band.astype(np.float32), MEETING_SIGMA), 1e-4)
        amount *= 1.0 - self.weight.astype(np.float32)
        return torch.from_numpy((normal * amount).astype(np.float32))

    def sample(self, array: np.ndarray, coordinates: Tensor) -> Tensor:
        """Trilinear values of an array (A, S, L) of the template grid at template points (..., 3) in RAS mm."""
        import torch
        from torch.nn import functional

        inverse = torch.from_numpy(np.linalg.inv(self.affine).astype(np.float32))
        index = coordinates @ inverse[:3, :3].T + inverse[:3, 3]
        size = torch.tensor(array.shape, dtype=torch.float32)
        grid = (2 * index / (size - 1) - 1).flip(-1)
        source = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
        lead = grid.shape[:-1]
        values = functional.grid_sample(
            source, grid.reshape(1, -1, 1, 1, 3), align_corners=True, padding_mode="border"
        )
        return values.reshape(lead)


def _distance(inside: np.ndarray) -> np.ndarray:
    """Distance to the border of a bool mask in voxels, negative inside."""
    from scipy.ndimage import distance_transform_edt

    result: np.ndarray = distance_transform_edt(~inside) - distance_transform_edt(inside)
    return result.astype(np.float32)


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Images (C, A, S, L) read at each voxel plus its displacement (3, A, S, L) in voxels, trilinear."""
    import torch
    from torch.nn import functional

    axes = [torch.arange(n, dtype=torch.float32) for n in images.shape[1:]]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    size = torch.tensor(images.shape[1:], dtype=torch.float32).reshape(3, 1, 1, 1)
    grid = (2 * index / (size - 1) - 1).flip(0).permute(1, 2, 3, 0)[None]
    return functional.grid_sample(images[None], grid, align_corners=True, padding_mode="border")[0]
