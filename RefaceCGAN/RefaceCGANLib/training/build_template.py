"""The template, made once from labelled heads: the average head, its face region and the shapes of faces.

    affine registration of every head to a reference head
    -> average -> demons to it -> sharper, unbiased average -> demons to it
    -> per head the affine map that fits its demons map best, and what that map leaves: the shape of its face
    -> our template space -> sharp average -> face region -> principal components of the shapes
    -> an average of the ears alone, in the place of the average's
    -> what the shapes leave over at the skin, the relief of each head -> principal components of the reliefs

On the way the heads are prepared for the other two trainings: for the anatomy network (`PreparedHead`: brain
labels and template coordinates) and for the generator (`WorkingHead`: the head on the working grid).

Two spaces occur. Reference space is that of the reference head (MNI152), whose face is larger than real ones;
template space is reference space times `TEMPLATE_SCALE`, so that the average training head keeps its size.
SimpleITK thinks in LPS mm and arrays [S, P, L]; everything that leaves this file is RAS mm and (A, S, L).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..face_model.template import MODE_SPACING, Template, warp
from ..intensity import RING_MM, IntensityScale
from ..spatial.grid import AslView, axes_matrix, largest_part, positions, resample_axes, sample
from ..volume.volume import Volume
from .ears import average_ear, blocks, with_ears
from .relief import Relief, relief_modes, skin_points
from .template_space import (
    FIELD,
    FLIP,
    GRID_AFFINE,
    GRID_SHAPE,
    REFERENCE_LOW,
    REFERENCE_SIZE,
    SPACING,
    TEMPLATE_SCALE,
    WORKING_SPANS,
    affine_part,
    block_means,
    coarser,
    inverse_field,
    mirrored,
    reference_affine,
    reference_points,
    to_asl,
)  # fmt: skip

if TYPE_CHECKING:
    import SimpleITK as sitk

log = logging.getLogger(__name__)


AFFINE_SAMPLING = 0.15
AFFINE_ITERATIONS = 200
AFFINE_SHRINK, AFFINE_SMOOTH_MM = (4, 2, 1), (3.0, 1.5, 0.0)
DEMONS_COARSE = (60, 1.8)
DEMONS_FINE = (12, 2.2)
"""Demons at 4 mm and at 2 mm: iterations, and the standard deviation in voxels that smooths the field."""
LOCAL_MEAN_MM = 18.0
"""Demons compare intensities divided by their local mean over this distance."""

FAILED_DEVIATIONS = 6.0
"""Robust standard deviations (1.48 median absolute deviations) beyond which a registration has failed."""
LEAST_HEADS = 10
"""With fewer heads no registration is taken for failed."""
HEAD_SIZES = (0.7, 1.4)
"""Plausible size of a head, along any axis, against the template."""
NECK_MM = (-125.0, -140.0)
"""Reference z: tissue below the first counts for a fifth in the affine fit, below the second not at all."""
CLOSING_MM = 6.0
"""The brain labels are closed by this much, so that the sulci belong to the brain."""
NOSE_EDGE_SLICES = 3
"""The frontmost slices of a head whose nose the field of view cuts: flattened or wrapped, hence not valid."""

MODES = 32
SEEN_BY = 0.4
"""Lower slices seen by a smaller fraction of the heads repeat the lowest one that is seen by more."""
HEAD_LEVEL = 0.28
"""Skin of the average head, in units of the median intensity of the brain."""
SEAM_MM, DEEP_MM = 24.0, 10.0
"""Over this distance from kept skin, and from kept tissue below, the weight of a random shape rises to 1."""
FACE_CENTRE = (0.0, 55.0, -55.0)
"""Template mm: the root of the nose, about which faces turn and grow on their skulls."""
TURNS = (5.6, 2.1, 2.1)
"""Degrees, one standard deviation: up or down, about the line of sight, to the side."""
GROWTHS = (0.07, 0.084, 0.07)
"""Along x, y, z, one standard deviation."""
SHIFTS_MM = (2.8, 2.8)
"""To the front and up, one standard deviation."""


@dataclass(frozen=True)
class HeadFiles:
    """One head to build from. image: any format `Volume` reads; labels: a volume on the same grid, brain > 0.

    group: subfolder of the results, e.g. "train".  average: does it take part in the average and the shapes?
    face: "whole"; "clipped" where the field of view cuts the nose (the frontmost slices are not valid); or
    "spoilt" by a dental void or motion (of use for the anatomy network, not for the generator)."""

    name: str
    image: Path
    labels: Path
    group: str = "train"
    average: bool = True
    face: str = "whole"


def face_of(notes: str) -> str:
    """What the notes of a catalogue say about a face: "whole", "clipped" or "spoilt" (see `HeadFiles`)."""
    if "void destroys" in notes or "motion" in notes:
        return "spoilt"
    return "clipped" if "nose tip at/over anterior FOV edge" in notes else "whole"


def build_template(heads: list[HeadFiles], reference: Path, folder: Path, workers: int | None = None) -> Template:
    """Build and save the template, and every head as the other two trainings need it: about 20 s each.

    In `folder`: template.npz; prepared/<group>/<name>.npz (`PreparedHead`); working/<group>/<name>.npz
    (`WorkingHead`, unless its face is spoilt); stages/, which may be deleted afterwards. What is there
    already is not made again: delete `folder` to begin anew. Heads whose registration fails are left out,
    with a warning in the log. workers: processes, by default one for each core.

    Raises InputError for heads of one name, labels of another shape, and where too few heads are left."""
    names = [head.name for head in heads]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"There are several heads called {twice}; give each head a name of its own.")
    stages = folder / "stages"
    affine, coarse, fine, aligned = (stages / name for name in ("affine", "coarse", "fine", "aligned"))

    _each(_affine, heads, affine, workers, reference)
    heads = _well_registered(heads, affine)
    first, second = stages / "average0.npy", stages / "average1.npy"
    averaged = [head for head in heads if head.average]
    if len(averaged) < 2:
        raise InputError(f"Of the {len(names)} heads too few could be registered; give at least two whole heads.")
    if not first.exists():
        _save_array(first, _first_average(averaged, affine))
    _each(_demons, averaged, coarse, workers, affine, first, False)
    averaged = _well_deformed(averaged, affine, coarse, _read_array(first))
    if not second.exists():
        _save_array(second, _unbiased_average(averaged, coarse))
    fitting = {head.name for head in averaged}
    heads = [head for head in heads if head.name in fitting or not head.average]
    _each(_demons, heads, fine, workers, affine, second, True)
    heads = _well_deformed(heads, affine, fine, _read_array(second))
    for group in sorted({head.group for head in heads}):
        members = [head for head in heads if head.group == group]
        _each(_prepare, members, folder / "prepared" / group, workers, affine, fine, second)
    _each(_align, heads, aligned, workers, folder / "prepared", affine, fine, second)

    without_relief, path = stages / "template.npz", folder / "template.npz"
    if not without_relief.exists():
        averaged = [head for head in heads if head.average]
        plain = _template([head.name for head in averaged], aligned)
        ear = _ear(averaged, folder / "prepared", stages / "ear.npy", workers)
        _write(plain if ear is None else with_ears(plain, ear), without_relief)
    faces = [head for head in heads if head.face != "spoilt"]
    for group in sorted({head.group for head in faces}):
        members = [head for head in faces if head.group == group]
        _each(_working, members, folder / "working" / group, workers, aligned, without_relief)
    if not path.exists():
        reliefs = [_read(folder / "working" / head.group, head.name)["relief"] for head in faces if head.average]
        modes = relief_modes(np.concatenate(reliefs).astype(np.float32)).astype(np.float16)
        _write(replace(Template.read(without_relief), relief_modes=modes), path)
    return Template.read(path)


# ---------------------------------------------------------------- files and processes


def _each(
    function: Callable[..., None],
    heads: list[HeadFiles],
    folder: Path,
    workers: int | None,
    *arguments: object,
) -> None:
    """Call `function(head, path, *arguments)`, which writes `path`, for each head that has no file yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [head for head in heads if not (folder / f"{head.name}.npz").exists()]
    calls = [(head, folder / f"{head.name}.npz", *arguments) for head in missing]
    count = min(workers or os.cpu_count() or 1, len(calls))
    if calls:
        log.info("%s: %d heads", folder.name, len(calls))
    if count <= 1:
        for call in calls:
            function(*call)
        return
    # spawn: the threads of torch and SimpleITK do not survive a fork
    with ProcessPoolExecutor(count, get_context("spawn"), _one_thread) as pool:
        list(pool.map(partial(_call, function), calls))


