"""Co-registration: where the face region and the brain mask of one series lie in another of the same session.

Rigid, by mutual information (SimpleITK), as two contrasts of one head share no intensities. The result is not
taken on trust: two heads can be laid over each other, too, but their brains do not coincide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spatial.grid import AslView, axes_matrix, dilate, mapped, resample_axes, sample, shift

if TYPE_CHECKING:
    from ..anatomy.location import Anatomy
    from ..volume.volume import Volume

SPACING = 3.0
"""mm: the grid on which two series are compared; finer costs more and moves the result by less than 0.3 mm."""
AROUND_BRAIN = 4
"""Voxels of that grid: the skull is compared, too; the jaw and the neck, which move, are not."""
BINS, STEPS = 32, 100
"""Of the joint histogram, and of gradient descent on each level."""
OFF_MM = 4.0
"""A map is compared with those that lie so far beside it along each axis."""
SHARPNESS = 0.24
"""Share of the mutual information that is lost beside the map, at least: 0.26 to 0.56 where both scans are of one
head (19 pairs of 6 validation heads: T2w-like with 5 and 1.5 mm slices, EPI-like at 3 mm, T1w-like), 0.02 to 0.20
where they are of two (20 pairs). A wrong map would leave a face, the only cost of a refused one is that the series
is looked at by itself."""


@dataclass(frozen=True)
class Grey:
    """A scan on the comparison grid. values: (A, S, L) float32, 0..1.  affine: (4, 4) index -> RAS mm."""

    values: np.ndarray
    affine: np.ndarray

    @classmethod
    def of(cls, volume: Volume) -> Grey:
        view = AslView.of(volume)
        values = np.ascontiguousarray(view.to_asl(volume.array))
        small = resample_axes(values, view.spacing, SPACING)
        low, high = np.percentile(small, (1, 99.5))
        small = np.clip((small - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
        return cls(small, view.asl_affine @ axes_matrix(view.spacing, SPACING))

    def image(self, values: np.ndarray | None = None) -> Any:
        """As SimpleITK knows it: x is the last index, millimetres are LPS."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(self.values if values is None else values)
        columns = np.diag([-1.0, -1.0, 1.0]) @ self.affine[:3, :3][:, ::-1]
        lengths = np.linalg.norm(columns, axis=0)
        image.SetSpacing(lengths.tolist())
        image.SetDirection((columns / lengths).ravel().tolist())
        image.SetOrigin((np.diag([-1.0, -1.0, 1.0]) @ self.affine[:3, 3]).tolist())
        return image


def register(reference: Grey, near_brain: np.ndarray, series: Grey, starts: list[np.ndarray]) -> np.ndarray:
    """The rigid map (4, 4), RAS mm of the reference -> RAS mm of the series, that makes their intensities tell
    most about each other (Mattes' mutual information).

    near_brain: bool (A, S, L) on the reference's comparison grid, where the two are compared.
    starts: maps (4, 4) to begin with; the best result is taken. Raises RuntimeError where they do not overlap."""
    import SimpleITK as sitk

    fixed, moving = reference.image(), series.image()
    mask = reference.image(near_brain.astype(np.uint8))
    best: tuple[float, np.ndarray] | None = None
    failure = "no start was given"
    for start in starts:
        transform = _itk(start, reference)
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)  # the order of a sum is part of its result
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(mask)
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.02, STEPS, 0.6, 1e-5)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([2.0, 0.5])
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError as error:  # all samples outside
            failure = str(error).strip().splitlines()[-1]
            continue
        value = float(method.GetMetricValue())
        if best is None or value < best[0]:
            best = value, _matrix(transform)
    if best is None:
        raise RuntimeError(failure)
    return best[1]


