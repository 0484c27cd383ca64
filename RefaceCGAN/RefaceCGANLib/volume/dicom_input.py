"""DICOM: reading a series of slices, or one enhanced file. `dicom_output` writes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .itk import from_itk, silent
from .parsing import Contents, shape3, unknown_orientation

log = logging.getLogger(__name__)

UNEVEN = 0.05
"""A gap between slices may differ from the usual one by this fraction of it."""
MAX_STRETCH = 0.01
"""One missing slice is accepted if closing the gap stretches the head by at most this fraction."""


def read(folder: Path) -> Contents:
    """Read a folder with one series. Raises InputError."""
    import SimpleITK as sitk

    with silent(sitk):
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
        shape3([*image.GetSize(), image.GetNumberOfComponentsPerPixel()], folder)
        notes = _check_slices(reader, image.GetSize()[2], folder)
        stored, affine = from_itk(image, folder)
    return Contents(_narrow(stored), affine, warnings=notes)


def _narrow(stored: np.ndarray) -> np.ndarray:
    """Voxels of a DICOM series in a type that holds them: a fractional rescale slope makes float64 of them."""
    return stored.astype(np.float32) if stored.dtype == np.float64 else stored


def _read_multi_frame(path: Path) -> Contents:
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
        raise unknown_orientation(path, "a frame has no position or orientation") from error
    if len(places) < 2:
        raise InputError(f"{path} holds one slice; give a 3D scan of the head.")
    steps = np.diff(places, axis=0)
    if np.ptp(turns, axis=0).max() > 1e-3 or np.abs(steps - np.median(steps, axis=0)).max() > 0.05:
        raise InputError(
            f"{path} is a multi-frame DICOM file whose frames are not one even stack of slices; "
            "convert one volume of it to NIfTI first."
        )
    with silent(sitk):
        image = sitk.ReadImage(str(path))
        shape3([*image.GetSize(), image.GetNumberOfComponentsPerPixel()], path)
        stored, affine = from_itk(image, path)
    step, reached = np.median(steps, axis=0) * (-1, -1, 1), affine[:3, 2]
    if not np.allclose(step, reached, atol=0.05):
        raise InputError(f"{path} is a multi-frame DICOM file of an odd geometry; convert it to NIfTI first.")
    return Contents(_narrow(stored), affine)


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
            raise unknown_orientation(folder, "a slice has no position or orientation")
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


def read_file(path: Path) -> Contents:
    """Read one enhanced (multi-frame) file. Raises InputError."""
    if _frames(path) < 2:
        raise InputError(f"{path} is one slice of a DICOM series; give the folder that holds the whole series.")
    return _read_multi_frame(path)


def is_dicom(path: Path) -> bool:
    """Does a file begin as DICOM files do?"""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"