def _call(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    function(*arguments)


def _one_thread() -> None:
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _save(path: Path, **arrays: Any) -> None:
    """Write an .npz that appears complete or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def _write(template: Template, path: Path) -> None:
    part = path.with_suffix(".part.npz")
    template.write(part)
    part.replace(path)


def _save_array(path: Path, array: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)


def _read_array(path: Path) -> np.ndarray:
    result: np.ndarray = np.load(path, allow_pickle=False)
    return result


def _read(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as data:
        return dict(data)


# ---------------------------------------------------------------- geometry


# ---------------------------------------------------------------- SimpleITK


def _image(volume: Volume) -> sitk.Image:
    """A volume's real values as a SimpleITK image."""
    import SimpleITK as sitk

    affine = FLIP @ volume.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _box(spacing: float) -> sitk.Image:
    """The averaging box as an empty image."""
    import SimpleITK as sitk

    box = sitk.Image([int(side / spacing) for side in REFERENCE_SIZE], sitk.sitkFloat32)
    box.SetSpacing([spacing] * 3)
    box.SetOrigin([low + spacing / 2 for low in REFERENCE_LOW])
    return box


def _box_image(array: np.ndarray, spacing: float, vector: bool = False) -> sitk.Image:
    """An array [S, P, L] (or [S, P, L, 3]) of the averaging box as an image."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array, isVector=vector)
    image.CopyInformation(_box(spacing))
    return image


def _resample_field(field: sitk.Image, onto: sitk.Image) -> sitk.Image:
    import SimpleITK as sitk

    return sitk.Resample(field, onto, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)


def _in_reference(head: HeadFiles, matrix: np.ndarray, outside: float = 0.0) -> sitk.Image:
    """A head through its affine map on the averaging box, 2 mm."""
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return sitk.Resample(_image(Volume.read(head.image)), _box(SPACING), transform, sitk.sitkLinear, outside)


# ---------------------------------------------------------------- registration


def _affine(head: HeadFiles, path: Path, reference: Path) -> None:
    """Register the reference to a head. Writes matrix (4, 4) reference LPS -> head LPS mm, the mutual
    information (negative: the lower, the better), and scale, the median intensity of the brain."""
    import SimpleITK as sitk

    volume, labels = Volume.read(head.image), Volume.read(head.labels)
    if labels.shape != volume.shape:
        raise InputError(f"{head.labels} has another shape than {head.image.name}; give labels on the same grid.")
    fixed, moving = _image(Volume.read(reference)), _image(volume)
    initial = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(AFFINE_SAMPLING, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(AFFINE_SHRINK)
    method.SetSmoothingSigmasPerLevel(AFFINE_SMOOTH_MM)
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, AFFINE_ITERATIONS, 0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(initial, False)
    found = method.Execute(fixed, moving)
    matrix = np.eye(4)
    matrix[:3, 3] = found.TransformPoint((0.0, 0.0, 0.0))
    for axis, end in enumerate(100.0 * np.eye(3)):
        matrix[:3, axis] = (np.array(found.TransformPoint(tuple(end))) - matrix[:3, 3]) / 100.0
    scale = float(np.median(volume.array[labels.stored > 0]))
    if not scale > 0:
        raise InputError(f"The brain in {head.image} has no intensity; check {head.labels.name}.")
    _save(path, matrix=matrix, metric=method.GetMetricValue(), scale=scale)


def _flat(image: sitk.Image) -> sitk.Image:
    """An image divided by its local mean inside the head, so that scanner and coil matter less."""
    import SimpleITK as sitk
    from scipy.ndimage import gaussian_filter

    values, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[0]
    middle = np.median(values[values > 0.15 * np.percentile(values, 90)])
    head = (gaussian_filter(values, 2 / spacing) > 0.3 * middle).astype(np.float32)
    sigma = LOCAL_MEAN_MM / spacing
    local = gaussian_filter(np.clip(values, 0, 3 * middle) * head, sigma)
    local /= np.maximum(gaussian_filter(head, sigma), 0.08)
    flat = np.clip(values / np.maximum(local, 0.25 * middle), 0, 2.5).astype(np.float32)
    return _box_image(flat, spacing)


def _demons_step(
    fixed: sitk.Image, moving: sitk.Image, field: sitk.Image | None, effort: tuple[int, float]
) -> sitk.Image:
    import SimpleITK as sitk

    iterations, sigma = effort
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfThreads(1)
    method.SetNumberOfIterations(iterations)
    method.SetSmoothDisplacementField(True)
    method.SetStandardDeviations(sigma)
    return method.Execute(fixed, moving) if field is None else method.Execute(fixed, moving, field)


def _demons(head: HeadFiles, path: Path, affines: Path, average: Path, fine: bool) -> None:
    """Deform a head, after its affine map, into the average. Writes field [S, P, L, 3], LPS mm at 4 mm (the
    average at p is the head at affine(p + field(p))), and image [S, P, L] at 2 mm, brain intensity 1."""
    import SimpleITK as sitk

    affine = _read(affines, head.name)
    fixed, moving = _box_image(_read_array(average), SPACING), _in_reference(head, affine["matrix"])
    coarse, box = _box(4.0), _box(SPACING)
    small = [
        sitk.Resample(sitk.SmoothingRecursiveGaussian(image, 2.0), coarse, sitk.Transform(), sitk.sitkLinear, 0.0)
        for image in (fixed, moving)
    ]
    field = _demons_step(_flat(small[0]), _flat(small[1]), None, DEMONS_COARSE)
    if fine:
        field = _demons_step(_flat(fixed), _flat(moving), _resample_field(field, box), DEMONS_FINE)
    field_4mm = sitk.GetArrayFromImage(_resample_field(field, coarse))
    transform = sitk.DisplacementFieldTransform(_resample_field(field, box))
    deformed = sitk.GetArrayFromImage(sitk.Resample(moving, box, transform, sitk.sitkLinear, 0.0))
    _save(path, field=field_4mm.astype(np.float16), image=(deformed / affine["scale"]).astype(np.float16))


def _first_average(heads: list[HeadFiles], affines: Path) -> np.ndarray:
    """The mean of the heads through their affine maps: [S, P, L], 2 mm, brain intensity 1."""
    import SimpleITK as sitk

    total: Any = 0.0
    count: Any = 0
    for head in heads:
        affine = _read(affines, head.name)
        values = sitk.GetArrayFromImage(_in_reference(head, affine["matrix"], float("nan")))
        seen = np.isfinite(values)
        total = total + np.where(seen, values / affine["scale"], 0.0)
        count = count + seen
    return (total / np.maximum(count, 1)).astype(np.float32)


def _unbiased_average(heads: list[HeadFiles], demons: Path) -> np.ndarray:
    """The median of the deformed heads, moved back by the mean field: [S, P, L], 2 mm, brain intensity 1.

    The mean field is what the first average differs from the heads in the mean; without it the average would
    keep the shape of the reference."""
    import SimpleITK as sitk

    images: list[np.ndarray] = []
    mean: Any = 0.0
    for head in heads:
        data = _read(demons, head.name)
        images.append(data["image"])
        mean = mean + data["field"].astype(np.float64) / len(heads)
    stack = np.stack(images)
    median = np.stack([np.median(stack[:, i], axis=0) for i in range(stack.shape[1])]).astype(np.float32)
    field = _resample_field(_box_image(mean, 4.0, vector=True), _box(SPACING))
    inverse = sitk.DisplacementFieldTransform(sitk.IterativeInverseDisplacementField(field))
    moved = sitk.Resample(_box_image(median, SPACING), _box(SPACING), inverse, sitk.sitkLinear, 0.0)
    result: np.ndarray = sitk.GetArrayFromImage(moved)
    return result


# ---------------------------------------------------------------- failed registrations


def outliers(values: np.ndarray) -> np.ndarray:
    """bool: which values are larger than usual by `FAILED_DEVIATIONS` robust standard deviations."""
    if len(values) < LEAST_HEADS:
        return np.zeros(len(values), dtype=bool)
    middle = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - middle))
    result: np.ndarray = values > middle + FAILED_DEVIATIONS * deviation
    return result


def _sizes(matrix: np.ndarray) -> np.ndarray:
    """Template mm for each mm of the head along its main directions, from the matrix `_affine` writes."""
    to_template = np.diag(TEMPLATE_SCALE) @ np.linalg.inv(matrix[:3, :3])
    return np.linalg.svd(to_template, compute_uv=False)


def _well_registered(heads: list[HeadFiles], affines: Path) -> list[HeadFiles]:
    """The heads whose affine map is plausible and fits about as well as those of the others."""
    found = [_read(affines, head.name) for head in heads]
    unusual = outliers(np.array([float(affine["metric"]) for affine in found]))
    kept = []
    for head, affine, bad in zip(heads, found, unusual, strict=True):
        sizes = _sizes(affine["matrix"])
        if bad or sizes.min() < HEAD_SIZES[0] or sizes.max() > HEAD_SIZES[1]:
            log.warning(
                "%s is left out: its affine registration failed (metric %.3f, size %.2f to %.2f)",
                head.name, affine["metric"], sizes.min(), sizes.max(),
            )  # fmt: skip
        else:
            kept.append(head)
    return kept


def _well_deformed(heads: list[HeadFiles], affines: Path, demons: Path, average: np.ndarray) -> list[HeadFiles]:
    """The heads that the demons deformed about as much as the others, once an affine map is taken out."""
    weight = _fit_weight(average)
    misfits = []
    for head in heads:
        matrix, field = _read(affines, head.name)["matrix"], _read(demons, head.name)["field"]
        _, residual = affine_part(field, matrix, weight)
        misfits.append(float(np.linalg.norm(residual, axis=-1)[weight > 0].mean()))
    kept = []
    for head, misfit, bad in zip(heads, misfits, outliers(np.array(misfits)), strict=True):
        if bad:
            log.warning("%s is left out: it is %.1f mm off the average after registration", head.name, misfit)
        else:
            kept.append(head)
    return kept


# ---------------------------------------------------------------- into template space


def _fit_weight(average: np.ndarray) -> np.ndarray:
    """How much each 4 mm voxel of the averaging box counts in the affine fit: [S, P, L]."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    head = binary_fill_holes(gaussian_filter(average.astype(np.float32), 1) > 0.25)
    z = reference_points(4.0)[..., 2]
    weight = (block_means(head, 2) > 0.5) * np.where(z < NECK_MM[0], 0.2, 1.0)
    return np.where(z < NECK_MM[1], 0.0, weight)


def _template_map(affine: np.ndarray) -> np.ndarray:
    """Reference LPS -> head LPS becomes head RAS -> template RAS (4, 4)."""
    result: np.ndarray = np.diag([*TEMPLATE_SCALE, 1.0]) @ np.linalg.inv(FLIP @ affine @ FLIP)
    return result


def _closed(labels: np.ndarray) -> np.ndarray:
    """Brain labels at 2 mm, closed by `CLOSING_MM`, holes filled: bool (A, S, L)."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    margin = int(CLOSING_MM / SPACING) + 3
    grown = distance_transform_edt(~np.pad(labels, margin), sampling=SPACING) <= CLOSING_MM
    shrunk = distance_transform_edt(grown, sampling=SPACING) > CLOSING_MM
    inner = slice(margin, -margin)
    result: np.ndarray = binary_fill_holes(shrunk[inner, inner, inner]) | labels
    return result


def _prepare(head: HeadFiles, path: Path, affines: Path, demons: Path, average: Path) -> None:
    """Write a head as `PreparedHead` reads it: (A, S, L) along its own axes at 2 mm, brain intensity 1."""
    affine, field = _read(affines, head.name), _read(demons, head.name)["field"]
    volume = Volume.read(head.image)
    view = AslView.of(volume)
    image, labels = (
        resample_axes(view.to_asl(array), view.spacing, SPACING)
        for array in (volume.array, Volume.read(head.labels).stored > 0)
    )
    to_head = view.asl_affine @ axes_matrix(view.spacing, SPACING)
    best, _ = affine_part(field, affine["matrix"], _fit_weight(_read_array(average)))
    _save(
        path,
        image=(image / affine["scale"]).astype(np.float16),
        brain=_closed(labels > 0.5),
        index_to_template=_template_map(best) @ to_head,
    )


def _align(head: HeadFiles, path: Path, prepared: Path, affines: Path, demons: Path, average: Path) -> None:
    """Carry a prepared head to the template grid by its affine map, and its shape with it.

    Writes image, valid (in view and free of defects) and brain, (A, S, L) on the template grid; field and
    inverse, (3, a, s, l) in template RAS mm on the field grid: the head shows at p + field(p) what the
    average shows at p, and at y what the average shows at y + inverse(y)."""
    import torch

    data = _read(prepared / head.group, head.name)
    index = np.linalg.inv(data["index_to_template"]) @ GRID_AFFINE
    valid = np.ones(data["image"].shape, np.float32)
    if head.face == "clipped":
        valid[-NOSE_EDGE_SLICES:] = 0
    stacked = np.stack([data["image"].astype(np.float32), valid, data["brain"].astype(np.float32)])
    image, seen, brain = sample(torch.from_numpy(stacked), index, GRID_SHAPE).numpy()

    matrix, field = _read(affines, head.name)["matrix"], _read(demons, head.name)["field"]
    _, rest = affine_part(field, matrix, _fit_weight(_read_array(average)))
    scale = np.array(TEMPLATE_SCALE)
    rest = np.moveaxis(to_asl(rest * np.diag(FLIP)[:3] * scale), 3, 0).astype(np.float32)
    grid = coarser(GRID_AFFINE, FIELD)
    to_reference = np.linalg.inv(reference_affine(4.0)) @ np.diag([*(1 / scale), 1.0]) @ grid
    shape = tuple(length // FIELD for length in GRID_SHAPE)
    moved = sample(torch.from_numpy(rest.copy()), to_reference, shape, "border")
    _save(
        path,
        image=image.astype(np.float16),
        valid=seen > 0.99,
        brain=brain > 0.5,
        field=moved.numpy().astype(np.float16),
        inverse=inverse_field(moved, grid).numpy().astype(np.float16),
    )


# ---------------------------------------------------------------- the template itself


def _template(names: list[str], aligned: Path) -> Template:
    """The template of the heads `names` in `aligned`."""
    average, seen, brain = _sharp_average(names, aligned)
    average = _repeat_lowest(average, seen, len(names))
    head = _head_mask(average)
    region, window = _face_region(head)
    mode_mean, modes = _shapes(names, aligned, head & region, region)
    scale = IntensityScale(0.0, float(np.percentile(average[_ring(brain > 0.5) & ~region], 99.5)))
    mean = scale.normalise(average)
    plain = Template(
        affine=GRID_AFFINE,
        mean=mean.astype(np.float16),
        head=head,
        brain=brain.astype(np.float16),
        face_region=region,
        window=window,
        weight=_weight(head, region).astype(np.float16),
        modes=modes.astype(np.float16),
        mode_mean=mode_mean.astype(np.float16),
        relief_points=np.zeros((0, 3), np.float32),
        relief_modes=np.zeros((0, 0), np.float16),
    )
    points = skin_points(mean, plain.skin, plain.weight)
    return replace(plain, relief_points=points, relief_modes=np.zeros((0, len(points)), np.float16))


def _ear(heads: list[HeadFiles], prepared: Path, path: Path, workers: int | None) -> np.ndarray | None:
    """The average ear (X, Y, Z) of some heads, which is kept in `path`; None where the field of view cuts all."""
    if not path.exists():
        read = (_read(prepared / head.group, head.name) for head in heads)
        ears = [ear for data in read for ear in blocks(data["image"], data["index_to_template"])]
        log.info("ear: %d ears", len(ears))
        if not ears:
            return None
        with ProcessPoolExecutor(workers or os.cpu_count() or 1, get_context("spawn"), _one_thread) as pool:
            _save_array(path, average_ear(ears, pool.map))
    return _read_array(path)


def _sharp_average(names: list[str], aligned: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The median of the heads in the average shape; how many heads show each voxel; how often it is brain
    before that deformation (0..1). All (A, S, L) on the template grid."""
    import torch

    grid = coarser(GRID_AFFINE, FIELD)
    to_voxels = torch.from_numpy(np.linalg.inv(GRID_AFFINE[:3, :3]).astype(np.float32))
    images, brain = [], np.zeros(GRID_SHAPE, np.float32)
    for name in names:
        data = _read(aligned, name)
        field = sample(
            torch.from_numpy(data["field"].astype(np.float32)),
            np.linalg.inv(grid) @ GRID_AFFINE,
            GRID_SHAPE,
            "border",
        )
        both = torch.from_numpy(np.stack([data["image"].astype(np.float32), data["valid"].astype(np.float32)]))
        image, valid = warp(both, torch.einsum("ij,jasl->iasl", to_voxels, field)).numpy()
        images.append(np.where(valid < 0.99, np.nan, image).astype(np.float16))
        brain += data["brain"] / np.float32(len(names))
    stack = np.stack(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # voxels that no head shows
        median = np.stack([np.nanmedian(stack[:, i].astype(np.float32), axis=0) for i in range(GRID_SHAPE[0])])
    return np.nan_to_num(median), np.isfinite(stack).sum(axis=0), brain


def _repeat_lowest(average: np.ndarray, seen: np.ndarray, heads: int) -> np.ndarray:
    """The average with its lowest slices, which few heads show, filled by the lowest one that many show."""
    often = np.flatnonzero(seen[90:110].max(axis=(0, 2)) >= SEEN_BY * heads)  # A 90 to 110: the chin
    lowest = int(often[0]) if len(often) else 0
    result = average.copy()
    result[:, :lowest] = average[:, lowest : lowest + 1]
    return result


def _head_mask(average: np.ndarray) -> np.ndarray:
    """Inside the skin of the average head: bool (A, S, L). The neck goes on below the grid."""
    from scipy import ndimage

    mask = ndimage.gaussian_filter(average, 0.7) > HEAD_LEVEL
    mask = ndimage.binary_closing(np.pad(mask, 6, mode="edge"), iterations=4)[6:-6, 6:-6, 6:-6]
    mask = largest_part(mask)
    closed_below = np.pad(mask, ((0, 0), (1, 0), (0, 0)), constant_values=True)
    filled: np.ndarray = ndimage.binary_fill_holes(closed_below)[:, 1:]
    return filled


def _face_region(head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The face region of the average head, and the window in which skin counts as face: bool (A, S, L).

    All numbers are template mm (x to the right, y to the front, z up; 0 is the anterior commissure)."""
    from scipy.ndimage import distance_transform_edt

    x, y, z = np.moveaxis(positions(head.shape, GRID_AFFINE), -1, 0)
    neck = 30
    deep = distance_transform_edt(np.pad(head, ((0, 0), (neck, 0), (0, 0)), mode="edge"), sampling=SPACING)
    depth = deep[:, neck:]
    behind = np.interp(z, [-140, -105, -70, -30, -10, 16], [5, 2, 4, 22, 34, 46])  # how far back the face goes
    below = np.where(y > 40, -np.inf, -142 + (70 - y) / 65 * 36)  # a long chin, then up to the angle of the jaw
    front = (y > behind) & (z < 16) & (z > below)
    ears = (np.abs(x) > 60) & (y > -58) & (y < 12) & (z > -80) & (z < 0)
    region = front & (depth < np.interp(z, [-30, -8, 16], [14, 12, 9]))
    for side in (-1, 1):  # the eyes
        region |= (x - side * 29) ** 2 + (y - 57) ** 2 + (z + 32) ** 2 < 15.5**2
    return region | (ears & (depth < 9)), front | ears


def _weight(head: np.ndarray, region: np.ndarray) -> np.ndarray:
    """How far a random shape may move a voxel: 0 in kept tissue, rising to 1 over `SEAM_MM`."""
    from scipy import ndimage

    kept = ndimage.binary_dilation(head, iterations=2) & ~region
    rim = kept & ~ndimage.binary_erosion(head, iterations=2, border_value=1)
    away, deep = (ndimage.distance_transform_edt(~part, sampling=SPACING) for part in (rim, kept))
    rise = np.clip(np.minimum(away / SEAM_MM, deep / DEEP_MM), 0, 1)
    smooth = ndimage.gaussian_filter(rise * rise * (3 - 2 * rise), 1.0)
    return np.where(kept, 0.0, smooth)


def _ring(brain: np.ndarray) -> np.ndarray:
    """bool: brain and everything within `RING_MM` of it, at 2 mm."""
    from scipy.ndimage import distance_transform_edt

    result: np.ndarray = distance_transform_edt(~brain, sampling=SPACING) < RING_MM
    return result


def _shape(inverse: np.ndarray) -> np.ndarray:
    """The inverse field of a head, (3, a, s, l) on the field grid, on the coarser grid of the modes."""
    from scipy.ndimage import gaussian_filter

    return block_means(gaussian_filter(inverse.astype(np.float32), [0, 0.8, 0.8, 0.8]), MODE_SPACING // FIELD)


def _shapes(
    names: list[str], aligned: Path, skin: np.ndarray, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean shape (3, a, s, l) and the modes (K, 3, a, s, l) of the heads and their mirror images.

    Principal components of the shapes near the face; a unit of code is one standard deviation. Each mode goes
    on beyond the face as the whole fields do on average. The last ones are `placements`."""
    from scipy.ndimage import binary_dilation

    around = skin | (binary_dilation(skin, iterations=5) & region)
    near = block_means(binary_dilation(around, iterations=4), MODE_SPACING) > 0.3
    fields = []
    for name in names:
        field = _shape(_read(aligned, name)["inverse"])
        fields += [field, mirrored(field)]
    shapes = np.stack(fields)
    mean = shapes.mean(axis=0)
    difference = shapes - mean
    left, singular, _ = np.linalg.svd((difference * near).reshape(len(shapes), -1), full_matrices=False)
    count = min(MODES, int(np.sum(singular > 1e-4 * singular[0])))
    codes = left[:, :count] * np.sqrt(len(shapes))
    modes = np.linalg.lstsq(codes, difference.reshape(len(shapes), -1), rcond=None)[0]
    return mean, np.concatenate([modes.reshape(count, *mean.shape), placements(mean.shape[1:])])


def placements(shape: tuple[int, ...]) -> np.ndarray:
    """How a face may sit on its skull: displacements (8, 3, a, s, l) that turn, stretch and shift it.

    The affine map of each head takes just that out of its shape. A random face that sat on every skull as the
    average face does would keep its owner's proportions, and with them some likeness."""
    x, y, z = np.moveaxis(positions(shape, coarser(GRID_AFFINE, MODE_SPACING)) - FACE_CENTRE, -1, 0)
    none, (up, around, aside), (wide, long, high) = np.zeros_like(x), np.radians(TURNS), GROWTHS
    front, above = SHIFTS_MM
    fields = [
        [none, -up * z, up * y], [-around * z, none, around * x], [-aside * y, aside * x, none],
        [wide * x, none, none], [none, long * y, none], [none, none, high * z],
        [none, none + front, none], [none, none, none + above],
    ]  # fmt: skip
    return np.array(fields)


def _working(head: HeadFiles, path: Path, aligned: Path, template_path: Path) -> None:
    """Write a head as `WorkingHead` reads it."""
    template, data = Template.read(template_path), _read(aligned, head.name)
    image, valid, brain = data["image"].astype(np.float32), data["valid"], data["brain"]
    scale = IntensityScale.measure(image[valid], _ring(brain)[valid], ~template.face_region[valid])
    coarse = tuple(slice(span.start // FIELD, span.stop // FIELD) for span in WORKING_SPANS)
    scan = np.where(valid, scale.normalise(image), -1.0)[WORKING_SPANS]
    seen, shape = valid[WORKING_SPANS], data["inverse"][(slice(None), *coarse)]
    relief = Relief(template.crop(WORKING_SPANS))
    both = [relief.of(scan, seen, shape), relief.of(scan[..., ::-1], seen[..., ::-1], mirrored(shape))]
    _save(
        path,
        image=scan.astype(np.float16),
        valid=seen,
        brain=brain[WORKING_SPANS],
        shape=shape,
        relief=np.stack(both).astype(np.float16),
    )
