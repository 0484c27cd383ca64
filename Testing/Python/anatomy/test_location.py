"""Brain and face are found in whatever pose, field of view, voxel size or contrast a scan comes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import sampled
from RefaceCGANLib.anatomy.location import DISAGREE_ML, _thin
from RefaceCGANLib.errors import CheckError
from RefaceCGANLib.spatial.grid import AslView, mapped, resample_axes, sample
from RefaceCGANLib.training.train_anatomy import rotation
from RefaceCGANLib.volume.volume import Volume
from scipy import ndimage

pytestmark = pytest.mark.heads
ASL_2_MM = np.array([[0.0, 0, -2, 90], [2, 0, 0, -120], [0, 2, 0, -120], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def head(heads) -> tuple[np.ndarray, np.ndarray]:
    """A validation head and its brain labels, ASL at 2 mm."""
    volume = Volume.read(heads / "val" / "ixi254.nii.gz")
    labels = Volume.read(heads / "val" / "ixi254_seg.nii.gz").stored > 0
    view = AslView.of(volume)
    return np.ascontiguousarray(view.to_asl(volume.array)), np.ascontiguousarray(view.to_asl(labels))


def turned(degrees: tuple[float, float, float]) -> Callable[[np.ndarray], np.ndarray]:
    def turn(array: np.ndarray) -> np.ndarray:
        shape = tuple(n + 24 for n in array.shape)
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(np.radians(degrees))
        matrix[:3, 3] = (np.array(array.shape) - 1) / 2 - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
        return sample(torch.from_numpy(array.astype(np.float32))[None], matrix, shape)[0].numpy()

    return turn


def bias(array: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0.6, 1.5, array.shape[0])[:, None, None] * np.linspace(1.3, 0.7, array.shape[1])[:, None]
    return array * ramp


def noise(array: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    sigma = 0.04 * np.percentile(array, 99)
    real, imaginary = rng.normal(0, sigma, (2, *array.shape))
    return np.hypot(array + real, imaginary)


def dark_tissue(array: np.ndarray) -> np.ndarray:
    """T2-like: bright and dark tissue change places, air stays dark."""
    scaled = np.clip(array / np.percentile(array, 99.5), 0, 1)
    return np.where(scaled > 0.08, 1.15 - scaled, scaled) * 500


def same(array: np.ndarray) -> np.ndarray:
    return array


CASES: dict[str, tuple[Callable, Callable]] = {  # what happens to the scan, and to its labels
    "pitched by 25 degrees": (turned((0, 0, 25)), turned((0, 0, 25))),
    "turned by 30 degrees": (turned((0, 30, 0)), turned((0, 30, 0))),
    "tilted by 25 degrees": (turned((25, 0, 0)), turned((25, 0, 0))),
    "bias field": (bias, same),
    "noise": (noise, same),
    "another contrast": (dark_tissue, same),
    "no chin": (lambda a: a[:, 22:], lambda a: a[:, 22:]),
    "no vertex": (lambda a: a[:, :-20], lambda a: a[:, :-20]),
    "no ears": (lambda a: a[:, :, 14:-14], lambda a: a[:, :, 14:-14]),
}


@pytest.mark.parametrize("case", sampled(CASES, "pitched by 25 degrees", "another contrast"))
def test_brain_and_face_are_found(refacer, head, case):
    scan, labels = head
    change, change_labels = CASES[case]
    volume = Volume.from_array(change(scan).astype(np.float32), ASL_2_MM)
    truth = change_labels(labels.astype(np.float32)) > 0.5
    anatomy = refacer.prepare(volume).anatomy
    if anatomy.disputed_ml > DISAGREE_ML and case == "another contrast":  # unlike any scanner's: it is stopped
        with pytest.raises(CheckError, match="second segmentation"):
            refacer.reface(volume, seed=1)
        return
    assert not (anatomy.face_region & truth).any()
    truth = ndimage.binary_closing(np.pad(truth, 4), iterations=3)[4:-4, 4:-4, 4:-4]
    overlap = 2 * (truth & anatomy.brain_mask).sum() / (truth.sum() + anatomy.brain_mask.sum())
    assert overlap > 0.88
    base = refacer.prepare(Volume.from_array(scan, ASL_2_MM)).anatomy.face_region
    expected = change_labels(base.astype(np.float32)) > 0.5
    tissue = change(scan) > 0.15 * np.percentile(change(scan), 99)
    assert (anatomy.face_region & expected & tissue).sum() > 0.8 * (expected & tissue).sum()


@pytest.mark.parametrize("size", sampled([(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.5, 3.0, 1.5)], (4.0, 1.0, 1.0)))
def test_voxel_sizes_from_1_to_4_mm(refacer, head, size):
    scan, labels = head
    fine = resample_axes(scan, (2.0,) * 3, size)
    affine = ASL_2_MM @ np.diag([*(np.array(size) / 2), 1])
    anatomy = refacer.prepare(Volume.from_array(fine, affine)).anatomy
    truth = resample_axes(labels.astype(np.float32), (2.0,) * 3, size) > 0.5
    assert not (anatomy.face_region & truth).any()
    assert (anatomy.brain_mask & truth).sum() > 0.85 * truth.sum()


def test_a_face_outside_the_field_of_view_is_refused(refacer, head):
    scan, _ = head
    with pytest.raises(CheckError, match="field of view"):
        refacer.prepare(Volume.from_array(np.ascontiguousarray(scan[: scan.shape[0] - 40, 50:]), ASL_2_MM))


def test_a_skull_stripped_brain_is_refused(refacer, head):
    scan, labels = head
    brain = ndimage.binary_closing(np.pad(labels, 4), iterations=3)[4:-4, 4:-4, 4:-4]
    with pytest.raises(CheckError):
        refacer.prepare(Volume.from_array(np.where(brain, scan, 0), ASL_2_MM))


def test_the_emptied_region_has_no_hole_towards_the_face(refacer, head):
    """Whatever the skin's shape, at least 4 mm of it is emptied everywhere in front of the face."""
    scan, _ = head
    anatomy = refacer.prepare(Volume.from_array(scan, ASL_2_MM)).anatomy
    skin = scan > anatomy.skin
    solid = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(skin, 4), iterations=4))[4:-4, 4:-4, 4:-4]
    index = np.argwhere(anatomy.face_region)
    low, high = np.percentile(index[:, 1], 25), np.percentile(index[:, 1], 80)
    middle = scan.shape[2] // 2
    for s in range(int(low), int(high), 4):
        for left in range(middle - 20, middle + 21, 5):
            column = np.flatnonzero(solid[:, s, left])
            assert anatomy.face_region[column[-1] - 1 : column[-1] + 1, s, left].all()


