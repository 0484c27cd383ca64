"""Portraits that a loss can look at: the skin of a head seen from one side, differentiable.

People, and face recognisers, look at the surface of a head and not at its tissue; what they see is where the skin
lies and which way it faces. A ray from the front ends where the tissue begins; how far it came is the depth, and
the slope of the depth is the direction of the skin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

FULL_AIR, FULL_TISSUE = -0.9, -0.3
"""Of an image in -1..1: full air and full tissue, between them a share of both; `SKIN_LEVEL` lies half way."""
OPAQUE = 0.98
"""No voxel takes more than this of a ray, which keeps the gradient finite."""
YAW, PITCH = 50.0, 20.0
"""Degrees to either side from which portraits are drawn."""


def occupancy(image: Tensor) -> Tensor:
    """How much of each voxel is tissue, 0..1, of an image in -1..1."""
    return ((image - FULL_AIR) / (FULL_TISSUE - FULL_AIR)).clamp(0, 1)


def skin_loss(face: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """How far a face's skin is from the target's: the mean difference of `occupancy` and of its slopes where one
    of both has skin, over the voxels that are `known` (all (N, 1, A, S, L))."""
    ours, theirs = occupancy(face), occupancy(target)
    skin = (functional.max_pool3d(theirs, 3, 1, 1) - -functional.max_pool3d(-theirs, 3, 1, 1)) > 0.5
    where = known * skin
    loss = ((ours - theirs).abs() * where).sum()
    for axis in (2, 3, 4):
        apart = (torch.diff(ours, dim=axis) - torch.diff(theirs, dim=axis)).abs()
        loss = loss + (apart * where.narrow(axis, 0, apart.shape[axis])).sum()
    return loss / where.sum().clamp(min=1)


def portraits(heads: Tensor, views: Tensor) -> Tensor:
    """The direction of the skin (N, 3, S, L) of heads (N, 1, A, S, L), -1..1, each seen from one view.

    views: (N, 2) radians, how far the camera stands to the side and above; 0, 0: from the front. Channels: the
    unit normal along S, L and towards the camera."""
    share = occupancy(heads)
    size = torch.tensor(heads.shape[2:], device=heads.device, dtype=torch.float32).flip(0)  # L, S, A
    (yaw, pitch), zero, one = views.float().unbind(1), torch.zeros(len(views)), torch.ones(len(views))
    zero, one = zero.to(views.device), one.to(views.device)
    around = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], 1)
    above = torch.stack([one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos()], 1)
    turn = around.reshape(-1, 3, 3) @ above.reshape(-1, 3, 3)
    turn = turn * (size[None, None, :] / size[None, :, None])  # from voxels to affine_grid's -1..1
    grid = functional.affine_grid(
        torch.cat([turn, torch.zeros_like(turn[..., :1])], 2), list(heads.shape), align_corners=False
    )
    seen = functional.grid_sample(share, grid, align_corners=False)
    clear = torch.log1p(-seen.flip(2).clamp(max=OPAQUE)).cumsum(2).exp()  # of all that lies before
    depth = clear.sum(2)
    slope = [(torch.roll(depth, -1, axis) - torch.roll(depth, 1, axis)) / 2 for axis in (2, 3)]
    normal = torch.cat([*slope, torch.ones_like(depth)], 1)
    return normal / normal.norm(dim=1, keepdim=True)


def random_views(count: int, source: torch.Generator) -> Tensor:
    """Views for `portraits`, (count, 2) radians."""
    most = torch.tensor([math.radians(YAW), math.radians(PITCH)])
    return (2 * torch.rand(count, 2, generator=source) - 1) * most
