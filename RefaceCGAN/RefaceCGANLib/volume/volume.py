"""Volume: one head scan as its file holds it, read from and written to NIfTI, NRRD, MGH and DICOM.

Arrays are in native order (I, J, K), exactly as stored; affines lead from voxel indices to RAS+ millimetres.
What is read and written back in the same format keeps every header byte and every voxel: the header travels
along unparsed and only the voxels are written anew. nibabel and SimpleITK interpret headers, nothing more.
"""

from __future__ import annotations

import gzip
import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import dicom_input, mgh, nifti, nrrd
from .files import FORMATS, GZIPPED, SUFFIXES, atomic_path, check_output, suffix_of
from .parsing import CHUNK, Contents, Header, check_dtype, checked_affine, shape3

MIN_AXIS = 16
"""Voxels along an axis; less is no head."""
MIN_VOXEL, MAX_VOXEL = 0.2, 8.0
"""The smallest and the largest voxel of a plausible head scan, mm."""
READERS = {
    "NIfTI": nifti.read,
    "NRRD": nrrd.read,
    "MGH": mgh.read,
    "DICOM": dicom_input.read,
    "multi-frame DICOM": dicom_input.read_file,
}


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D scan: voxels as stored, where they lie, and what they mean.

    stored: (I, J, K), the numbers of the file in their own type (native byte order; may be read-only).
    affine: (4, 4) float64, voxel index -> RAS+ mm.
    slope, intercept: real value = stored * slope + intercept.
    source: the file or DICOM folder it came from.
    warnings: sentences for the report, e.g. about a missing DICOM slice.
    """

    stored: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    source: Path | None = None
    warnings: tuple[str, ...] = ()
    # init=False: dataclasses.replace() drops the header, which would not describe a changed affine
    _header: Header | None = field(default=None, init=False, repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Volume:
        """Read a .nii, .nii.gz, .nrrd, .mgh or .mgz file, a folder with one DICOM series, or one enhanced
        (multi-frame) DICOM file.

        A DICOM series gives nothing but voxels (rescaled by the reader; slope 1) and geometry: no text of its
        headers is kept. Single images beside it, such as a screenshot, are passed over; subfolders too.

        Raises InputError, one sentence, for whatever is no readable, plausible 3D scan (see `check`).
        """
        path = Path(path)
        if not os.path.exists(path):  # unlike Path.exists(), never raises
            raise InputError(f"{path} does not exist; check the path.")
        name = "DICOM" if path.is_dir() else FORMATS.get(suffix_of(path), "")
        if not name and dicom_input.is_dicom(path):
            name = "multi-frame DICOM"
        if not name:
            known = ", ".join(SUFFIXES)
            raise InputError(f"{path} has no known suffix; give {known} or a folder with a DICOM series.")
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return _of(READERS[name](path), path).check()
        except InputError:
            raise
        except EOFError as error:
            raise InputError(f"{path} is cut short; copy or export it again.") from error
        except MemoryError as error:
            raise InputError(f"{path} does not fit in memory; close programs or resample it.") from error
        except PermissionError as error:
            raise InputError(f"{path} may not be read; ask its owner for permission.") from error
        except Exception as error:  # whatever a library throws at a broken file
            raise InputError(f"{path} is damaged or no {name} data; copy or export it again.") from error

    @classmethod
    def from_array(cls, array: np.ndarray, affine: np.ndarray) -> Volume:
        """Make a volume of a real array (I, J, K) and a voxel index -> RAS+ mm affine (4, 4).

        bool becomes uint8, float16 float32 and long double float64; other types stay as they are.
        Raises InputError unless the array is 3D and real and the affine finite and invertible.
        """
        name = "the volume"
        stored = np.asarray(array)
        wanted = {"?": "u1", "e": "f4", "g": "f8"}.get(stored.dtype.char, stored.dtype.newbyteorder("="))
        stored = stored.astype(wanted, copy=False)
        check_dtype(stored.dtype, name)
        return cls(stored.reshape(shape3(stored.shape, name)), checked_affine(affine, name))

    def check(self) -> Volume:
        """Return self if it is a plausible head scan (`read` calls this).

        NaN counts as air, with a warning. Raises InputError for an axis under 16 voxels, voxels outside 0.2 to 8
        mm, infinite values, and data that are the same everywhere.
        """
        name = self.source or "the volume"
        if min(self.shape) < MIN_AXIS:
            size = "x".join(map(str, self.shape))
            raise InputError(
                f"{name} has {size} voxels, too few for a head; give a scan with {MIN_AXIS} or more per axis."
            )
        if min(self.spacing) < MIN_VOXEL * 0.999 or max(self.spacing) > MAX_VOXEL * 1.001:
            size = "x".join(f"{mm:.3g}" for mm in self.spacing)
            raise InputError(
                f"{name} has voxels of {size} mm, outside {MIN_VOXEL} to {MAX_VOXEL:g} mm; "
                "mend the voxel size in its header or resample it."
            )
        low, high = self.stored_range
        limit = np.finfo(np.float32).max
        if np.isnan(low):
            raise InputError(f"{name} holds nothing but NaN; give a scan that shows a head.")
        if not all(abs(value * self.slope + self.intercept) < limit for value in (low, high)):
            raise InputError(f"{name} holds infinite values; replace them by numbers first.")
        if low == high:
            raise InputError(f"{name} holds the value {low:g} in every voxel; give a scan that shows a head.")
        if not self.has_nan:
            return self
        note = f"{np.count_nonzero(np.isnan(self.stored))} voxels hold NaN and were taken for air."
        return _with_header(replace(self, warnings=(*self.warnings, note)), self._header)

    @cached_property
    def has_nan(self) -> bool:
        """Whether some voxels hold no number."""
        return self.stored.dtype.kind == "f" and bool(np.isnan(self.stored.min()))

    @cached_property
    def stored_range(self) -> tuple[float, float]:
        """The lowest and the highest stored number; NaN, NaN where there is none."""
        low, high = self.stored.min(), self.stored.max()
        if self.has_nan:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # all NaN
                low, high = np.nanmin(self.stored), np.nanmax(self.stored)
        return float(low), float(high)

    @property
    def array(self) -> np.ndarray:
        """Real values, float32 (I, J, K), a fresh copy at each call; NaN becomes the lowest of them."""
        values = self.stored.astype(np.float32)
        if self.has_nan:
            lowest, highest = self.stored_range
            np.nan_to_num(values, copy=False, nan=lowest if self.slope > 0 else highest)
        if self.slope != 1:
            values *= np.float32(self.slope)
        if self.intercept != 0:
            values += np.float32(self.intercept)
        return values

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along I, J, K."""
        i, j, k = self.stored.shape
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along I, J, K in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def axcodes(self) -> str:
        """Anatomical direction in which I, J, K grow, e.g. "LPS"."""
        import nibabel as nib

        return "".join(nib.aff2axcodes(self.affine))

    def with_stored(self, stored: np.ndarray) -> Volume:
        """The same geometry, scale factors and header around other voxels.

        Raises ValueError unless shape and dtype are those of this volume.
        """
        if stored.shape != self.stored.shape or stored.dtype != self.stored.dtype:
            raise ValueError(
                f"expected {self.stored.dtype} {self.stored.shape}, got {stored.dtype} {stored.shape}"
            )
        volume = Volume(stored, self.affine, self.slope, self.intercept, self.source, self.warnings)
        return _with_header(volume, self._header)

    def to_stored(self, values: np.ndarray) -> np.ndarray:
        """Real values, any shape, in the stored type: scale factors undone, integers rounded and clipped.

        Raises ValueError for NaN or infinite values.
        """
        dtype = self.stored.dtype
        enough = dtype.itemsize <= 2 or dtype == np.float32  # float32 resolves 16 bits
        stored: np.ndarray[Any, Any] = np.array(values, np.float32 if enough else np.float64)
        if stored.size and not (np.isfinite(stored.min()) and np.isfinite(stored.max())):
            raise ValueError("values must be finite")
        if self.intercept != 0:
            stored -= self.intercept
        if self.slope != 1:
            stored /= self.slope
        limits: np.iinfo | np.finfo = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
        if dtype.kind in "iu":
            np.rint(stored, out=stored)
        highest = float(limits.max)
        if highest > limits.max:  # 2**63 - 1 is no float64
            highest = float(np.nextafter(highest, 0))
        return stored.clip(float(limits.min), highest, out=stored).astype(dtype, copy=False)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to .nii, .nii.gz, .nrrd, .mgh or .mgz; the file appears complete or not at all.

        The format it was read from keeps header, type and scale factors. Another format gets geometry, type
        and voxels; where it has no scale factors (NRRD, MGH), scaled data become real values in float32. MGH
        holds uint8, int16, int32 and float32 only: other integers go into the smallest of these that holds
        them all, or else into float32, and float64 goes into float32.

        Raises InputError where the file cannot be written or would replace the one this volume was read from.
        """
        path = check_output(path, [self.source] if self.source else [])
        suffix = suffix_of(path)
        header, stored = self._header, self.stored
        if header is None or header.format != FORMATS[suffix]:
            stored = _convert(self, FORMATS[suffix])
            header = _new_header(FORMATS[suffix], self, stored)
        gzipped = header.gzipped or suffix in GZIPPED
        voxels = np.ascontiguousarray(stored.T, header.dtype).reshape(-1).view(np.uint8)  # I fastest
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            if header.format == "NRRD":
                file.write(header.before)
            # no file name and no time in the gzip header
            with gzip.GzipFile("", "wb", 1, file, mtime=0) if gzipped else nullcontext(file) as stream:
                if header.format != "NRRD":
                    stream.write(header.before)
                for start in range(0, voxels.size, CHUNK):
                    stream.write(voxels[start : start + CHUNK].data)
                stream.write(header.after)


def _with_header(volume: Volume, header: Header | None) -> Volume:
    object.__setattr__(volume, "_header", header)
    return volume


def _of(contents: Contents, path: Path) -> Volume:
    volume = Volume(
        contents.stored, contents.affine, contents.slope, contents.intercept, path, contents.warnings
    )  # fmt: skip
    return _with_header(volume, contents.header)


def _new_header(target: str, volume: Volume, stored: np.ndarray) -> Header:
    if target == "NIfTI":
        return nifti.new_header(stored, volume.affine, volume.slope, volume.intercept)
    return (nrrd if target == "NRRD" else mgh).new_header(stored, volume.affine)


def _convert(volume: Volume, target: str) -> np.ndarray:
    """The voxels in a type that `target` can hold; see `Volume.write`."""
    if target != "NIfTI" and (volume.slope, volume.intercept) != (1, 0):
        return volume.array
    stored = volume.stored
    if target != "MGH" or stored.dtype in (np.uint8, np.int16, np.int32, np.float32):
        return stored
    if stored.dtype.kind in "iu":
        low, high = int(stored.min()), int(stored.max())
        for dtype in (np.uint8, np.int16, np.int32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return stored.astype(dtype)
    return stored.astype(np.float32)
