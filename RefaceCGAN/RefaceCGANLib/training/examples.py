"""Training examples for the generator: a defaced head, the shape to paint, and the head as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..face_model.template import CLEFT, SKIN_LEVEL, Template, reader, warp
from ..spatial.grid import dilate, solid
from .train_anatomy import random_field, removed_face, rotation


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


OVERLAP = 4
"""Voxels around the face region for which the generator answers, too, as far as the rim of kept skin reaches
(`template.RIM`): by what it says there its face is made to meet that skin, and the seam is taken out."""
NO_RELIEF = 0.35
"""Standard deviations of relief that the prior has and the target has not: the generator smooths what is rough."""
SPREAD = 0.8, 1.4
"""Standard deviations of the codes of free faces, least and most."""


@dataclass(frozen=True)
class Example:
    """condition (1, C, A, S, L): defaced head, emptied voxels as 1, average head in the wanted shape;
    target (1, 1, A, S, L): the head with a face of that shape.  Then two masks of that shape: region, the face
    region where the target is known, and loss_region, the same and `OVERLAP` voxels beyond.
    free: a condition for the same head whose wanted shape is nobody's, so that there is no target, as when a
    scan is refaced.  natural: like target, the head with its own face: what a face should look like to the
    discriminators. Where they are None, the target is natural and all is paired (the paper's way)."""

    condition: Tensor
    target: Tensor
    region: Tensor
    loss_region: Tensor
    free: Tensor | None = None
    natural: Tensor | None = None

    def to(self, device: torch.device) -> Example:
        """The same on another device."""

        def there(name: str) -> Any:
            part = getattr(self, name)
            return part if part is None else part.to(device)

        return Example(*(there(field.name) for field in fields(self)))

    @classmethod
    def joined(cls, examples: Sequence[Example]) -> Example:
        """Several as one, along the first axis."""

        def all_of(name: str) -> Any:
            parts = [getattr(one, name) for one in examples]
            return None if parts[0] is None else torch.cat(parts)

        return cls(*(all_of(field.name) for field in fields(cls)))


def condition_of(image: Tensor, region: Tensor, prior: Tensor) -> Tensor:
    """What the generator sees (N, 3, A, S, L): the defaced image (emptied voxels at -1), the emptied voxels
    as 1, and the average head in the wanted shape (`prior`). All arguments (N, 1, A, S, L)."""
    defaced = torch.where(region > 0.5, torch.full_like(image, -1.0), image)
    return torch.cat([defaced, region, prior], dim=1)


def example(head: WorkingHead, template: Template, rng: np.random.Generator) -> Example:
    """One augmented example; `template` is cropped to the working grid.

    The identity of the target is random: its face is bent into the shape own + difference, which vanishes at
    the border to kept tissue, and the prior is the average head in that very shape. So the generator learns
    to paint the shape it is told, and cannot learn to guess a face from the skull around it. The shape of the
    free face is drawn as `Refacer` draws it. Both meet the kept skin as in `Refacer`.
    """
    arrays = [head.image.astype(np.float32), head.valid.astype(np.float32), head.brain.astype(np.float32)]
    scan = torch.from_numpy(np.stack(arrays))
    own, mirrored = head.shape.astype(np.float32), int(rng.random() < 0.5)
    if mirrored:
        scan, own = scan.flip(3), own[..., ::-1] * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
    shape = tuple(scan.shape[1:])
    turn = rotation(rng.normal(0, np.radians(2.0), 3)) @ np.diag(np.exp(rng.normal(0, 0.02, 3)))
    centre = torch.tensor([(n - 1) / 2 for n in shape]).reshape(3, 1, 1, 1)
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    change = torch.from_numpy((turn - np.eye(3)).astype(np.float32))
    jitter = torch.from_numpy(rng.normal(0, 1.0, 3).astype(np.float32)).reshape(3, 1, 1, 1)
    move = torch.einsum("ij,jasl->iasl", change, index - centre) + jitter
    code = rng.standard_normal(len(template.modes)) * float(rng.choice([0.0, 0.6, 1.0, 1.5]))
    difference = template.displacement(code, with_mean=False)
    natural, bent = warp(scan, move), warp(scan[:2], difference + move)
    brain = (natural[2] > 0.5).float()
    valid = (natural[1] > 0.99) & (bent[1] > 0.99)

    near = dilate(brain > 0.5, 3 if rng.random() < 0.7 else 2)
    region = torch.from_numpy(template.face_region) & ~near
    emptied_elsewhere = rng.random() < 0.2
    if emptied_elsewhere:  # as other programs deface
        to_world = torch.from_numpy(template.affine.astype(np.float32))
        coordinates = index.permute(1, 2, 3, 0) @ to_world[:3, :3].T + to_world[:3, 3]
        region = region | removed_face(coordinates, brain[None, None], rng)

    x = torch.stack([natural[0], bent[0]])[:, None]
    if rng.random() < 0.5:  # contrast
        x = ((x + 1) / 2).clamp(0, 1) ** float(np.exp(rng.normal(0, 0.25))) * 2 - 1
    if rng.random() < 0.5:  # bias field
        x = ((x + 1) * torch.exp(random_field(shape, 3, rng) * 0.15)).clamp(0, 2) - 1
    x = torch.where(valid, x, torch.full_like(x, -1.0))
    natural, target = x[:1], x[1:]
    seen = natural
    if rng.random() < 0.5:  # noise and blur are the scan's, not the face's: composition adds them
        seen = (seen + torch.randn(shape) * float(rng.uniform(0, 0.06))).clamp(-1, 1)

    meeting, shift = None, torch.zeros(3, *shape)
    if not emptied_elsewhere:
        emptied = torch.where(region, torch.full_like(seen[0, 0], -1.0), seen[0, 0])
        head_solid = solid((natural[0, 0] > SKIN_LEVEL) | ~valid, CLEFT)
        meeting = template.meeting(
            region.numpy(), head_solid.numpy(), valid.numpy(), reader(emptied.numpy()), reader(region.numpy())
        )
        shift = meeting.shift
    rough = rng.standard_normal(len(template.relief_modes)) * float(rng.choice([0.0, NO_RELIEF]))
    heights = head.relief[mirrored].astype(np.float32) + rough.astype(np.float32) @ template.relief_modes
    prior = warp(template.shaped(template.weighted(own) + shift, heights)[None], difference)
    code = rng.standard_normal(template.modes_count) * rng.uniform(*SPREAD)
    free = template.prior(template.fitting(code, meeting) if meeting else code, meeting)
    region_1 = region.float()[None, None]
    return Example(
        condition=condition_of(seen, region_1, prior[None]),
        target=target,
        region=region_1 * valid,
        loss_region=dilate(region, OVERLAP).float()[None, None] * valid,
        free=condition_of(seen, region_1, free[None, None]),
        natural=natural,
    )
