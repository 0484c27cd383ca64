"""Pictures for the page: the head from three sides, and two slices with the outline of the face region."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np

from ..anatomy.location import Anatomy
from ..spatial.grid import bounding_box
from ..volume.volume import Volume

SIZE = 160
"""Pixels of each of the five pictures, each way."""
VIEWS = ("frontal", "left three-quarter", "left profile")
QUALITY = 80
OUTLINE = np.array([255, 170, 40], np.uint8)


def thumbnail(volume: Volume, anatomy: Anatomy) -> str:
    """The picture of a scan for a page that needs no other file: a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail_bytes(volume, anatomy)).decode("ascii")


def thumbnail_bytes(volume: Volume, anatomy: Anatomy) -> bytes:
    """A JPEG of five pictures side by side: three renders, a sagittal and an axial slice. Where the head cannot be
    rendered, as without OpenGL, the slices alone."""
    slices = _slices(volume, anatomy)
    return _jpeg(np.concatenate([*_renders(volume, anatomy), *slices], axis=1))


def picture_name(path: str) -> str:
    """Name of the picture of an original: not its path, which may hold what no file name may."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16] + ".jpg"


def _renders(volume: Volume, anatomy: Anatomy) -> list[np.ndarray]:
    from ..errors import RefaceError
    from ..rendering.skin_surface import render, skin_surface

    try:
        return render(skin_surface(volume.array, volume.affine, anatomy.skin), VIEWS, (SIZE, SIZE))
    except RefaceError:
        return []


def _slices(volume: Volume, anatomy: Anatomy) -> list[np.ndarray]:
    """A sagittal slice through the middle of the face region and an axial one, anterior to the left and up."""
    values = anatomy.view.to_asl(volume.array)
    region = anatomy.face_region
    box = bounding_box(region) if region.any() else tuple(slice(0, n) for n in region.shape)
    middle = [(span.start + span.stop) // 2 for span in box]
    spacing = anatomy.view.spacing
    low, high = np.percentile(values[::2, ::2, ::2], (1, 99.5))

    def picture(plane: np.ndarray, mask: np.ndarray, step: tuple[float, float]) -> np.ndarray:
        grey = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1) ** 0.7 * 255
        extent = max(n * mm for n, mm in zip(plane.shape, step, strict=True))
        at = []
        for n, mm in zip(plane.shape, step, strict=True):
            centre = (np.arange(SIZE) + 0.5) / SIZE * extent + (n * mm - extent) / 2
            at.append(np.floor(centre / mm).astype(int))
        inside = ((at[0] >= 0) & (at[0] < plane.shape[0]))[:, None] & ((at[1] >= 0) & (at[1] < plane.shape[1]))
        rows, columns = (np.clip(a, 0, n - 1) for a, n in zip(at, plane.shape, strict=True))
        image = np.where(inside, grey[np.ix_(rows, columns)], 0).astype(np.uint8)
        covered = mask[np.ix_(rows, columns)] & inside
        border = covered & ~(
            np.roll(covered, 1, 0) & np.roll(covered, -1, 0) & np.roll(covered, 1, 1) & np.roll(covered, -1, 1)
        )
        colours: np.ndarray = np.repeat(image[:, :, None], 3, axis=2)
        colours[border] = OUTLINE
        return colours

    a, s, left = spacing
    # ASL grows to the front, up and to the left: pictures have rows from the top and columns from the left
    sagittal = (values[::-1, ::-1, middle[2]].T, region[::-1, ::-1, middle[2]].T, (s, a))
    axial = (values[::-1, middle[1]], region[::-1, middle[1]], (a, left))
    return [picture(*sagittal), picture(*axial)]


def _jpeg(image: np.ndarray) -> bytes:
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOImage import vtkJPEGWriter

    data: Any = vtkImageData()
    writer: Any = vtkJPEGWriter()
    data.SetDimensions(image.shape[1], image.shape[0], 1)
    data.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(image[::-1]).reshape(-1, 3), deep=True))
    writer.SetInputData(data)
    writer.SetQuality(QUALITY)
    writer.WriteToMemoryOn()
    writer.Write()
    return bytes(memoryview(writer.GetResult()))
