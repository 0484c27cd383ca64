"""Composition: smooth skin that meets the kept skin and is as steep, tissue as bright as around the face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.compose import (
    AIR_MM,
    FACE_TO_AROUND,
    QUANTILES,
    STEEPEST,
    _Painted,
    _with_tissue_of,
    compose,
)
from RefaceCGANLib.refacer import Prepared, WorkingScan
from RefaceCGANLib.template import SKIN_LEVEL
from scipy.ndimage import distance_transform_edt
from torch import Tensor


@pytest.fixture(scope="module")
def prepared(refacer: Refacer, head: Path) -> Prepared:
    return refacer.prepare(Volume.read(head))


@pytest.fixture(scope="module")
def face(refacer: Refacer, prepared: Prepared) -> Tensor:
    return refacer.draw(prepared, 3, 0.25)


def ball(radius: float, side: int = 48) -> Tensor:
    """A head that is a ball in the middle of (side, side, side), with skin that is blurred over two voxels."""
    index = torch.arange(side) - (side - 1) / 2
    away = (index[:, None, None] ** 2 + index[None, :, None] ** 2 + index[None, None, :] ** 2).sqrt()
    return 1.2 * torch.sigmoid((radius - away) / 0.6) - 1.0


def radii(painted: _Painted, level: float) -> np.ndarray:
    """How far from the middle a painted ball falls below a level, in 500 directions."""
    outward = np.random.default_rng(0).standard_normal((500, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    steps = np.arange(10, 20, 0.05)
    values = painted.normalised((23.5 + steps[None, :, None] * outward[:, None]).reshape(-1, 3))
    return steps[(values.reshape(500, -1) > level).sum(axis=1)]


@pytest.mark.parametrize("level", [-0.9, -0.8, SKIN_LEVEL, -0.4])
def test_skin_is_smooth_down_to_its_foot(level: float) -> None:
    head = ball(15.3)
    region = torch.ones(head.shape, dtype=torch.bool)
    working = WorkingScan(torch.full_like(head, -1.0), region, None, None, None, np.eye(4))
    radius = radii(replace(_Painted.of(head, working), steep=2.0), level)
    assert radius.std() < 0.08  # voxels
    assert abs(radius.mean() - 15.3) < 1.5


def test_steps_of_the_working_grid_do_not_show_on_a_finer_one() -> None:
    head = (ball(15.3) > SKIN_LEVEL).float() * 1.2 - 1.0  # skin as steep as can be
    region = torch.ones(head.shape, dtype=torch.bool)
    rough = []
    for finer_by in (1, 2):
        to_native = np.diag([finer_by, finer_by, finer_by, 1.0])
        working = WorkingScan(torch.full_like(head, -1.0), region, None, None, None, to_native)
        rough.append(radii(_Painted.of(head, working), SKIN_LEVEL).std())
    assert rough[1] < 0.7 * rough[0]


def test_painted_skin_meets_the_kept_skin_on_the_native_grid(prepared: Prepared, face: Tensor) -> None:
    working = prepared.working
    meeting, kept = working.meeting, working.kept
    assert meeting is not None
    assert kept is not None
    painted = _Painted.of(face, working)
    unmoved = replace(painted, moves=torch.zeros_like(painted.moves))
    before, after = (
        kept.heights - meeting.from_kept(image.normalised, kept.level) for image in (unmoved, painted)
    )
    assert np.nanmean(np.abs(after)) < np.nanmean(np.abs(before))
    assert np.nanmedian(np.abs(after)) < 0.15  # voxels of 2 mm
    assert np.isfinite(after).mean() > 0.7


def test_painted_skin_is_as_steep_as_the_kept_skin(prepared: Prepared, face: Tensor) -> None:
    meeting, kept = prepared.working.meeting, prepared.working.kept
    assert meeting is not None
    assert kept is not None
    painted = _Painted.of(face, prepared.working)
    assert 1.0 <= painted.steep <= STEEPEST
    to_native = prepared.working.to_native
    blurred = meeting.fall(replace(painted, steep=1.0).on_grid(to_native))
    steep = meeting.fall(painted.on_grid(to_native))
    assert abs(steep - kept.fall) <= abs(blurred - kept.fall) + 1e-6
    assert steep == pytest.approx(kept.fall, rel=0.2)


def test_the_native_grid_shows_a_face_as_it_is_at_its_voxels_and_the_mean_between_them(
    prepared: Prepared, face: Tensor
) -> None:
    painted = _Painted.of(face, prepared.working)
    to_native = prepared.working.to_native
    random = np.random.default_rng(0)
    voxels = np.rint(random.uniform(30, 60, (200, 3)) @ to_native[:3, :3].T + to_native[:3, 3])
    first, second, between = (
        (voxels + offset - to_native[:3, 3]) @ np.linalg.inv(to_native[:3, :3]).T
        for offset in ([0, 0, 0], [0, 0, 1], [0, 0, 0.5])
    )
    shown = painted.on_grid(to_native)
    assert np.allclose(shown(first), painted.normalised(first), atol=1e-3)
    assert np.allclose(shown(between), (painted.normalised(first) + painted.normalised(second)) / 2, atol=1e-3)


def test_air_is_as_noisy_as_that_of_the_scan_so_far_from_the_head(prepared: Prepared, face: Tensor) -> None:
    anatomy, scale = prepared.defaced, prepared.scale
    values, measured = anatomy.values, prepared.background.air
    assert len(measured) == len(AIR_MM) + 1
    assert np.mean(measured[1]) > np.mean(measured[4])
    marks = np.linspace(0.01, 0.02, len(measured)) * (scale.high - scale.low) + scale.low
    marked = replace(prepared.background, air=tuple(np.full(1, mark, np.float32) for mark in marks))
    composed = compose(face, prepared.working, anatomy, scale, marked, np.random.default_rng(0))
    air = composed.air_mask[anatomy.face_region]
    away = distance_transform_edt(composed.air_mask | (values < anatomy.skin), anatomy.view.spacing)
    away = away[anatomy.face_region][air]
    rings = [away[np.isclose(composed.values[air], mark)] for mark in marks]
    mean = [ring.mean() for ring in rings if ring.size > 100]
    assert len(mean) > 4
    assert (np.diff(mean) > 0).all()


def test_tissue_gets_as_bright_as_it_is_in_a_face_with_such_tissue_around() -> None:
    random = np.random.default_rng(0)
    around = random.normal(0.0, 0.2, 20000).clip(-0.5, 0.9).astype(np.float32)
    dull = random.normal(-0.1, 0.1, 20000).clip(-0.5, 0.9).astype(np.float32)
    air = np.full(5000, -0.8, np.float32)
    bright = _with_tissue_of(around, np.concatenate([air, dull]))
    wanted = (np.quantile(around, QUANTILES) + 1) * FACE_TO_AROUND - 1
    assert np.abs(wanted - np.quantile(bright[5000:], QUANTILES)).max() < 0.02
    assert np.allclose(bright[:5000], air)


def test_a_little_tissue_tells_nothing_of_brightness() -> None:
    values = np.zeros(5000, np.float32)
    assert _with_tissue_of(np.ones(500, np.float32), values) is values


def test_the_tissue_around_a_face_is_seen(prepared: Prepared) -> None:
    around = prepared.background.around
    assert np.count_nonzero(prepared.scale.normalise(around) > SKIN_LEVEL) > 1000
