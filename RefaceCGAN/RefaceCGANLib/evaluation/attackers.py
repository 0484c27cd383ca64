"""Attackers: whoever tries to find the owner of a refaced scan among originals, from pure arrays.

    standard   a face recogniser off the shelf: how near the two faces are.
    informed   knows this code and its weights: every number that the code computes of two heads is a score.
    learned    has pairs of originals and refaced scans of other people as well, and learns what of the owner is
               left in the new face: a ridge regression from what is seen of the refaced scan to what is seen of
               the original (the recogniser's embedding, or the shape of the skin).

Each gives scores (S, P, G): of the refaced scan of person p with seed s against the original g of the gallery,
higher for more alike. `judged` turns scores into the AUC, with an interval by bootstrap over people. Nothing is
fitted and judged on the same people: the folds are by person, and a learned attacker's gallery holds only people
whom it did not learn from.

An attacker who sees that the owner is always the person *least* like the new face has found the owner as well. For
scores whose direction is not learned, the AUC counts in both directions, as its distance from 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .face_recognition import Look

FOLDS = 10
"""Of cross-validation, by person."""
LEAST_PEOPLE = 12
"""The fewest people to learn from, and to judge on."""
RESAMPLES = 1000
"""Of people, with replacement, for an interval of 95 %."""
PENALTIES = np.logspace(-2, 6, 17)
"""Ridge penalties that the learned attacker chooses from, by leave-one-out within its training pairs."""
COMPONENTS = 40
"""Principal components of the originals that the learned attacker predicts, at most a third of its people: more of
them are noise where there are about 100 people to learn from."""


@dataclass(frozen=True)
class Attack:
    """How well one attacker finds the owners.

    auc: mean over people and seeds of the share of other people whose original scores lower than the owner's;
    0.5 is chance. low, high: its 95 % interval by bootstrap over people. found: the AUC in the direction that
    finds more, 0.5 to 1 (the same as auc for a learned attacker). found_low, found_high: the interval of that.
    rank_1_percent: how often the owner comes first in that direction, in a gallery of about `gallery` people.
    reversed: the owner is the one least alike. people, seeds: what was judged."""

    name: str
    auc: float
    low: float
    high: float
    found: float
    found_low: float
    found_high: float
    rank_1_percent: float
    reversed: bool
    people: int
    seeds: int
    gallery: float

    def __str__(self) -> str:
        way = ", reversed" if self.reversed else ""
        return (
            f"{self.name}: AUC {self.auc:.3f} ({self.low:.3f} to {self.high:.3f}){way}, "
            f"rank 1 {self.rank_1_percent:.1f} % of a gallery of {self.gallery:.0f}; "
            f"{self.people} people, {self.seeds} seeds"
        )


def judged(
    name: str, scores: np.ndarray, own: np.ndarray | None = None, learned: bool = False, resamples: int = RESAMPLES
) -> Attack:
    """What an attacker's scores come to.

    scores: (S, P, G), NaN where a pair cannot be compared. own: (P,) the place of each person's original in the
    gallery (default: the first P). learned: the scores have a direction; else the better of both counts. A person
    whose own score is NaN in all seeds (no face is detected) cannot be found, and is left out of the AUC.
    """
    scores = np.asarray(scores, float)
    seeds, people, _ = scores.shape
    own = np.arange(people) if own is None else np.asarray(own)
    mine = scores[:, np.arange(people), own][..., None]
    others = scores.copy()
    others[:, np.arange(people), own] = np.nan
    there = np.isfinite(others)
    gallery = there.sum(axis=2)
    unknown = np.isnan(mine[..., 0]) | (gallery == 0)
    wins = np.where(there, (others < mine) + 0.5 * (others == mine), np.nan)
    wins[unknown] = np.nan
    counted = np.isfinite(wins)
    wins = np.nan_to_num(wins)
    auc = _weighted(wins, counted, own, np.ones(scores.shape[2]))
    draws = _resampled(wins, counted, own, resamples)
    reverse = not learned and auc < 0.5
    first = (others > mine) if not reverse else (others < mine)
    best = np.nan_to_num(_mean(np.where(unknown, np.nan, ~first.any(axis=2)), axis=0))
    low, high = np.nanpercentile(draws, (2.5, 97.5)) if np.isfinite(draws).any() else (np.nan, np.nan)
    found, found_low, found_high = (1 - auc, 1 - high, 1 - low) if reverse else (auc, low, high)
    return Attack(
        name, auc, float(low), float(high), found, float(found_low), float(found_high),
        100 * float(best.mean()) if counted.any() else np.nan, reverse, int(counted.any(axis=(0, 2)).sum()), seeds,
        1 + float(_mean(np.where(unknown, np.nan, gallery))),
    )  # fmt: skip


def worst(attacks: Sequence[Attack]) -> Attack:
    """The attacker that finds most; one that found nothing out (NaN) only if all are so. The largest of several
    noisy numbers lies above their truth: read its interval."""
    return max(attacks, key=lambda attack: -1.0 if np.isnan(attack.found) else attack.found)


# --- scores -----------------------------------------------------------------------------------------------


def standard(refaced: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Scores of a recogniser: the mean cosine over the views in which both have a face.

    refaced: (S, P, V, D) embeddings of length 1, NaN where no face was detected.  originals: (G, V, D) likewise.
    """
    seen = np.isfinite(refaced[..., 0]), np.isfinite(originals[..., 0])
    products = np.einsum("spvd,gvd->spg", np.nan_to_num(refaced), np.nan_to_num(originals))
    both = np.einsum("spv,gv->spg", seen[0].astype(float), seen[1].astype(float))
    return np.where(both > 0, products / np.maximum(both, 1), np.nan)


