"""The ears of the average head: aligned among themselves, nobody's, and left alone by shapes of faces."""

from __future__ import annotations

import numpy as np
import pytest
from RefaceCGANLib.face_model.template import Template
from RefaceCGANLib.spatial.grid import positions
from RefaceCGANLib.training import ears
from scipy import ndimage

X, Y, Z = np.moveaxis(ears.box_points(), -1, 0)


def ear(moved: float = 0.0, size: float = 1.0) -> np.ndarray:
    """A block: a head that ends at x = -70, and a bowl on it, `moved` mm to the front."""
    y, z = (Y + 20 - moved) / size, (Z + 38) / size
    bowl = (np.hypot(y / 12, z / 26) < 1) & (X > -84) & ((np.hypot(y / 8, z / 20) > 1) | (X > -74))
    return ndimage.gaussian_filter(np.where((X > -70) | bowl, 1.0, 0.0), 0.8).astype(np.float32)


def middle(block: np.ndarray) -> float:
    """Where along y the ear is."""
    return float(Y[(block > 0.5) & (X < -74)].mean())


class TestBlocks:
    GRID = np.array([[2.0, 0, 0, -100], [0, 2, 0, -80], [0, 0, 2, -110], [0, 0, 0, 1]])

    def head(self) -> np.ndarray:
        """A head along template axes at 2 mm, with a bump on its left and a taller one on its right."""
        x, y, z = np.moveaxis(positions((101, 60, 70), self.GRID), -1, 0)
        near = (np.abs(y + 20) < 10) & (np.abs(z + 40) < np.where(x < 0, 10, 20)) & (np.abs(x) < 82)
        return np.where((np.abs(x) < 70) | near, 1.0, 0.0)

    def test_the_right_ear_is_mirrored(self) -> None:
        left, right = ears.blocks(self.head(), self.GRID)
        assert left.shape == right.shape == ears.SHAPE
        sizes = [int(((block > 0.5) & (X < -74)).sum()) for block in (left, right)]
        assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.15)

    def test_an_ear_that_the_field_of_view_cuts_takes_no_part(self) -> None:
        cut = self.head()[12:]  # ends at x = -76, within the left ear
        moved = self.GRID.copy()
        moved[0, 3] += 24
        (right,) = ears.blocks(cut, moved)
        assert middle(right) == pytest.approx(-20, abs=1)


def test_an_ear_is_moved_scaled_and_bent_onto_the_average() -> None:
    average, other = ear(), ear(moved=5.0, size=1.1)
    where = ears.within(ears.EAR, ears.box_points())
    apart = np.abs(other - average)[where].mean()
    placed, field = ears.onto(average, where, None, other)
    bent, _ = ears.onto(average, where, (15, 2.2), other)
    assert field[..., 1][where].mean() == pytest.approx(5, abs=1)
    assert np.abs(placed - average)[where].mean() < 0.4 * apart
    assert np.abs(bent - average)[where].mean() < np.abs(placed - average)[where].mean()


def test_the_average_ear_lies_in_the_mean_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears, "DEFORMED", (None,))
    monkeypatch.setattr(ears, "BEST_EARS", 1.0)
    average = ears.average_ear([ear(-4.0), ear(0.0), ear(7.0)])
    assert middle(average) == pytest.approx(-19, abs=0.7)
    sizes = [int(((block > 0.5) & (X < -74)).sum()) for block in (average, ear())]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_both_sides_get_the_ear_and_shapes_of_faces_leave_it(template: Template) -> None:
    made = ears.with_ears(template, ear())
    x, y, z = np.moveaxis(positions(template.mean.shape, template.affine), -1, 0)
    inside = (np.abs(x) > 74) & (np.abs(x) < 84) & (np.abs(y + 20) < 6) & (np.abs(z + 20) < 2)
    assert (made.weight[inside] < 0.01).all()
    assert made.mean[inside & (x < 0)].mean() == pytest.approx(float(made.mean[inside & (x > 0)].mean()), abs=0.1)
    away = (np.abs(x) < 30) | (y > 34) | (z > 26)
    assert (made.mean[away] == template.mean[away]).all()
    assert (made.weight[away] == template.weight[away]).all()
    assert made.head is template.head and made.modes is template.modes
