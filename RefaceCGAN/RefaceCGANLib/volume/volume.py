"""Volume: one head scan as its file holds it, read from and written to NIfTI, NRRD, MGH and DICOM.

Arrays are in native order (I, J, K), exactly as stored; affines lead from voxel indices to RAS+ millimetres.
What is read and written back in the same format keeps every header byte and every voxel: the header travels
along unparsed and only the voxels are written anew. nibabel and SimpleITK interpret headers, nothing more.
"""

from __future__ import annotations

import errno
import gzip
import itertools
import logging
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError

log = logging.getLogger(__name__)

FORMATS = {".nii.gz": "NIfTI", ".nii": "NIfTI", ".nrrd": "NRRD", ".mgh": "MGH", ".mgz": "MGH"}
SUFFIXES = tuple(FORMATS)
GZIPPED = (".nii.gz", ".mgz")  # the whole file is gzipped; an NRRD says so in its header

MIN_AXIS = 16  # voxels; less is no head
MIN_VOXEL, MAX_VOXEL = 0.2, 8.0  # mm
UNEVEN = 0.05  # a gap between DICOM slices may differ from the usual one by this fraction of it
MAX_STRETCH = 0.01  # a missing DICOM slice is tolerated if closing the gap stretches the head no more

_CHUNK = 1 << 24  # bytes handed to the compressor at once
_MGH_FIELDS, _MGH_HEADER = 90, 284  # bytes in use and bytes before the voxels
_SPACES = {  # the NRRD spaces that say left from right
    *("right-anterior-superior", "left-anterior-superior", "left-posterior-superior"),
    *("ras", "las", "lps"),
}
_ENCODED = re.compile(rb"(encoding|endian|byte ?skip|line ?skip|data ?file): ", re.IGNORECASE)


@dataclass(frozen=True)
class _Header:
    """What a file of one format holds besides its voxels, byte for byte."""

    format: str
    dtype: np.dtype  # of the voxels, with the byte order of the file
    before: bytes  # header and extensions; trailing axes of length one are in here
    after: bytes = b""  # MGH: scan parameters and tags
    gzipped: bool = False  # NRRD: the voxels are compressed


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
    _header: _Header | None = field(default=None, init=False, repr=False)

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
        name = "DICOM" if path.is_dir() else FORMATS.get(_suffix(path), "")
        if not name and _is_dicom(path):
            name = "multi-frame DICOM"
        if not name:
            known = ", ".join(SUFFIXES)
            raise InputError(f"{path} has no known suffix; give {known} or a folder with a DICOM series.")
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return _READERS[name](path).check()
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
        _check_dtype(stored.dtype, name)
        return cls(stored.reshape(_shape3(stored.shape, name)), _checked_affine(affine, name))

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
        suffix = _suffix(path)
        header, stored = self._header, self.stored
        if header is None or header.format != FORMATS[suffix]:
            stored = _convert(self, FORMATS[suffix])
            header = _NEW_HEADERS[FORMATS[suffix]](self, stored)
        gzipped = header.gzipped or suffix in GZIPPED
        voxels = np.ascontiguousarray(stored.T, header.dtype).reshape(-1).view(np.uint8)  # I fastest
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            if header.format == "NRRD":
                file.write(header.before)
            # no file name and no time in the gzip header
            with gzip.GzipFile("", "wb", 1, file, mtime=0) if gzipped else nullcontext(file) as stream:
                if header.format != "NRRD":
                    stream.write(header.before)
                for start in range(0, voxels.size, _CHUNK):
                    stream.write(voxels[start : start + _CHUNK].data)
                stream.write(header.after)