def test_deep_tissue_near_the_brain_is_left_to_segmentations(refacer, head):
    scan, _ = head
    anatomy = refacer.prepare(Volume.from_array(scan, ASL_2_MM)).anatomy
    inside = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(scan > anatomy.skin, 4), iterations=4))
    depth = ndimage.distance_transform_edt(inside)[4:-4, 4:-4, 4:-4]
    from_brain = ndimage.distance_transform_edt(~anatomy.brain_mask)
    deep = (depth > 9) & (from_brain < 6)  # voxels of 2 mm
    assert np.count_nonzero(anatomy.face_region & deep) < 0.02 * np.count_nonzero(
        anatomy.face_region & (depth > 9)
    )


def test_no_part_of_an_ear_is_left_in_the_air(refacer, heads):
    volume = Volume.read(heads / "native" / "adi.nii.gz")
    anatomy = refacer.prepare(volume).anatomy
    values = anatomy.view.to_asl(volume.array)
    labels, _ = ndimage.label((values > anatomy.skin) & ~anatomy.face_region)
    sizes = np.bincount(labels.ravel())
    sizes[[0, 1 + np.argmax(sizes[1:])]] = 0  # the air, and the head
    beside = np.abs(mapped(np.argwhere(labels), anatomy.to_template)[:, 0]) > 60
    loose = sizes[labels[labels > 0][beside]]
    assert loose.max(initial=0) < 30  # voxels of about 1 mm: noise


def test_what_sticks_out_of_a_head_is_an_ear_and_the_head_is_not():
    a, s, left = np.indices((60, 60, 70)) - 30
    ball = a**2 + s**2 + left**2 < 25**2
    ear = (np.abs(s) < 8) & (np.abs(a) < 5) & (left > 20) & (left < 33) & ~ball
    assert _thin(ball | ear)[ear & (left > 28)].all()
    assert _thin(ball).mean() < 0.001
    assert _thin(ball[25:35]).mean() < 0.001  # the head goes on beyond the field of view


def test_ears_are_replaced_and_the_scalp_around_them_kept(refacer, heads):
    """The scalp is thin there, and brain segmentations look at it."""
    volume = Volume.read(heads / "native" / "adi.nii.gz")
    anatomy = refacer.prepare(volume).anatomy
    scan = anatomy.view.to_asl(volume.array)
    tissue = np.argwhere(scan > anatomy.skin)
    x, y, z = mapped(tissue, anatomy.to_template).T
    replaced = anatomy.face_region[tuple(tissue.T)]
    ear = (np.abs(x) > 80) & (y < 0) & (z < -10) & (z > -75)  # nothing else of this head is as far out
    assert np.count_nonzero(ear) > 2000
    assert replaced[ear].mean() > 0.98
    above = (np.abs(x) > 60) & (y > -55) & (y < -5) & (z > -8) & (z < 0)
    before = (np.abs(x) > 60) & (y > 4) & (y < 12) & (z > -50) & (z < -5)
    assert replaced[above].mean() < 0.2 and replaced[before].mean() < 0.2


def test_a_head_that_is_cut_close_to_the_brain_counts_as_defaced(refacer, head):
    """As pydeface's mask leaves it, of which little but the brain is left."""
    scan, labels = head
    a, s, _ = np.indices(scan.shape)
    front, low = np.argwhere(labels)[:, 0].max(), np.argwhere(labels)[:, 1].min()
    keep = (ndimage.distance_transform_edt(~labels) < 4) | (s > low + 20 + 0.5 * (a - front))
    anatomy = refacer.prepare(Volume.from_array(np.where(keep, scan, 0), ASL_2_MM)).anatomy
    assert anatomy.already_defaced


@pytest.mark.slow  # a large scan
def test_ears_that_a_defaced_head_still_has_are_not_painted_on(refacer, heads):
    volume = Volume.read(heads / "native" / "defaced_hanke.nii.gz")
    anatomy = refacer.prepare(volume).anatomy
    index = np.argwhere(anatomy.view.to_asl(volume.stored) == volume.stored.min())
    x, y, z = mapped(index, anatomy.to_template).T
    by_the_ear = index[(np.abs(x) > 62) & (np.abs(x) < 90) & (y > -45) & (y < 5) & (z > -75) & (z < -5)]
    assert anatomy.face_region[tuple(by_the_ear.T)].mean() < 0.1
