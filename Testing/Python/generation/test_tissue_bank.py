"""The tissue bank: faces are mixed of several people's tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from RefaceCGANLib import Refacer, Result, Volume
from RefaceCGANLib.face_model.template import Template
from RefaceCGANLib.generation.inference import Inference
from RefaceCGANLib.generation.painting import CHANGED, DARKEST, GAIN_MOST, bounded, drawn_tissue
from RefaceCGANLib.generation.tissue_bank import DONORS, SKIN, SKIN_OFF_MM, TissueBank
from RefaceCGANLib.models.model import Model
from RefaceCGANLib.pipeline import generate, sample_shape
from RefaceCGANLib.training import training_config as config
from scipy import ndimage


@pytest.fixture(scope="module")
def bank(model_dir: Path) -> TissueBank:
    found = Model.load(model_dir).tissue
    assert found is not None
    return found


def test_a_mosaic_is_of_several_donors_and_of_no_more(bank: TissueBank) -> None:
    mosaic = bank.mosaic(np.random.default_rng(0), 2.0)
    assert mosaic.shape == bank.donors.shape[1:]
    tissue = mosaic > 0.6
    same = [np.abs(mosaic - donor * (2 / 255))[tissue] < 0.02 for donor in bank.donors]
    shares = np.sort([part.mean() for part in same])[::-1]
    assert shares[0] < 0.7
    assert (shares > 0.08).sum() >= min(DONORS, 3)
    assert np.any(same, axis=0).mean() > 0.6  # sharp: most of it is one donor's, and not a mean


def test_a_seed_gives_its_mosaic_again(bank: TissueBank) -> None:
    one, again, other = (bank.mosaic(np.random.default_rng(seed), 2.0) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_mosaic_is_read_between_its_voxels_as_sharp_as_it_is(bank: TissueBank) -> None:
    mosaic = bank.mosaic(np.random.default_rng(1), 2.0)
    index = np.argwhere(mosaic > 0.8)[::500].astype(float)
    spline = bank.spline(mosaic)
    at = index @ bank.affine[:3, :3].T + bank.affine[:3, 3]
    assert np.abs(bank.read_at(spline, at) - mosaic[tuple(index.astype(int).T)]).max() < 1e-3
    beyond = np.array([[1000.0, 0.0, 0.0]])
    assert bank.read_at(spline, beyond)[0] == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_surface_of_a_mosaic_has_no_pits_and_nothing_hangs_loose(bank: TissueBank, seed: int) -> None:
    """Donors have both at the chin and under the eyes."""
    mosaic = bank.mosaic(np.random.default_rng(seed), 2.0)
    labels, _ = ndimage.label(mosaic > SKIN)
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    assert sizes[-2:].sum() > 0.999 * sizes.sum()  # the face, and what of the brain the bank holds
    average = bank.donors.mean(axis=0) * (2 / 255) > SKIN
    off = ndimage.distance_transform_edt(~average, bank.spacing)
    assert off[mosaic > SKIN].max() < SKIN_OFF_MM + 2 * bank.spacing


def test_a_finer_scan_gets_a_smoother_surface(bank: TissueBank) -> None:
    """It would show the steps of the donors' voxels."""

    def roughness(voxel_mm: float) -> float:
        mosaic = bank.mosaic(np.random.default_rng(0), voxel_mm)
        return float(np.abs(ndimage.laplace((mosaic > SKIN).astype(np.float32))).sum())

    assert roughness(1.0) < roughness(2.0)


def test_the_tissue_gets_the_brightness_of_the_kept_tissue(bank: TissueBank, template: Template) -> None:
    field = template.field(np.zeros(template.modes_count))
    tissue = drawn_tissue(bank, template, field, np.random.default_rng(0), 2.0)
    region = torch.from_numpy(template.face_region)
    index = np.argwhere(np.ones(template.mean.shape, bool)).astype(np.float32)
    whole = torch.from_numpy(tissue.at(index).reshape(template.mean.shape))
    matched = tissue.matched(0.5 * whole - 1, region)
    inside = index[(template.face_region & (whole.numpy() > 0.8)).ravel()]
    ratio = matched.at(inside) / tissue.at(inside)
    assert np.median(ratio) == pytest.approx(0.5, abs=0.05)
    assert ratio.min() > 1 / GAIN_MOST - 1e-3


def test_the_generator_neither_tears_skin_nor_hangs_tissue_in_the_air() -> None:
    tissue = np.array([0.0, 0.6, 0.6, 0.6], np.float32)
    painted = bounded(tissue, np.array([0.5, -0.6, 1.0, 0.1], np.float32))
    assert painted == pytest.approx([0.0, DARKEST, 0.6 * CHANGED, 0.7])


class WithoutGenerator(Inference):
    def __call__(self, channels: dict[str, Any], seed: int, dropout: float, wanted: Any) -> Any:
        return channels["prior"]


def test_the_generator_paints(refacer: Refacer, result: Result) -> None:
    """Without it the tissue is another one all over the face."""
    seen, defaced = result.prepared.network_input, result.prepared.defaced
    shape = sample_shape(seen, refacer.model, 7)
    face = generate(seen, shape, defaced, refacer.inference, 7, 0.25)
    bare = generate(seen, shape, defaced, WithoutGenerator(refacer.model, refacer.device), 7, 0.25)
    tissue = bare > -0.4
    assert (np.abs(face - bare)[tissue] > 0.02).mean() > 0.4


@pytest.mark.heads
@pytest.mark.slow
def test_a_bank_is_built_of_heads(heads: Path, model_dir: Path, tmp_path: Path) -> None:
    scans = [heads / "train" / f"{name}.nii.gz" for name in ("ixi014", "ixi034")]
    listed = ", ".join(f'"{scan}"' for scan in scans)
    text = f"""
        kind = "tissue"
        folder = "out"
        model = "{model_dir / "card.json"}"
        heads = [{listed}]
        donors = 2
    """
    (tmp_path / "train.toml").write_text(text)
    config.run(tmp_path / "train.toml")
    with (tmp_path / "out" / "tissue.npz").open("rb") as file:
        bank = TissueBank.read(file)
    assert len(bank.donors) == 2
    both = (bank.donors > 60).all(axis=0)
    assert both.mean() > 0.8 * (bank.donors > 60).any(axis=0).mean() * 0.8  # they lie on each other
    original = Volume.read(scans[0])
    assert bank.spacing < min(original.spacing)
