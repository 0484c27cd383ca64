"""The attack on reconstruction restores what is there to be restored."""

from __future__ import annotations

import numpy as np
import pytest
from RefaceCGANLib import Volume
from RefaceCGANLib.evaluation import reconstruction
from RefaceCGANLib.evaluation.reconstruction import BOX_MM, Pair, errors, restored, train, written

GRID, STEP = 48, 18.0
PLACE = np.diag([3.0, 3.0, 3.0, 1.0])
PLACE[:3, 3] = [low for low, _ in BOX_MM]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network on a coarse grid."""
    settings = {"FILTERS": 4, "SPACING_MM": STEP, "SHAPE": (8, 8, 8), "LEARNING_RATE": 1e-2}
    for name, value in settings.items():
        monkeypatch.setattr(reconstruction, name, value)


def person(seed: int, leak: float) -> tuple[Volume, Volume]:
    """A head whose face has a random brightness; refaced, another one, of which `leak` is the owner's."""
    random = np.random.default_rng(seed)
    values = np.abs(random.normal(0, 1, (GRID,) * 3))
    values[8:40, 8:30, 8:40] = 100 + random.normal(0, 2, (32, 22, 32))
    own, new = random.uniform(60, 140, 2)
    original, refaced = values.copy(), values.copy()
    face = slice(8, 40), slice(20, 30), slice(8, 40)
    original[face] = own
    refaced[face] = leak * (200 - own) + (1 - leak) * new
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    return Volume.from_array(original.astype(np.float32), affine), Volume.from_array(
        refaced.astype(np.float32), affine
    )


def pairs(seeds: range, leak: float) -> list[Pair]:
    return [Pair.of(*person(seed, leak), PLACE) for seed in seeds]


def test_what_the_new_face_tells_of_the_old_one_is_restored() -> None:
    others, judged = pairs(range(12), 1.0), pairs(range(20, 24), 1.0)
    network = train(others, 300)
    found = errors(network, judged, others)
    assert found["restored"] < 0.85 * found["mean_face"] and found["restored"] < 0.6 * found["refaced"]
    original, refaced = person(20, 1.0)
    output = written(restored(network, judged[0]), judged[0], original, refaced)
    face = slice(10, 38), slice(22, 28), slice(10, 38)
    assert np.abs(output.array[face] - refaced.array[face]).mean() > 1
    kept = slice(0, 40), slice(0, 17), slice(0, 40)
    assert np.array_equal(output.array[kept], refaced.array[kept])


def test_where_nothing_is_told_the_mean_face_is_as_near() -> None:
    others, judged = pairs(range(12), 0.0), pairs(range(20, 28), 0.0)
    found = errors(train(others, 300), judged, others)
    assert found["restored"] > 0.8 * found["mean_face"]
