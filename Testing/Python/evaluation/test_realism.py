"""Realism: how far new faces lie from real ones, and whether their border shows."""

from __future__ import annotations

import numpy as np
import pytest
from RefaceCGANLib import Result, Volume
from RefaceCGANLib.evaluation.realism import frechet, seam
from scipy.linalg import sqrtm

SHAPE, SPACING = (60, 64, 56), 2.0
RADIUS = 45.0  # mm


def faces(count: int, seed: int, shift: float = 0.0, length: int = 256) -> np.ndarray:
    """Embeddings with a spectrum that falls off like that of real ones."""
    spread = 0.15 / np.sqrt(1 + np.arange(length))
    rows = np.random.default_rng(seed).normal(size=(count, length)) * spread
    rows[:, 0] += shift
    return rows


def test_equal_samples_are_0_apart() -> None:
    sample = faces(15, 0)
    assert frechet(sample, sample) == pytest.approx(0, abs=1e-9)
    assert frechet(sample, sample[::-1]) == pytest.approx(0, abs=1e-9)


def test_it_is_the_distance_of_two_normal_distributions() -> None:
    a, b = faces(500, 0, length=3), faces(400, 1, shift=0.3, length=3) @ np.diag([1.5, 0.5, 1])
    apart, cov_a, cov_b = a.mean(axis=0) - b.mean(axis=0), np.cov(a.T), np.cov(b.T)
    expected = apart @ apart + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-6)


def test_faces_that_are_shifted_lie_apart_by_the_shift_squared() -> None:
    sample = faces(40, 0)
    assert frechet(sample, sample + 0.1) == pytest.approx(256 * 0.01, rel=1e-4)


def test_few_faces_of_one_kind_lie_nearer_than_those_of_two() -> None:
    same = [frechet(faces(15, seed), faces(15, seed + 100)) for seed in range(5)]
    other = [frechet(faces(15, seed), faces(15, seed + 100, shift=0.4)) for seed in range(5)]
    assert max(same) < 0.5 * min(other)


def test_one_face_for_all_lies_apart_though_it_is_the_mean() -> None:
    sample = faces(15, 0)
    one = np.tile(sample.mean(axis=0), (15, 1))
    assert frechet(one, sample) > 0.01


def test_rows_without_a_face_are_left_out() -> None:
    a, b = faces(15, 0), faces(12, 1)
    hidden = np.full((3, 256), np.nan)
    assert frechet(np.concatenate([a, hidden]), b) == pytest.approx(frechet(a, b))
    assert np.isnan(frechet(np.concatenate([a[:1], hidden]), b))
    assert np.isnan(frechet(np.empty((0, 0)), b))


@pytest.fixture(scope="module")
def ball() -> tuple[np.ndarray, np.ndarray]:
    """A ball of mottled tissue in millimetres about its middle (3, I, J, K), and its values."""
    from scipy.ndimage import gaussian_filter

    at = (np.indices(SHAPE).reshape(3, -1).T - (np.array(SHAPE) - 1) / 2).T.reshape(3, *SHAPE) * SPACING
    mottle = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    tissue = 100 * (1 + mottle / mottle.std() * 0.15)
    return at, tissue * np.clip(0.5 + (RADIUS - np.linalg.norm(at, axis=0)) / 4, 0, 1)


def volume_of(values: np.ndarray) -> Volume:
    return Volume.from_array(values.astype(np.float32), np.diag([SPACING] * 3 + [1]))


def test_a_border_that_was_only_drawn_does_not_show(ball: tuple[np.ndarray, np.ndarray]) -> None:
    at, values = ball
    for axis in range(3):
        assert 0.8 < seam(volume_of(values), at[axis] > 5, 50) < 1.25


def test_an_edge_in_the_tissue_shows(ball: tuple[np.ndarray, np.ndarray]) -> None:
    at, values = ball
    region = at[1] > 5
    assert seam(volume_of(np.where(region, 0.6 * values, values)), region, 50) > 1.5


def test_a_step_in_the_skin_shows(ball: tuple[np.ndarray, np.ndarray]) -> None:
    at, values = ball
    region = at[1] > 5
    fuller = 100 * np.clip(0.5 + (RADIUS + 4 - np.linalg.norm(at, axis=0)) / 4, 0, 1)
    assert seam(volume_of(np.where(region, fuller, values)), region, 50) > 1.5


def test_holes_in_the_region_are_no_border(ball: tuple[np.ndarray, np.ndarray]) -> None:
    at, values = ball
    region = at[1] > 5
    ragged = region & (np.random.default_rng(1).random(SHAPE) > 0.1)
    assert seam(volume_of(values), ragged, 50) == pytest.approx(seam(volume_of(values), region, 50), rel=0.15)


def test_without_a_border_on_the_skin_there_is_no_seam(ball: tuple[np.ndarray, np.ndarray]) -> None:
    at, values = ball
    for region in (np.zeros(SHAPE, dtype=bool), np.ones(SHAPE, dtype=bool), np.linalg.norm(at, axis=0) < 20):
        assert np.isnan(seam(volume_of(values), region, 50))


def test_the_border_of_a_new_face_shows_less_than_that_of_a_hole(result: Result) -> None:
    before = seam(result.original, result.face_region)
    after = seam(result.volume, result.face_region)
    emptied = seam(result.defaced, result.face_region)
    assert 0.75 < before < 1.3
    assert after < 1.8
    assert emptied > 1.3 * after