def nearness(refaced: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Scores of an informed attacker from shapes: minus the root mean square distance of what both show.

    refaced: (S, P, R).  originals: (G, R); NaN where nothing is seen."""
    scores = np.empty((*refaced.shape[:2], len(originals)))
    for place in np.ndindex(*refaced.shape[:2]):
        scores[place] = -np.sqrt(_mean((refaced[place] - originals) ** 2, axis=1))
    return scores


def correlation(refaced: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Scores of an informed attacker from shapes: the correlation of how both differ from the mean original.

    refaced: (S, P, R).  originals: (G, R); NaN, where nothing is seen, counts as the mean."""
    mean = _mean(originals, axis=0)
    seen = np.isfinite(refaced).any(axis=2)[..., None] & np.isfinite(originals).any(axis=1)
    a, b = (np.nan_to_num(part - mean) for part in (refaced, originals))
    a, b = (part / np.maximum(_length(part), 1e-9) for part in (a, b))
    return np.where(seen, np.einsum("spr,gr->spg", a, b), np.nan)


def learned(
    refaced: np.ndarray, originals: np.ndarray, people: int | None = None, folds: int = FOLDS, seed: int = 0
) -> np.ndarray:
    """Scores of an attacker who learns from other people's pairs, by cross-validation over people.

    refaced: (S, P, F) what is seen of the refaced scans: embeddings of all views joined, or the shape of the
    skin; NaN where nothing is seen.  originals: (G, F') the same of the originals, whose first P are those of
    the refaced; what is behind them only makes the gallery larger.  people: how many of the first P to judge
    (default: all); the others are only learned from.

    In each fold ridge regression (scikit-learn's RidgeCV) leads from the refaced scans of the training people,
    every seed a pair, to the principal components of their originals, each scaled to a variance of one. The
    score is the cosine to the prediction. People whom a fold learned from get NaN. The folds depend on `seed`
    alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    seeds, count, length = refaced.shape
    there = np.isfinite(refaced).any(axis=2)
    known_originals = np.isfinite(originals).any(axis=1)
    judged_people = np.arange(count if people is None else people)
    only_trained = np.arange(len(judged_people), count)
    scores = np.full((seeds, count, len(originals)), np.nan)
    learnable = int(np.count_nonzero(there.any(axis=0) & known_originals[:count]))
    enough = min(learnable, len(judged_people)) >= LEAST_PEOPLE
    for train, test in KFold(folds, shuffle=True, random_state=seed).split(judged_people) if enough else ():
        known = np.concatenate([judged_people[train], only_trained])
        unknown = np.setdiff1d(np.arange(len(originals)), known)
        pairs = np.zeros_like(there)
        pairs[:, known] = there[:, known] & known_originals[known]
        inputs, outputs = _filled(refaced, refaced[pairs]), _filled(originals, originals[known])
        pca = PCA(min(COMPONENTS, len(known) // 3, outputs.shape[1]), whiten=True, random_state=seed)
        with np.errstate(invalid="ignore"):  # all originals alike
            pca.fit(outputs[known[known_originals[known]]])
        x = inputs / max(float(inputs[pairs].std()), 1e-9)
        ridge = RidgeCV(PENALTIES).fit(x[pairs], pca.transform(outputs)[np.nonzero(pairs)[1]])
        predicted, gallery = ridge.predict(x[:, test].reshape(-1, length)), pca.transform(outputs[unknown])
        predicted, gallery = (part / np.maximum(_length(part), 1e-9) for part in (predicted, gallery))
        scores[:, test[:, None], unknown] = (predicted @ gallery.T).reshape(seeds, len(test), len(unknown))
    if people is not None:
        scores = scores[:, :people]
    scores[~there[:, : scores.shape[1]]] = np.nan
    scores[:, :, ~known_originals] = np.nan
    return scores


def learned_by_chance(
    refaced: np.ndarray, originals: np.ndarray, times: int, people: int | None = None, folds: int = FOLDS
) -> np.ndarray:
    """What the learned attacker's AUC is where there is nothing to learn: AUCs (times,) with the refaced scans
    dealt out to other people at random. Their mean is near 0.5, and their spread says how far from it chance
    alone leads: further than the bootstrap interval says, which knows nothing of the chance in what was
    learned."""
    aucs = []
    for seed in range(times):
        order = np.random.default_rng(seed).permutation(refaced.shape[1])
        scores = learned(refaced[:, order], originals, people, folds, seed)
        aucs.append(judged("chance", scores, learned=True, resamples=1).auc)
    return np.array(aucs)


# --- arrays -----------------------------------------------------------------------------------------------


def embeddings_of(looks: Sequence[Look]) -> np.ndarray:
    """The embeddings of N looks, (N, V, D) float32; NaN where there is no face."""
    return np.stack([look.embeddings for look in looks])


def joined(embeddings: np.ndarray) -> np.ndarray:
    """All views of an embedding (..., V, D) as one vector (..., V * D)."""
    return embeddings.reshape(*embeddings.shape[:-2], -1)


def together(*parts: np.ndarray) -> np.ndarray:
    """Several kinds of numbers as one vector (..., F), each kind scaled to the same spread over its heads."""
    scaled = []
    for part in parts:
        away = part - _mean(part.reshape(-1, part.shape[-1]), axis=0)
        scaled.append(away / max(float(np.sqrt(np.nansum(away**2) / max(np.isfinite(away).sum(), 1))), 1e-9))
    return np.concatenate(scaled, axis=-1)


def _filled(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """values (..., F) less the mean of the training ones (..., F), 0 where nothing is seen."""
    mean = _mean(training.reshape(-1, training.shape[-1]), axis=0)
    return np.nan_to_num(values - mean, nan=0.0)


def _length(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=-1, keepdims=True)


def _mean(values: np.ndarray, axis: int | None = None) -> Any:
    """The mean of what is not NaN; NaN of nothing, without a warning."""
    there = np.isfinite(values)
    count = there.sum(axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, values, 0.0).sum(axis=axis) / np.where(count, count, np.nan)


def _weighted(wins: np.ndarray, counted: np.ndarray, own: np.ndarray, weight: np.ndarray) -> float:
    """The AUC with people weighted, as attacked and as others. wins, counted: (S, P, G).  weight: (G,)."""
    total = counted @ weight
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (wins @ weight) / total
    by_person, weights = _mean(shares, axis=0), weight[own]
    there = np.isfinite(by_person) & (weights > 0)
    return float(np.average(by_person[there], weights=weights[there])) if there.any() else float("nan")


def _resampled(wins: np.ndarray, counted: np.ndarray, own: np.ndarray, times: int) -> np.ndarray:
    """AUCs of resampled people, (times,). A person who is drawn twice counts twice, as attacked and as one of the
    others: that some originals are near to everybody is part of the chance, too."""
    random, count = np.random.default_rng(1), wins.shape[2]
    draws = [
        _weighted(wins, counted, own, np.bincount(random.integers(0, count, count), minlength=count).astype(float))
        for _ in range(times)
    ]
    return np.array(draws)
