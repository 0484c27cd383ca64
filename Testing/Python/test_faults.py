"""Inputs on which the tool once failed, and the kinds they stand for: no brain voxel changes, no original face
stays, on any scan.

The truth comes from elsewhere than the tool: from the scan before it was spoilt. The families of scans are
those of Testing/benchmarks/brain_safety.py, of which a sample runs here.
"""

from __future__ import annotations

import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, sampled
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.app import command_line as cli
from RefaceCGANLib.errors import CheckError, InputError

sys.path.insert(0, str(REPOSITORY / "Testing" / "benchmarks"))
import brain_safety
from brain_safety import Head, brain_changed_ml, face_left

pytestmark = pytest.mark.heads
REFACED = [
    "box_in_air_offset_minus200_adi.nii.gz",
    "brain_cut_receive_bias_back_9x_adi.nii.gz",
    "clinical_5.5mm_tumour_tcia_t1.nii.gz",
    "clinical_5.5mm_tumour_tcia_t2.nii.gz",
    "gz_trailing_garbage.nii.gz",
    "gzip_named_nii.nii",
    "nan_background.nii.gz",
    "original_half_face_left_after_partial_defacing_adi.nii.gz",
    "plain_nifti_named_nii_gz.nii.gz",
    "refused_defaced_filled_with_noise_adi.nii.gz",
    "refused_mp2rage_background_noise_adi.nii.gz",
    "skull_painted_defaced_and_air_zero_adi.nii.gz",
]
NO_HEAD = [
    "phantom_sphere_gets_a_face.nii.gz",
    "stripped_colin27_antspy.nii.gz",
    "stripped_flair_stroke_niivue.nii.gz",
    "stripped_mni152_2009.nii.gz",
    "stripped_space_AIL_niivue.nii.gz",
    "stripped_spm152.nii.gz",
    "stripped_t1gd_niivue.nii.gz",
]


@pytest.fixture(scope="module")
def faults(heads: Path) -> Path:
    return heads.parent / "faults"


@pytest.fixture(scope="module")
def head(heads: Path) -> Head:
    scan = heads / "val" / "ixi254.nii.gz"
    return Head.read("ixi254", scan, scan.with_name("ixi254_seg.nii.gz"))


def reface(refacer: Refacer, volume: Volume) -> Volume | None:
    """Refaced, or None where that was refused."""
    try:
        return refacer.reface(volume, seed=7).volume
    except CheckError:
        return None


ALWAYS = (
    "clinical_5.5mm_tumour_tcia_t2.nii.gz", "original_half_face_left_after_partial_defacing_adi.nii.gz",
    "stripped_t1gd_niivue.nii.gz", "phantom_sphere_gets_a_face.nii.gz",
    "cut below: bottom 16 mm", "wrap-around: wrapped by 40 mm",
    "no head: fruit",
)  # fmt: skip
"""What `make test` has of each kind; `make test-slow` has the rest."""


@pytest.mark.parametrize("name", sampled(REFACED, *ALWAYS))
def test_what_is_a_head_is_refaced(refacer, faults, name):
    volume = Volume.read(faults / name)
    result = refacer.reface(volume, seed=7)
    same = (result.volume.stored == volume.stored) | (np.isnan(result.volume.stored) & np.isnan(volume.stored))
    changed = ~same
    assert changed.any()
    assert not (changed & ~result.face_region).any()


@pytest.mark.parametrize("name", sampled(NO_HEAD, *ALWAYS))
def test_what_is_no_head_gets_no_face(refacer, faults, name):
    with pytest.raises(CheckError, match=r"no head|No brain|no brain"):
        refacer.reface(Volume.read(faults / name), seed=7)


@pytest.mark.parametrize(
    ("scan", "truth"),
    [
        ("brain_cut_bottom_16mm_above_brain_bottom_adi", "TRUTH_brain_bottom_16mm_adi"),
        pytest.param(
            "brain_cut_bottom_24mm_above_brain_bottom_adi", "TRUTH_brain_bottom_24mm_adi", marks=pytest.mark.slow
        ),
        pytest.param("brain_cut_receive_bias_back_9x_adi", "TRUTH_brain_adi", marks=pytest.mark.slow),
    ],
)
def test_no_brain_is_replaced_where_it_was(refacer, faults, scan, truth):
    volume = Volume.read(faults / f"{scan}.nii.gz")
    brain = Volume.read(faults / f"{truth}.nii.gz").stored > 0
    refaced = reface(refacer, volume)
    case = brain_safety.Case(scan, volume, brain)
    assert refaced is None or brain_changed_ml(case, refaced) == 0


SAMPLE = {
    "cut below": ["bottom 0 mm", "bottom 16 mm", "bottom 32 mm"],
    "cut elsewhere": ["top 25 %", "front 10 %"],
    "bias": ["bright at the back 20x", "bright at the left 12x"],
    "air level": ["air at 500", "z-score"],
    "wrap-around": ["wrapped by 10 mm", "wrapped by 40 mm"],
    "defaced before": ["defaced: half of the face", "defaced: all but mouth and chin", "defaced: a plane"],
    "no head": ["brain alone", "fruit"],
    "size": ["head of 0.6 of its size"],
    "contrast": ["simulated T2w"],
}


