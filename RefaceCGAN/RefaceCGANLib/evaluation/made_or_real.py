"""Made or real: does a classifier, trained on other people's originals and outputs, separate the two?

One number for slices (patches of tissue) and one for renders (embeddings of a face recogniser): the AUC of a
classifier by scikit-learn, in cross-validation over people, so that no person is learned from and judged. 0.5:
no better than chance; 1: each patch, or picture, is classified correctly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FOLDS = 5
"""Of cross-validation, by person."""
RESAMPLES = 500
"""Of people, with replacement, for an interval of 95 %."""
TREES = 200


@dataclass(frozen=True)
class Separability:
    """How well a classifier separates made from real: AUC, its 95 % interval by bootstrap over people, and the
    number of people."""

    name: str
    auc: float
    low: float
    high: float
    people: int

    def __str__(self) -> str:
        interval = f"{self.auc:.3f} ({self.low:.3f} to {self.high:.3f})"
        return f"made or real, {self.name}: AUC {interval}, {self.people} people"


def patch_separability(
    real: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray], name: str = "patches", seed: int = 0
) -> Separability:
    """A random forest on features of patches. real, made: person -> (N, F), the patches of the original and of
    the output. People of whom either has no patch are left out, except where the two have no person in common
    (then they are different people, real ones and made ones, and each counts by itself)."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(TREES, min_samples_leaf=3, max_features="sqrt", random_state=seed)
    return _separability(forest, real, made, name, seed)


def render_separability(
    real: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray], name: str = "renders", seed: int = 0
) -> Separability:
    """A linear classifier (logistic regression) on embeddings. real, made: person -> (N, D), one row for each
    picture (rows with NaN, no face, are left out); see `patch_separability`. A head's score is the mean over its
    pictures."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    real, made = (
        {person: rows[np.isfinite(rows).all(axis=1)] for person, rows in part.items()} for part in (real, made)
    )
    return _separability(linear, real, made, name, seed, whole=True)


def _separability(
    classifier: Any, real: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray], name: str, seed: int,
    whole: bool = False,
) -> Separability:  # fmt: skip
    """whole: a person's rows are one picture, with one score."""
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedGroupKFold

    shared = real.keys() & made.keys()
    real, made = (
        {person: rows for person, rows in part.items() if len(rows) and (not shared or person in shared)}
        for part in (real, made)
    )
    if shared:
        both = real.keys() & made.keys()
        real, made = ({person: part[person] for person in sorted(both)} for part in (real, made))
    people = sorted(real.keys() | made.keys())
    if min(len(real), len(made)) < FOLDS:
        return Separability(name, float("nan"), float("nan"), float("nan"), len(people))
    parts = [
        (rows, label, people.index(person))
        for label, part in enumerate((real, made))
        for person, rows in part.items()
    ]
    features = np.concatenate([rows for rows, *_ in parts])
    labels = np.concatenate([np.full(len(rows), label) for rows, label, _ in parts])
    groups = np.concatenate([np.full(len(rows), group) for rows, _, group in parts])
    scores, folds = np.zeros(len(labels)), np.zeros(len(labels), int)
    splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels, groups)
    for fold, (train, test) in enumerate(splits):
        fitted = clone(classifier).fit(features[train], labels[train])
        scores[test], folds[test] = fitted.predict_proba(features[test])[:, 1], fold
    if whole:
        key = np.stack([groups, labels], axis=1)
        _, first, place = np.unique(key, axis=0, return_index=True, return_inverse=True)
        scores = np.bincount(place.ravel(), scores) / np.bincount(place.ravel())
        labels, groups, folds = labels[first], groups[first], folds[first]
    auc, draws = _by_fold(scores, labels, groups, folds, seed)
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return Separability(name, auc, float(low), float(high), len(people))


def _by_fold(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, seed: int
) -> tuple[float, np.ndarray]:
    """The mean AUC of the folds (scores of two classifiers are not compared), and that of resampled people."""
    random = np.random.default_rng(seed)
    tables = []
    for fold in np.unique(folds):
        mine = folds == fold
        people = np.unique(groups[mine])
        # how often each person's made scores lie above each person's real ones
        real = [scores[mine & (groups == p) & (labels == 0)] for p in people]
        made = [scores[mine & (groups == p) & (labels == 1)] for p in people]
        wins = np.array([[_wins(m, r) for r in real] for m in made])
        tables.append((wins, np.array([len(m) for m in made]), np.array([len(r) for r in real])))

    def auc(weights: list[np.ndarray]) -> float:
        values = []
        for (wins, made, real), weight in zip(tables, weights, strict=True):
            pairs = (weight * made).sum() * (weight * real).sum()
            values.append(weight @ wins @ weight / pairs if pairs else np.nan)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    draws = []
    for _ in range(RESAMPLES):
        weights = [
            np.bincount(random.integers(0, len(wins), len(wins)), minlength=len(wins)).astype(float)
            for wins, *_ in tables
        ]
        draws.append(auc(weights))
    return auc([np.ones(len(wins)) for wins, *_ in tables]), np.array(draws)


def _wins(made: np.ndarray, real: np.ndarray) -> float:
    """In how many pairs the made one scores higher, ties half."""
    if not (made.size and real.size):
        return 0.0
    order = np.sort(real)
    below, upto = np.searchsorted(order, made, "left"), np.searchsorted(order, made, "right")
    return float((below + upto).sum() / 2)
