"""The skin: a scan becomes a closed surface in RAS+ mm, and the surface a picture of the face or a mesh file.

Molchanova et al. 2023 drew their faces after winsorising, equalising, smoothing and one threshold per scan
chosen by hand (80 to 120 of 255). Here the threshold comes from the scan itself: see `skin_threshold`.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.grid import largest_part
from ..volume.files import atomic_path

FINEST_MM = 1.0  # finer voxels are resampled to this: a face needs no more, and time grows with the cube
DENOISE = 0.85, 0.6  # the Gaussian that takes the speckle out of the air: mm, or voxels where that is more
SKIN_FRACTIONS = 0.08, 0.1, 0.13, 0.16, 0.2, 0.25  # of the way from air to tissue: where the skin may begin
SMOOTHING = 15, 0.05  # windowed sinc filter: iterations, pass band

# Azimuth and elevation of the camera about the head in degrees: (0, 0) looks into the face, a positive
# azimuth shows the patient's left. In "left profile" the nose points to the left of the picture.
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
NO_OPENGL = (
    "Nothing can be drawn here as OpenGL is missing; on Debian or Ubuntu install "
    "libegl1, libgl1, libegl-mesa0 and libgl1-mesa-dri, or libosmesa6."
)
MESHES = ".gii", ".stl", ".ply"
LABEL_PIXELS = 28  # height of the band that carries a label in `compare_image`
COARSE_MM = 2.4  # voxels of a quick surface: a fifth of the time, and still the same face


@dataclass(frozen=True)
class Surface:
    """A mesh: `points` (N, 3) float32 in RAS+ mm, `triangles` (M, 3) int32, counter-clockwise from outside,
    and `normals` (N, 3) float32, of unit length, pointing outward."""

    points: np.ndarray
    triangles: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class Frame:
    """What a picture shows: the point in its middle (RAS+ mm) and the mm its shorter side spans there."""

    centre: tuple[float, float, float]
    extent: float

    def position(self, azimuth: float, elevation: float) -> tuple[float, float, float]:
        """Where a camera stands, RAS+ mm, that looks at the middle from two angles in degrees (see `VIEWS`)."""
        distance = self.extent / 2 / math.tan(math.radians(VIEW_ANGLE / 2))
        around, up = math.radians(azimuth), math.radians(elevation)
        x, y, z = self.centre
        return (
            x - distance * math.sin(around) * math.cos(up),
            y + distance * math.cos(around) * math.cos(up),
            z + distance * math.sin(up),
        )


def skin_threshold(array: np.ndarray, spacing: Sequence[float]) -> float:
    """The intensity at which the skin begins, in the array's units, from the scan alone.

    `array` (I, J, K) real values, `spacing` the voxel size in mm. Otsu's method on the square root of the
    denoised, winsorised values tells air from tissue (the root keeps bright fat and bias fields from pulling
    the split up). Of the levels `SKIN_FRACTIONS` between the median of the air and that of the tissue, it is
    the one with the smallest outer surface: a lower one grows noise and ghosts, a higher one tears holes.
    Padding does not count as air. Raises InputError where the array is not 3D or shows nothing.
    """
    return _threshold(*_prepared(array, spacing))


def _prepared(array: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The array, denoised and no finer than `FINEST_MM`, and its voxel size; voxel (0, 0, 0) stays put."""
    from scipy.sparse import csr_matrix

    if array.ndim != 3 or min(array.shape) < 2:
        raise InputError(f"A surface needs a 3D scan, and this one has the shape {array.shape}.")
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
    """`skin_threshold` of a `_prepared` volume, found on every second or third voxel."""
    import SimpleITK as sitk  # comes with Slicer, as scikit-image does not

    stride = np.maximum(1, np.round(3 / step).astype(int))
    volume = volume[:: stride[0], :: stride[1], :: stride[2]]
    lowest, highest = np.percentile(volume, (0.5, 99.5))
    if not highest > lowest:
        raise InputError("The scan shows no head: nearly all its voxels have one value; choose another scan.")
    values = np.clip((volume - lowest) / (highest - lowest), 0, 1)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(np.sqrt(values)))
    split = float(otsu.GetThreshold()) ** 2
    tissue, air = np.median(values[values > split]), values[(values <= split) & (values > 1e-3)]
    level = np.median(air) if air.size > 0.01 * values.size else 0.0
    levels = [float(level + fraction * (tissue - level)) for fraction in SKIN_FRACTIONS]
    areas = []
    for candidate in levels:
        head = np.pad(largest_part(values >= candidate), 1)
        outside = _outside(head, step * stride, 2).view(np.int8)
        areas.append(sum(np.count_nonzero(np.diff(outside, axis=axis)) for axis in range(3)))
    best = max(level for level, area in zip(levels, areas, strict=True) if area <= 1.005 * min(areas))
    return float(lowest + best * (highest - lowest))


