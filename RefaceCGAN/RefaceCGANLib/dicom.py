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
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .errors import InputError
from .report import VISUAL_FEATURES
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
            os.symlink(path.resolve(), Path(folder) / f"{number:06d}.dcm")
        try:
            volume = Volume.read(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, where)) from error
    return replace(volume, source=None)


def series_files(folder: Path) -> list[Path]:
    """The files of the one series that `Volume.read` takes from a folder, in the order of their names."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    stacks = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    longest = max(stacks, key=len, default=())
    if len(longest) < 2:
        raise InputError(f"{folder} holds no DICOM series of several slices; point at a folder with one.")
    return sorted(Path(name) for name in longest)


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
    for source, target in zip(sources, targets, strict=True):
        dataset = _read(source)
        if changed is not None:
            _set_pixels(dataset, source, original, changed)
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


def _set_pixels(dataset: Dataset, path: Path, original: Volume, changed: Volume) -> None:
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise InputError(f"{path} holds colours; give a series of grey images.")
    try:
        pixels: np.ndarray = dataset.pixel_array
    except Exception as error:  # a plug-in is missing, or the data are damaged
        raise InputError(f"The pixels of {path} cannot be decoded; convert the series to explicit VR.") from error
    place = [float(value) for value in dataset.ImagePositionPatient]
    index = np.linalg.inv(original.affine) @ np.array([-place[0], -place[1], place[2], 1.0])
    k = round(float(index[2]))
    if not 0 <= k < original.shape[2] or pixels.shape != original.stored.shape[1::-1]:
        raise InputError(f"{path} is no slice of its series; export the series again.")
    other = (original.stored[:, :, k] != changed.stored[:, :, k]).T
    values = changed.stored[:, :, k].T[other].astype(np.float64) * changed.slope + changed.intercept
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
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
