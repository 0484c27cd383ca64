"""Sub-volumes: network-sized blocks over a working grid, and their average where they overlap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def blocks(shape: tuple[int, ...], size: tuple[int, ...], overlap: float) -> Iterator[tuple[slice, ...]]:
    """Blocks of `size` that cover a grid of `shape`; neighbours share at least `overlap` (0..1) of a side.

    Axes shorter than the block give one block that reaches beyond the grid's end."""
    starts = []
    for length, side in zip(shape, size, strict=True):
        stride = max(1, round(side * (1 - overlap)))
        count = 1 if length <= side else -(-(length - side) // stride) + 1
        last = max(length - side, 0)
        starts.append(sorted({round(i * last / max(count - 1, 1)) for i in range(count)}))
    for start in itertools.product(*starts):
        yield tuple(slice(a, a + side) for a, side in zip(start, size, strict=True))


def apply(
    network: Callable[[Tensor], Tensor],
    condition: Tensor,
    size: tuple[int, ...],
    overlap: float,
    wanted: Tensor | None = None,
) -> Tensor:
    """Run `network` on (1, C, *size) blocks of `condition` (1, C, A, S, L) and average where they overlap.

    Blocks without a `wanted` voxel (bool (A, S, L)) are left out and stay -1. Returns (1, 1, A, S, L)."""
    import torch
    from torch.nn import functional

    shape = tuple(condition.shape[2:])
    short = [max(0, side - length) for length, side in zip(shape, size, strict=True)]
    padding = [value for amount in reversed(short) for value in (0, amount)]
    padded = functional.pad(condition, padding, value=-1.0)
    total = torch.zeros((1, 1, *padded.shape[2:]))
    count = torch.zeros_like(total)
    for block in blocks(shape, size, overlap):
        if wanted is not None and not bool(wanted[block].any()):
            continue
        index = (slice(None), slice(None), *block)
        total[index] += network(padded[index]).float().cpu()
        count[index] += 1
    result = torch.where(count > 0, total / count.clamp(min=1), -torch.ones_like(total))
    return result[(slice(None), slice(None), *(slice(0, length) for length in shape))]
