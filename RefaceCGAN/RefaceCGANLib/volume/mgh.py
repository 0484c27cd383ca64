"""MGH and MGZ, FreeSurfer's format: reading a file, and the header of a new one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .parsing import Contents, Header, checked_affine, open_unzipped, shape3, take, unknown_orientation, voxels

FIELDS, HEADER = 90, 284
"""Bytes of the header that are in use, and bytes before the voxels."""


def read(path: Path) -> Contents:
    """Read a .mgh or .mgz file. Raises InputError and EOFError."""
    import nibabel as nib

    with open_unzipped(path) as file:
        before = take(file, HEADER)
        if int.from_bytes(before[:4], "big") != 1:
            raise InputError(f"{path} is not an MGH file, whatever its name says; export it again.")
        if int.from_bytes(before[28:30], "big") != 1:  # goodRASFlag
            raise unknown_orientation(path, "goodRASFlag is unset")
        header = nib.freesurfer.mghformat.MGHHeader(before, check=False)
        shape = shape3([int(n) for n in header["dims"]], path)
        dtype = header.get_data_dtype().newbyteorder(">")
        data = take(file, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        after = file.read()
    affine = checked_affine(header.get_affine(), path)
    return Contents(voxels(data, dtype, shape), affine, header=Header("MGH", dtype, before, after))


def new_header(stored: np.ndarray, affine: np.ndarray) -> Header:
    """The header of a new file."""
    import nibabel as nib

    empty = np.broadcast_to(np.zeros((), stored.dtype), stored.shape)  # nibabel wants a shape, not the voxels
    block = nib.MGHImage(empty, affine).header.binaryblock
    before = block[:FIELDS].ljust(HEADER, b"\0")
    return Header("MGH", stored.dtype.newbyteorder(">"), before, block[FIELDS:])
