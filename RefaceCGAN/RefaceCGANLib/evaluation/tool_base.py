"""What every tool of a study is: `tools` has ours, `programs` other people's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..volume.files import SUFFIXES
from ..volume.volume import Volume

GRID_TOLERANCE = 0.02
"""Voxels by which the corners of two grids may differ and still be the same grid."""


class Tool(ABC):
    """One tool as the configuration describes it.

    name: what it is called in tables and figures.  settings: all that decides what comes out, JSON values; two
    tools with the same settings give the same output.  seeds: the faces to draw on each scan, or ()."""

    paths: tuple[str, ...] = ()
    """The keys of its table that hold paths."""
    device = "cpu"

    def __init__(self, name: str, settings: dict[str, Any], seeds: tuple[int, ...] = ()) -> None:
        self.name, self.settings, self.seeds = name, settings, seeds

    def require(self) -> None:
        """Raise InputError, which says how to get it, unless the tool can run here."""
        return

    def inputs(self, original: Path) -> list[Path]:
        """The files besides the original that decide what comes out for it."""
        return []

    @abstractmethod
    def run(self, original: Path, output: Path, seed: int | None = None) -> float:
        """Write the output for one scan to `output` (.nii.gz), on the original's grid, and return the seconds it
        took, from file to file, without loading a model. seed: one of `seeds`.

        Raises InputError or CheckError, one sentence, where there is no output."""


def scan_name(path: Path) -> str:
    """A scan's file name without its suffix; a DICOM folder's name."""
    suffix = next((end for end in SUFFIXES if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(suffix)]


def on_grid_of(original: Volume, output: Volume) -> Volume:
    """The output with its axes in the original's order and direction; no value is interpolated.

    Raises InputError where its grid is another one."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

    turn = ornt_transform(io_orientation(output.affine), io_orientation(original.affine))
    stored = apply_orientation(output.stored, turn)
    affine = output.affine @ inv_ornt_aff(turn, output.shape)
    size = np.array(original.shape) - 1.0
    corners = np.array([[i, j, k, 1.0] for i in (0, size[0]) for j in (0, size[1]) for k in (0, size[2])])
    away = corners @ (np.linalg.inv(original.affine) @ affine).T - corners
    if stored.shape != original.shape or np.abs(away).max() > GRID_TOLERANCE:
        raise InputError(
            f"{output.source or 'The output'} lies on another grid than its original; resample it to that first."
        )
    return Volume(np.ascontiguousarray(stored), original.affine, output.slope, output.intercept)
