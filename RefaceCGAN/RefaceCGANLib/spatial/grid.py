"""Grids: from native order to ASL, from one voxel size to another, and through an affine map.

A 4x4 matrix here always leads from voxel indices (i, j, k) to voxel indices or millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from ..volume.volume import Volume


@dataclass(frozen=True)
class AslView:
    """How a native array is seen in ASL order: axes Anterior, Superior, Left, nearest to the scan's own.

    Flips and transpositions alone, so all 48 orientations of one scan give the same array; `spacing` (mm) is
    rounded to a tenth of a micrometre for the same reason.
    """

    affine: np.ndarray
    native_shape: tuple[int, int, int]

    @classmethod
    def of(cls, volume: Volume) -> AslView:
        return cls(volume.affine, volume.stored.shape)

    @cached_property
    def _orientation(self) -> np.ndarray:
        from nibabel import orientations

        wanted = orientations.axcodes2ornt("ASL")
        return orientations.ornt_transform(orientations.io_orientation(self.affine), wanted)

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        native = np.linalg.norm(self.affine[:3, :3], axis=0)
        asl = np.empty(3)
        for axis, (target, _) in enumerate(self._orientation):
            asl[int(target)] = round(float(native[axis]), 4)
        return (float(asl[0]), float(asl[1]), float(asl[2]))

    @cached_property
    def asl_affine(self) -> np.ndarray:
        """ASL index -> RAS+ mm."""
        from nibabel.orientations import inv_ornt_aff

        result: np.ndarray = self.affine @ inv_ornt_aff(self._orientation, self.native_shape)
        return result

    def to_asl(self, array: np.ndarray) -> np.ndarray:
        """A view of a native array (I, J, K) in ASL order."""
        from nibabel.orientations import apply_orientation

        result: np.ndarray = apply_orientation(array, self._orientation)
        return result

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """A view of an ASL array in native order: the inverse of `to_asl`."""
        for target, flip in self._orientation:
            if flip < 0:
                array = np.flip(array, int(target))
        result: np.ndarray = np.transpose(array, [int(target) for target, _ in self._orientation])
        return result


def axis_weights(
    length: int, spacing: float, target_spacing: float, target_length: int | None = None
) -> np.ndarray:
    """Weights (target_length, length) that resample one axis linearly, wider where it gets coarser.

    The first voxels' outer borders coincide. Each row sums to 1, also at the ends."""
    if target_length is None:
        target_length = max(1, round(length * spacing / target_spacing))
    ratio = target_spacing / spacing
    centre = (np.arange(target_length) + 0.5) * ratio - 0.5
    width = max(1.0, ratio)
    distance = np.abs(np.arange(length)[None, :] - np.clip(centre, 0, length - 1)[:, None]) / width
    weights = np.clip(1.0 - distance, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resample_axes(
    array: np.ndarray,
    spacing: tuple[float, ...],
    target: float | tuple[float, ...],
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Resample an array to another voxel size along its own axes: (A, S, L) -> float32, anti-aliased."""
    from scipy.sparse import csr_matrix

    targets = (target,) * 3 if isinstance(target, (int, float)) else target
    result = array
    for axis in range(3):  # each turn mixes along the first axis and moves it to the end
        length = result.shape[0]
        weights = axis_weights(length, spacing[axis], targets[axis], shape[axis] if shape else None)
        flat = np.ascontiguousarray(result.reshape(length, -1), dtype=np.float32)
        mixed = csr_matrix(weights) @ flat
        result = np.moveaxis(mixed.reshape(-1, *result.shape[1:]), 0, 2)
    return np.ascontiguousarray(result)


def axes_matrix(spacing: tuple[float, ...], target: float | tuple[float, ...]) -> np.ndarray:
    """Index on the grid `resample_axes` makes -> index on the grid it was given: (4, 4)."""
    targets = np.broadcast_to(np.asarray(target, dtype=float), 3)
    ratio = targets / np.asarray(spacing)
    matrix = np.diag([*ratio, 1.0])
    matrix[:3, 3] = 0.5 * ratio - 0.5
    return matrix


SLAB_VOXELS = 4_000_000
"""`sample` works through this many voxels at once: its grid takes 12 bytes a voxel."""


def sample(source: Tensor, matrix: np.ndarray, shape: tuple[int, ...], outside: str = "zeros") -> Tensor:
    """Trilinear values of `source` (C, a, s, l) at `matrix` @ index for every index of a grid of `shape`.

    `outside`: "zeros", or "border" to repeat the outermost voxels. Returns (C, *shape) float32."""
    import torch

    slab = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    if slab >= shape[0]:
        return _sample_slab(source, matrix, shape, outside)
    result = torch.empty((len(source), *shape))
    for start in range(0, shape[0], slab):
        part = (min(slab, shape[0] - start), *shape[1:])
        result[:, start : start + part[0]] = _sample_slab(source, matrix @ shift(start, 0, 0), part, outside)
    return result


def mapped(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 3) under an affine map (4, 4)."""
    result: np.ndarray = points @ matrix[:3, :3].T + matrix[:3, 3]
    return result


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Where an affine map (4, 4) leads the voxels of a grid: (A, S, L, 3)."""
    return mapped(np.moveaxis(np.indices(shape), 0, -1), affine)


def shift(*first: float) -> np.ndarray:
    """Index in a part that begins at `first` -> index in the whole: (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, 3] = first
    return matrix


def _sample_slab(source: Tensor, matrix: np.ndarray, shape: tuple[int, ...], outside: str) -> Tensor:
    import torch
    from torch.nn import functional

    size = np.array(source.shape[1:], dtype=float)
    steps = np.array(shape, dtype=float)
    # affine_grid speaks of (x, y, z) = (last, middle, first) axis in -1..1 between voxel centres
    to_index = np.diag([*((steps - 1) / 2), 1.0])
    to_index[:3, 3] = (steps - 1) / 2
    to_unit = np.diag([*(2 / np.maximum(size - 1, 1)), 1.0])
    to_unit[:3, 3] = -1
    theta = (to_unit @ matrix @ to_index)[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    grid = functional.affine_grid(
        torch.from_numpy(theta[None, :3].astype(np.float32)), [1, 1, *shape], align_corners=True
    )
    return _read(source.float(), grid[0], outside)


def _read(source: Tensor, grid: Tensor, outside: str) -> Tensor:
    """Trilinear values of `source` (C, a, s, l) at a grid (A, S, L, 3) of x, y, z in -1..1: (C, A, S, L).

    PyTorch shares the items of a batch among the cores, and nothing else: here a slice is an item."""
    from torch.nn import functional

    items = source[None].expand(len(grid), *source.shape)
    values = functional.grid_sample(items, grid[:, None], align_corners=True, padding_mode=outside)
    return values[:, :, 0].transpose(0, 1).contiguous()


def sample_at(source: Tensor, index: Tensor, outside: str = "border") -> Tensor:
    """Trilinear values of `source` (C, a, s, l) at the indices (3, A, S, L): (C, A, S, L) float32."""
    import torch

    size = torch.tensor(source.shape[1:], dtype=torch.float32).reshape(3, 1, 1, 1)
    grid = (2 * index / (size - 1) - 1).flip(0).permute(1, 2, 3, 0)
    return _read(source.float(), grid, outside)


def finer(images: Tensor) -> Tensor:
    """Twice as fine along each axis by cubic splines: (C, A, S, L) -> (C, 2A, 2S, 2L); voxel borders coincide."""
    import torch

    taps = (-0.0234375, 0.2265625, 0.8671875, -0.0703125)  # Catmull-Rom a quarter of a voxel before the centre
    for axis in (1, 2, 3):
        length = images.shape[axis]
        first, last = images.narrow(axis, 0, 1), images.narrow(axis, length - 1, 1)
        padded = torch.cat([first, first, images, last, last], dim=axis)
        before = sum(tap * padded.narrow(axis, at, length) for at, tap in enumerate(taps))
        after = sum(tap * padded.narrow(axis, 4 - at, length) for at, tap in enumerate(taps))
        images = torch.stack([before, after], dim=axis + 1).flatten(axis, axis + 1)  # type: ignore[list-item]
    return images


def smooth(image: Tensor, sigma: float) -> Tensor:
    """An image (A, S, L) under a Gaussian of standard deviation `sigma` voxels, mirrored at its borders: float32.

    One matrix product an axis: a working grid is small, and the cores share these."""
    along_a, along_s, along_l = (_gaussian(length, sigma) for length in image.shape)
    smoothed = (along_a @ image.float().flatten(1)).view(image.shape)
    result: Tensor = along_s @ (smoothed @ along_l.T)
    return result


@lru_cache(maxsize=32)
def _gaussian(length: int, sigma: float) -> Tensor:
    """The matrix (length, length) that smooths along one axis."""
    import torch
    from scipy import ndimage

    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(length, dtype=np.float32), sigma, axis=0))


def dilate(mask: Tensor, voxels: int) -> Tensor:
    """A bool mask (A, S, L) grown by a cube of `voxels` to each side."""
    from torch.nn import functional

    grown = mask[None].float()
    for _ in range(3):  # a cube is three lines, one after the other
        grown = functional.max_pool1d(grown.flatten(0, 2), 2 * voxels + 1, 1, voxels).view_as(grown)
        grown = grown.permute(0, 3, 1, 2).contiguous()
    return grown[0] > 0.5


def erode(mask: Tensor, voxels: int) -> Tensor:
    """A bool mask (A, S, L) shrunk by a cube of `voxels` from each side; the grid's border does not shrink it."""
    return ~dilate(~mask, voxels)


def largest(labels: np.ndarray) -> int:
    """The label of the part with the most voxels; labels from 1, of which there is one."""
    return 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a bool mask; nothing where that is empty."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    return labels == largest(labels) if count else np.zeros(mask.shape, dtype=bool)


def solid(mask: Tensor, voxels: int) -> Tensor:
    """A bool mask (A, S, L) closed by a cube of `voxels` to each side, with its cavities filled."""
    import torch
    from scipy import ndimage

    return torch.from_numpy(ndimage.binary_fill_holes(erode(dilate(mask, voxels), voxels).numpy()))


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box that holds all True voxels of a mask (A, S, L), which has some."""
    spans = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append(slice(int(used[0]), int(used[-1]) + 1))
    return spans[0], spans[1], spans[2]
