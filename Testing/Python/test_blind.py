"""Blind to the owner: what a face region holds has no part in what is painted there, and seeds know no scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Call, sampled
from RefaceCGANLib import Refacer, Result, Volume
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.pipeline import sample_shape
from RefaceCGANLib.seeds import seed_of
from RefaceCGANLib.spatial.grid import AslView
from scipy.ndimage import binary_dilation


@pytest.fixture(scope="module")
def first(refacer: Refacer, heads: Path) -> Result:
    return refacer.reface(Volume.read(heads / "val" / "ixi094.nii.gz"), seed=7)


@pytest.mark.heads
@pytest.mark.parametrize("filling", sampled(["another person", "noise", "zeros", "maximum"], "another person"))
def test_what_a_given_face_region_holds_changes_no_byte(
    refacer: Refacer, first: Result, heads: Path, filling: str, located_anew: None
) -> None:
    scan, region = first.original, first.face_region
    fillings = {
        "another person": lambda: Volume.read(heads / "val" / "ixi327.nii.gz").stored,
        "noise": lambda: np.random.default_rng(0).integers(0, 200, scan.shape),
        "zeros": lambda: np.zeros(scan.shape),
        "maximum": lambda: np.full(scan.shape, scan.stored.max()),
    }
    filled = np.where(region, fillings[filling](), scan.stored).astype(scan.stored.dtype)
    assert np.count_nonzero(filled != scan.stored) > 0.5 * np.count_nonzero(region)
    refaced = refacer.reface(scan.with_stored(filled), seed=7, face_region=region, force=True)
    assert np.array_equal(refaced.volume.stored, first.volume.stored)


@pytest.mark.heads
def test_what_later_stages_are_given_has_nothing_of_the_emptied_voxels(refacer: Refacer, first: Result) -> None:
    """The face region as it was found, another face in it: all that is drawn and painted from is the same."""
    scan, anatomy = first.original, first.prepared.anatomy
    filled = np.where(first.face_region, scan.stored[::-1], scan.stored)
    other = refacer.prepare(scan.with_stored(filled), anatomy=anatomy)
    again = refacer.prepare(scan, anatomy=anatomy)
    for name in ("values", "face_region", "to_template", "skin"):
        assert np.array_equal(getattr(other.defaced, name), getattr(again.defaced, name)), name
    assert other.network_input.scale == again.network_input.scale
    assert np.array_equal(other.defaced.to_template, first.prepared.defaced.to_template)


@pytest.mark.heads
@pytest.mark.parametrize("voxels", [4, 200])
def test_a_face_region_with_brain_in_it_is_refused(
    refacecgan: Callable[..., Call], first: Result, heads: Path, tmp_path: Path, voxels: int
) -> None:
    """Some of the brain nearest to the face, or all of it."""
    scan = heads / "val" / "ixi094.nii.gz"
    near = binary_dilation(first.face_region, iterations=5 + voxels)
    region = first.face_region | (first.brain_mask & near)
    Volume.from_array(region, first.original.affine).write(tmp_path / "mask.nii.gz")
    call = refacecgan("reface", scan, tmp_path / "out.nii.gz", "--face-region", tmp_path / "mask.nii.gz")
    assert (call.status, len(call.err)) == (2, 1)
    assert "rain" in call.err[0]
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.heads
def test_the_command_line_takes_a_face_region_and_an_identity(
    refacecgan: Callable[..., Call], refacer: Refacer, first: Result, heads: Path, tmp_path: Path
) -> None:
    scan, key = heads / "val" / "ixi094.nii.gz", tmp_path / "key"
    key.write_bytes(b"secret")
    Volume.from_array(first.face_region, first.original.affine).write(tmp_path / "mask.nii.gz")
    given = ("--face-region", tmp_path / "mask.nii.gz", "--identity", "subject-17", "--key-file", key)
    call = refacecgan("reface", scan, tmp_path / "out.nii.gz", *given)
    assert call.status == 0, call.err
    wanted = refacer.reface(first, identity="subject-17", key=b"secret")
    assert np.array_equal(Volume.read(tmp_path / "out.nii.gz").stored, wanted.volume.stored)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", "3", "--identity", "x"), "not both"),
        (("--key-file", "nowhere"), "without --identity"),
        (("--identity", "x", "--key-file", "nowhere"), "cannot be read"),
        (("--identity", " "), "identity is empty"),
    ],
)
def test_a_wrong_identity_is_told(
    refacecgan: Callable[..., Call], head: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    call = refacecgan("reface", head, tmp_path / "out.nii.gz", *options)
    assert (call.status, len(call.err)) == (2, 1)
    assert said in call.err[0]


def test_a_mask_of_another_grid_is_refused(refacecgan: Callable[..., Call], head: Path, tmp_path: Path) -> None:
    volume = Volume.read(head)
    Volume.from_array((volume.stored > 0)[1:], volume.affine).write(tmp_path / "mask.nii.gz")
    call = refacecgan("reface", head, tmp_path / "out.nii.gz", "--face-region", tmp_path / "mask.nii.gz")
    assert (call.status, len(call.err)) == (2, 1)
    assert "another grid" in call.err[0]


def test_an_identity_is_a_seed_that_needs_its_key() -> None:
    assert seed_of("subject-17") == seed_of("subject-17")
    seeds = {seed_of(*arguments) for arguments in (("a",), ("b",), ("a", b"key"), ("a", b"other"))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("Zo\u00eb") == seed_of("Zoe\u0308")  # the same letters, composed and decomposed
    with pytest.raises(InputError, match="identity is empty"):
        seed_of("")


def test_a_seed_draws_the_same_shape_whatever_the_scan(refacer: Refacer, result: Result) -> None:
    """Before it is made to fit a head, which moves it by little."""
    seen, model = result.prepared.network_input, refacer.model
    bare = replace(seen, meeting=None)
    drawn = sample_shape(bare, model, 11)
    assert np.array_equal(drawn, sample_shape(bare, model, 11))
    assert not np.array_equal(drawn, sample_shape(bare, model, 12))
    assert np.corrcoef(drawn, sample_shape(seen, model, 11))[0, 1] > 0.8


def test_without_a_seed_every_face_is_another(refacer: Refacer, result: Result) -> None:
    seeds = {refacer.reface(result).seed for _ in range(2)}
    assert len(seeds) == 2
    with pytest.raises(InputError, match="not both"):
        refacer.reface(result, seed=1, identity="a")


def test_an_anatomy_of_another_scan_is_refused(refacer: Refacer, result: Result) -> None:
    volume = result.original
    smaller = Volume.from_array(volume.array[2:], volume.affine)
    assert AslView.of(smaller).native_shape != volume.shape
    with pytest.raises(InputError, match="another scan"):
        refacer.prepare(smaller, anatomy=result.prepared.anatomy)
