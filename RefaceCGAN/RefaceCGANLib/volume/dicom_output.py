"""DICOM out: a series in, the same series out, with the voxels of a changed scan.

Every tag is kept but those that must change: UIDs, which are new and consistent over a study; Image Type,
Derivation Description, Recognizable Visual Features, De-identification Method and its code (DICOM PS3.15 annex
E, PS3.16 CID 7050); the transfer syntax where the pixels were compressed. Icons, which show the original a second
time, and signatures that no longer fit are removed. This is no anonymiser: names, dates and private tags are as
they were (`identifying`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import InputError
from ..report import VISUAL_FEATURES
from .volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

REGISTERED = "1.2.840.10008."
"""UIDs that begin so are DICOM's own (SOP classes, transfer syntaxes) and name no object."""
NO_INSTANCE = ("CodingSchemeUID", "ContextUID", "MappingResourceUID", "ContextGroupExtensionCreatorUID")
"""These name no object either."""
SHOWS_ORIGINAL = (
    *("IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence", "DataSetTrailingPadding"),
    *("SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
)
NOT_ANONYMOUS = "This is no DICOM anonymiser: these tags may still say who it is: {tags}; UIDs are new."
IDENTIFYING = (
    *(
        "PatientName",
        "PatientID",
        "OtherPatientIDs",
        "PatientBirthDate",
        "PatientAddress",
        "PatientTelephoneNumbers",
    ),
    *("PatientComments", "AccessionNumber", "StudyID", "StudyDate", "AcquisitionDate", "InstitutionName"),
    *("InstitutionAddress", "StationName", "DeviceSerialNumber", "ReferringPhysicianName", "OperatorsName"),
    *("PerformingPhysicianName", "RequestingPhysician", "ProtocolName", "ImageComments"),
)
"""Keywords that most often say who it is (a choice from DICOM PS3.15, table E.1-1)."""


def read_files(files: Sequence[Path]) -> Volume:
    """The volume of one series whose files lie anywhere, as `Volume.read` reads it from a folder of its own.

    Raises InputError where they make no even stack of slices."""
    where = os.path.commonpath([str(path.parent) for path in files])
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files):
            name = Path(folder) / f"{number:06d}.dcm"
            try:
                os.symlink(path.resolve(), name)
            except OSError:  # Windows allows links to few users
                shutil.copyfile(path, name)
        try:
            volume = Volume.read(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, where)) from error
    return replace(volume, source=None)


def series_files(folder: Path) -> list[Path]:
    """The files of the one series that `Volume.read` takes from a folder, in the order of their names.

    Raises InputError where there is none."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader = sitk.ImageSeriesReader()
        stacks = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    longest = max(stacks, key=len, default=())
    if len(longest) < 2:
        raise InputError(f"{folder} holds no DICOM series of several slices; point at a folder with one.")
    return sorted(Path(name) for name in longest)


def write_folder(
    source: Path, target: Path, original: Volume, changed: Volume, uid_key: bytes, what: str
) -> list[str]:
    """Write the series of one folder again into another, which is made, under the names its files have.

    The other arguments are those of `write_series`. Returns a warning that this is no anonymiser. Raises
    InputError."""
    files = series_files(source)
    try:
        target.mkdir()
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}); choose another folder.") from error
    write_series(files, [target / path.name for path in files], original, changed, uid_key, what)
    tags = identifying(target / files[0].name)
    return [NOT_ANONYMOUS.format(tags=", ".join(tags))] if tags else []


def check_folder(target: Path, source: Path) -> Path:
    """Return `target` if a DICOM folder can be made there; to be called before any work is done.

    Raises InputError unless its parent is a writable folder, it does not exist or is empty, and neither of both
    lies in the other."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is not empty; give a new folder for the DICOM series.")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{target} cannot be made, as its parent is no folder that may be written to.")
    inside, around = target.resolve(), source.resolve()
    if inside == around or around in inside.parents or inside in around.parents:
        raise InputError(f"{target} and the input lie in each other; choose a folder outside the input.")
    return target


def write_series(
    sources: Sequence[Path],
    targets: Sequence[Path],
    original: Volume,
    changed: Volume | None,
    uid_key: bytes,
    what: str = "face replaced by a generated one",
) -> None:
    """Write one series again with other voxels.

    sources: files of the series.  targets: where to, one for each source; their folders exist, and what lies there
    is replaced.  original, changed: the series as `read_files` gives it and with other voxels; voxels that are the
    same in both keep the very bits of their file.  changed=None: no voxel is changed, the UIDs are.
    uid_key: decides the new UIDs (`new_uid`).  what: was done, for Derivation Description.

    Raises InputError where a slice cannot be decoded or is not grey."""
    ranks = _ranks(sources, original)
    for source, target, rank in zip(sources, targets, ranks, strict=True):
        dataset = _read(source)
        if changed is not None:
            _set_pixels(dataset, source, original.stored[:, :, rank].T, changed, rank)
            _mark(dataset, what)
        renumber(dataset, uid_key)
        _write(dataset, target)


