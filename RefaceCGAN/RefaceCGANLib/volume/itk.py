"""Images of SimpleITK as voxels and affine; NRRD and DICOM are read with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .parsing import check_dtype, checked_affine


@contextmanager
def silent(sitk: Any) -> Iterator[None]:
    """Keep ITK from writing warnings to stderr."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def from_itk(image: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and affine; ITK counts LPS millimetres."""
    import SimpleITK as sitk

    stored = sitk.GetArrayFromImage(image).T
    check_dtype(stored.dtype, path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return stored, checked_affine(affine, path)