def check_output(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]] = (),
    suffixes: Sequence[str] = SUFFIXES,
) -> Path:
    """Return `path` if a file can be put there; to be called before any work is done.

    Raises InputError unless its folder exists and is writable, its name ends in one of `suffixes`, and it is
    none of `inputs`, neither by another name nor through a link.
    """
    path = Path(path)
    exists = os.path.exists(path)  # unlike Path.exists(), never raises
    if exists and not path.is_file():
        raise InputError(f"{path} is not a file; add a file name such as refaced{suffixes[0]}.")
    if not path.name.lower().endswith(tuple(suffixes)):
        raise InputError(f"{path} has no known suffix; end its name in {' or '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written as its folder does not exist; make the folder first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written as its folder is read-only; choose another folder.")
    for item in map(Path, inputs):
        if item.resolve() == path.resolve() or (exists and item.exists() and path.samefile(item)):
            raise InputError(f"{path} is the input itself, which is never overwritten; choose another name.")
    return path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, with its suffix; on success it becomes `path`.

    On any failure, KeyboardInterrupt included, the temporary is removed and what was at `path` stays.
    The permissions are those of any new file. Raises InputError for an OSError (disk full, ...).
    """
    path = Path(path)
    suffix = _suffix(path) or path.suffix
    temporary = path.with_name(f".refacecgan-{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{path} cannot be written as no space is left; free some first.") from error
        why = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be written ({why}); choose another place.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _with_header(volume: Volume, header: _Header | None) -> Volume:
    object.__setattr__(volume, "_header", header)
    return volume


def _shape3(shape: Sequence[int], name: object) -> tuple[int, int, int]:
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


def _check_dtype(dtype: np.dtype, name: object) -> None:
    if dtype.kind == "c":
        raise InputError(f"{name} holds complex numbers; give the magnitude image.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{name} holds colours or numbers of an odd type; convert it to grey values.")


def _checked_affine(affine: np.ndarray, name: object) -> np.ndarray:
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


def _unknown_orientation(path: Path, what: str) -> InputError:
    return InputError(f"{path} has no known orientation ({what}); convert it again or set its orientation.")


def _take(file: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes; raises EOFError where the file ends before."""
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _open(path: Path) -> IO[bytes]:
    """The file's content, unzipped where it begins like a gzip stream, whatever the file's name says."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")  # type: ignore[return-value]


def _check_end(file: IO[bytes], path: Path) -> tuple[str, ...]:
    """Read to the end, where gzip keeps its checksum; a warning where something else follows the gzip stream."""
    try:
        while file.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if "CRC" in str(error) or "length" in str(error):
            raise
        return (f"{path.name} has bytes after its end, which were passed over.",)
    return ()


def _voxels(data: bytes, dtype: np.dtype, shape: tuple[int, int, int]) -> np.ndarray:
    """A read-only view (I fastest), or a copy where the byte order is not the machine's."""
    return np.frombuffer(data, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)


