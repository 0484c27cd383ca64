"""What the readers of all formats share: the contents of a file, and the checks that refuse what is no 3D scan."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import InputError

CHUNK = 1 << 24
"""Bytes that are read or compressed at once."""


@dataclass(frozen=True)
class Header:
    """What a file of one format holds besides its voxels, byte for byte."""

    format: str
    dtype: np.dtype  # of the voxels, with the byte order of the file
    before: bytes  # header and extensions; trailing axes of length one are in here
    after: bytes = b""  # MGH: scan parameters and tags
    gzipped: bool = False  # NRRD: the voxels are compressed


@dataclass(frozen=True)
class Contents:
    """What a reader makes of a file. stored: (I, J, K), its own numbers.  affine: (4, 4), voxel index -> RAS+
    mm.  slope, intercept: real value = stored * slope + intercept.  header: None where nothing of it is kept.
    warnings: sentences for the report."""

    stored: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    header: Header | None = None
    warnings: tuple[str, ...] = ()


def shape3(shape: Sequence[int], name: object) -> tuple[int, int, int]:
    """The first three axes; raises InputError unless they are the only ones longer than one voxel."""
    if len(shape) < 3 or 1 in shape[:3]:
        raise InputError(f"{name} is a 2D image; give a 3D scan of the head.")
    if min(shape) < 1:
        raise InputError(f"{name} holds no voxels; export it again.")
    if max(shape[3:], default=1) > 1:
        raise InputError(
            f"{name} holds several volumes, as a time series does, or colours; take out one 3D volume first."
        )
    return shape[0], shape[1], shape[2]


def check_dtype(dtype: np.dtype, name: object) -> None:
    if dtype.kind == "c":
        raise InputError(f"{name} holds complex numbers; give the magnitude image.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{name} holds colours or numbers of an odd type; convert it to grey values.")


def checked_affine(affine: np.ndarray, name: object) -> np.ndarray:
    """A read-only float64 copy; raises InputError unless it is 4x4, finite and invertible."""
    affine = np.array(affine, np.float64)
    usable = affine.shape == (4, 4) and np.isfinite(affine).all() and tuple(affine[3]) == (0, 0, 0, 1)
    if usable:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        usable = lengths.all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3
    if not usable:
        raise InputError(f"{name} has a singular or broken affine; set its orientation and voxel size anew.")
    affine.setflags(write=False)
    return affine


def unknown_orientation(path: Path, what: str) -> InputError:
    return InputError(f"{path} has no known orientation ({what}); convert it again or set its orientation.")


def take(file: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes; raises EOFError where the file ends before."""
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def open_unzipped(path: Path) -> IO[bytes]:
    """The file's content, unzipped where it begins like a gzip stream, whatever the file's name says."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")  # type: ignore[return-value]


def check_end(file: IO[bytes], path: Path) -> tuple[str, ...]:
    """Read to the end, where gzip keeps its checksum; a warning where something else follows the gzip stream."""
    try:
        while file.read(CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if "CRC" in str(error) or "length" in str(error):
            raise
        return (f"{path.name} has bytes after its end, which were passed over.",)
    return ()


def voxels(data: bytes, dtype: np.dtype, shape: tuple[int, int, int]) -> np.ndarray:
    """A read-only view (I fastest), or a copy where the byte order is not the machine's."""
    return np.frombuffer(data, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)
