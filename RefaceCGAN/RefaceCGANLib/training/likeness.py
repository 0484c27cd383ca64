"""What a face recogniser sees of the shape of a face, learned once for a model.

Every training head is given several random faces and a recogniser looks at each. Between two faces of one head the
kept part, pose and contrast are the same: what the recogniser tells them apart by is their shape, and a linear map
from code to embedding is fitted to these differences (ridge regression; the views add up). Of that map only the
directions that tell most are kept, `Likeness`: no face and no network are in it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation import pool
from ..evaluation.faces import FaceModels
from ..evaluation.reidentification import VIEWS, portraits
from ..likeness import Likeness
from ..models import Model
from ..refacer import Refacer
from ..volume import Volume, atomic_path

log = logging.getLogger(__name__)

RIDGE = 100.0
"""Differences between codes, in squared standard deviations, that weigh as much as all numbers of the map."""
AXES = 32
"""Directions that are kept; of 104, 32 tell as much of how near two faces come as all do."""


@dataclass(frozen=True)
class Task:
    """One head to be looked at. card: of the model.  seeds: of its faces.  result: the .npz file to write."""

    scan: Path
    seeds: tuple[int, ...]
    card: Path
    detector: Path
    recogniser: Path
    result: Path


@dataclass(frozen=True)
class Faces:
    """Several faces of one head. own: (K,) the code nearest to its own.  codes: (n, K) of the faces.  seen:
    (n, V, D) what a recogniser sees of them from V sides; NaN where it sees no face."""

    own: np.ndarray
    codes: np.ndarray
    seen: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Faces:
        with np.load(path, allow_pickle=False) as data:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})

    def write(self, path: Path) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: getattr(self, name) for name in self.__dataclass_fields__})


def learn(tasks: list[Task], workers: int) -> Likeness:
    """Reface the heads that have no result yet, with faces of any likeness, look at them, and fit.

    Heads that cannot be refaced are left out. Raises InputError where none is left."""
    undone = [task for task in tasks if not task.result.is_file()]

    def finished(task: Task, _: None, reason: str | None) -> None:
        log.info("%s: %s", task.scan.name, reason or "done")

    pool.run(look_at, undone, workers, lambda *_: None, finished)
    heads = [Faces.read(task.result) for task in tasks if task.result.is_file()]
    if not heads:
        raise InputError("None of the heads could be refaced; name scans of whole heads.")
    return fit(heads)


def look_at(task: Task, _: pool.Say) -> None:
    """Give one head its faces and keep what is seen of them."""
    refacer, models = _tools(task.card, task.detector, task.recogniser)
    original = Volume.read(task.scan)
    prepared = refacer.prepare(original)
    if prepared.working.own is None:
        raise InputError(f"{task.scan} has no face; leave it out.")
    codes, seen = [], []
    for seed in task.seeds:
        refaced = refacer.reface(prepared, seed).volume
        codes.append(refacer.shape(prepared, seed))
        seen.append(models.look(portraits(refaced, original, VIEWS))[""].embeddings)
    Faces(prepared.working.own, np.array(codes), np.array(seen)).write(task.result)


@lru_cache(maxsize=1)
def _tools(card: Path, detector: Path, recogniser: Path) -> tuple[Refacer, FaceModels]:
    refacer = Refacer.from_pretrained(Model.load(card))
    refacer.likest = 1.0
    return refacer, FaceModels(detector, {"": recogniser})


def fit(heads: list[Faces]) -> Likeness:
    """The likeness that faces of several heads tell."""
    maps = [_map(heads, view) for view in range(heads[0].seen.shape[1])]
    directions, singular, _ = np.linalg.svd(np.concatenate(maps, axis=1), full_matrices=False)
    seen = (directions * singular).T[:AXES]
    return Likeness(seen.astype(np.float32), np.mean([head.own for head in heads], axis=0))


def _map(heads: list[Faces], view: int) -> np.ndarray:
    """How what is seen from one side changes with each number of a code: (K, D)."""
    codes, seen = [], []
    for head in heads:
        there = np.isfinite(head.seen[:, view]).all(axis=1)
        if there.any():
            codes.append(head.codes[there] - head.codes[there].mean(axis=0))
            seen.append(head.seen[there, view] - head.seen[there, view].mean(axis=0))
    x, y = np.concatenate(codes).astype(float), np.concatenate(seen)
    solved: np.ndarray = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return solved