def coarse(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of blocks of about `COARSE_MM`, and their matrix to RAS+ mm; array (I, J, K), affine (4, 4)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(1, round(COARSE_MM / mm)) for mm in spacing]
    counts = [n // step for n, step in zip(array.shape, steps, strict=True)]
    kept = array[tuple(slice(n * step) for n, step in zip(counts, steps, strict=True))]
    blocks = kept.reshape([part for pair in zip(counts, steps, strict=True) for part in pair])
    to_fine = np.diag([*steps, 1.0])
    to_fine[:3, 3] = (np.array(steps) - 1) / 2
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32), affine @ to_fine


def turned(surface: Surface, rotation: np.ndarray) -> Surface:
    """The surface, turned about the origin by a rotation (3, 3)."""
    points, normals = (array @ rotation.T.astype(np.float32) for array in (surface.points, surface.normals))
    return Surface(np.ascontiguousarray(points), surface.triangles, np.ascontiguousarray(normals))


def _outside(head: np.ndarray, step: np.ndarray, reach: int) -> np.ndarray:
    """The air in front of the skin, with a little of the air in its openings; a mask of the head's shape.

    Left out are skull, sinuses and throat, which no view shows: where a cube of 12 mm cannot get from outside,
    but for what lies within `reach` of where it can. Found on blocks of about 4 mm, which is fast; `reach`
    counts blocks, and 2 is the least that leaves out no air before the skin.
    """
    from scipy.ndimage import maximum_filter
    from skimage.segmentation import flood

    block = np.maximum(1, np.round(4 / step).astype(int))
    padded = np.pad(head, [(4 * b, 4 * b + -n % b) for n, b in zip(head.shape, block, strict=True)])
    shape = [part for n, b in zip(padded.shape, block, strict=True) for part in (n // b, b)]
    tissue = padded.reshape(shape).any(axis=(1, 3, 5))
    near = maximum_filter(flood(~maximum_filter(tissue, 3), (0, 0, 0), connectivity=1), 2 * reach + 1)
    for axis, b in enumerate(block):
        near = near.repeat(b, axis=axis)
    outside = flood(near & ~padded, (0, 0, 0), connectivity=1)
    inner = tuple(slice(4 * b, 4 * b + n) for n, b in zip(head.shape, block, strict=True))
    return outside[inner]


def skin_surface(array: np.ndarray, affine: np.ndarray, threshold: float | None = None) -> Surface:
    """The skin of a head as a closed surface.

    `array` (I, J, K) real values in native order, `affine` (4, 4) voxel to RAS+ mm (axes permuted or oblique
    as they come), `threshold` in the array's units (default: `skin_threshold`; to compare two scans of one
    head, give both the same). What hangs loose is dropped, cavities are filled, and beyond the field of view
    lies air. Raises InputError where the array is not 3D or nothing in it is brighter than the threshold.
    """
    from scipy import ndimage

    affine = np.asarray(affine, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume, step = _prepared(array, spacing)
    level = _threshold(volume, step) if threshold is None else float(threshold)
    head = largest_part(volume >= level)
    if not head.any():
        raise InputError(f"The scan shows nothing brighter than the threshold {level:g}; choose a lower one.")
    box = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in ndimage.find_objects(head.view(np.uint8))[0])
    air = min(float(np.percentile(volume[::4, ::4, ::4], 0.5)), level - 1e-6 * max(1.0, abs(level)))
    volume, head = volume[box], head[box]
    # The root evens the step from air to bright fat, which otherwise leaves steps in the surface.
    volume = np.sqrt(np.clip((volume - air) / (level - air), 0, 4))
    volume[(volume >= 1) & ~head] = 0
    volume[~(head | _outside(head, step, 4))] = 2
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
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
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
    known = {name.replace(" ", "-"): angles for name, angles in VIEWS.items()}
    key = "-".join(view.lower().replace("_", " ").split())
    if key not in known:
        raise InputError(f"There is no view {view!r}; choose from {', '.join(VIEWS)}.")
    return known[key]


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
    from vtkmodules import vtkRenderingCore as vtk

    angles = [_angles(view) for view in views]
    frame = frame or frame_of(surface)
    mapper, actor, renderer = vtk.vtkPolyDataMapper(), vtk.vtkActor(), vtk.vtkRenderer()
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
    renderer.UseFXAAOn()  # as smooth as multisampling and, without a graphics card, three times as fast
    add_lights(renderer)
    camera = renderer.GetActiveCamera()
    camera.SetViewAngle(VIEW_ANGLE)
    camera.SetUseHorizontalViewAngle(size[0] < size[1])
    camera.SetFocalPoint(*frame.centre)
    pictures = []
    with _quiet():
        window = vtk.vtkRenderWindow()
        window.SetOffScreenRendering(1)
        window.SetMultiSamples(0)
        window.SetSize(*size)
        window.Initialize()
        if not window.GetInitialized():  # to render all the same would crash
            raise InputError(NO_OPENGL)
        window.AddRenderer(renderer)
        for azimuth, elevation in angles:
            camera.SetPosition(*frame.position(azimuth, elevation))
            camera.SetViewUp(0, 0, 1)
            renderer.ResetCameraClippingRange()
            window.Render()
            pictures.append(pixels(window))
        window.Finalize()
    return pictures


def add_lights(renderer: Any) -> None:
    """Key, fill and head light that move with the camera (`LIGHTS`), instead of VTK's one head light."""
    from vtkmodules.vtkRenderingCore import vtkLight

    renderer.AutomaticLightCreationOff()
    for *position, strength in LIGHTS:
        lamp = vtkLight()
        lamp.SetLightTypeToCameraLight()
        lamp.SetPosition(*position)
        lamp.SetFocalPoint(0, 0, 0)
        lamp.SetIntensity(strength)
        renderer.AddLight(lamp)


def pixels(window: Any) -> np.ndarray:
    """What a VTK render window shows, already drawn: (H, W, 3) uint8."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkRenderingCore import vtkWindowToImageFilter

    grab = vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.ShouldRerenderOff()
    grab.Update()
    width, height = window.GetSize()
    values = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
    return np.asarray(values.reshape(height, width, 3)[::-1].copy())


def compare_image(
    surface_original: Surface,
    surface_refaced: Surface,
    views: Sequence[str] = ("frontal", "three-quarter"),
    size: tuple[int, int] = (512, 512),
    labels: Sequence[str] = ("original", "refaced"),
) -> np.ndarray:
    """One picture, uint8: original left, refaced right, a row per view, both in the original's frame.

    Its shape is (len(views) * (`LABEL_PIXELS` + H), 2 * W, 3) with `size` (W, H) of each view; a label stands
    over each. Raises what `render` raises.
    """
    frame = frame_of(surface_original)
    columns = []
    for surface, label in zip((surface_original, surface_refaced), labels, strict=True):
        band = _label(label, size[0])
        pictures = render(surface, views, size, frame)
        columns.append(np.concatenate([part for picture in pictures for part in (band, picture)]))
    return np.concatenate(columns, axis=1)


def _label(text: str, width: int) -> np.ndarray:
    """A band (`LABEL_PIXELS`, width, 3) uint8 with the text in its middle."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkRenderingCore import vtkTextProperty
    from vtkmodules.vtkRenderingFreeType import vtkFreeTypeTools

    style, image, used = vtkTextProperty(), vtkImageData(), [0, 0]
    style.SetFontSize(LABEL_PIXELS * 2 // 3)
    vtkFreeTypeTools.GetInstance().RenderString(style, text, 72, image, used)
    columns, rows, _ = image.GetDimensions()
    ink = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, 4)
    ink = ink[: used[1], : used[0], 3][::-1][:LABEL_PIXELS, :width]
    row, column = (LABEL_PIXELS - ink.shape[0]) // 2, (width - ink.shape[1]) // 2
    band = np.zeros((LABEL_PIXELS, width, 1))
    band[row : row + ink.shape[0], column : column + ink.shape[1], 0] = ink / 255
    return np.round(255 * (band + (1 - band) * np.array(BACKGROUND))).astype(np.uint8)


def write_mesh(surface: Surface, path: str | os.PathLike[str]) -> None:
    """Write the surface to a .gii (GIfTI, scanner coordinates), .stl or .ply file, in RAS+ mm.

    STL and PLY carry the note SPACE=RAS, without which 3D Slicer takes them for LPS. Raises InputError for
    another suffix and where the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESHES:
        raise InputError(f"{path} is no mesh file; end its name in {', '.join(MESHES)}.")
    with atomic_path(path) as temporary:
        if suffix == ".gii":
            import nibabel

            array, codes = nibabel.gifti.GiftiDataArray, ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE")
            space = nibabel.gifti.GiftiCoordSystem("NIFTI_XFORM_SCANNER_ANAT", "NIFTI_XFORM_SCANNER_ANAT")
            points = array(surface.points, codes[0], "NIFTI_TYPE_FLOAT32", coordsys=space)
            triangles = array(surface.triangles, codes[1], "NIFTI_TYPE_INT32")
            nibabel.save(nibabel.gifti.GiftiImage(darrays=[points, triangles]), temporary)
            return
        from vtkmodules.vtkIOGeometry import vtkSTLWriter
        from vtkmodules.vtkIOPLY import vtkPLYWriter

        writer: Any = vtkSTLWriter() if suffix == ".stl" else vtkPLYWriter()
        if suffix == ".stl":
            writer.SetHeader("RefaceCGAN SPACE=RAS")
        else:
            writer.AddComment("SPACE=RAS")
        writer.SetInputData(polydata(surface))
        writer.SetFileTypeToBinary()
        writer.SetFileName(str(temporary))
        temporary.touch()  # says why, where VTK only says that
        with _quiet():
            writer.Write()
        if writer.GetErrorCode():
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def write_png(image: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a picture (H, W, 3) uint8 to a PNG file. Raises InputError where that is not possible."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOImage import vtkPNGWriter

    data, writer = vtkImageData(), vtkPNGWriter()
    data.SetDimensions(image.shape[1], image.shape[0], 1)
    data.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(image[::-1]).reshape(-1, 3), deep=True))
    writer.SetInputData(data)
    writer.WriteToMemoryOn()
    writer.Write()
    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(writer.GetResult()))
