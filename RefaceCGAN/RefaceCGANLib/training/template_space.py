"""The two spaces in which a template is built, their grids, and displacement fields on them.

Reference space is that of the reference head, template space that of the average head (`build_template`).
SimpleITK counts LPS mm in arrays [S, P, L]; everything else is RAS mm and (A, S, L).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..face_model.template import warp
from ..spatial.grid import mapped

if TYPE_CHECKING:
    import torch

TEMPLATE_SCALE = (1 / 1.09, 1 / 1.08, 1 / 1.21)
"""Reference mm -> template mm along x, y, z: the mean size of the training heads against the reference."""
GRID_SHAPE = (128, 136, 96)
GRID_AFFINE = np.array([[0, 0, -2, 95], [2, 0, 0, -130], [0, 2, 0, -166], [0, 0, 0, 1.0]])
"""The template grid: shape (A, S, L) and index -> template RAS mm. Its middle plane along L is x = 0."""
WORKING_SPANS = (slice(32, 128), slice(4, 100), slice(0, 96))
"""The part of the template grid that is the working grid of the generator."""
SPACING = 2.0
"""mm; of the template grid, and of the prepared heads along their own axes."""
FIELD = 2
"""Displacement fields lie on a grid this many times coarser than the template grid."""

REFERENCE_LOW = (-96.0, -131.0, -147.0)
REFERENCE_SIZE = (192, 256, 256)
"""The box in which heads are averaged: its lower corner (LPS mm, reference space) and its sides in mm."""

INVERSE_ITERATIONS = 8

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS <-> RAS."""


def coarser(affine: np.ndarray, factor: int) -> np.ndarray:
    """The affine of a grid whose voxels are blocks of factor**3 voxels."""
    step = np.diag([factor, factor, factor, 1.0])
    step[:3, 3] = (factor - 1) / 2
    result: np.ndarray = affine @ step
    return result


def block_means(array: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks of factor**3 voxels of the last three axes: the grid that `coarser` describes."""
    *lead, a, s, length = array.shape
    split = array.reshape(*lead, a // factor, factor, s // factor, factor, length // factor, factor)
    result: np.ndarray = split.mean(axis=(-5, -3, -1), dtype=np.float32)
    return result


def mirrored(field: np.ndarray) -> np.ndarray:
    """A displacement field (3, A, S, L), RAS mm, of the mirror image of a head."""
    result = field[..., ::-1].copy()
    result[0] *= -1
    return result


def to_asl(array: np.ndarray) -> np.ndarray:
    """[S, P, L] (and what follows) -> (A, S, L)."""
    return np.ascontiguousarray(array.swapaxes(0, 1)[::-1])


def reference_affine(spacing: float) -> np.ndarray:
    """Index (A, S, L) in the averaging box -> RAS mm, reference space."""
    x, y, z = -REFERENCE_LOW[0], -(REFERENCE_LOW[1] + REFERENCE_SIZE[1]), REFERENCE_LOW[2]
    half = spacing / 2
    return np.array(
        [[0, 0, -spacing, x - half], [spacing, 0, 0, y + half], [0, spacing, 0, z + half], [0, 0, 0, 1.0]]
    )


def reference_points(spacing: float) -> np.ndarray:
    """The voxel centres of the averaging box: [S, P, L, 3], LPS mm."""
    axes = [
        low + spacing * (np.arange(int(size / spacing)) + 0.5)
        for low, size in zip(REFERENCE_LOW, REFERENCE_SIZE, strict=True)
    ]
    return np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], axis=-1)


def affine_part(field: np.ndarray, matrix: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split the map p -> matrix @ (p + field(p)) into the affine map (4, 4) that fits it best, reference LPS
    -> head LPS, and the rest [S, P, L, 3], LPS mm in reference space: p -> affine @ (p + rest(p))."""
    points = reference_points(4.0)
    there = mapped(points + field.astype(np.float64), matrix)
    use, root = weight > 0, np.sqrt(weight[weight > 0])[:, None]
    known = np.c_[points[use], np.ones(np.count_nonzero(use))]
    affine = np.eye(4)
    affine[:3] = np.linalg.lstsq(known * root, there[use] * root, rcond=None)[0].T
    return affine, mapped(there, np.linalg.inv(affine)) - points


def inverse_field(field: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    """The inverse v of a displacement field u (3, a, s, l), RAS mm: v(y) = -u(y + v(y)), by fixed point."""
    import torch

    to_voxels = torch.from_numpy(np.linalg.inv(affine[:3, :3]).astype(np.float32))
    inverse = -field
    for _ in range(INVERSE_ITERATIONS):
        step = torch.einsum("ij,jasl->iasl", to_voxels, inverse)
        inverse = 0.5 * inverse - 0.5 * warp(field, step)
    return inverse