def _read_nifti(path: Path) -> Volume:
    import nibabel as nib

    with _open(path) as file:
        start = file.read(540)
        sizes = [int.from_bytes(start[:4], order) for order in ("little", "big")]  # type: ignore[arg-type]
        size = 348 if 348 in sizes else 540
        if size not in sizes:
            raise InputError(f"{path} is not a NIfTI file, whatever its name says; export it again.")
        if len(start) < size:
            raise EOFError
        header = (nib.Nifti1Header if size == 348 else nib.Nifti2Header)(start[:size], check=False)
        magic = bytes(header["magic"].item())[:3]
        if magic in (b"ni1", b"ni2"):
            raise InputError(f"{path} is one of a .hdr/.img pair; convert the pair to one .nii.gz file.")
        if magic not in (b"n+1", b"n+2"):
            raise _unknown_orientation(path, "ANALYZE format")
        if not (header["sform_code"] > 0 or header["qform_code"] > 0):
            raise _unknown_orientation(path, "sform and qform are unset")
        shape = _shape3([int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]], path)
        dtype = header.get_data_dtype()
        _check_dtype(dtype, path)
        slope, intercept = header.get_slope_inter()  # None, None for the slopes 0 and NaN: not scaled
        affine = np.array(header.get_best_affine())
        affine[:3] *= {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)  # metres, micrometres
        file.seek(0)
        before = _take(file, max(int(header["vox_offset"]), size + 4))
        data = _take(file, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        notes = _check_end(file, path)
    scale = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    volume = Volume(_voxels(data, dtype, shape), _checked_affine(affine, path), *scale, path, notes)
    return _with_header(volume, _Header("NIfTI", dtype, before))


def _new_nifti(volume: Volume, stored: np.ndarray) -> _Header:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_xyzt_units("mm")
    header.set_qform(volume.affine, code="scanner")  # also sets pixdim
    if not np.allclose(header.get_qform(), volume.affine, atol=1e-3):
        header["qform_code"] = 0  # a qform holds no shear
    header.set_sform(volume.affine, code="scanner")
    header["scl_slope"], header["scl_inter"] = volume.slope, volume.intercept
    header["vox_offset"] = 352
    return _Header("NIfTI", stored.dtype, header.binaryblock + bytes(4))


def _read_mgh(path: Path) -> Volume:
    import nibabel as nib

    with _open(path) as file:
        before = _take(file, _MGH_HEADER)
        if int.from_bytes(before[:4], "big") != 1:
            raise InputError(f"{path} is not an MGH file, whatever its name says; export it again.")
        if int.from_bytes(before[28:30], "big") != 1:  # goodRASFlag
            raise _unknown_orientation(path, "goodRASFlag is unset")
        header = nib.freesurfer.mghformat.MGHHeader(before, check=False)
        shape = _shape3([int(n) for n in header["dims"]], path)
        dtype = header.get_data_dtype().newbyteorder(">")
        data = _take(file, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        after = file.read()
    volume = Volume(_voxels(data, dtype, shape), _checked_affine(header.get_affine(), path), source=path)
    return _with_header(volume, _Header("MGH", dtype, before, after))


def _new_mgh(volume: Volume, stored: np.ndarray) -> _Header:
    import nibabel as nib

    empty = np.broadcast_to(np.zeros((), stored.dtype), stored.shape)  # nibabel wants a shape, not the voxels
    block = nib.MGHImage(empty, volume.affine).header.binaryblock
    before = block[:_MGH_FIELDS].ljust(_MGH_HEADER, b"\0")
    return _Header("MGH", stored.dtype.newbyteorder(">"), before, block[_MGH_FIELDS:])


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


@contextmanager
def _silent(sitk: Any) -> Iterator[None]:
    """Keep ITK from writing warnings to stderr."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _from_itk(image: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and affine; ITK counts LPS millimetres."""
    import SimpleITK as sitk

    stored = sitk.GetArrayFromImage(image).T
    _check_dtype(stored.dtype, path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return stored, _checked_affine(affine, path)


def _read_nrrd(path: Path) -> Volume:
    import SimpleITK as sitk

    with open(path, "rb") as file:
        if file.read(4) != b"NRRD":
            raise InputError(f"{path} is not an NRRD file, whatever its name says; export it again.")
        file.seek(0)
        lines = [line.rstrip(b"\r\n") for line in itertools.takewhile(lambda line: line.strip(), file)]
    text = [line.decode("latin-1").lower().partition(": ") for line in lines]
    fields = {name: value.strip() for name, _, value in text}
    if fields.get("space") not in _SPACES or "space directions" not in fields:
        raise _unknown_orientation(path, "no anatomical space")
    if fields["space directions"].count("(") != 3:
        raise _unknown_orientation(path, "space directions are none")
    with _silent(sitk):
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        _shape3([*reader.GetSize(), reader.GetNumberOfComponents()], path)
        stored, affine = _from_itk(reader.Execute(), path)
    # the header as it was, but for how the voxels are laid down
    gzipped = fields.get("encoding") != "raw"
    kept = [line for line in lines if not _ENCODED.match(line)]
    laid_down = [b"endian: little", b"encoding: gzip" if gzipped else b"encoding: raw", b"", b""]
    header = _Header("NRRD", stored.dtype.newbyteorder("<"), b"\n".join(kept + laid_down), gzipped=gzipped)
    return _with_header(Volume(stored, affine, source=path), header)


def _new_nrrd(volume: Volume, stored: np.ndarray) -> _Header:
    def vector(ras: np.ndarray) -> str:
        return "({!r},{!r},{!r})".format(*(ras * (-1, -1, 1) + 0.0).tolist())  # + 0.0: no minus zero

    name = {"float32": "float", "float64": "double"}.get(stored.dtype.name, stored.dtype.name)
    lines = [
        "NRRD0005",
        f"type: {name}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, stored.shape)),
        "space directions: " + " ".join(vector(column) for column in volume.affine[:3, :3].T),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        "space origin: " + vector(volume.affine[:3, 3]),
    ]
    before = ("\n".join(lines) + "\n\n").encode("ascii")
    return _Header("NRRD", stored.dtype.newbyteorder("<"), before, gzipped=True)


def _read_dicom(folder: Path) -> Volume:
    import SimpleITK as sitk

    with _silent(sitk):
        reader = sitk.ImageSeriesReader()
        uids = reader.GetGDCMSeriesIDs(str(folder))
        series = {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in uids}
        _refuse_broken_files(folder, {Path(name).name for names in series.values() for name in names})
        stacks = {uid: names for uid, names in series.items() if len(names) > 1}
        if not stacks:
            frames = [name for names in series.values() for name in names if _frames(name) > 1]
            if len(frames) == 1:
                return _read_multi_frame(Path(frames[0]))
            raise InputError(f"{folder} holds no DICOM series of several slices; point at a folder with one.")
        if len(stacks) > 1:
            found = ", ".join(f"{uid} ({len(n)} slices, {_description(n[0])})" for uid, n in stacks.items())
            raise InputError(f"{folder} holds more than one DICOM series, {found}; give each its own folder.")
        reader.SetFileNames(next(iter(stacks.values())))
        reader.MetaDataDictionaryArrayUpdateOn()
        image = reader.Execute()
        _shape3([*image.GetSize(), image.GetNumberOfComponentsPerPixel()], folder)
        notes = _check_slices(reader, image.GetSize()[2], folder)
        stored, affine = _from_itk(image, folder)
    return Volume(_narrow(stored), affine, source=folder, warnings=notes)


def _narrow(stored: np.ndarray) -> np.ndarray:
    """Voxels of a DICOM series in a type that holds them: a fractional rescale slope makes float64 of them."""
    return stored.astype(np.float32) if stored.dtype == np.float64 else stored


def _read_multi_frame(path: Path) -> Volume:
    """An enhanced DICOM file, which holds all slices of one volume as frames.

    Raises InputError where the frames are no even stack: several volumes, echoes or orientations."""
    import pydicom
    import SimpleITK as sitk

    header = pydicom.dcmread(path, stop_before_pixels=True)
    frames = header.get("PerFrameFunctionalGroupsSequence", [])
    shared = header.get("SharedFunctionalGroupsSequence", [None])[0]
    try:
        places = np.array([f.PlanePositionSequence[0].ImagePositionPatient for f in frames], dtype=float)
        turns = np.array(
            [
                (f if "PlaneOrientationSequence" in f else shared)
                .PlaneOrientationSequence[0]
                .ImageOrientationPatient
                for f in frames
            ],
            dtype=float,
        )
    except (AttributeError, IndexError, TypeError) as error:
        raise _unknown_orientation(path, "a frame has no position or orientation") from error
    if len(places) < 2:
        raise InputError(f"{path} holds one slice; give a 3D scan of the head.")
    steps = np.diff(places, axis=0)
    if np.ptp(turns, axis=0).max() > 1e-3 or np.abs(steps - np.median(steps, axis=0)).max() > 0.05:
        raise InputError(
            f"{path} is a multi-frame DICOM file whose frames are not one even stack of slices; "
            "convert one volume of it to NIfTI first."
        )
    with _silent(sitk):
        image = sitk.ReadImage(str(path))
        _shape3([*image.GetSize(), image.GetNumberOfComponentsPerPixel()], path)
        stored, affine = _from_itk(image, path)
    step, reached = np.median(steps, axis=0) * (-1, -1, 1), affine[:3, 2]
    if not np.allclose(step, reached, atol=0.05):
        raise InputError(f"{path} is a multi-frame DICOM file of an odd geometry; convert it to NIfTI first.")
    return Volume(_narrow(stored), affine, source=path)


def _frames(path: str | Path) -> int:
    """How many frames a DICOM file holds; 0 where it holds no image."""
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "NumberOfFrames"])
    return int(header.get("NumberOfFrames") or 1) if "Rows" in header else 0


def _refuse_broken_files(folder: Path, listed: set[str]) -> None:
    """The reader skips files it cannot parse, so a broken slice would be missed without a word. Index files, which
    hold no image (DICOMDIR and its like), are passed over."""
    for path in sorted(folder.iterdir()):
        if path.name in listed or not path.is_file():
            continue
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        try:
            is_image = _frames(path) > 0
        except Exception:  # whatever pydicom throws at a broken file
            is_image = True
        if is_image:
            raise InputError(f"{path} is a damaged DICOM file; copy or export the series again.")


def _description(name: str) -> str:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    return reader.GetMetaData("0008|103e").strip() if reader.HasMetaDataKey("0008|103e") else "no description"


def _check_slices(reader: Any, count: int, folder: Path) -> tuple[str, ...]:
    """Raise InputError unless the slices make one even stack; return warnings.

    One missing slice is tolerated, with a warning, if closing the gap stretches the head by 1 % at most.
    """

    def numbers(tag: str) -> np.ndarray:
        if not all(reader.HasMetaDataKey(i, tag) for i in range(count)):
            raise _unknown_orientation(folder, "a slice has no position or orientation")
        return np.array([[float(v) for v in reader.GetMetaData(i, tag).split("\\")] for i in range(count)])

    places, turns, sizes = numbers("0020|0032"), numbers("0020|0037"), numbers("0028|0030")
    if np.ptp(turns, axis=0).max() > 1e-3 or np.ptp(sizes, axis=0).max() > 1e-3:
        raise InputError(f"{folder} mixes slices of different orientations; give each stack its own folder.")
    normal = np.cross(turns[0, :3], turns[0, 3:])
    depths = (places - places[0]) @ normal
    gaps = np.diff(depths) * np.sign(depths[-1])
    step = float(np.median(gaps))
    if gaps.min() <= UNEVEN * max(step, 0.0):
        raise InputError(f"{folder} holds several slices at one position; give each volume its own folder.")
    sideways = places - places[0] - np.outer(depths, normal)
    odd = np.flatnonzero(np.abs(gaps - step) > UNEVEN * step)
    if len(odd) > 1 or gaps.mean() > step * (1 + MAX_STRETCH) or np.abs(sideways).max() > UNEVEN * step:
        raise InputError(f"{folder} has missing or unevenly spaced slices; export the complete series again.")
    if len(odd) == 0:
        return ()
    note = (
        f"After slice {odd[0] + 1} of {count} the DICOM series has a gap of {gaps[odd[0]]:.3g} mm instead of "
        f"{step:.3g} mm; the slices were spaced evenly at {gaps.mean():.4g} mm."
    )
    log.warning("%s: %s", folder, note)
    return (note,)


def _read_dicom_file(path: Path) -> Volume:
    if _frames(path) < 2:
        raise InputError(f"{path} is one slice of a DICOM series; give the folder that holds the whole series.")
    return _read_multi_frame(path)


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


_READERS = {
    "NIfTI": _read_nifti,
    "NRRD": _read_nrrd,
    "MGH": _read_mgh,
    "DICOM": _read_dicom,
    "multi-frame DICOM": _read_dicom_file,
}
_NEW_HEADERS = {"NIfTI": _new_nifti, "NRRD": _new_nrrd, "MGH": _new_mgh}
