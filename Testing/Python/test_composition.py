"""Composition: the face goes into the scan as it was generated; air and noise are the scan's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.composition import AIR_MM, EDGE_VOXELS, compose
from RefaceCGANLib.pipeline import generate, sample_shape
from RefaceCGANLib.refacer import Prepared
from scipy.ndimage import distance_transform_edt


@pytest.fixture(scope="module")
def prepared(refacer: Refacer, head: Path) -> Prepared:
    return refacer.prepare(Volume.read(head))


@pytest.fixture(scope="module")
def face(refacer: Refacer, prepared: Prepared) -> np.ndarray:
    seen = prepared.network_input
    return generate(seen, sample_shape(seen, refacer.model, 3), prepared.defaced, refacer.inference, 3, 0.25)


def test_tissue_is_what_was_generated(prepared: Prepared, face: np.ndarray) -> None:
    silent = replace(prepared.network_input.background, noise=0.0)
    composed = compose(face, prepared.defaced, prepared.network_input.scale, silent, np.random.default_rng(0))
    tissue = ~composed.air_mask[prepared.defaced.face_region]
    assert tissue.sum() > 10000
    assert np.allclose(composed.values[tissue], prepared.network_input.scale.restore(face)[tissue], rtol=1e-5)


def test_tissue_gets_noise_where_the_scan_has_some(prepared: Prepared, face: np.ndarray) -> None:
    high = prepared.network_input.scale.high - prepared.network_input.scale.low
    noisy = replace(prepared.network_input.background, noise=0.1 * high, blur=0.0)
    composed = compose(face, prepared.defaced, prepared.network_input.scale, noisy, np.random.default_rng(0))
    bright = ~composed.air_mask[prepared.defaced.face_region] & (face > 0)
    added = composed.values[bright] - prepared.network_input.scale.restore(face)[bright]
    assert 0.01 * high < added.std() < 0.12 * high
    assert abs(added.mean()) < 0.01 * high


def test_air_is_as_noisy_as_that_of_the_scan_so_far_from_the_head(prepared: Prepared, face: np.ndarray) -> None:
    defaced, scale, measured = (
        prepared.defaced,
        prepared.network_input.scale,
        prepared.network_input.background.air,
    )
    assert len(measured) == len(AIR_MM) + 1
    marks = np.linspace(0.01, 0.02, len(measured)) * (scale.high - scale.low) + scale.low
    marked = replace(prepared.network_input.background, air=tuple(np.full(1, mark, np.float32) for mark in marks))
    composed = compose(face, defaced, scale, marked, np.random.default_rng(0))
    region = defaced.face_region
    air = composed.air_mask[region]
    around = (defaced.values > defaced.skin) & ~region
    away = distance_transform_edt(~around & (composed.air_mask | ~region), defaced.view.spacing)[region][air]
    rings = [away[np.isclose(composed.values[air], mark)] for mark in marks]
    mean = [ring.mean() for ring in rings if ring.size > 100]
    assert len(mean) > 4
    assert (np.diff(mean) > 0).all()


def test_crumbs_in_the_air_are_taken_away(prepared: Prepared) -> None:
    defaced = prepared.defaced
    region = defaced.face_region
    far = distance_transform_edt(~((defaced.values > defaced.skin) & ~region)) > 3 + EDGE_VOXELS
    face = np.full(np.count_nonzero(region), -1.0, np.float32)
    face[np.flatnonzero(far[region])[::50]] = 0.5
    composed = compose(
        face, defaced, prepared.network_input.scale, prepared.network_input.background, np.random.default_rng(0)
    )
    assert composed.air_mask[region & far].all()
    assert composed.values.max() < prepared.network_input.scale.restore(np.array([0.4]))[0]
