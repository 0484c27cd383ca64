"""The cohort: what no scan has alone. Identification in the gallery, pairs, the nearest training face, seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .measurements import ORIGINAL
from .reidentification import VIEWS, Look, distance, identification, nearest
from .stages import PICTURES, Row, Scan, first, read_looks
from .study_config import Study
from .tools import Tool

if TYPE_CHECKING:
    import pandas as pd

SHEET = VIEWS[:2]
"""The views of the render sheet, one above the other."""


class Looks:
    """The looks of a study, read from its store: embedder -> scan -> look. What failed is not there."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.scans = {name: Scan(study, name) for name in study.scans} if study.detector else {}
        self.tools = study.tools

    def of(self, names: Iterable[str], place: Callable[[Scan], Path]) -> dict[str, dict[str, Look]]:
        found: dict[str, dict[str, Look]] = {embedder: {} for embedder in self.study.embedders}
        for name in names:
            if name in self.scans:
                for embedder, look in read_looks(place(self.scans[name])).items():
                    found[embedder][name] = look
        return found

    def originals(self, names: Iterable[str]) -> dict[str, dict[str, Look]]:
        return self.of(names, lambda scan: scan.look_place(None))

    def rescans(self) -> dict[str, dict[str, Look]]:
        return self.of(self.study.originals, lambda scan: scan.rescan_place())

    def outputs(self, tool: Tool, seed: int | None) -> dict[str, dict[str, Look]]:
        return self.of(self.study.originals, lambda scan: scan.look_place(tool, seed))


def rows_of_cohort(study: Study, looks: Looks) -> list[Row]:
    """Identification, pairs, distance to the nearest training face, between seeds, and Frechet distance.

    Of the originals: pairs are of the whole gallery, the incorrect matches; what else is of an output is that of
    the simulated re-scan, the positive control; the nearest training face is the scan's own, what an unseen
    person has."""
    rows: list[Row] = []
    galleries, trainings = looks.originals(study.gallery), looks.originals(study.training)
    rescans = looks.rescans()
    for embedder, gallery in galleries.items():
        if not gallery:
            continue
        training = trainings[embedder]
        again = _known(rescans[embedder], gallery)
        rows += _identified(ORIGINAL, embedder, again, gallery)
        rows += [
            (scan, ORIGINAL, "rescan_distance", embedder, distance(look, gallery[scan]))
            for scan, look in again.items()
        ]
        rows += _pairs(ORIGINAL, embedder, gallery)
        rows += _to_training(ORIGINAL, embedder, _known(gallery, study.originals), training)
        for tool in looks.tools:
            outputs = _known(looks.outputs(tool, first(tool))[embedder], gallery)
            rows += _identified(tool.name, embedder, outputs, gallery)
            rows += _pairs(tool.name, embedder, outputs)
            rows += _to_training(tool.name, embedder, outputs, training)
            if len(tool.seeds) > 1:
                rows += _between_seeds(tool.name, embedder, [looks.outputs(tool, s)[embedder] for s in tool.seeds])
    return rows


def _known(looks: dict[str, Look], names: Iterable[str]) -> dict[str, Look]:
    return {name: look for name, look in looks.items() if name in names}


def _identified(tool: str, embedder: str, outputs: dict[str, Look], gallery: dict[str, Look]) -> Iterator[Row]:
    from .realism import frechet

    for found in identification(outputs, gallery).itertuples():
        for name in ("own_distance", "rank", "auc"):
            yield str(found.scan), tool, name, embedder, float(getattr(found, name))
    yield "", tool, "frechet", embedder, frechet(_embeddings(outputs), _embeddings(gallery))


def _pairs(tool: str, embedder: str, looks: dict[str, Look]) -> Iterator[Row]:
    for (a, one), (b, other) in itertools.combinations(looks.items(), 2):
        yield a, tool, "pair_distance", f"{embedder}/{b}", distance(one, other)


def _to_training(tool: str, embedder: str, looks: dict[str, Look], training: dict[str, Look]) -> Iterator[Row]:
    for scan, look in looks.items() if training else ():
        others = {name: other for name, other in training.items() if name != scan}
        yield scan, tool, "training_distance", embedder, nearest(look, others)[1]


def _between_seeds(tool: str, embedder: str, drawn: list[dict[str, Look]]) -> Iterator[Row]:
    """The mean distance between any two of the faces drawn on a scan."""
    for scan in drawn[0]:
        faces = [looks[scan] for looks in drawn if scan in looks]
        apart = [distance(one, other) for one, other in itertools.combinations(faces, 2)]
        known = [value for value in apart if not math.isnan(value)]
        yield scan, tool, "seed_distance", embedder, float(np.mean(known)) if known else math.nan


def _embeddings(looks: dict[str, Look]) -> np.ndarray:
    """(N, D): those of all pictures in which there is a face."""
    rows = [look.embeddings[look.scores > 0] for look in looks.values()]
    return np.concatenate(rows) if rows else np.empty((0, 0))


def seeds(study: Study, looks: Looks, thresholds: dict[str, float]) -> pd.DataFrame:
    """How well each seed hides the people, for tools that draw several: a row per embedder, tool and seed."""
    import pandas as pd

    rows = []
    galleries = looks.originals(study.gallery)
    for (embedder, gallery), tool in itertools.product(galleries.items(), looks.tools):
        for seed in tool.seeds if len(tool.seeds) > 1 else ():
            outputs = _known(looks.outputs(tool, seed)[embedder], gallery)
            found = identification(outputs, gallery)
            below = found["own_distance"] < thresholds.get(embedder, math.nan)
            shares = [100 * float(share.mean()) for share in (below, found["rank"] <= 1, found["rank"] <= 5)]
            missing = int(found["own_distance"].isna().sum())
            rows.append([
                embedder, tool.name, seed, len(found), missing, found["own_distance"].mean(), *shares,
                found["auc"].mean(),
            ])  # fmt: skip
    measures = "distance identifiable_percent rank_1_percent rank_5_percent auc"
    return pd.DataFrame(rows, columns=f"embedder tool seed scans not_detected {measures}".split())


def pictures(study: Study, looks: Looks) -> dict[str, dict[str, np.ndarray]]:
    """For the render sheet: scan -> tool -> the views of `SHEET`, uint8 (H, W, 3), the original's first."""
    shown = [VIEWS.index(view) for view in SHEET]
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in study.originals:
        for tool in (None, *looks.tools):
            file = looks.scans[name].look_place(tool, first(tool)) / PICTURES
            if file.is_file():
                with np.load(file) as data:
                    both = np.concatenate(data["pictures"][shown])
                found.setdefault(name, {})[tool.name if tool else ORIGINAL] = both
    return found
