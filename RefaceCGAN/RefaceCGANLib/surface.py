"""The skin: a scan becomes a closed surface in RAS+ mm, and the surface a readable picture of the face or a mesh.

Molchanova et al. 2023 drew their faces after winsorising, equalising, smoothing and one threshold per scan chosen
by hand (80 to 120 of 255). Here the threshold comes from the scan itself, see `skin_threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .volume import atomic_path

FINEST_MM = 1.0  # finer voxels are resampled to this: a face needs no more, and time grows with the cube
DENOISE = 1.0, 0.6  # the Gaussian that takes the speckle out of the air: mm, or voxels where that is more
SKIN_FRACTIONS = 0.1, 0.13, 0.16, 0.2, 0.25  # of the way from air to tissue: where the skin may begin
SMOOTHING = 15, 0.05  # windowed sinc filter: iterations, pass band

# Azimuth and elevation of the camera about the head in degrees: (0, 0) looks into the face, a positive azimuth
# shows the patient's left. In "left profile" the nose points to the left of the picture.
VIEWS: dict[str, tuple[float, float]] = {
    "frontal": (0, 0),
    "three-quarter": (35, 0),
    "left three-quarter": (35, 0),
    "right three-quarter": (-35, 0),
    "profile": (90, 0),
    "left profile": (90, 0),
    "right profile": (-90, 0),
    "from above": (0, 35),
    "from below": (0, -35),
}
SKIN, BACKGROUND = (0.93, 0.74, 0.63), (0.16, 0.17, 0.19)
# Position about the camera (right, up, toward it) and strength: key light, fill light, head light.
LIGHTS = ((-0.8, 1.0, 1.0, 0.75), (1.0, 0.2, 0.8, 0.25), (0.0, 0.0, 1.0, 0.25))
VIEW_ANGLE = 14.0  # degrees: a portrait lens, the camera about one metre away
LABEL_PIXELS = 28  # height of the band that carries a label in `compare_image`


@dataclass(frozen=True)
class Surface:
    """A mesh: `points` (N, 3) float32 in RAS+ mm, `triangles` (M, 3) int32 (counter-clockwise from outside) and
    `normals` (N, 3) float32, of unit length, pointing outward."""

    points: np.ndarray
    triangles: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class Frame:
    """What a picture shows: the point in its middle (RAS+ mm) and how many mm its shorter side spans there."""

    centre: tuple[float, float, float]
    extent: float


def skin_threshold(array: np.ndarray, spacing: Sequence[float]) -> float:
    """The intensity at which the skin begins, in the array's units, from the scan alone.

    `array` (I, J, K) real values, `spacing` the voxel size in mm. Otsu's method on the square root of the denoised,
    winsorised values tells air from tissue (the root keeps bright fat and bias fields from pulling the split up).
    Of the levels `SKIN_FRACTIONS` between the median of the air and that of the tissue, the one is taken whose
    outer surface is smallest: a lower one grows noise and ghosts, a higher one tears holes. Padding does not count
    as air. Raises InputError where the array is not 3D or shows nothing.
    """
    return _threshold(*_prepared(array, spacing))


def _prepared(array: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The array, denoised and no finer than `FINEST_MM`, and its voxel size; voxel (0, 0, 0) stays in its place."""
    from scipy.sparse import csr_matrix

    if array.ndim != 3 or min(array.shape) < 2:
        raise InputError(f"A surface needs a 3D scan, and this one has the shape {array.shape}: choose another.")
    size = np.asarray(spacing, dtype=float)
    step = np.maximum(size, FINEST_MM)
    volume = np.asarray(array, dtype=np.float32)
    finite = np.isfinite(volume)
    if not finite.all():
        volume = np.where(finite, volume, volume.min(initial=np.inf, where=finite) if finite.any() else 0)
    for axis in range(3):  # each turn mixes along the first axis and moves it to the end
        count = volume.shape[0]
        at = np.arange(0, count - 0.5, step[axis] / size[axis])
        away = (np.arange(count) - at[:, None]) * size[axis] / max(DENOISE[0], DENOISE[1] * step[axis])
        weight = np.where(np.abs(away) < 3, np.exp(-(away**2) / 2), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        mixed = csr_matrix(weight.astype(np.float32)) @ volume.reshape(count, -1)
        volume = np.moveaxis(mixed.reshape(len(at), *volume.shape[1:]), 0, 2)
    return volume, step


def _threshold(volume: np.ndarray, step: np.ndarray) -> float:
    """`skin_threshold` of a `_prepared` volume, found on every voxel of about 2 mm."""
    from skimage.filters import threshold_otsu

    stride = np.maximum(1, np.round(2 / step).astype(int))
    volume = volume[:: stride[0], :: stride[1], :: stride[2]]
    lowest, highest = np.percentile(volume, (0.5, 99.5))
    if not highest > lowest:
        raise InputError("The scan shows no head: nearly all its voxels have one value; choose another scan.")
    values = np.clip((volume - lowest) / (highest - lowest), 0, 1)
    split = float(threshold_otsu(np.sqrt(values))) ** 2
    tissue, air = np.median(values[values > split]), values[(values <= split) & (values > 1e-3)]
    level = np.median(air) if air.size > 0.01 * values.size else 0.0
    levels = [float(level + fraction * (tissue - level)) for fraction in SKIN_FRACTIONS]
    areas = []
    for candidate in levels:
        head = np.pad(_largest(values >= candidate), 1)
        outside = _outside(head, step * stride).view(np.int8)
        areas.append(sum(np.count_nonzero(np.diff(outside, axis=axis)) for axis in range(3)))
    return float(lowest + levels[int(np.argmin(areas))] * (highest - lowest))


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of the mask; nothing where the mask is empty."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if not count:
        return np.zeros(mask.shape, dtype=bool)
    return labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1


def _outside(head: np.ndarray, step: np.ndarray, reach: int = 1) -> np.ndarray:
    """The air in front of the skin, with a little of the air in its openings; a mask of the head's shape.

    Left out are skull, sinuses and throat, which nobody sees: what a cube of about 12 mm cannot reach from outside
    the head, but for the next 8 mm. Found on blocks of about 4 mm, which is fast.
    """
    from scipy.ndimage import label, maximum_filter

    block = np.maximum(1, np.round(4 / step).astype(int))
    padded = np.pad(head, [(4 * b, 4 * b + -n % b) for n, b in zip(head.shape, block, strict=True)])
    shape = [part for n, b in zip(padded.shape, block, strict=True) for part in (n // b, b)]
    tissue = padded.reshape(shape).any(axis=(1, 3, 5))
    labels, _ = label(~maximum_filter(tissue, 3))
    near = maximum_filter(labels == labels[0, 0, 0], 5 + 2 * reach)
    for axis, b in enumerate(block):
        near = near.repeat(b, axis=axis)
    labels, _ = label(near & ~padded)
    inner = tuple(slice(4 * b, 4 * b + n) for n, b in zip(head.shape, block, strict=True))
    return (labels == labels[0, 0, 0])[inner]


def skin_surface(array: np.ndarray, affine: np.ndarray, threshold: float | None = None) -> Surface:
    """The skin of a head as a closed surface.

    `array` (I, J, K) real values in native order, `affine` (4, 4) voxel to RAS+ mm (axes permuted or oblique as
    they come), `threshold` in the array's units (default: `skin_threshold`; to compare two scans of one head, give
    both the same). What hangs loose is dropped, cavities are filled, and beyond the field of view lies air.
    Raises InputError where the array is not 3D or nothing in it is brighter than the threshold.
    """
    from scipy import ndimage

    affine = np.asarray(affine, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume, step = _prepared(array, spacing)
    level = _threshold(volume, step) if threshold is None else float(threshold)
    head = _largest(volume >= level)
    if not head.any():
        raise InputError(f"The scan shows nothing brighter than the threshold {level:g}; choose a lower one.")
    box = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in ndimage.find_objects(head.view(np.uint8))[0])
    air = min(float(np.percentile(volume[::4, ::4, ::4], 0.5)), level - 1e-6 * max(1.0, abs(level)))
    volume, head = volume[box], head[box]
    # The root makes the step from air to bright fat even, so that the surface between the voxels has no terraces.
    volume = np.sqrt(np.clip((volume - air) / (level - air), 0, 4))
    volume[(volume >= 1) & ~head] = 0
    volume[~(head | _outside(head, step))] = 2
    grid = affine @ np.diag([*(step / spacing), 1])
    grid[:3, 3] += grid[:3, :3] @ [s.start - 1 for s in box]
    return _contour(np.pad(volume, 1), grid)


def _contour(volume: np.ndarray, affine: np.ndarray) -> Surface:
    """The smoothed surface at value 1 of a volume (I, J, K) whose border lies below."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D, vtkWindowedSincPolyDataFilter

    image = vtkImageData()
    image.SetDimensions(volume.shape[::-1])  # VTK's first axis runs fastest, so its axes are (K, J, I)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(volume).reshape(-1)))
    edges = vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, 1)
    edges.ComputeScalarsOff()
    edges.ComputeNormalsOff()
    edges.Update()
    points, triangles = _arrays(edges.GetOutput())
    points = points[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    if np.linalg.det(affine[:3, :3]) > 0:  # (K, J, I) is the mirror image of (I, J, K)
        triangles = triangles[:, ::-1]
    smooth = vtkWindowedSincPolyDataFilter()
    smooth.SetInputData(polydata(Surface(points, triangles, np.empty((0, 3)))))
    smooth.SetNumberOfIterations(SMOOTHING[0])
    smooth.SetPassBand(SMOOTHING[1])
    smooth.NormalizeCoordinatesOn()
    smooth.BoundarySmoothingOff()
    smooth.Update()
    points, triangles = (array.copy() for array in _arrays(smooth.GetOutput()))
    corners = points[triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).repeat(3, axis=0)
    normals = np.stack([np.bincount(triangles.ravel(), axis, len(points)) for axis in faces.T], axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Surface(points, triangles.astype(np.int32), normals.astype(np.float32))


def _arrays(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points and triangles of a vtkPolyData, as views of its memory."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    points, triangles = data.GetPoints().GetData(), data.GetPolys().GetConnectivityArray()
    return vtk_to_numpy(points), vtk_to_numpy(triangles).reshape(-1, 3)


def polydata(surface: Surface) -> Any:
    """The surface as vtkPolyData (RAS+ mm, with point normals), for VTK and Slicer."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    points, cells, data = vtkPoints(), vtkCellArray(), vtkPolyData()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(surface.points, dtype=np.float32), deep=True))
    corners = np.ascontiguousarray(surface.triangles, dtype=np.int64).reshape(-1)
    cells.SetData(3, numpy_to_vtkIdTypeArray(corners, deep=True))
    data.SetPoints(points)
    data.SetPolys(cells)
    if len(surface.normals):
        data.GetPointData().SetNormals(numpy_to_vtk(surface.normals, deep=True))
    return data


def frame_of(surface: Surface) -> Frame:
    """The frame that a head's face fills, from the head's own extent: neck and shoulders stay outside."""
    points = surface.points
    top = float(points[:, 2].max())
    skull = points[points[:, 2] > top - 110]
    (left, back), (right, front) = np.percentile(skull[:, :2], (0.5, 99.5), axis=0)
    bottom = max(top - 1.2 * float(front - back), float(points[:, 2].min()))
    back, front = np.percentile(points[points[:, 2] > bottom + 20, 1], (0.1, 99.9))
    centre = (float(left + right) / 2, float(front + back) / 2, (top + bottom) / 2)
    return Frame(centre, max(1.12 * (top - bottom), 1.1 * float(front - back)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without VTK's own lines on stderr (that there is no X server is no news), then as it was."""
    from vtkmodules.vtkCommonCore import vtkLogger, vtkObject

    shown, verbosity = vtkObject.GetGlobalWarningDisplay(), vtkLogger.GetCurrentVerbosityCutoff()
    vtkObject.GlobalWarningDisplayOff()
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)
    try:
        yield
    finally:
        vtkObject.SetGlobalWarningDisplay(shown)
        vtkLogger.SetStderrVerbosity(verbosity)


def _angles(view: str) -> tuple[float, float]:
    def plain(name: str) -> str:
        return " ".join(name.lower().replace("-", " ").replace("_", " ").split())

    for name, angles in VIEWS.items():
        if plain(name) == plain(view):
            return angles
    raise InputError(f"There is no view {view!r}; choose from {', '.join(VIEWS)}.")


def render(
    surface: Surface,
    views: Sequence[str] = ("frontal",),
    size: tuple[int, int] = (512, 512),
    frame: Frame | None = None,
) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of the head, one per view; `size` is (W, H) in pixels.

    The names of the views are those of `VIEWS`, with blanks, hyphens or underscores. `frame` (default:
    `frame_of(surface)`) fixes what is shown, so that two scans of one head come out pixel aligned. Draws into
    memory: no display, no graphics card. Raises InputError for an unknown view, and where OpenGL is missing.
    """
    import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  (registers the renderer)
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkRenderingCore import (
        vtkActor,
        vtkLight,
        vtkPolyDataMapper,
        vtkRenderer,
        vtkRenderWindow,
        vtkWindowToImageFilter,
    )

    angles = [_angles(view) for view in views]
    frame = frame or frame_of(surface)
    mapper, actor, renderer = vtkPolyDataMapper(), vtkActor(), vtkRenderer()
    mapper.SetInputData(polydata(surface))
    actor.SetMapper(mapper)
    skin = actor.GetProperty()
    skin.SetInterpolationToPhong()
    skin.SetColor(*SKIN)
    skin.SetAmbient(0.08)
    skin.SetDiffuse(0.9)
    skin.SetSpecular(0.12)
    skin.SetSpecularPower(20)
    renderer.AddActor(actor)
    renderer.SetBackground(*BACKGROUND)
    renderer.AutomaticLightCreationOff()
    for *position, strength in LIGHTS:
        light = vtkLight()
        light.SetLightTypeToCameraLight()
        light.SetPosition(*position)
        light.SetFocalPoint(0, 0, 0)
        light.SetIntensity(strength)
        renderer.AddLight(light)
    camera = renderer.GetActiveCamera()
    camera.SetViewAngle(VIEW_ANGLE)
    camera.SetUseHorizontalViewAngle(size[0] < size[1])
    camera.SetFocalPoint(*frame.centre)
    distance = frame.extent / 2 / math.tan(math.radians(VIEW_ANGLE / 2))
    pictures = []
    with _quiet():
        window = vtkRenderWindow()
        window.SetOffScreenRendering(1)
        window.SetMultiSamples(4)
        window.SetSize(*size)
        window.AddRenderer(renderer)
        for azimuth, elevation in np.radians(angles):
            x, y = -math.sin(azimuth) * math.cos(elevation), math.cos(azimuth) * math.cos(elevation)
            toward = np.array([x, y, math.sin(elevation)])
            camera.SetPosition(*(np.array(frame.centre) + distance * toward))
            camera.SetViewUp(0, 0, 1)
            renderer.ResetCameraClippingRange()
            window.Render()
            grab = vtkWindowToImageFilter()
            grab.SetInput(window)
            grab.ReadFrontBufferOff()
            grab.ShouldRerenderOff()
            grab.Update()
            pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
            pictures.append(pixels.reshape(size[1], size[0], 3)[::-1].copy())
        window.Finalize()
    return pictures
