"""The tissue bank: face tissue of several real heads, brought to the shape of the average head, and mixed anew
for each face.

What is painted starts from real MR tissue. Each donor's face was carried to the average shape
(`training.tissue`), so that no donor's shape is left in it, and given the average's brightness over some 8 mm. A
mosaic of several donors, drawn at random, is the tissue of nobody. It is read once, by cubic splines, where a
scan has its voxels. Arrays are in ASL order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from ..spatial.grid import mapped

DONORS = 4
"""Donors of one mosaic: more would leave little of each, and fewer would show who they are."""
PART_MM, SHARPNESS = 12.0, 6.0
"""Gaussian sigma of the random fields that decide which donor gives a voxel, and how sharply they do: a part of
one donor is some 3 cm wide, and gives way to the next within some 5 mm."""
FINE_MM = 1.25
"""Gaussian sigma; what it takes away from tissue is its fine texture."""
SHARPENED = (-1.0, 1.5)
"""How many times, least and most, a mosaic's fine texture is added to it; -1 takes all of it away."""
LEAST_TISSUE = 1000
"""Voxels of tissue from which on its texture is measured."""
SKIN = 0.4
"""Intensity below which a voxel is outside the skin: `template.SKIN_LEVEL` + 1."""
SKIN_SIGMA_MM, DONOR_MM = 0.5, 2.0
"""mm: Gaussian sigma over which the surface of a mosaic is smoothed for a scan with the voxels of the donors, and
the size of those. A finer scan would show the steps of the donors' voxels, so there it is more."""
SKIN_OFF_MM = 2.0
"""Distance from the average skin within which the surface of a mosaic stays."""
SKIN_DEPTH_MM = 1.25
"""Depth below the surface whose tissue is continued outward up to it."""
SKIN_EDGE_MM = 0.7
"""Gaussian sigma of the edge between skin and air."""
COARSE = 4
"""The random fields are drawn on a grid this many times coarser than the bank's."""


