"""Time series: NIfTI and MGH files of several volumes, read and written with every header byte as it was."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..volume.volume import GZIPPED, SUFFIXES, Volume, atomic_path

MGH_HEADER = 284
"""Bytes before the voxels of an MGH file."""
B0 = 50.0
"""s/mm2: a diffusion volume with no higher b-value counts as unweighted."""
AVERAGED = 5
"""The mean of this many first volumes stands for a series that has no b-values."""


@dataclass(frozen=True)
class TimeSeries:
    """stored: (I, J, K, T), the numbers of the file, which may be changed in place; T counts all
    further axes, 1 if there are none.
    affine: (4, 4) voxel index -> RAS+ mm.  slope, intercept: real value = stored * slope + intercept.
    content: all bytes of the file, unzipped; `stored` is a view of them."""

    stored: np.ndarray
    affine: np.ndarray
    slope: float
    intercept: float
    content: bytearray
    path: Path

    @classmethod
    def read(cls, path: Path) -> TimeSeries:
        """Raises InputError where the file is none or cut short."""
        import nibabel as nib

        try:
            image: Any = nib.load(path)
            shape, dtype = tuple(int(n) for n in image.shape), image.dataobj.dtype
            mgh = isinstance(image, nib.MGHImage)
            slope, intercept = (1.0, 0.0) if mgh else (image.dataobj.slope, image.dataobj.inter)
            start = MGH_HEADER if mgh else int(image.dataobj.offset)
            unset = not mgh and not (image.header["sform_code"] > 0 or image.header["qform_code"] > 0)
            affine = np.array(image.affine, np.float64)
            with gzip.open(path) if path.name.lower().endswith(GZIPPED) else path.open("rb") as file:
                content = bytearray(file.read())
            count = int(np.prod(shape, dtype=np.int64))
            flat = np.frombuffer(content, dtype, count, start)
        except MemoryError as error:
            raise InputError(f"{path} does not fit in memory; close programs.") from error
        except (EOFError, ValueError) as error:
            raise InputError(f"{path} is damaged or cut short; copy or export it again.") from error
        except Exception as error:  # whatever a library throws at a broken file
            raise InputError(f"{path} is damaged or no image; copy or export it again.") from error
        if unset:
            raise InputError(f"{path} has no known orientation; convert it again or set its orientation.")
        if len(shape) < 3 or dtype.kind not in "iuf":
            raise InputError(f"{path} holds no grey volumes; convert it first.")
        stored = flat.reshape((*shape[:3], -1), order="F")
        return cls(stored, affine, float(slope), float(intercept), content, path)

    @property
    def count(self) -> int:
        return int(self.stored.shape[3])

    def volume(self, at: int) -> Volume:
        """One volume, a copy. Its real values are the file's, but a constant factor and offset at most."""
        native = self.stored[..., at].astype(self.stored.dtype.newbyteorder("="))
        native.flags.writeable = False
        return Volume(native, self.affine, self.slope, self.intercept, self.path)

    def typical(self) -> Volume:
        """What stands for the series when it is compared with another scan, float32: the mean of its unweighted
        diffusion volumes where a .bval file lies beside it, else of the first few volumes."""
        name = self.path.name
        stem = next((name[: -len(end)] for end in (".nii.gz", ".nii") if name.lower().endswith(end)), name)
        chosen = list(range(min(AVERAGED, self.count)))
        try:
            values = np.array((self.path.parent / f"{stem}.bval").read_text().split(), dtype=float)
            low = np.flatnonzero(values <= B0)
            if len(values) == self.count and len(low):
                chosen = [int(at) for at in low[:AVERAGED]]
        except (OSError, ValueError):
            pass
        frames = np.stack([self.stored[..., at].astype(np.float32) for at in chosen])
        mean: np.ndarray = frames.mean(axis=0, dtype=np.float32)
        return Volume(
            mean * np.float32(self.slope) + np.float32(self.intercept), self.affine, source=self.path
        ).check()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file as it was but for the voxels; it appears complete or not at all.

        Raises InputError where it cannot be written."""
        path = Path(path)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            if path.name.lower().endswith(GZIPPED):
                with gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
                    stream.write(self.content)
            else:
                file.write(self.content)


def read_typical(files: Sequence[Path]) -> Volume:
    """One series as one volume: its file, or the files of a DICOM series; of a time series what stands for it.

    Raises InputError."""
    if len(files) > 1 or not files[0].name.lower().endswith(SUFFIXES):
        from ..volume.dicom_output import read_files

        return read_files(files)
    return TimeSeries.read(files[0]).typical() if volumes_in(files[0]) > 1 else Volume.read(files[0])


def volumes_in(path: Path) -> int:
    """How many volumes a NIfTI or MGH file holds, from its header; 1 for other formats and unreadable files."""
    import nibabel as nib

    if path.name.lower().endswith(".nrrd"):
        return 1
    try:
        image: Any = nib.load(path)
        return int(np.prod(image.shape[3:], dtype=np.int64)) or 1
    except Exception:  # `Volume.read` says what is wrong with it
        return 1
