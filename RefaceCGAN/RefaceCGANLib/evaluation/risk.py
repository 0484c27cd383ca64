"""The risk of one scan: `refacecgan risk ORIGINAL REFACED`: what one scan can show, and what it cannot.

One scan shows what was replaced and what was kept, and how far apart a face recogniser sees the two faces.
Whether an attacker finds the owner is a matter of a cohort: the model card carries what was measured on one
(`card["risk"]`), and the figure of the attacker who learned from other people's pairs. None of this proves that
nobody can be found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.model import Model, sha256
from ..refacer import Refacer
from ..rendering.skin_surface import skin_threshold
from ..volume.volume import Volume
from .exclusion import Reference, changed
from .skin_shape import place_of, skin_distances, skin_left_percent
from .tool_base import on_grid_of

if TYPE_CHECKING:
    from .measure import Cohort

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
"""Of each distribution that a card carries."""
LIMITS = (
    "What is kept of the head (brain, skull, scalp, neck, and ears where they were kept) is the owner's: who has "
    "another scan of the same person can match the brain. A figure measured on one cohort, with these attackers, "
    "is no bound for others."
)


def risk(
    original: Volume,
    refaced: Volume,
    model: Model,
    detector: Path | None = None,
    recogniser: Path | None = None,
) -> dict[str, Any]:
    """What is known of one refaced scan, JSON values.

    model: whose card carries the cohort.  detector, recogniser: ONNX files; without them no distance is measured.
    Raises InputError for scans of two grids or a file that is no network, CheckError where the original shows no
    face."""
    output = on_grid_of(original, refaced)
    refacer = Refacer.from_pretrained(model, "cpu")
    anatomy = refacer.prepare(original).anatomy
    reference = Reference.of_anatomy(original, anatomy, model.template)
    different = changed(original, output)
    level, voxel_ml = skin_threshold(original.array, original.spacing), float(np.prod(original.spacing)) / 1000
    tissue = original.array > level
    place = place_of(anatomy, original)
    skins = [skin_distances(volume.array, place, level) for volume in (original, output)]
    found: dict[str, Any] = {
        "model": model.id,
        "head_kept_ml": round(float(np.count_nonzero(tissue & ~different)) * voxel_ml, 1),
        "head_replaced_ml": round(float(np.count_nonzero(tissue & different)) * voxel_ml, 1),
        "face_tissue_kept_percent": _rounded(reference.tissue_left_percent(different)),
        "face_skin_in_place_percent": _rounded(skin_left_percent(*skins)),
        "brain_changed_ml": round(reference.brain_voxels_changed(different) * voxel_ml, 3),
        "cohort": model.card.get("risk"),
        "distance": None,
    }
    if detector and recogniser:
        from .reidentification import Recogniser

        check = Recogniser(detector, recogniser).check(original, output)
        known = (found["cohort"] or {}).get("recogniser_sha256")
        found |= {
            "distance": check["value"],
            "faces_detected": check["detected"],
            "recogniser_of_cohort": known == sha256(recogniser),
        }
    return found


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What `risk` found, for people: one sentence a line."""
    cohort, model = found["cohort"] or {}, found["model"]
    lines = [
        f"Replaced {found['head_replaced_ml']} ml of the head and kept {found['head_kept_ml']} ml; of the visible "
        f"face {_percent(found['face_tissue_kept_percent'])} of the tissue is the original's, and over "
        f"{_percent(found['face_skin_in_place_percent'])} of it the skin lies where it was.",
        f"Brain changed: {found['brain_changed_ml']} ml, by the anatomy of model {model}.",
    ]
    if "faces_detected" not in found:
        lines.append("No face recogniser was given (--detector, --recogniser), so no distance was measured.")
    elif found["distance"] is None:
        lines.append("The recogniser found no face in one of the two, so there is no distance.")
    else:
        lines.append(f"Distance between the two faces by the recogniser: {found['distance']:.2f}.")
        if cohort and found["recogniser_of_cohort"]:
            own, other = cohort["to_own_original"], cohort["to_other_originals"]
            share = _share_above(found["distance"], other)
            lines.append(
                f"In the card's cohort of {cohort['people']} people 9 of 10 refaced scans lie {_range(own)} "
                f"from their own original and {_range(other)} from another person's: this one is nearer to its "
                f"original than {share} % of refaced scans are to another person's."
            )
        elif cohort:
            lines.append("The card's cohort was measured with another recogniser, so the distance says little.")
    if learned := cohort.get("learned_attacker"):
        interval = f"{learned['auc']:.2f} ({learned['low']:.2f} to {learned['high']:.2f}; chance is 0.50)"
        lines.append(
            "A distance does not show an attacker who learned from other people's pairs: on the card's cohort "
            f"that one separated the owner from one other person with an AUC of {interval}."
        )
    else:
        lines.append(
            f"The card of model {model} carries no figure of a learned attacker, and no distance shows one."
        )
    return [*lines, LIMITS]


def of_cohort(cohort: Cohort, recogniser: Path, on: str) -> dict[str, Any]:
    """What a model card carries as `risk`: the cohort's distributions and its attackers.

    recogniser: the ONNX file that looked.  on: which people and seeds, in words."""
    from .attackers import standard, worst

    distances = 1 - standard(cohort.looks, cohort.gallery_looks)
    people = np.arange(len(cohort.names))
    own = distances[:, people, people]
    others = distances.copy()
    others[:, people, people] = np.nan
    between = 1 - standard(cohort.gallery_looks[None], cohort.gallery_looks)[0]
    upper = between[np.triu_indices(len(between), 1)]
    attacks = cohort.attacks()
    learned = worst([attack for attack in attacks if attack.name.startswith("learned")])
    most = worst(attacks)
    return {
        "on": on,
        "people": len(cohort.names),
        "gallery": len(cohort.gallery_looks),
        "recogniser": recogniser.stem,
        "recogniser_sha256": sha256(recogniser),
        "percentiles": list(PERCENTILES),
        "to_own_original": _percentiles(own),
        "to_other_originals": _percentiles(others),
        "between_originals": _percentiles(upper),
        **{
            name: {
                "attacker": attack.name,
                "auc": round(attack.found, 3),
                "low": round(attack.found_low, 3),
                "high": round(attack.found_high, 3),
                "rank_1_percent": round(attack.rank_1_percent, 1),
            }
            for name, attack in (("learned_attacker", learned), ("worst_attacker", most))
        },
    }


def _percentiles(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in np.nanpercentile(values, PERCENTILES)]


def _range(percentiles: list[float]) -> str:
    return f"{percentiles[PERCENTILES.index(5)]:.2f} to {percentiles[PERCENTILES.index(95)]:.2f}"


def _share_above(distance: float, percentiles: list[float]) -> int:
    """How many % of a distribution lie above a distance, between its known percentiles."""
    return round(100 - float(np.interp(distance, percentiles, PERCENTILES, left=0, right=100)))


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.0f} %"


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)
