"""Made or real: what is real is not told from real, what is smoothed or fixed is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from RefaceCGANLib import Volume
from RefaceCGANLib.evaluation.made_or_real import patch_separability, render_separability
from RefaceCGANLib.evaluation.measure import heads_in, tissue_of
from RefaceCGANLib.evaluation.tissue_realism import (
    PATCHES,
    Scale,
    changed_region,
    patch_centres,
    texture_features,
    texture_ratios,
)
from scipy import ndimage

SPACING = (2.0, 2.0, 2.0)
BLOCK = (slice(8, 40),) * 3


def tissue(seed: int, shape: int = 48) -> np.ndarray:
    """A block of tissue with texture of two sizes, in air."""
    random = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(random.standard_normal((shape,) * 3), 2) * 8
    values = np.abs(random.normal(0, 2, (shape,) * 3))
    values[BLOCK] = 100 + 20 * coarse[BLOCK] + random.normal(0, 10, (32, 32, 32))
    return values.astype(np.float32)


def region() -> np.ndarray:
    inside = np.zeros((48,) * 3, bool)
    inside[6:42, 6:42, 6:42] = True
    return inside


def features(values: np.ndarray) -> np.ndarray:
    centres = patch_centres(values, region(), SPACING, 30.0)[:12]
    return texture_features(Scale(0.0, 150.0)(values), centres, SPACING, 0.2)


def smoothed(values: np.ndarray) -> np.ndarray:
    return np.where(values > 30, ndimage.gaussian_filter(values, 1.0), values)


@pytest.fixture(scope="module")
def people() -> dict[str, np.ndarray]:
    return {f"person {seed}": features(tissue(seed)) for seed in range(8)}


def test_real_people_are_not_told_from_other_real_people() -> None:
    """Embeddings of people, each with a look of their own; a random half of them is called made."""
    random = np.random.default_rng(0)
    rows = {str(i): random.normal(random.normal(0, 1, 8), 1.0, (4, 8)) for i in range(80)}
    told = []
    for _ in range(6):
        names = random.permutation(list(rows))
        told.append(render_separability({n: rows[n] for n in names[:40]}, {n: rows[n] for n in names[40:]}))
    assert np.mean([one.auc for one in told]) == pytest.approx(0.5, abs=0.08)
    assert sum(one.low < 0.5 < one.high for one in told) >= 3 and told[0].people == 80


def test_smoothed_tissue_is_told_from_itself(people: dict[str, np.ndarray]) -> None:
    made = {f"person {seed}": features(smoothed(tissue(seed))) for seed in range(8)}
    told = patch_separability(people, made)
    assert told.auc > 0.9 and told.people == 8


def test_a_copy_of_the_tissue_is_told_from_nothing(people: dict[str, np.ndarray]) -> None:
    assert patch_separability(people, people).auc == pytest.approx(0.5, abs=0.02)


def test_too_few_people_give_no_number(people: dict[str, np.ndarray]) -> None:
    some = {name: people[name] for name in list(people)[:3]}
    assert np.isnan(patch_separability(some, some).auc)


def test_renders_are_told_by_what_all_made_faces_share() -> None:
    random = np.random.default_rng(0)
    real = {str(i): random.standard_normal((4, 32)) for i in range(40)}
    made = {name: rows + 1.5 * np.eye(32)[0] for name, rows in real.items()}
    made["0"] = made["0"].copy()
    made["0"][2] = np.nan
    assert render_separability(real, made).auc > 0.9
    others = {f"other {i}": random.standard_normal((4, 32)) for i in range(40)}
    told = render_separability(real, others)
    assert told.low < 0.5 < told.high and told.people == 80


def test_texture_ratios_of_a_copy_are_one_and_of_a_smoothed_one_less() -> None:
    values = tissue(1)
    same = texture_ratios(values, values, region(), SPACING, 30.0)
    assert same == {"fine_texture": pytest.approx(1), "local_contrast": pytest.approx(1)}
    less = texture_ratios(values, smoothed(values), region(), SPACING, 30.0)
    assert less["fine_texture"] < 0.7 and less["local_contrast"] < 0.9
    louder = values.copy()
    louder[BLOCK] = 100 + 2 * (values[BLOCK] - 100)
    more = texture_ratios(values, louder, region(), SPACING, 5.0)
    assert more["fine_texture"] == pytest.approx(2, abs=0.1)
    assert np.isnan(texture_ratios(values, values, np.zeros_like(region()), SPACING, 30.0)["fine_texture"])


def test_patches_lie_in_the_tissue_that_was_changed() -> None:
    before, after = tissue(1), tissue(1)
    after[20:40, 8:40, 8:40] += 1
    after[21, 21, 21] = before[21, 21, 21]  # the same by chance
    after[2, 2, 2] += 1  # loose
    changed = changed_region(before, after, SPACING)
    assert changed[21, 21, 21] and not changed[2, 2, 2] and not changed[:18].any()
    centres = patch_centres(before, changed, SPACING, 30.0)
    assert 0 < len(centres) <= PATCHES and (centres[:, 0] >= 20).all()
    assert (patch_centres(before, changed, SPACING, 30.0) == centres).all()
    assert len(patch_centres(before, changed & False, SPACING, 30.0)) == 0


@pytest.mark.heads
def test_real_heads_are_told_from_their_smoothed_copies(heads: Path) -> None:

    real, made = {}, {}
    for name, path in list(heads_in(heads / "val").items())[:6]:
        volume = Volume.read(path)
        face = np.zeros(volume.shape, bool)
        face[: volume.shape[0] // 4] = True  # PSR: the first axis leads from the face back
        assert volume.affine[1, 0] < 0
        blurred = volume.with_stored(volume.to_stored(ndimage.gaussian_filter(volume.array, 1.0)))
        own, copy, ratios = tissue_of(volume, blurred, region=face)
        assert ratios["fine_texture"] < 0.8
        real[name], made[name] = own.texture, copy.texture
    assert patch_separability(real, made).auc > 0.9