@pytest.mark.parametrize(
    "scan", sampled([f"{family}: {name}" for family, names in SAMPLE.items() for name in names], *ALWAYS)
)
def test_brain_stays_and_the_face_goes(refacer, head, scan):
    family, name = scan.split(": ", 1)
    case = next(case for case in brain_safety.FAMILIES[family](head) if case.name == name)
    outcome = brain_safety.tried(refacer, head.name, family, case)
    assert outcome.wrong == ""


def test_deface_empties_what_is_left_of_a_face(refacer, head):
    case = next(islice(brain_safety.defacings(head), 1))  # half of the face
    assert face_left(case, case.volume) == 1
    assert face_left(case, refacer.deface(case.volume)) < 0.02
    assert face_left(case, refacer.deface(case.volume, "yes")) < 0.02


@pytest.mark.parametrize("offset", sampled([-1024, -200, 500], -1024))
def test_air_is_painted_at_the_level_of_air(refacer, head, offset):
    volume = Volume.from_array((head.values + offset).astype(np.float32), head.affine)
    result = refacer.reface(volume, seed=7)
    painted = result.volume.array[result.air_mask]
    bright = np.percentile(head.values, 99)
    assert abs(np.median(painted) - offset) < 0.02 * bright
    assert np.percentile(painted, 95) < offset + 0.1 * bright and painted.min() > offset - 0.02 * bright


def test_a_second_opinion_stops_what_the_first_does_not_see(refacer, head, monkeypatch, located_anew):
    """The brain mask of the first network loses its front: the check that does not rest on it stops the scan."""
    from RefaceCGANLib.anatomy import location as anatomy

    apply = anatomy.apply_network

    def blind_in_front(network, small):
        probability, coordinates = apply(network, small)
        where = np.flatnonzero((probability > 0.5).any(axis=(1, 2)))
        probability[where[-1] - 12 if len(where) else 0 :] = 0
        return probability, coordinates

    monkeypatch.setattr(anatomy, "apply_network", blind_in_front)
    volume = head.volume(head.values)
    refaced = reface(refacer, volume)
    case = brain_safety.Case("blind", volume, head.brain)
    assert refaced is None or brain_changed_ml(case, refaced) == 0


def test_nan_outside_the_head_is_air_and_stays(refacer, faults):
    volume = Volume.read(faults / "nan_background.nii.gz")
    assert any("NaN" in warning for warning in volume.warnings)
    result = refacer.reface(volume, seed=7)
    outside = ~result.face_region
    assert np.array_equal(result.volume.stored[outside], volume.stored[outside], equal_nan=True)
    assert np.isnan(result.volume.stored[result.air_mask]).all()
    assert np.isfinite(result.volume.stored[result.face_region & ~result.air_mask]).all()


def test_gzip_is_told_by_content_and_bytes_behind_it_are_passed_over(faults):
    plain = Volume.read(faults / "plain_nifti_named_nii_gz.nii.gz")
    zipped = Volume.read(faults / "gzip_named_nii.nii")
    behind = Volume.read(faults / "gz_trailing_garbage.nii.gz")
    assert np.array_equal(plain.stored, zipped.stored)
    assert np.array_equal(plain.stored, behind.stored)
    assert any("after its end" in warning for warning in behind.warnings)


def test_an_nrrd_without_directions_has_no_orientation(faults):
    with pytest.raises(InputError, match="no known orientation"):
        Volume.read(faults / "nrrd_space_directions_none.nrrd")


def test_index_files_beside_a_dicom_series_are_passed_over(faults, heads, tmp_path):
    for path in (heads / "native" / "adi_dicom").iterdir():
        (tmp_path / path.name).symlink_to(path)
    shutil.copy(faults / "DIRFILE_philips_index_beside_a_series", tmp_path / "DIRFILE")
    assert Volume.read(tmp_path).shape[2] > 100


def test_a_multi_frame_dicom_file_is_read(faults, tmp_path):
    """The one at hand has six slices: it is read, and refused for that."""
    with pytest.raises(InputError, match="64x64x6 voxels, too few"):
        Volume.read(faults / "enhanced_multiframe_single_file.dcm")
    shutil.copy(faults / "enhanced_multiframe_single_file.dcm", tmp_path)
    with pytest.raises(InputError, match="64x64x6 voxels, too few"):
        Volume.read(tmp_path)


def test_a_refused_scan_leaves_no_file_and_exits_with_3(faults, tmp_path, capsys):
    output = tmp_path / "out.nii.gz"
    assert cli.main(["reface", str(faults / "stripped_mni152_2009.nii.gz"), str(output)]) == 3
    assert list(tmp_path.iterdir()) == []
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 20
