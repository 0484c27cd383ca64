"""Sub-volumes cover the grid, overlap as asked, and are averaged."""

from __future__ import annotations

import pytest
import torch
from RefaceCGANLib.generation.sliding_window import apply, blocks


@pytest.mark.parametrize(("shape", "overlap"), [((40, 33, 16), 0.5), ((16, 16, 16), 0.0), ((100, 17, 50), 0.25)])
def test_blocks_cover_the_grid_and_overlap(shape, overlap):
    seen = torch.zeros(shape, dtype=torch.int)
    for block in blocks(shape, (16, 16, 16), overlap):
        assert all(span.stop - span.start == 16 for span in block)
        seen[block] += 1
    assert int(seen.min()) >= 1


def test_a_grid_smaller_than_the_block_is_padded_with_air_and_cropped_again():
    condition = torch.zeros((1, 1, 10, 20, 12))
    seen = []

    def network(block: torch.Tensor) -> torch.Tensor:
        seen.append(block.shape)
        return block

    assert apply(network, condition, (16, 16, 16), 0.5).shape == (1, 1, 10, 20, 12)
    assert all(shape == (1, 1, 16, 16, 16) for shape in seen)


def test_overlapping_blocks_are_averaged():
    values = iter(float(i) for i in range(10))
    result = apply(
        lambda block: torch.full_like(block, next(values)), torch.zeros((1, 1, 24, 16, 16)), (16, 16, 16), 0.5
    )
    assert result[0, 0, :8].unique().tolist() == [0.0]
    assert result[0, 0, 8:16].unique().tolist() == [0.5]
    assert result[0, 0, 16:].unique().tolist() == [1.0]


def test_blocks_without_a_wanted_voxel_are_left_out():
    wanted = torch.zeros((48, 16, 16), dtype=torch.bool)
    wanted[40:] = True
    calls = []
    result = apply(lambda b: calls.append(1) or b + 1, torch.zeros((1, 1, 48, 16, 16)), (16, 16, 16), 0.0, wanted)
    assert len(calls) == 1
    assert float(result[0, 0, :32].max()) == -1.0
