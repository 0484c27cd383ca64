"""NIfTI: reading a file, and the header of a new one. nibabel interprets headers, nothing more."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .parsing import (
    Contents,
    Header,
    check_dtype,
    check_end,
    checked_affine,
    open_unzipped,
    shape3,
    take,
    unknown_orientation,
    voxels,
)


def read(path: Path) -> Contents:
    """Read a .nii or .nii.gz file. Raises InputError and EOFError."""
    import nibabel as nib

    with open_unzipped(path) as file:
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
            raise unknown_orientation(path, "ANALYZE format")
        if not (header["sform_code"] > 0 or header["qform_code"] > 0):
            raise unknown_orientation(path, "sform and qform are unset")
        shape = shape3([int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]], path)
        dtype = header.get_data_dtype()
        check_dtype(dtype, path)
        slope, intercept = header.get_slope_inter()  # None, None for the slopes 0 and NaN: not scaled
        affine = np.array(header.get_best_affine())
        affine[:3] *= {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)  # metres, micrometres
        file.seek(0)
        before = take(file, max(int(header["vox_offset"]), size + 4))
        data = take(file, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        notes = check_end(file, path)
    scale = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    kept = Header("NIfTI", dtype, before)
    return Contents(voxels(data, dtype, shape), checked_affine(affine, path), *scale, kept, notes)


def new_header(stored: np.ndarray, affine: np.ndarray, slope: float, intercept: float) -> Header:
    """The header of a new file."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code="scanner")  # also sets pixdim
    if not np.allclose(header.get_qform(), affine, atol=1e-3):
        header["qform_code"] = 0  # a qform holds no shear
    header.set_sform(affine, code="scanner")
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"] = 352
    return Header("NIfTI", stored.dtype, header.binaryblock + bytes(4))
