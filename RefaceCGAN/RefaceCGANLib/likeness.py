"""Likeness: how alike two faces would look to a face recogniser, told from their shapes alone.

Refacing asks it before a face is painted, so that nobody gets a face like the one they had. What a recogniser sees
changes with the shape of a face, a little for each mode; `training.likeness` learns by how much and in which
directions, and they are all that is kept of the recogniser here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np


@dataclass(frozen=True)
class Likeness:
    """seen: (F, K) by how much each of the K numbers of a code changes what a recogniser sees, along F directions,
    the one that tells most first.  usual: (K,) the mean of the codes nearest to real faces."""

    seen: np.ndarray
    usual: np.ndarray

    @classmethod
    def plain(cls, profiles: np.ndarray) -> Likeness:
        """That of the skin itself and not of what is seen of it, where no recogniser was asked. profiles: (K, N)
        mm by which each number of a code raises the skin at N points."""
        directions, singular, _ = np.linalg.svd(profiles, full_matrices=False)
        return cls((directions * singular).T, np.zeros(len(profiles)))

    @classmethod
    def read(cls, path: Path | IO[bytes]) -> Likeness:
        with np.load(path, allow_pickle=False) as data:
            return cls(*(data[name].astype(np.float32) for name in cls.__dataclass_fields__))

    def write(self, path: Path) -> None:
        half = {name: getattr(self, name).astype(np.float16) for name in self.__dataclass_fields__}
        np.savez_compressed(path, **half)

    def of(self, drawn: np.ndarray, own: np.ndarray) -> float:
        """How alike a face of a random code (K,) and one of the code nearest to a real face (K,) look, -1 to 1:
        the cosine between what a recogniser sees of both beyond the usual face."""
        one, other = self.seen @ drawn, self.seen @ (own - self.usual)
        return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-9))
