"""One session as a whole: which scan is the reference, who takes its region, and time series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from data_sets import other_contrast, time_series, write
from RefaceCGANLib import Volume
from RefaceCGANLib.dataset import plan
from RefaceCGANLib.dataset.coregistration import SPACING, Grey, register, rigid
from RefaceCGANLib.dataset.timeseries import TimeSeries, volumes_in
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.spatial.grid import mapped
from scipy.ndimage import binary_erosion

AFFINE = np.array([[-2.0, 0, 0, 50], [0, 2, 0, -60], [0, 0, 3, -40], [0, 0, 0, 1]])


# --- time series ------------------------------------------------------------------------------------------


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 900, (18, 20, 16, 4)).astype(">i2")


@pytest.mark.parametrize("name", ["bold.nii.gz", "bold.nii", "bold.mgz"])
def test_a_time_series_changes_where_it_is_told_to_and_nowhere_else(tmp_path: Path, frames: np.ndarray, name: str):
    if name.endswith("mgz"):
        image = nib.MGHImage(frames.astype(np.int32), AFFINE)
    else:
        image = nib.Nifti1Image(frames, AFFINE)
        image.header.set_slope_inter(0.5, 3.0)
        image.header["descrip"] = b"kept"
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"kept, too"))
    nib.save(image, tmp_path / name)
    series = TimeSeries.read(tmp_path / name)
    assert (series.count, volumes_in(tmp_path / name)) == (4, 4)
    before = series.stored.copy()
    series.stored[3:5, :, :, 2] = 7
    (tmp_path / "out").mkdir()
    series.write(tmp_path / "out" / name)
    old, new = nib.load(tmp_path / name), nib.load(tmp_path / "out" / name)
    assert old.header.binaryblock == new.header.binaryblock
    again = TimeSeries.read(tmp_path / "out" / name)
    before[3:5, :, :, 2] = 7
    assert np.array_equal(again.stored, before)
    assert np.allclose(again.volume(1).array, np.asarray(old.dataobj)[..., 1])
    assert np.array_equal(again.affine, AFFINE)


def test_unweighted_volumes_stand_for_a_diffusion_series(tmp_path: Path, frames: np.ndarray):
    nib.save(nib.Nifti1Image(frames.astype(np.float32), AFFINE), tmp_path / "a_dwi.nii.gz")
    write(tmp_path / "a_dwi.bval", "1000 0 1000 5\n")
    typical = TimeSeries.read(tmp_path / "a_dwi.nii.gz").typical()
    assert np.allclose(typical.array, frames[..., [1, 3]].mean(axis=3), atol=1e-3)


def test_a_time_series_that_is_cut_short(tmp_path: Path, frames: np.ndarray):
    nib.save(nib.Nifti1Image(frames, AFFINE), tmp_path / "a.nii.gz")
    write(tmp_path / "b.nii.gz", (tmp_path / "a.nii.gz").read_bytes()[:9000])
    with pytest.raises(InputError, match="cut short"):
        TimeSeries.read(tmp_path / "b.nii.gz")


# --- co-registration --------------------------------------------------------------------------------------


def test_the_rigid_part_of_a_map_keeps_its_pivot():
    matrix = np.array([[0, -1.1, 0, 5], [1.1, 0, 0, 6], [0, 0, 1.1, 7], [0, 0, 0, 1]])
    pivot = np.array([10.0, 20, 30])
    found = rigid(matrix, pivot)
    assert np.allclose(found[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.allclose(mapped(pivot, found), mapped(pivot, matrix))


@pytest.mark.heads
def test_another_contrast_on_another_grid_is_found_to_a_millimetre(heads: Path):
    head = Volume.read(heads / "val" / "ixi094.nii.gz")
    series, truth = other_contrast(head)
    reference = Grey.of(head)
    near = binary_erosion(reference.values > 0.1, iterations=round(15 / SPACING))
    found = register(reference, near, Grey.of(series), [np.eye(4)])
    points = mapped(np.argwhere(reference.values > 0.1), reference.affine)
    assert np.linalg.norm(mapped(points, found) - mapped(points, truth), axis=1).max() < 1.0


# --- sessions ---------------------------------------------------------------------------------------------


@pytest.mark.heads
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("located_once")
def test_who_takes_whose_region(refacecgan: Callable, heads: Path, tmp_path: Path):
    """A session with a scan of another head, one that shows little of the face, and a brain without a head."""
    source, output = tmp_path / "in", tmp_path / "out"
    one, two = (Volume.read(heads / "val" / f"{name}.nii.gz") for name in ("ixi095", "ixi180"))
    weighted, _ = other_contrast(one, (2.0, 2.0, 2.0))
    strange, _ = other_contrast(two, (2.0, 2.0, 2.0))
    noise = Volume.from_array(np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16), np.eye(4))
    top = weighted.affine.copy()
    top[2, 3] += 2.0 * 84
    write(source / "anna/1/t1.nii.gz", one)
    write(source / "anna/1/t2_of_another.nii.gz", strange)
    write(source / "anna/1/flair_top.nii.gz", Volume.from_array(weighted.stored[:, :, 84:], top))
    brain = Volume.read(heads / "val" / "ixi095_seg.nii.gz").stored > 0
    write(
        source / "anna/1/stripped.nii.gz", one.with_stored(np.where(brain, one.stored, 0).astype(one.stored.dtype))
    )
    time_series(noise, 2, source / "bob/1/rest.nii.gz")
    options = ("--device", "cpu", "--jobs", 1, "--timeseries", "keep", "--dry-run")
    done = refacecgan("dataset", source, output, *options)
    assert done.status == 0, done
    rows = {row.path: row for row in plan.read(output / "qc/plan.tsv")}
    assert {path: (row.action, row.region_from) for path, row in rows.items()} == {
        "anna/1/t1.nii.gz": ("reface", "anna/1/t1.nii.gz"),
        "anna/1/t2_of_another.nii.gz": ("reface", "anna/1/t2_of_another.nii.gz"),
        "anna/1/flair_top.nii.gz": ("deface", "anna/1/t1.nii.gz"),
        "anna/1/stripped.nii.gz": ("deface", "anna/1/t1.nii.gz"),
        "bob/1/rest.nii.gz": ("copy", ""),
    }
    assert "Could not be registered to anna/1/t1.nii.gz" in rows["anna/1/t2_of_another.nii.gz"].warnings[0]
    assert "of the face in view" in rows["anna/1/flair_top.nii.gz"].reason
    assert "empty where the face would be" in rows["anna/1/stripped.nii.gz"].reason
    assert "--timeseries keep" in rows["bob/1/rest.nii.gz"].reason