def new_uid(uid: str, key: bytes) -> str:
    """The UID in place of another: the same for the same key, and not to be led back without it (HMAC-SHA256;
    a UUID in decimal, DICOM PS3.5 annex B.2)."""
    digest = hmac.new(key, uid.encode("ascii", "replace"), hashlib.sha256).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def renumber(dataset: Dataset, key: bytes) -> None:
    """Give every object that a data set names another UID, in sequences and private tags, too; in place."""

    def visit(_: Dataset, element: Any) -> None:
        if element.VR != "UI" or not element.value or element.keyword in NO_INSTANCE:
            return
        values = [element.value] if isinstance(element.value, str) else list(element.value)
        fresh = [value if str(value).startswith(REGISTERED) else new_uid(str(value), key) for value in values]
        element.value = fresh[0] if len(fresh) == 1 else fresh

    dataset.walk(visit)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def identifying(path: Path) -> list[str]:
    """Keywords of the tags in a DICOM file that may still say who it is, and "private tags" if there are some."""
    import pydicom

    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    found = [name for name in IDENTIFYING if str(dataset.get(name, "") or "").strip()]
    return found + (["private tags"] if any(element.tag.is_private for element in dataset) else [])


def _read(path: Path) -> Dataset:
    import pydicom

    try:
        return pydicom.dcmread(path)
    except Exception as error:  # whatever a damaged header makes of it
        raise InputError(f"{path} is a damaged DICOM file; copy or export the series again.") from error


def _ranks(sources: Sequence[Path], original: Volume) -> list[int]:
    """Which K of the volume each slice is: they are in the order of their positions, also where one is missing."""
    import pydicom

    if len(sources) != original.shape[2]:
        raise InputError(f"The series has {len(sources)} files and {original.shape[2]} slices; export it again.")
    normal = np.linalg.inv(original.affine)[2, :3] * (-1, -1, 1)  # DICOM counts LPS millimetres
    depths = []
    for path in sources:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ImagePositionPatient"])
        depths.append(float(normal @ np.array([float(value) for value in header.ImagePositionPatient])))
    ranks = np.empty(len(depths), int)
    ranks[np.argsort(depths)] = np.arange(len(depths))
    return [int(rank) for rank in ranks]


def _set_pixels(dataset: Dataset, path: Path, before: np.ndarray, changed: Volume, rank: int) -> None:
    """Put a slice (rows, columns) of the changed volume into its data set. before: the slice as it was read."""
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise InputError(f"{path} holds colours; give a series of grey images.")
    try:
        pixels: np.ndarray = dataset.pixel_array
    except Exception as error:  # a plug-in is missing, or the data are damaged
        why = f"The pixels of {path} cannot be decoded; install refacecgan[jpeg] or export it uncompressed."
        raise InputError(why) from error
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
    real = pixels * slope + intercept
    if real.shape != before.shape or not np.allclose(real, before, rtol=1e-4, atol=abs(slope) / 2):
        raise InputError(f"{path} is another slice than the one that was read; export the series again.")
    after = changed.stored[:, :, rank].T
    other = before != after
    values = after[other].astype(np.float64) * changed.slope + changed.intercept
    bits = int(dataset.BitsStored)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if dataset.PixelRepresentation else (0, (1 << bits) - 1)
    fresh = pixels.copy()
    fresh[other] = np.rint((values - intercept) / slope).clip(low, high).astype(pixels.dtype)
    _put_pixels(dataset, fresh)


def _put_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    """Lay the pixels down uncompressed; implicit VR stays implicit."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax != ImplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    element = dataset["PixelData"]
    element.VR = "OW" if int(dataset.BitsAllocated) > 8 or syntax == ImplicitVRLittleEndian else "OB"
    element.is_undefined_length = False
    for name, value in (("SmallestImagePixelValue", pixels.min()), ("LargestImagePixelValue", pixels.max())):
        if name in dataset:
            setattr(dataset, name, int(value))
    for name in SHOWS_ORIGINAL:
        if name in dataset:
            delattr(dataset, name)


def _mark(dataset: Dataset, what: str) -> None:
    """Say in the header what was done."""
    from pydicom import Dataset as Item

    text = f"RefaceCGAN {__version__}: {what}"
    kind = list(dataset.get("ImageType", None) or ["ORIGINAL", "PRIMARY"])
    dataset.ImageType = ["DERIVED", *kind[1:]]
    before = str(dataset.get("DerivationDescription", "") or "")
    dataset.DerivationDescription = f"{before}; {text}" if before else text
    dataset.RecognizableVisualFeatures = "NO"
    methods = dataset.get("DeidentificationMethod", None) or []
    methods = [methods] if isinstance(methods, str) else list(methods)
    dataset.DeidentificationMethod = [*methods, text[:64]]
    codes = list(dataset.get("DeidentificationMethodCodeSequence", None) or [])
    if not any(str(code.get("CodeValue", "")) == VISUAL_FEATURES["CodeValue"] for code in codes):
        code = Item()
        for name, value in VISUAL_FEATURES.items():
            setattr(code, name, value)
        dataset.DeidentificationMethodCodeSequence = [*codes, code]


def _write(dataset: Dataset, target: Path) -> None:
    import pydicom

    from .volume import atomic_path

    with atomic_path(target) as temporary:
        pydicom.dcmwrite(temporary, dataset, enforce_file_format=True)