def sharpness(reference: Grey, near_brain: np.ndarray, series: Grey, found: np.ndarray) -> float:
    """How much of the mutual information is lost, 0..1, when the map found (`register`) is shifted by `OFF_MM`.

    Two scans of one head lose much, two heads little: nothing in them lies exactly upon anything. 0 where they do
    not overlap."""
    import SimpleITK as sitk

    fixed, moving, mask = reference.image(), series.image(), reference.image(near_brain.astype(np.uint8))

    def information(matrix: np.ndarray) -> float:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(_itk(matrix, reference))
        return -float(method.MetricEvaluate(fixed, moving))

    try:
        top = information(found)
        beside = [information(shift(*step) @ found) for step in (*(OFF_MM * np.eye(3)), *(-OFF_MM * np.eye(3)))]
    except RuntimeError:
        return 0.0
    return float(np.clip(1 - np.mean(beside) / top, 0, 1)) if top > 1e-3 else 0.0


def near_brain(anatomy: Anatomy) -> np.ndarray:
    """Where two scans are compared: bool (A, S, L) on the comparison grid of the scan with this anatomy."""
    import torch

    small = resample_axes(anatomy.brain_mask, anatomy.view.spacing, SPACING) > 0.5
    near: np.ndarray = dilate(torch.from_numpy(small), AROUND_BRAIN).numpy()
    return near


def carry(anatomy: Anatomy, volume: Volume, found: np.ndarray, face: np.ndarray, skin: float) -> Anatomy:
    """The anatomy of the reference as it lies in another series.

    found: (4, 4) RAS mm of the reference -> RAS mm of the series.  face: (N, 3) points of the average face,
    template mm.  skin: where tissue begins in the series (real values)."""
    import torch

    view = AslView.of(volume)
    shape = view.to_asl(volume.stored).shape
    to_reference = np.linalg.inv(anatomy.view.asl_affine) @ np.linalg.inv(found) @ view.asl_affine
    masks = np.stack([anatomy.brain_mask, anatomy.second_brain, anatomy.face_region])
    carried = sample(torch.from_numpy(masks.astype(np.float32)), to_reference, shape, "border") > 0.5
    brain, second, region = carried.numpy()
    # beyond the reference's field of view there is no brain, but there is more face
    inside = _inside(to_reference, shape, anatomy.brain_mask.shape)
    brain, second = brain & inside, second & inside
    to_template = anatomy.to_template @ to_reference
    at = mapped(face, np.linalg.inv(to_template))
    in_view = float(((at > -0.5) & (at < np.array(shape) - 0.5)).all(axis=1).mean())
    return replace(
        anatomy, view=view, brain_mask=brain, second_brain=second, face_region=region & ~(brain | second),
        to_template=to_template, skin=skin, already_defaced=False, in_view=in_view, warnings=(),
    )  # fmt: skip


def _inside(matrix: np.ndarray, shape: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """Which voxels of a grid an index map (4, 4) leads into another: bool (A, S, L)."""
    result = np.ones(shape, dtype=bool)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    for row, length in zip(matrix[:3], target, strict=True):
        at = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + row[3]
        result &= (at > -0.5) & (at < length - 0.5)
    return result


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _itk(matrix: np.ndarray, reference: Grey) -> Any:
    import SimpleITK as sitk

    centre = reference.affine @ np.array([*((np.array(reference.values.shape) - 1) / 2), 1.0])
    lps = _LPS @ rigid(matrix) @ _LPS
    transform = sitk.Euler3DTransform()
    at = (_LPS @ centre)[:3]
    transform.SetCenter(at.tolist())
    transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((lps[:3, 3] + lps[:3, :3] @ at - at).tolist())
    return transform


def _matrix(transform: Any) -> np.ndarray:
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, translation = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = rotation, translation + centre - rotation @ centre
    return np.asarray(_LPS @ lps @ _LPS)


def rigid(matrix: np.ndarray, pivot: np.ndarray | None = None) -> np.ndarray:
    """The rotation and shift (4, 4) nearest to an affine map (4, 4); `pivot` (3,) goes where the map takes it."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    turn = left @ right
    if np.linalg.det(turn) < 0:
        left[:, -1] *= -1
        turn = left @ right
    at = np.zeros(3) if pivot is None else pivot
    result = np.eye(4)
    result[:3, :3] = turn
    result[:3, 3] = matrix[:3, :3] @ at + matrix[:3, 3] - turn @ at
    return result
