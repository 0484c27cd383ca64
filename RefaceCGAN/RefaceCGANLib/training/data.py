"""Training examples for the generator: a defaced head, the shape to paint, and the head as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..template import Template, warp
from .anatomy import grid_of, random_field, removed_face, rotation


@dataclass(frozen=True)
class WorkingHead:
    """One training head on the working grid, arrays (A, S, L).

    image: -1 to 1 by the intensity rule.  valid: bool, inside the field of view and free of defects.
    brain: bool.  code, code_mirrored: (K,) the shape of its face, and that of its mirror image.
    """

    name: str
    image: np.ndarray
    valid: np.ndarray
    brain: np.ndarray
    code: np.ndarray
    code_mirrored: np.ndarray

    @classmethod
    def read(cls, path: Path) -> WorkingHead:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in cls.__dataclass_fields__ if name != "name"}
        return cls(name=path.stem, **arrays)


OVERLAP = 2


@dataclass(frozen=True)
class Example:
    """condition (1, 3, A, S, L): defaced head, emptied voxels as 1, average head in the wanted shape;
    target (1, 1, A, S, L): the head with its face.  Then two masks of that shape: region, the face region where
    the target is known, and loss_region, the same and `OVERLAP` voxels beyond, so that the generator also
    answers for the tissue at the border (composition takes the seam out by what it says there)."""

    condition: Tensor
    target: Tensor
    region: Tensor
    loss_region: Tensor


def condition_of(image: Tensor, region: Tensor, prior: Tensor) -> Tensor:
    """What the generator sees (N, 3, A, S, L): the defaced image (emptied voxels at -1), the emptied voxels
    as 1, and the average head in the wanted shape (`prior`). All arguments (N, 1, A, S, L)."""
    defaced = torch.where(region > 0.5, torch.full_like(image, -1.0), image)
    return torch.cat([defaced, region, prior], dim=1)


def example(
    head: WorkingHead, template: Template, crop: tuple[slice, slice, slice], rng: np.random.Generator
) -> Example:
    """One augmented example. `template` covers the template grid, `crop` is the working grid's part of it.

    The identity of the target is random: its face is bent into the shape own + difference, which vanishes at
    the border to kept tissue, and the prior is the average head in that very shape. So the generator learns
    to paint the shape it is told, and cannot learn to guess a face from the skull around it.
    """
    image = torch.from_numpy(head.image.astype(np.float32))
    valid = torch.from_numpy(head.valid.astype(np.float32))
    brain = torch.from_numpy(head.brain.astype(np.float32))
    code = head.code
    if rng.random() < 0.5:
        image, valid, brain, code = image.flip(2), valid.flip(2), brain.flip(2), head.code_mirrored
    shape = tuple(image.shape)

    weight = torch.from_numpy(template.weight[crop].astype(np.float32))
    difference = rng.standard_normal(len(code)).astype(np.float32) * float(rng.choice([0.0, 0.5, 0.8]))
    still = template.displacement(np.zeros_like(code))[(slice(None), *crop)]
    bend = (template.displacement(difference)[(slice(None), *crop)] - still) * weight
    image, valid, brain = warp(image, bend), warp(valid, bend), warp(brain, bend)
    prior = template.prior(code + difference)[crop]

    centre = (np.array(shape) - 1) / 2
    turn = rotation(rng.normal(0, np.radians(2.0), 3)) @ np.diag(np.exp(rng.normal(0, 0.02, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre - turn @ centre + rng.normal(0, 1.0, 3)
    moved = functional.grid_sample(
        torch.stack([image + 1, valid, brain])[None], grid_of(matrix, shape, shape), align_corners=True
    )[0]
    image, valid, brain = moved[0] - 1, moved[1] > 0.99, (moved[2] > 0.5).float()

    margin = 7 if rng.random() < 0.7 else 5
    near = functional.max_pool3d(brain[None, None], margin, stride=1, padding=margin // 2)[0, 0] > 0.5
    region = torch.from_numpy(template.face_region[crop]) & ~near
    if rng.random() < 0.2:  # as other programs deface
        first = np.array([span.start for span in crop])
        affine = template.affine.copy()
        affine[:3, 3] = (template.affine @ np.r_[first, 1.0])[:3]
        axes = [torch.arange(n, dtype=torch.float32) for n in shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        to_world = torch.from_numpy(affine.astype(np.float32))
        coordinates = index @ to_world[:3, :3].T + to_world[:3, 3]
        region = region | removed_face(coordinates, brain[None, None], rng)

    x = image[None, None]
    if rng.random() < 0.5:  # contrast
        x = ((x + 1) / 2) ** float(np.exp(rng.normal(0, 0.25))) * 2 - 1
    if rng.random() < 0.5:  # bias field
        x = ((x + 1) * torch.exp(random_field(shape, 3, rng) * 0.15)).clamp(0, 2) - 1
    seen = x
    if rng.random() < 0.5:  # noise and blur are the scan's, not the face's: composition adds them
        noise = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        seen = (x + noise * float(rng.uniform(0, 0.06))).clamp(-1, 1)
    seen = torch.where(valid, seen, torch.full_like(seen, -1.0))
    region_1 = region.float()[None, None]
    return Example(
        condition=condition_of(seen, region_1, prior[None, None]),
        target=torch.where(valid, x, torch.full_like(x, -1.0)),
        region=region_1 * valid,
        loss_region=functional.max_pool3d(region_1, 2 * OVERLAP + 1, stride=1, padding=OVERLAP) * valid,
    )
