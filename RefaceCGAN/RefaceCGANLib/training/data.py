"""Training examples for the generator: a defaced head, the shape to paint, and the head as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..template import Template, warp
from .anatomy import random_field, removed_face, rotation


@dataclass(frozen=True)
class WorkingHead:
    """One training head on the working grid, arrays (A, S, L).

    image: -1 to 1 by the intensity rule.  valid: bool, inside the field of view and free of defects.
    brain: bool.  shape: (3, A/2, S/2, L/2) RAS mm, the displacement that gives the average head this face.
    relief: (2, N) mm, how far its skin, and that of its mirror image, lies in front of the average skin so moved.
    """

    name: str
    image: np.ndarray
    valid: np.ndarray
    brain: np.ndarray
    shape: np.ndarray
    relief: np.ndarray

    @classmethod
    def read(cls, path: Path) -> WorkingHead:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in cls.__dataclass_fields__ if name != "name"}
        return cls(name=path.stem, **arrays)


OVERLAP = 2


@dataclass(frozen=True)
class Example:
    """condition (1, 3, A, S, L): defaced head, emptied voxels as 1, average head in the wanted shape;
    target (1, 1, A, S, L): the head with its face.  Then two masks of that shape: region, the face region
    where the target is known, and loss_region, the same and `OVERLAP` voxels beyond, so that the generator
    also answers for the tissue at the border (composition takes the seam out by what it says there)."""

    condition: Tensor
    target: Tensor
    region: Tensor
    loss_region: Tensor


def condition_of(image: Tensor, region: Tensor, prior: Tensor) -> Tensor:
    """What the generator sees (N, 3, A, S, L): the defaced image (emptied voxels at -1), the emptied voxels
    as 1, and the average head in the wanted shape (`prior`). All arguments (N, 1, A, S, L)."""
    defaced = torch.where(region > 0.5, torch.full_like(image, -1.0), image)
    return torch.cat([defaced, region, prior], dim=1)


def example(head: WorkingHead, template: Template, rng: np.random.Generator) -> Example:
    """One augmented example; `template` is cropped to the working grid.

    The identity of the target is random: its face is bent into the shape own + difference, which vanishes at
    the border to kept tissue, and the prior is the average head in that very shape. So the generator learns
    to paint the shape it is told, and cannot learn to guess a face from the skull around it.
    """
    arrays = [head.image.astype(np.float32), head.valid.astype(np.float32), head.brain.astype(np.float32)]
    scan = torch.from_numpy(np.stack(arrays))
    own, mirrored = head.shape.astype(np.float32), int(rng.random() < 0.5)
    if mirrored:
        scan, own = scan.flip(3), own[..., ::-1] * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
    shape = tuple(scan.shape[1:])

    code = rng.standard_normal(len(template.modes)) * float(rng.choice([0.0, 0.6, 1.0, 1.5]))
    difference = template.displacement(code, with_mean=False)
    prior = template.shaped(template.weighted(own), head.relief[mirrored].astype(np.float32))
    prior = warp(prior[None], difference)[0]
    turn = rotation(rng.normal(0, np.radians(2.0), 3)) @ np.diag(np.exp(rng.normal(0, 0.02, 3)))
    centre = torch.tensor([(n - 1) / 2 for n in shape]).reshape(3, 1, 1, 1)
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    change = torch.from_numpy((turn - np.eye(3)).astype(np.float32))
    jitter = torch.from_numpy(rng.normal(0, 1.0, 3).astype(np.float32)).reshape(3, 1, 1, 1)
    move = torch.einsum("ij,jasl->iasl", change, index - centre) + jitter
    scan = warp(scan, difference + move)
    image, valid, brain = scan[0], scan[1] > 0.99, (scan[2] > 0.5).float()

    margin = 7 if rng.random() < 0.7 else 5
    near = functional.max_pool3d(brain[None, None], margin, stride=1, padding=margin // 2)[0, 0] > 0.5
    region = torch.from_numpy(template.face_region) & ~near
    if rng.random() < 0.2:  # as other programs deface
        to_world = torch.from_numpy(template.affine.astype(np.float32))
        coordinates = index.permute(1, 2, 3, 0) @ to_world[:3, :3].T + to_world[:3, 3]
        region = region | removed_face(coordinates, brain[None, None], rng)

    x = image[None, None]
    if rng.random() < 0.5:  # contrast
        x = ((x + 1) / 2).clamp(0, 1) ** float(np.exp(rng.normal(0, 0.25))) * 2 - 1
    if rng.random() < 0.5:  # bias field
        x = ((x + 1) * torch.exp(random_field(shape, 3, rng) * 0.15)).clamp(0, 2) - 1
    seen = x
    if rng.random() < 0.5:  # noise and blur are the scan's, not the face's: composition adds them
        noise = torch.randn(shape)
        seen = (x + noise * float(rng.uniform(0, 0.06))).clamp(-1, 1)
    seen = torch.where(valid, seen, torch.full_like(seen, -1.0))
    region_1 = region.float()[None, None]
    return Example(
        condition=condition_of(seen, region_1, prior[None, None]),
        target=torch.where(valid, x, torch.full_like(x, -1.0)),
        region=region_1 * valid,
        loss_region=functional.max_pool3d(region_1, 2 * OVERLAP + 1, stride=1, padding=OVERLAP) * valid,
    )
