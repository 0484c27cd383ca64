"""Checks of one refaced scan; a privacy tool fails closed, so each has a limit and none is skipped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .anatomy.location import DISAGREE_ML, Anatomy
from .errors import CheckError
from .spatial.grid import bounding_box
from .volume.volume import Volume

FACE_RATIO = (0.5, 1.7)
"""Generated tissue in the face region against that of the average head."""


@dataclass(frozen=True)
class Check:
    """One check: what was measured, between which limits it must lie, and a sentence for the user if not."""

    name: str
    value: float
    limit: tuple[float, float]
    failure: str

    @property
    def passed(self) -> bool:
        return self.limit[0] <= self.value <= self.limit[1]

    def report(self) -> dict[str, Any]:
        """The check as report.json shows it: name, value, limit (lowest, highest), passed."""
        entry = asdict(self)
        del entry["failure"]
        return {**entry, "limit": list(self.limit), "passed": self.passed}


def check(
    original: Volume, refaced: Volume, anatomy: Anatomy, air: float, air_mask: np.ndarray, expected_ml: float
) -> list[Check]:
    """Compare a refaced scan with its original, both native; air: the level of air; air_mask (A, S, L);
    expected_ml: tissue of the average head in this scan's face region, in this scan's millilitres."""
    same_geometry = (
        original.stored.dtype == refaced.stored.dtype
        and original.stored.shape == refaced.stored.shape
        and np.array_equal(original.affine, refaced.affine)
    )
    results = [Check("same_geometry", float(same_geometry), (1, 1), "The refaced scan lost its geometry.")]
    if not same_geometry:
        return results
    before, after = anatomy.view.to_asl(original.stored), anatomy.view.to_asl(refaced.stored)
    changed = before != after
    if original.has_nan:
        changed &= ~(np.isnan(before) & np.isnan(after))
    region = anatomy.face_region
    results.append(
        Check(
            "brain_voxels_changed",
            float(np.count_nonzero(changed & (anatomy.brain_mask | anatomy.second_brain))), (0, 0),
            "Brain voxels would change.",
        )
    )  # fmt: skip
    results.append(
        Check(
            "brain_second_opinion_ml", round(anatomy.disputed_ml, 2), (0, DISAGREE_ML),
            "A second segmentation finds brain where the face is to be replaced.",
        )
    )  # fmt: skip
    results.append(
        Check(
            "voxels_changed_outside_face_region", float(np.count_nonzero(changed & ~region)), (0, 0),
            "Voxels outside the face region would change.",
        )
    )  # fmt: skip
    level = anatomy.skin + air
    kept = _untouched_tissue(before, changed, region, original, level)
    results.append(
        Check(
            "original_voxels_left", float(kept), (0, 0),
            "Original tissue would be left in the face region.",
        )
    )  # fmt: skip
    voxel_ml = float(np.prod(anatomy.view.spacing)) / 1000
    painted_ml = float(np.count_nonzero(region & ~air_mask)) * voxel_ml
    limits = (0.02, 3.0) if anatomy.already_defaced else FACE_RATIO
    results.append(
        Check(
            "face_tissue_ratio", painted_ml / max(expected_ml, 1e-6), limits,
            "The generated face is too small or too large to be a face; try another seed.",
        )
    )  # fmt: skip
    low, high = original.stored_range
    beyond = after[region]
    outside = float(np.count_nonzero((beyond < low) | (beyond > high)))
    results.append(
        Check(
            "voxels_out_of_range",
            outside,
            (0, 0),
            "Generated voxels would lie outside the scan's intensity range.",
        )
    )
    return results


def value_of(results: list[Check], name: str) -> float:
    """What a check measured; NaN where it was not made."""
    return next((entry.value for entry in results if entry.name == name), float("nan"))


def _untouched_tissue(
    before: np.ndarray, changed: np.ndarray, region: np.ndarray, original: Volume, skin: float
) -> int:
    """Voxels of original tissue that survive in the face region: centres of 3x3x3 blocks of tissue in which
    nothing changed. A single voxel may keep its value by chance (8-bit scans), a block may not."""
    from scipy import ndimage

    box = bounding_box(region)
    before, changed, region = before[box], changed[box], region[box]
    tissue = region & (before.astype(np.float32) * original.slope + original.intercept > skin)
    same = tissue & ~changed
    if np.count_nonzero(same) < 27:
        return 0
    return int(np.count_nonzero(ndimage.binary_erosion(same, np.ones((3, 3, 3)))))


def check_defaced(original: Volume, defaced: Volume, anatomy: Anatomy, air: float) -> list[Check]:
    """The checks of a scan whose face region was emptied, both native; air: the level of air. Raises CheckError
    with the first that failed."""
    results = check(original, defaced, anatomy, air, anatomy.face_region, expected_ml=0.0)
    results = [entry for entry in results if entry.name != "face_tissue_ratio"]  # there is to be no face
    enforce(results)
    return results


def enforce(results: list[Check]) -> None:
    """Raise CheckError with the first failed check's sentence."""
    for result in results:
        if not result.passed:
            raise CheckError(f"{result.failure} Nothing was written ({result.name} is {result.value:g}).")
