"""NRRD: reading a file, and the header of a new one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from .itk import from_itk, silent
from .parsing import Contents, Header, shape3, unknown_orientation

SPACES = {
    *("right-anterior-superior", "left-anterior-superior", "left-posterior-superior"),
    *("ras", "las", "lps"),
}
"""The spaces that tell left from right."""
ENCODED = re.compile(rb"(encoding|endian|byte ?skip|line ?skip|data ?file): ", re.IGNORECASE)
"""Lines of a header that say how the voxels are laid down; they are written anew."""


def read(path: Path) -> Contents:
    """Read a .nrrd file of one 3D volume in an anatomical space. Raises InputError."""
    import SimpleITK as sitk

    with open(path, "rb") as file:
        if file.read(4) != b"NRRD":
            raise InputError(f"{path} is not an NRRD file, whatever its name says; export it again.")
        file.seek(0)
        lines = [line.rstrip(b"\r\n") for line in itertools.takewhile(lambda line: line.strip(), file)]
    text = [line.decode("latin-1").lower().partition(": ") for line in lines]
    fields = {name: value.strip() for name, _, value in text}
    if fields.get("space") not in SPACES or "space directions" not in fields:
        raise unknown_orientation(path, "no anatomical space")
    if fields["space directions"].count("(") != 3:
        raise unknown_orientation(path, "space directions are none")
    with silent(sitk):
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        shape3([*reader.GetSize(), reader.GetNumberOfComponents()], path)
        stored, affine = from_itk(reader.Execute(), path)
    # the header as it was, but for how the voxels are laid down
    gzipped = fields.get("encoding") != "raw"
    kept = [line for line in lines if not ENCODED.match(line)]
    laid_down = [b"endian: little", b"encoding: gzip" if gzipped else b"encoding: raw", b"", b""]
    header = Header("NRRD", stored.dtype.newbyteorder("<"), b"\n".join(kept + laid_down), gzipped=gzipped)
    return Contents(stored, affine, header=header)


def new_header(stored: np.ndarray, affine: np.ndarray) -> Header:
    """The header of a new file."""

    def vector(ras: np.ndarray) -> str:
        return "({!r},{!r},{!r})".format(*(ras * (-1, -1, 1) + 0.0).tolist())  # + 0.0: no minus zero

    name = {"float32": "float", "float64": "double"}.get(stored.dtype.name, stored.dtype.name)
    lines = [
        "NRRD0005",
        f"type: {name}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, stored.shape)),
        "space directions: " + " ".join(vector(column) for column in affine[:3, :3].T),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        "space origin: " + vector(affine[:3, 3]),
    ]
    before = ("\n".join(lines) + "\n\n").encode("ascii")
    return Header("NRRD", stored.dtype.newbyteorder("<"), before, gzipped=True)
