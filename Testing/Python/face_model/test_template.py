"""The shape a scan is given: it covers what lies under it, stays in view, and meets the kept skin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from RefaceCGANLib.face_model.template import (
    CLEFT,
    COVER_MM,
    EDGE_MM,
    MEETING_NARROW,
    MEETING_WIDE,
    SKIN_LEVEL,
    Meeting,
    Template,
    reader,
)
from RefaceCGANLib.spatial.grid import solid
from RefaceCGANLib.training.build_template import placements
from scipy.spatial import cKDTree


@pytest.fixture(scope="module")
def average(template: Template) -> np.ndarray:
    """The average head in its mean shape: the scan of somebody who looks like nobody."""
    return template.prior(np.zeros(template.modes_count)).numpy()


@pytest.fixture(scope="module")
def meeting(template: Template, average: np.ndarray) -> Meeting:
    return meeting_of(template, average, template.face_region)


def meeting_of(
    template: Template, head: np.ndarray, region: np.ndarray, seen: np.ndarray | None = None
) -> Meeting:
    """What a face has to meet on a head (A, S, L), -1..1, of which `region` is emptied."""
    defaced = np.where(region, -1.0, head).astype(np.float32)
    inside = solid(torch.from_numpy(head > SKIN_LEVEL), CLEFT).numpy()
    all_seen = np.ones(head.shape, bool)
    return template.meeting(region, inside, all_seen if seen is None else seen, reader(defaced), reader(region))


def test_the_average_face_need_not_move_to_meet_the_average_head(meeting: Meeting) -> None:
    assert np.isfinite(meeting.kept).mean() > 0.8
    assert np.abs(meeting.shift.numpy()).max() < 0.5  # voxels


def test_outermost_tells_where_a_mask_ends_along_the_normals(template: Template) -> None:
    front = template.relief_normals[:, 0] > 0.95
    level = np.round(template.relief_points[front, 0].max()) - 2
    index = np.arange(template.mean.shape[0])[:, None, None]
    ends = template.outermost(np.broadcast_to(index <= level, template.mean.shape))[front]
    away = level + 0.5 - template.relief_points[front, 0]
    wanted = away / template.relief_normals[front, 0] * template.spacing
    near = np.abs(wanted) < 10
    assert np.abs(ends - wanted)[near].max() <= 1.0  # mm: half a voxel
    assert np.isneginf(template.outermost(np.zeros(template.mean.shape, bool))).all()
    assert np.isposinf(template.outermost(np.ones(template.mean.shape, bool))).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_face_comes_to_cover_what_lies_under_it(template: Template, meeting: Meeting, seed: int) -> None:
    code = 1.5 * np.random.default_rng(seed).standard_normal(template.modes_count)
    fitted = template.fitting(code, meeting)
    before, after = (np.maximum(template._lacking(c, meeting), 0) for c in (code, fitted))
    assert after.mean() <= before.mean()
    assert np.percentile(after, 99) < COVER_MM[4.0]
    assert np.corrcoef(code, fitted)[0, 1] > 0.4  # still that face


def test_a_face_stays_in_the_field_of_view(template: Template, average: np.ndarray) -> None:
    tip = int(np.argwhere(average > SKIN_LEVEL)[:, 0].max())
    seen = np.broadcast_to((np.arange(average.shape[0]) <= tip + 2)[:, None, None], average.shape)
    meeting = meeting_of(template, average, template.face_region, seen)
    sticking_out = next(
        code
        for code in np.random.default_rng(0).standard_normal((50, template.modes_count))
        if template._lacking(1.5 * code, meeting).min() < -2 * EDGE_MM
    )
    fitted = template.fitting(1.5 * sticking_out, meeting)
    assert template._lacking(fitted, meeting).min() > -EDGE_MM
    skin = template.heights(template.prior(fitted, meeting).numpy(), np.ones(average.shape, bool))
    assert np.nanpercentile((skin - meeting.most)[np.isfinite(meeting.most)], 99) < EDGE_MM / 2


def test_what_is_led_on_has_no_streaks(meeting: Meeting) -> None:
    missed = np.where(meeting.rim.points[:, 2] < 48, 2.0, -2.0)  # one side too low, one too high
    field = meeting.rim.led_on(missed, MEETING_NARROW, meeting.shift.shape[1:]).numpy()
    steps = max(float(np.abs(np.diff(field, axis=axis)).max()) for axis in (1, 2, 3))
    assert np.abs(field).max() > 1.5
    assert steps < 1.0  # less than a voxel from one voxel to the next: nothing folds


@pytest.mark.parametrize("by_mm", [6.0, -6.0])
def test_a_drawn_face_comes_gently_to_the_kept_skin(
    template: Template, meeting: Meeting, monkeypatch: pytest.MonkeyPatch, by_mm: float
) -> None:
    """A face that lies off the kept skin all along the rim comes to it, and not at once: that would be a ledge."""
    monkeypatch.setattr(Template, "_drawn", lambda *_: np.full(len(template.relief_points), by_mm))
    bridge = template._bridge(np.zeros(template.modes_count), meeting)
    lying = by_mm + template._raised_by(bridge)
    away = cKDTree(meeting.rim.points).query(template.relief_points)[0]
    assert np.median(np.abs(lying[away < 1])) < abs(by_mm) / 10
    assert np.abs(lying[away > MEETING_WIDE[1] + 2] - by_mm).max() < 0.1
    one, other = cKDTree(template.relief_points).query_pairs(1.5, output_type="ndarray").T
    assert np.abs(lying[one] - lying[other]).max() < abs(by_mm) / 4


def test_skin_along_which_the_region_ends_is_met(template: Template, average: np.ndarray) -> None:
    """Where the air in front of the skin is all that is emptied, a new face may not lie on that skin."""
    air = ~solid(torch.from_numpy(average > SKIN_LEVEL), CLEFT).numpy()
    meeting = meeting_of(template, average, template.face_region & air)
    covered = template.face_region[*np.rint(template.relief_points).astype(int).T]
    away = cKDTree(meeting.rim.points).query(template.relief_points[covered])[0]
    assert (away < 2).mean() > 0.9
    assert np.abs(np.nanmedian(meeting.kept)) < 0.5  # voxels: how far off the cut edge tells the skin to be


def test_skin_of_the_rim_is_not_mistaken_for_bone(average: np.ndarray, meeting: Meeting) -> None:
    """A dark layer below the skin, as bone is, has an edge that may lie nearer to the average skin."""
    thicker = np.maximum(np.roll(average, 2, axis=0), average)
    expected = meeting.rim.heights(thicker)
    bone = (np.roll(average, -1, axis=0) > SKIN_LEVEL) & (np.roll(average, -3, axis=0) < SKIN_LEVEL)
    found = meeting.rim.heights(np.where(bone, -1.0, thicker).astype(np.float32))
    front = meeting.rim.normals[:, 0] > 0.8
    assert np.nanmax(np.abs(found - expected)[front]) < 0.1  # voxels
    assert np.isfinite(found[front]).mean() > 0.9


def testplacements_turn_the_chin_and_the_brow_to_opposite_sides() -> None:
    up, *_ = placements((32, 34, 24))
    assert up.shape == (3, 32, 34, 24)
    forward = up[1, 20, :, 12]  # along S
    assert forward[0] * forward[-1] < 0
    assert np.ptp(forward) > 5  # mm


def test_a_region_without_skin_has_nothing_to_meet(template: Template) -> None:
    deep = np.zeros(template.mean.shape, bool)
    deep[40, 50, 48] = True
    meeting = meeting_of(template, template.mean, deep)
    assert len(meeting.kept) == 0
    assert not meeting.shift.any()


def test_skin_is_met_where_the_region_ends_in_the_air_above_it(template: Template, average: np.ndarray) -> None:
    """The head lies deeper than the average one, so that the region reaches over skin that is kept."""
    sunken = np.roll(template.mean.astype(np.float32), -3, axis=0)
    above = template.face_region & (template.skin[0] > -1.5)
    found = meeting_of(template, sunken, above)
    front = found.rim.normals[:, 0] > 0.9
    over = above[*found.rim.points[front].astype(int).T]
    assert over.sum() > 20
    assert np.nanpercentile(np.abs(found.kept[front][over] + 3), 95) < 1.0  # voxels; normals are not all along A


def test_bone_that_is_kept_under_the_emptied_face_is_no_skin(template: Template, average: np.ndarray) -> None:
    deep = template.skin[0] < -4  # kept: what lies deeper is bright, and dark above that
    head = np.where((template.skin[0] > -5) & (template.skin[0] < -3), -0.9, average)
    region = template.face_region & ~deep
    found = meeting_of(template, head, region)
    assert np.nanmin(found.kept) > -2.5
