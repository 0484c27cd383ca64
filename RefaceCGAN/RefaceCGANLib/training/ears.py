"""The ears of the average head.

The maps that bring heads to the template line up skulls and faces. Ears stand off in many ways, so their mean is
a blob, and random shapes of faces, which know of no ears, bend it further. Here the ears of the training heads,
those on the right mirrored, are aligned among themselves: turned, moved and scaled, then deformed onto their
average, which gets sharper from round to round. It is nobody's ear, in the mean place and shape of all, and
everybody gets it.

Blocks of ears are on a grid of their own, (X, Y, Z) along template RAS mm, 1 mm, about the left ear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..face_model.template import Template, trilinear
from ..spatial.grid import mapped, positions, shift

if TYPE_CHECKING:
    import SimpleITK as sitk

LOW, SHAPE = (-100.0, -62.0, -98.0), (52, 84, 110)
"""The first voxel of a block, and its shape; 1 mm."""
EAR = ((-90.0, -62.0), (-48.0, 14.0), (-80.0, 4.0))
"""Where in it the ear is, which is compared, along x, y, z."""
EAR_TISSUE, EAR_FAT = 0.3, 1.2
"""Tissue begins at the first, fat is cut off at the other; both in units of the brain's intensity."""
MOST_EARS = 64
"""The most ears that are averaged."""
DEFORMED = (None, (60, 3.0), (80, 2.2), (80, 2.2))
"""Rounds: none, or iterations of the demons and the voxels that smooth their field."""
BEST_EARS = 0.6
"""Share of the ears, those most like their average, of which the next average is made: others are pressed flat or
moved."""
REPLACED, FADE = ((56.0, 100.0), (-54.0, 8.0), (-76.0, -2.0)), 2.0
"""The part of the average head, along |x|, y, z, that the ear replaces, and voxels over which it does."""
STILL, STILL_FADE = ((56.0, 100.0), (-58.0, 8.0), (-78.0, 0.0)), 3.0
"""The part that shapes of faces leave as it is, likewise."""


def blocks(image: np.ndarray, index_to_template: np.ndarray) -> Iterable[np.ndarray]:
    """The blocks of both ears of a head as `PreparedHead` holds it, float16, the right one mirrored; not of one
    that the field of view cuts."""
    from scipy.ndimage import map_coordinates

    to_index, image = np.linalg.inv(index_to_template), image.astype(np.float32)
    points = box_points()
    ear = within(EAR, points)
    for side in (1, -1):
        at = mapped(points * (side, 1, 1), to_index)
        seen = np.all((at >= 0) & (at <= np.array(image.shape) - 1), axis=-1)
        ends = map_coordinates(image, at[~seen & ear].T, order=0, mode="nearest")
        if not (ends > EAR_TISSUE).any():
            yield map_coordinates(image, np.moveaxis(at, -1, 0), order=3).astype(np.float16)