@dataclass(frozen=True)
class TissueBank:
    """donors: uint8 (D, A, S, L), 0 (air, and what no face reaches) to 255 (1 in the networks' range), on a grid
    of its own.  affine: (4, 4) index of that -> template RAS mm."""

    donors: np.ndarray
    affine: np.ndarray

    @classmethod
    def read(cls, path: Path | IO[bytes]) -> TissueBank:
        with np.load(path, allow_pickle=False) as data:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})

    def write(self, path: Path) -> None:
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @property
    def spacing(self) -> float:
        """mm between voxels."""
        return float(np.linalg.norm(self.affine[:3, 0]))

    def mosaic(self, rng: np.random.Generator, voxel_mm: float, sharpness: float = 1.0) -> np.ndarray:
        """Tissue of several donors for a scan with voxels of `voxel_mm`: float32 (A, S, L), 0 (air) to 2.
        sharpness: the factor by which its fine texture is raised or lowered, within `SHARPENED`."""
        from scipy import ndimage

        chosen = rng.choice(len(self.donors), min(DONORS, len(self.donors)), replace=False)
        shape = self.donors.shape[1:]
        coarse = [-(-length // COARSE) + 1 for length in shape]
        weights = np.empty((len(chosen), *coarse), np.float32)
        for weight in weights:
            field = ndimage.gaussian_filter(rng.standard_normal(coarse), PART_MM / COARSE / self.spacing)
            weight[:] = SHARPNESS * field / field.std()
        weights = np.exp(weights - weights.max(axis=0))
        weights /= weights.sum(axis=0)
        mixed = np.zeros(shape, np.float32)
        for donor, weight in zip(chosen, weights, strict=True):
            mixed += _finer(weight, shape) * self.donors[donor]
        least, most = SHARPENED
        sharpened = float(np.clip(sharpness - 1, least, most))
        mixed += sharpened * (mixed - ndimage.gaussian_filter(mixed, FINE_MM / self.spacing))
        # a surface is as smooth as its tissue, and a finer scan would show the steps of the donors' voxels
        coarser = max(0.0, 1 - (voxel_mm / DONOR_MM) ** 2) + max(0.0, 1 - (1 + sharpened) / (1 + most))
        return self._with_smooth_skin(
            mixed * np.float32(2 / 255), float(np.hypot(SKIN_SIGMA_MM, np.sqrt(2 * coarser)))
        )

    def _with_smooth_skin(self, mosaic: np.ndarray, sigma_mm: float) -> np.ndarray:
        """A mosaic (A, S, L) whose surface is smooth over `sigma_mm`: the tissue just below the surface continues
        up to it, and ends there with an even edge."""
        from scipy import ndimage, special

        inside, allowed = self._near_average
        solid = (((mosaic > SKIN) | inside) & allowed).astype(np.float32)
        share = ndimage.gaussian_filter(solid, sigma_mm / self.spacing, truncate=3)
        near = np.flatnonzero((share > 0.002) & (share < 0.998))
        # for a flat surface the smoothed share tells the signed distance to it (mm, positive outside)
        distance = -sigma_mm * special.ndtri(share.ravel()[near])
        outward = np.stack([-part.ravel()[near] for part in np.gradient(share)])
        outward /= np.maximum(np.linalg.norm(outward, axis=0), 1e-6)
        inward = np.maximum(distance + SKIN_DEPTH_MM, 0) / self.spacing
        at = np.stack(np.unravel_index(near, mosaic.shape)) - inward * outward
        tissue = ndimage.map_coordinates(mosaic, at, np.float32, 1)
        if sigma_mm > SKIN_SIGMA_MM:  # contrast of the outermost layer would dent the surface
            even = ndimage.gaussian_filter(mosaic, np.sqrt(sigma_mm**2 - SKIN_SIGMA_MM**2) / self.spacing)
            outer = special.ndtr((distance + SKIN_DEPTH_MM) / SKIN_EDGE_MM)
            tissue += outer * (ndimage.map_coordinates(even, at, np.float32, 1) - tissue)
        result = np.where(allowed, mosaic, np.float32(0))
        result.ravel()[near] = tissue * special.ndtr(-distance / SKIN_EDGE_MM)
        return np.asarray(result, np.float32)

    @cached_property
    def _near_average(self) -> tuple[np.ndarray, np.ndarray]:
        """Where every mosaic is inside its surface, and where it may be: bool (A, S, L)."""
        from scipy import ndimage

        head = ndimage.binary_fill_holes(self.donors.mean(axis=0) * (2 / 255) > SKIN)
        inner = ndimage.distance_transform_edt(head, self.spacing) > SKIN_OFF_MM
        outer = ndimage.distance_transform_edt(~head, self.spacing) < SKIN_OFF_MM
        return inner, outer

    def spline(self, mosaic: np.ndarray) -> np.ndarray:
        """The coefficients of the cubic spline through a mosaic."""
        from scipy import ndimage

        return np.asarray(ndimage.spline_filter(mosaic, 3, np.float32))

    def read_at(self, spline: np.ndarray, points: np.ndarray) -> np.ndarray:
        """A mosaic's `spline` at points (N, 3) in template RAS mm: float32 (N,), 0 to 2; 0 beyond its grid."""
        from scipy import ndimage

        at = mapped(points, self._to_index).T
        values = ndimage.map_coordinates(spline, at, np.float32, 3, prefilter=False)
        return np.asarray(values.clip(0, 2))

    @cached_property
    def _to_index(self) -> np.ndarray:
        return np.linalg.inv(self.affine)


def fine_texture(values: np.ndarray, tissue: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """What a Gaussian of `FINE_MM` takes away from tissue, as a part of its intensity; 0 for little tissue.

    values (A, S, L), 0: air.  tissue: bool, same shape; what is near its border does not count."""
    from scipy import ndimage

    inner = ndimage.distance_transform_edt(tissue, spacing) > 2 * FINE_MM
    if np.count_nonzero(inner) < LEAST_TISSUE:
        return 0.0
    fine = values - ndimage.gaussian_filter(values, FINE_MM / np.array(spacing))
    return float(np.median(np.abs(fine[inner])) / np.median(values[inner]))


def _finer(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A field on a grid `COARSE` times coarser, trilinear on one of `shape`."""
    import torch
    from torch.nn import functional

    size = [(length - 1) * COARSE + 1 for length in weight.shape]
    full = functional.interpolate(torch.from_numpy(weight)[None, None], size, mode="trilinear", align_corners=True)
    return np.asarray(full[0, 0, : shape[0], : shape[1], : shape[2]].numpy())
