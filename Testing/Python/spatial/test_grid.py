"""Grids: orientation, resampling, sampling through an affine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from orientations import ORIENTATIONS, reoriented
from RefaceCGANLib.spatial.grid import (
    AslView,
    axes_matrix,
    dilate,
    erode,
    finer,
    resample_axes,
    sample,
    sample_at,
    shift,
    smooth,
)
from RefaceCGANLib.volume.volume import Volume
from scipy import ndimage


@pytest.fixture(scope="module")
def small() -> Volume:
    rng = np.random.default_rng(0)
    affine = np.array([[0.0, 0.1, 1.3, -20], [-0.9, 0.05, 0, 30], [0.02, 2.0, 0.1, -15], [0, 0, 0, 1]])
    return Volume.from_array(rng.integers(0, 999, (17, 20, 23)).astype(np.int16), affine)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_give_the_same_asl_array_and_spacing(small, order, signs):
    view, other = AslView.of(small), reoriented(small, order, signs)
    seen = AslView.of(other)
    assert np.array_equal(seen.to_asl(other.stored), view.to_asl(small.stored))
    assert seen.spacing == view.spacing
    assert np.array_equal(seen.to_native(seen.to_asl(other.stored)), other.stored)
    assert np.allclose(seen.asl_affine, view.asl_affine, atol=1e-9)


def test_asl_axes_point_anterior_superior_left(small):
    import nibabel as nib

    assert nib.aff2axcodes(AslView.of(small).asl_affine) == ("A", "S", "L")


def test_resampling_keeps_a_linear_ramp_away_from_the_ends():
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], (40, 8, 8))
    spacing = (0.7, 1.0, 1.0)
    for target in (0.5, 0.7, 2.0):
        got = resample_axes(ramp, spacing, (target, 1.0, 1.0))
        index = axes_matrix(spacing, (target, 1.0, 1.0)) @ np.array([[i, 0, 0, 1] for i in range(len(got))]).T
        inner = slice(4, -4)
        assert np.allclose(got[:, 0, 0][inner], index[0][inner], atol=0.05)


def test_resampling_to_the_same_spacing_changes_nothing():
    block = np.random.default_rng(1).random((9, 8, 7), dtype=np.float32)
    assert np.allclose(resample_axes(block, (1.5,) * 3, 1.5), block)


def test_sample_reads_at_the_mapped_index():
    source = torch.from_numpy(np.random.default_rng(2).random((1, 12, 11, 10), dtype=np.float32))
    assert torch.allclose(sample(source, shift(2, 3, 1), (5, 4, 6))[0], source[0, 2:7, 3:7, 1:7], atol=1e-5)
    half = sample(source, shift(0.5, 0, 0), (3, 11, 10))[0]
    assert torch.allclose(half, (source[0, :3] + source[0, 1:4]) / 2, atol=1e-5)


def test_sample_in_slabs_equals_sample_at_once(monkeypatch):
    source = torch.from_numpy(np.random.default_rng(3).random((2, 20, 15, 12), dtype=np.float32))
    matrix = np.array([[0.9, 0.1, 0, 1], [-0.1, 0.8, 0.05, 2], [0, 0, 1.1, -0.5], [0, 0, 0, 1]])
    at_once = sample(source, matrix, (18, 16, 11), "border")
    monkeypatch.setattr("RefaceCGANLib.spatial.grid.SLAB_VOXELS", 500)
    assert torch.allclose(sample(source, matrix, (18, 16, 11), "border"), at_once, atol=1e-5)


def test_dilate_grows_by_a_cube_and_erode_is_its_opposite():
    mask = torch.zeros((11, 12, 13), dtype=torch.bool)
    mask[5, 6, 4] = True
    grown = dilate(mask, 2)
    expected = torch.zeros_like(mask)
    expected[3:8, 4:9, 2:7] = True
    assert torch.equal(grown, expected)
    assert torch.equal(erode(grown, 2), mask)


def test_sampling_at_indices_is_sampling_through_the_matrix_that_leads_there():
    source = torch.from_numpy(np.random.default_rng(0).random((2, 9, 8, 7), np.float32))
    matrix = shift(0.3, -1.2, 2.5) @ np.diag([0.8, 1.1, 0.9, 1.0])
    shape = (6, 10, 5)
    grid = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
    index = torch.from_numpy(np.tensordot(matrix[:3], grid, 1).astype(np.float32))
    for outside in ("zeros", "border"):
        assert torch.allclose(sample_at(source, index, outside), sample(source, matrix, shape, outside), atol=1e-5)


def test_finer_keeps_voxel_borders_and_straight_lines():
    index = torch.arange(10, dtype=torch.float32)
    ramp = (index[:, None, None] + 2 * index[None, :, None] - index[None, None, :])[None]
    fine = finer(ramp)[0]
    assert fine.shape == (20, 20, 20)
    at = (torch.arange(20) + 0.5) / 2 - 0.5
    wanted = at[:, None, None] + 2 * at[None, :, None] - at[None, None, :]
    inner = (slice(4, -4),) * 3
    assert torch.allclose(fine[inner], wanted[inner], atol=1e-4)


def test_smooth_is_a_gaussian_that_is_mirrored_at_the_borders():
    image = np.random.default_rng(0).random((9, 20, 13), np.float32)
    for sigma in (0.5, 2.5):
        smoothed = smooth(torch.from_numpy(image), sigma).numpy()
        assert np.allclose(smoothed, ndimage.gaussian_filter(image, sigma), atol=1e-5)
    assert smooth(torch.ones((4, 5, 6), dtype=torch.bool), 1.0).dtype == torch.float32
