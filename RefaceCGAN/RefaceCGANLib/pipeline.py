"""The whole way of one scan, on one page: each stage is a function that takes what the stage before it returned.

    load          path                        -> Volume        the scan, as its file holds it
    locate        Volume                      -> Anatomy       brain mask, face region, map to the template
    deface        Volume, Anatomy             -> Defaced       from here on nothing sees the emptied voxels
    normalise     Defaced                     -> NetworkInput  on the model's grid, at its intensities
    sample_shape  NetworkInput, seed          -> coefficients  the shape of one face; None: the model has no shapes
    generate      NetworkInput, coefficients  -> face          painted intensities, -1..1, in the face region
    compose       face, Defaced               -> Refaced       in the scan's own voxels
    check         original, Refaced, Anatomy  -> checks        each with its limit

What follows `deface` is the same for every face of the scan up to `normalise`; `Refacer` keeps that, and does the
rest for each seed. Saving is `Volume.write`, and `report.scan_report` makes the report. Arrays are in ASL order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import checks, composition, paper
from .anatomy import location
from .anatomy.location import Anatomy, air_level
from .checks import Check
from .defacing import Defaced
from .generation.network_input import NetworkInput
from .generation.painting import paint
from .spatial.grid import AslView
from .volume.volume import Volume

if TYPE_CHECKING:
    from .generation.inference import Inference
    from .models.model import Model


@dataclass(frozen=True)
class Refaced:
    """A scan with a generated face. volume: in the original's geometry.  air_mask: bool (A, S, L), the voxels of
    the face region that ended as air."""

    volume: Volume
    air_mask: np.ndarray


def load(path: str | Path) -> Volume:
    """Read a scan from a file, or from a folder with a DICOM series. Raises InputError."""
    return Volume.read(path)


def locate(volume: Volume, model: Model, defaced: str = "auto") -> Anatomy:
    """Find brain and face. defaced: "auto", "yes" or "no": has the face been removed already?

    Raises CheckError where there is no head, no brain or no face in view, or two opinions on the brain differ."""
    view = AslView.of(volume)
    values = np.ascontiguousarray(view.to_asl(volume.array))
    values -= air_level(values)
    return location.locate(values, view, model.anatomy, model.brain_check, model.template, defaced)


def deface(volume: Volume, anatomy: Anatomy, model: Model, aligned: bool = False) -> Defaced:
    """Empty the face region. aligned: the anatomy's map to the template was found without the face, and is kept.

    Raises CheckError where nothing of the scan would be left, or the place of the face is not found without it."""
    return Defaced.of(volume, anatomy, model.anatomy, model.template, aligned)


def normalise(defaced: Defaced, model: Model) -> NetworkInput:
    """Winsorise, scale to [-1, 1] (Molchanova et al. 2023, section 2.2), and resample to the model's grid.

    Raises CheckError where no tissue is brighter than the air."""
    return NetworkInput.of(defaced, model)


def sample_shape(seen: NetworkInput, model: Model, seed: int) -> np.ndarray | None:
    """Draw the shape coefficients (K,) of a face: the same for all heads, made to fit this one's kept skin. None
    for a model without a shape model."""
    if model.tissue is None:
        return None
    template = model.working_template
    drawn = np.random.default_rng(seed).standard_normal(template.modes_count)
    drawn = (float(model.card["shape_spread"]) * drawn).astype(np.float32)
    return drawn if seen.meeting is None else template.fitting(drawn, seen.meeting)


def generate(
    seen: NetworkInput,
    coefficients: np.ndarray | None,
    defaced: Defaced,
    run: Inference,
    seed: int,
    dropout: float,
) -> np.ndarray:
    """Paint one face: (N,) -1..1, at the True voxels of the face region, in C order. dropout: the probability with
    which the generator's bottleneck drops a channel.

    Raises InputError where the memory does not suffice."""
    return paint(seen, coefficients, defaced, run, seed, dropout)


def compose(face: np.ndarray, seen: NetworkInput, defaced: Defaced, model: Model, seed: int) -> Refaced:
    """Put a face (N,) of `generate` into the scan; only voxels of the face region change."""
    if seen.background is None:
        dark = float(model.card.get("air_below", paper.AIR))
        composed = paper.compose(face, defaced.face_region, seen.scale, dark)
    else:
        rng = np.random.default_rng([seed, 1])
        composed = composition.compose(face, defaced, seen.scale, seen.background, rng)
    scan = defaced.scan
    stored = scan.stored.copy()
    painted = scan.to_stored(composed.values + defaced.air).clip(*defaced.kept_range)
    defaced.view.to_asl(stored)[defaced.face_region] = painted
    if scan.has_nan:  # so that air has one value all around the head
        defaced.view.to_asl(stored)[composed.air_mask] = np.nan
    return Refaced(scan.with_stored(stored), composed.air_mask)


def check(
    original: Volume, refaced: Refaced, anatomy: Anatomy, defaced: Defaced, expected_ml: float
) -> list[Check]:
    """Compare a refaced scan with its original. expected_ml: tissue of the average head in the face region."""
    return checks.check(original, refaced.volume, anatomy, defaced.air, refaced.air_mask, expected_ml)