def average_ear(ears: list[np.ndarray], over: Callable[..., Iterable[Any]] = map) -> np.ndarray:
    """The average of ears (X, Y, Z), brain intensity 1: nobody's, in the mean place and shape of all. over: as
    `map`, or that of a pool of processes."""
    ears = ears[:: -(-len(ears) // MOST_EARS)]
    average = np.median(np.stack(ears).astype(np.float32), axis=0)
    where = within(EAR, box_points())
    for effort in DEFORMED:
        found = list(over(partial(onto, average, where, effort), ears))
        alike = [np.corrcoef(np.clip(image[where], 0, EAR_FAT), average[where])[0, 1] for image, _ in found]
        best = np.flatnonzero(alike >= np.quantile(alike, 1 - BEST_EARS))
        median = np.median(np.stack([found[i][0] for i in best]), axis=0)
        average = _moved_back(median, np.mean([found[i][1] for i in best], axis=0))
    return average


def with_ears(template: Template, ear: np.ndarray) -> Template:
    """The template with this ear (X, Y, Z) on both sides of its average head, where shapes of faces leave it."""
    from scipy.ndimage import gaussian_filter

    points = positions(template.mean.shape, template.affine)
    points[..., 0] = np.abs(points[..., 0])
    mean = template.mean.astype(np.float32)
    there = trilinear(ear[None], (points * (-1, 1, 1) - LOW).reshape(-1, 3)).reshape(mean.shape)
    around = within(STILL, points) & (mean > 0) & (there > EAR_TISSUE)
    there = np.clip(there * np.median((mean[around] + 1) / there[around]) - 1, -1, 1)
    replaced = gaussian_filter(within(REPLACED, points).astype(np.float32), FADE)
    still = gaussian_filter(within(STILL, points).astype(np.float32), STILL_FADE)
    mean += replaced * (there - mean)
    return replace(
        template,
        mean=mean.astype(np.float16),
        weight=(template.weight * (1 - still)).astype(np.float16),
    )


def box_points() -> np.ndarray:
    """The voxels of a block: (X, Y, Z, 3) template RAS mm."""
    return positions(SHAPE, shift(*LOW))


def within(box: tuple[tuple[float, float], ...], points: np.ndarray) -> np.ndarray:
    """Which points (..., 3) lie in a box."""
    low, high = np.transpose(box)
    return np.asarray(((points > low) & (points < high)).all(axis=-1))


def _image(block: np.ndarray) -> sitk.Image:
    """A block, or vectors (X, Y, Z, 3) on it, as an image whose axes are template RAS mm."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(np.swapaxes(block, 0, 2)), isVector=block.ndim == 4)
    image.SetOrigin(LOW)
    return image


def _array(image: sitk.Image) -> np.ndarray:
    import SimpleITK as sitk

    return np.swapaxes(sitk.GetArrayFromImage(image), 0, 2)


def onto(
    average: np.ndarray, where: np.ndarray, effort: tuple[int, float] | None, ear: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An ear (X, Y, Z) in the place and, with an effort (`DEFORMED`), the shape of the average; and the field
    (X, Y, Z, 3) in mm: the average shows at p what the ear shows at p + field(p)."""
    import SimpleITK as sitk

    whole = _image(ear.astype(np.float32))
    fixed, moving = (
        sitk.SmoothingRecursiveGaussian(sitk.Clamp(image, sitk.sitkFloat32, 0.0, EAR_FAT), 1.0)
        for image in (_image(average), whole)
    )
    placed = sitk.Similarity3DTransform()
    placed.SetCenter([float(np.mean(span)) for span in EAR])
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(_image(where.astype(np.uint8)))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.15, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.02, 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([3, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetInitialTransform(placed, inPlace=True)
    method.Execute(fixed, moving)
    whole_way = sitk.CompositeTransform([placed])
    if effort is not None:
        iterations, sigma = effort
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(sigma)
        field = demons.Execute(fixed, sitk.Resample(moving, fixed, placed, sitk.sitkLinear, 0.0))
        whole_way.AddTransform(sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)))
    image = sitk.Resample(whole, fixed, whole_way, sitk.sitkBSpline, 0.0)
    way = sitk.TransformToDisplacementField(whole_way, sitk.sitkVectorFloat32, fixed.GetSize(), fixed.GetOrigin())
    return _array(image).astype(np.float16), _array(way).astype(np.float16)


def _moved_back(median: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A median of ears in one shape (X, Y, Z), moved back by their mean field (X, Y, Z, 3) into the mean shape."""
    import SimpleITK as sitk

    smooth = sitk.SmoothingRecursiveGaussian(_image(field.astype(np.float64)), 3.0)
    inverse = sitk.InvertDisplacementField(sitk.Cast(smooth, sitk.sitkVectorFloat64), 30)
    image = _image(median.astype(np.float32))
    return _array(sitk.Resample(image, image, sitk.DisplacementFieldTransform(inverse), sitk.sitkBSpline, 0.0))
