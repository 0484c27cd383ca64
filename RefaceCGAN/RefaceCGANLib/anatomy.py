"""Anatomy: where the brain and the face of one scan are, from the scan alone.

A small network, trained on scans of random pose, field of view and contrast, says for every voxel whether it
is brain and roughly where it lies in the template. An affine map through these coordinates, then refined until
brain and skull lie on those of the average head, carries the template's face region into the scan. So the
region's inner surface is that of the average head and tells nothing about the person, but at the sides, where the
region is no larger than the ears of both. (The paper takes AFNI's registration for this: two minutes.)

Masks are bool in ASL order (`AslView`), on the native grid unless said otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CheckError
from .grid import (
    AslView,
    axes_matrix,
    bounding_box,
    dilate,
    erode,
    largest,
    largest_part,
    resample_axes,
    sample,
    shift,
    solid,
)
from .surface import skin_threshold

if TYPE_CHECKING:
    from torch import Tensor

    from .networks import AnatomyNetwork
    from .template import Template

SPACING = 2.0
"""mm; the anatomy grid, along the scan's own axes."""
BRAIN_MARGIN = 4
"""Voxels of the template grid (2 mm): the face region keeps this far from the brain mask, and from the
average brain, in case the mask misses a part."""
SHALLOW, DEEP_MARGIN = 1, 8
"""What lies more than so many voxels deep in the average head, and is no skin, keeps further away: emptied it
would hide nothing, and brain segmentations look at it."""
SKIN_DEPTH, SKIN_CLEFT = 2, 3
"""Voxels of the template grid: at least this much of the scan's own skin is in the face region, also in clefts, as
beside the nose, but for those narrower than twice the second."""
EAR_MM, EAR_Y_MM, EAR_Z_MM = 50.0, (-58.0, 12.0), (-80.0, 0.0)
"""Ears lie so far from the middle plane of the template, and between these y and z."""
EAR_THICK, EAR_LEAST, EAR_AROUND = 6, 20, 2
"""Voxels of the template grid: what is thinner than twice the first and at the side of a head is an ear, if it has
no fewer voxels than the second; so many around it are in the face region with it, and no others at the sides."""
ROUNDING = 1.0
"""Voxels of the template grid: takes the corners off the face region's border."""
SMOOTHING = 0.7
"""Voxels of the anatomy grid: takes the roughness off the brain probability."""
BRAIN_ML = (400.0, 2600.0)
"""A brain outside this range is no brain."""
SCALES = (0.6, 1.6)
"""Size of a head along any direction against the template's."""
STRETCH = 1.3
"""The head's largest scale against its smallest; 1.18 at most in 156 real heads."""
MISFIT_MM = 12.0
"""Mean distance between the network's coordinates and the affine map through them, at most."""
IN_VIEW = 0.5
"""Fraction of the average face that must lie in the field of view."""
OVERLAP = 0.8
"""Dice of the scan's brain with the average one after alignment, at least."""
EMPTIED = 0.25
"""A scan is already defaced where this fraction of the average face is empty to the bit (at most 0.002 in whole
heads, 0.46 and more in defaced ones)."""
STRIPPED, TISSUE = 0.85, 1.95
"""A scan of whose average face more than that fraction is empty, and whose tissue is not so many times its brain's
volume, is skull-stripped: 0.91 to 0.96 and 1.6 to 1.7; those that are defaced have 0.52 to 0.78, or 2.2 to 2.9."""
HOLE_REACH, HOLE_CLEFT, HOLE_RIM = 10, 6, 3
"""Voxels of the template grid. Emptied tissue so near to most of it belongs to the face that came off, and so do
clefts there (the second, as `solid` takes it); emptied air is painted but where kept tissue is nearer by more than
the third."""


@dataclass(frozen=True)
class Anatomy:
    """brain_mask, face_region: bool (A, S, L) on the native grid in ASL order.  to_template: (4, 4) ASL
    index -> template RAS mm.  skin: intensity where tissue begins (real values).  already_defaced: the scan came
    without a face, and face_region is what was emptied.  misfit_mm, in_view: how well the template fits, and
    how much of the average face the field of view holds (0..1)."""

    view: AslView
    brain_mask: np.ndarray
    face_region: np.ndarray
    to_template: np.ndarray
    skin: float
    already_defaced: bool
    misfit_mm: float
    in_view: float
    warnings: tuple[str, ...] = ()


def locate(
    values: np.ndarray, view: AslView, network: AnatomyNetwork, template: Template, defaced: str = "auto"
) -> Anatomy:
    """Find brain and face. values: real values (A, S, L) float32 in ASL order.

    `defaced`: "yes" or "no" where the caller knows whether the face has been removed, else "auto".
    Raises CheckError where there is no head, no brain, or no face in the field of view."""
    import torch
    from scipy import ndimage

    small = resample_axes(values, view.spacing, SPACING)
    probability, coordinates = _apply(network, small)
    brain = _main_part(probability > 0.5)
    volume_ml = float(brain.sum()) * SPACING**3 / 1000
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        raise CheckError(
            f"No brain was found (the best guess has {volume_ml:.0f} ml); give an MR scan of a whole head."
        )
    skin = skin_threshold(small, (SPACING,) * 3)
    guess, misfit = _fit(coordinates, small, template)
    brain_map, head = np.where(brain, probability, 0.0), small > skin
    small_to_template = _refine(guess, brain_map, head, template, with_face=False)

    background = values.min()
    empty = resample_axes(values == background, view.spacing, SPACING) > 0.5
    emptied = 0.0 if defaced == "no" else _emptied_share(empty, small_to_template, template)
    already = defaced == "yes" or emptied > EMPTIED
    if emptied > STRIPPED and np.count_nonzero(_main_part(head)) < TISSUE * np.count_nonzero(brain):
        raise CheckError("There is a brain but no head around it; give the scan as it was before skull stripping.")
    if not already:
        small_to_template = _refine(small_to_template, brain_map, head, template, with_face=True)
    scales = np.linalg.svd(small_to_template[:3, :3] / SPACING, compute_uv=False)
    if not (
        scales.min() > 1 / SCALES[1] and scales.max() < 1 / SCALES[0] and scales.max() < STRETCH * scales.min()
    ):
        raise CheckError("The scan does not look like a head; give an MR scan of a whole head.")
    to_template = small_to_template @ np.linalg.inv(axes_matrix(view.spacing, SPACING))
    brain_map = _agreed(probability, small_to_template, template)

    grid_to_small = np.linalg.inv(small_to_template) @ template.affine
    shape = template.mean.shape
    stacked = np.stack([small, np.ones_like(small), brain_map])
    scan, valid, near_brain = sample(torch.from_numpy(stacked.astype(np.float32)), grid_to_small, shape)
    seen, tissue = valid > 0.99, scan > skin
    average_face = torch.from_numpy(template.head & template.face_region)
    front = torch.from_numpy(template.face_region & template.window)
    in_view = float((seen & average_face).sum() / average_face.sum())
    if in_view < IN_VIEW:
        raise CheckError(
            f"Only {in_view:.0%} of the face lies in the field of view; give a scan that shows all of it."
        )

    average_brain = torch.from_numpy(template.brain.astype(np.float32)) > 0.5
    here = near_brain > 0.5
    overlap = 2 * float((here & average_brain & seen).sum()) / float(here.sum() + (average_brain & seen).sum())
    if overlap < OVERLAP:
        raise CheckError("The scan does not look like a head; give an MR scan of a whole head.")
    native_shape = values.shape
    brain_native = resample_axes(brain_map, (SPACING,) * 3, view.spacing, native_shape) > 0.5
    template_index = np.linalg.inv(template.affine) @ to_template
    if already:
        was_emptied = sample(torch.from_numpy(empty.astype(np.float32))[None], grid_to_small, shape)[0] > 0.5
        near_face = dilate(front, 10) & _before_hole(was_emptied, tissue, template)
        region = _carry(near_face.float(), template_index, native_shape) & (values == background)
        region = _closed(region, view) & ~brain_native
        if not region.any():
            raise CheckError("The scan was called defaced, but nothing in its face is empty; use --defaced no.")
    else:
        air, brain_there = ~solid(tissue | ~seen, SKIN_CLEFT), here | average_brain
        shallow = dilate(~torch.from_numpy(template.head), SHALLOW)
        wanted = torch.from_numpy(template.face_region) & (shallow | ~dilate(brain_there, DEEP_MARGIN))
        wanted |= torch.from_numpy(template.window) & dilate(air, SKIN_DEPTH)
        beside = _beside(template)
        wanted &= torch.from_numpy(~beside) | dilate(_ears(tissue, beside, template), EAR_AROUND)
        wanted &= ~dilate(brain_there, BRAIN_MARGIN)
        wanted |= _cut_ears(tissue, wanted, template)
        rounded = ndimage.gaussian_filter(wanted.float().numpy(), ROUNDING)
        region = _carry(torch.from_numpy(rounded), template_index, native_shape) & ~brain_native
    warnings = []
    if in_view < 0.9:
        warnings.append(f"{1 - in_view:.0%} of the face lies outside the field of view and was left as it is.")
    return Anatomy(
        view=view,
        brain_mask=brain_native,
        face_region=region,
        to_template=to_template,
        skin=skin,
        already_defaced=already,
        misfit_mm=misfit,
        in_view=in_view,
        warnings=tuple(warnings),
    )


def _beside(template: Template) -> np.ndarray:
    """Where ears may be, bool (A, S, L) on the template grid."""
    x, y, z = _coordinates(template)
    (back, front), (low, high) = EAR_Y_MM, EAR_Z_MM
    beside: np.ndarray = (np.abs(x) > EAR_MM) & (back < y) & (y < front) & (low < z) & (z < high)
    return beside


def _coordinates(template: Template) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (1, 1, L), y (A, 1, 1) and z (1, S, 1) of the template grid in mm."""
    to_mm, (a, s, left) = template.affine, np.ogrid[tuple(slice(n) for n in template.head.shape)]
    return to_mm[0, 2] * left + to_mm[0, 3], to_mm[1, 0] * a + to_mm[1, 3], to_mm[2, 1] * s + to_mm[2, 3]


def _ears(tissue: Tensor, beside: np.ndarray, template: Template) -> Tensor:
    """The ears of the scan and of the average head, bool (A, S, L) on the template grid. tissue: of the scan.
    beside: where ears may be."""
    import torch
    from scipy import ndimage

    box = tuple(slice(max(0, at.start - 2 * EAR_THICK), at.stop + 2 * EAR_THICK) for at in bounding_box(beside))
    ears = np.zeros_like(beside)
    for head in (ndimage.binary_fill_holes(tissue.numpy()), template.head):
        ears[box] |= beside[box] & _thin(head[box])
    labels, _ = ndimage.label(ears)
    ears &= (np.bincount(labels.ravel()) >= EAR_LEAST)[labels]
    return torch.from_numpy(ears)


def _thin(head: np.ndarray) -> np.ndarray:
    """What of a bool mask (A, S, L), which goes on beyond the array, no ball of radius `EAR_THICK` fits in."""
    from scipy.ndimage import distance_transform_edt

    padded = np.pad(head, EAR_THICK + 2, mode="edge")
    reached = distance_transform_edt(distance_transform_edt(padded) <= EAR_THICK) <= EAR_THICK
    inside = slice(EAR_THICK + 2, -EAR_THICK - 2)
    thin: np.ndarray = head & ~reached[inside, inside, inside]
    return thin


def _cut_ears(tissue: Tensor, region: Tensor, template: Template) -> Tensor:
    """What would be left of the ears, bool (A, S, L) on the template grid: an ear hangs on its front, and without
    that is loose. tissue: of the scan.  region: the face region so far."""
    import torch
    from scipy import ndimage

    labels, count = ndimage.label((tissue & ~region).numpy())
    if count < 2:
        return torch.zeros_like(region)
    head = largest(labels)
    side = np.abs(_coordinates(template)[0]) > EAR_MM
    touched = np.unique(labels[dilate(region, 1).numpy() & side])
    loose = torch.from_numpy(np.isin(labels, touched[(touched > 0) & (touched != head)]))
    return dilate(loose, EAR_AROUND) & torch.from_numpy(labels != head)


def _before_hole(emptied: Tensor, tissue: Tensor, template: Template) -> Tensor:
    """What a face that came off left empty, and the air in front of that but not of kept skin: bool (A, S, L) on
    the template grid. emptied, tissue: of the scan; its air may be empty to the bit, too."""
    import torch
    from scipy.ndimage import distance_transform_edt

    missing = emptied & torch.from_numpy(template.head)
    if not missing.any():
        return missing
    hole = torch.from_numpy(largest_part(missing.numpy()))
    hole |= emptied & dilate(hole, HOLE_REACH) & (missing | solid(tissue | hole, HOLE_CLEFT))
    to_hole, to_kept = (distance_transform_edt(~part.numpy()) for part in (hole, tissue & ~hole))
    return torch.from_numpy(to_hole <= to_kept + HOLE_RIM)


def _emptied_share(empty: np.ndarray, small_to_template: np.ndarray, template: Template) -> float:
    """The fraction of the average face's tissue in view that is empty (bool, index of the 2 mm scan)."""
    import torch

    core = erode(torch.from_numpy(template.head & template.face_region), 2)
    stacked = torch.from_numpy(np.stack([empty, np.ones_like(empty)]).astype(np.float32))
    emptied, seen = sample(stacked, np.linalg.inv(small_to_template) @ template.affine, template.mean.shape)
    core &= seen > 0.99
    return float((core & (emptied > 0.5)).sum()) / max(1, int(core.sum()))


def _apply(network: AnatomyNetwork, small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brain probability (A, S, L) and template coordinates (3, A/2, S/2, L/2) in mm of a 2 mm scan."""
    import torch

    padding = [(0, -length % network.multiple) for length in small.shape]
    scan = torch.from_numpy(np.pad(small, padding))[None, None]
    with torch.inference_mode(), bfloat16(scan.device):
        logits, coordinates = network(scale_input(scan))
    a, s, length = small.shape
    probability = torch.sigmoid(logits[0, 0, :a, :s, :length]).numpy()
    return probability, (coordinates[0] * 100).numpy()


def scale_input(image: Tensor) -> Tensor:
    """The intensity rule of the anatomy network: 99th percentile of the voxels to 1, at most 1.5."""
    import torch

    some = image[..., ::2, ::2, ::2].flatten()
    high = torch.topk(some, max(1, some.numel() // 100)).values[-1].clamp(min=1e-6)
    return (image / high).clamp(0, 1.5)


def _fit(coordinates: np.ndarray, small: np.ndarray, template: Template) -> tuple[np.ndarray, float]:
    """The affine map (4, 4) index of `small` -> template mm that fits the network's coordinates best, and the
    mean distance left. Voxels that the map misses by much count less (Tukey's biweight)."""
    import torch

    blocks = tuple(length // 2 for length in small.shape)
    a, s, length = blocks
    points = coordinates[:, :a, :s, :length].reshape(3, -1).T
    index = np.stack(np.meshgrid(*[2 * np.arange(n) + 0.5 for n in blocks], indexing="ij"), -1).reshape(-1, 3)
    tissue = small[: 2 * a : 2, : 2 * s : 2, : 2 * length : 2].reshape(-1)
    inside = template.sample(template.head, torch.from_numpy(points)).numpy() > 0.5
    use = inside & (tissue > 0.1 * np.percentile(small, 99))
    if use.sum() < 1000:
        raise CheckError("No head was found in the scan; give an MR scan of a whole head.")
    x = np.c_[index[use], np.ones(int(use.sum()))].astype(np.float64)
    y = points[use].astype(np.float64)
    weight = np.ones(len(x))
    for _ in range(4):
        solution = np.linalg.solve((x * weight[:, None]).T @ x, (x * weight[:, None]).T @ y)
        distance = np.linalg.norm(x @ solution - y, axis=1)
        limit = 4.0 * np.median(distance) + 1e-6
        weight = np.clip(1 - (distance / limit) ** 2, 0, None) ** 2
    matrix = np.eye(4)
    matrix[:3] = solution.T
    misfit = float(distance.mean())
    if misfit > MISFIT_MM:
        raise CheckError("The scan does not look like a head; give an MR scan of a whole head.")
    return matrix, misfit


def _agreed(probability: np.ndarray, small_to_template: np.ndarray, template: Template) -> np.ndarray:
    """The brain probability once the scan is aligned: what the network saw and how often the average head has
    brain there, as independent evidence (their log odds add up). Zero away from the largest part."""
    import torch
    from scipy import ndimage

    average = torch.from_numpy(template.brain.astype(np.float32))[None]
    index = np.linalg.inv(template.affine) @ small_to_template
    prior = sample(average, index, probability.shape)[0].numpy().clip(1e-3, 1 - 1e-3)
    seen = ndimage.gaussian_filter(probability, SMOOTHING).clip(1e-3, 1 - 1e-3)
    odds = seen / (1 - seen) * prior / (1 - prior)
    both = odds / (1 + odds)
    near = ndimage.binary_dilation(_main_part(both > 0.5))
    return np.where(near, both, 0.0).astype(np.float32)


def _refine(
    guess: np.ndarray, brain: np.ndarray, head: np.ndarray, template: Template, with_face: bool
) -> np.ndarray:
    """Improve the map (4, 4) index of the 2 mm scan -> template mm: brain and skull onto the average ones.

    Gauss-Newton on the differences of two soft masks, brain and head, at 4 mm, first strongly smoothed, then
    less. Masks and not intensities, so any contrast works; the neck does not count. With the face, the map is
    affine; without (a scan that may have none), a rotation, a shift and one scale."""
    import torch
    from torch.nn import functional

    def soft(*masks: np.ndarray | Tensor) -> Tensor:
        stacked = torch.stack([torch.as_tensor(mask).float() for mask in masks])
        return functional.avg_pool3d(stacked[None], 2)[0]

    def blur(maps: Tensor, times: int) -> Tensor:
        for _ in range(times):
            maps = functional.avg_pool3d(maps[None], 3, 1, 1, count_include_pad=False)[0]
        return maps

    moving = soft(brain, head, np.ones(head.shape, dtype=np.float32))
    fixed = soft(template.brain, template.head)
    every = np.diag([2.0, 2.0, 2.0, 1.0])  # of the 4 mm voxels, every other one along each axis is compared
    shape = tuple(n // 2 for n in fixed.shape[1:])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    halved = np.diag([2.0, 2.0, 2.0, 1.0]) @ shift(0.25, 0.25, 0.25)  # 4 mm index -> 2 mm index
    to_mm = template.affine @ halved @ every
    points = np.c_[index, np.ones(len(index))] @ to_mm.T
    away = soft(dilate(torch.from_numpy(template.face_region & template.head), 4))[0, ::2, ::2, ::2]
    skull = (points[:, 2] > -70) & (away.reshape(-1).numpy() < 0.01)
    if with_face:
        skull |= (points[:, 2] > -125) & (points[:, 1] > 0)
    mapping = np.linalg.inv(guess @ halved)  # template mm -> 4 mm index
    if not with_face:  # brain and skull alone would stretch a face they do not hold
        mapping = _similarity(mapping)
    scaled = points / np.array([100.0, 100.0, 100.0, 1.0])  # parameters of like size
    for times, rounds in ((4, 8), (1, 8)):
        maps, target = blur(moving[:2], times), blur(fixed, times)[:, ::2, ::2, ::2].reshape(2, -1).numpy()
        gradients = torch.stack([torch.stack(torch.gradient(image)) for image in maps]).reshape(6, *maps.shape[1:])
        stack = torch.cat([maps, gradients, moving[2:]])
        for _ in range(rounds):
            at = sample(stack, mapping @ to_mm, tuple(shape)).reshape(9, -1).numpy()
            weights = np.stack([at[8] > 0.99, (at[8] > 0.99) & skull]).astype(np.float64)
            normal, right = np.zeros((12, 12)), np.zeros(12)
            for image in range(2):
                use = weights[image] > 0
                slope = at[2 + 3 * image : 5 + 3 * image, use].T
                jacobian = (slope[:, :, None] * scaled[use][:, None, :]).reshape(-1, 12)
                normal += jacobian.T @ jacobian
                right += jacobian.T @ (target[image, use] - at[image, use])
            damping = 1e-3 * np.trace(normal) / 12
            normal += damping * np.eye(12)
            free = np.eye(12) if with_face else _similar_steps(mapping)
            step = (free @ np.linalg.solve(free.T @ normal @ free, free.T @ right)).reshape(3, 4)
            mapping[:3] += step / np.array([100.0, 100.0, 100.0, 1.0])
            if np.abs(step).max() < 0.01:
                break
    return np.asarray(np.linalg.inv(halved @ mapping))


def _similarity(mapping: np.ndarray) -> np.ndarray:
    """The rotation, shift and single scale (4, 4) nearest to an affine map; the template's origin stays put."""
    left, scales, right = np.linalg.svd(mapping[:3, :3])
    result = mapping.copy()
    result[:3, :3] = scales.mean() * left @ right
    return result


def _similar_steps(mapping: np.ndarray) -> np.ndarray:
    """How the entries of a map (as `_refine` scales them) change with a small rotation about each axis, a
    small change of scale, and a shift along each axis: (12, 7)."""
    steps = np.zeros((7, 3, 4))
    for axis in range(3):
        i, j = (k for k in range(3) if k != axis)
        steps[axis, i, :3], steps[axis, j, :3] = -mapping[j, :3], mapping[i, :3]
        steps[4 + axis, axis, 3] = 1.0
    steps[3, :, :3] = mapping[:3, :3]
    return (steps * np.array([100.0, 100.0, 100.0, 1.0])).reshape(7, 12).T


def _carry(grid_mask: Tensor, template_index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of the template grid on the native grid: bool (A, S, L); skips slabs it does not reach."""
    first = int(np.flatnonzero(grid_mask.numpy().any((1, 2)))[0]) - 1
    corners = np.array([[a, s, k, 1.0] for a in (0, shape[0] - 1) for s in (0, shape[1]) for k in (0, shape[2])])
    behind = (corners @ template_index.T)[:, 0].reshape(2, -1).max(axis=1)
    start = 0
    if behind[0] < first < behind[1]:  # the A index grows along the scan: leave out what lies behind the face
        start = int((first - behind[0]) / (behind[1] - behind[0]) * (shape[0] - 1))
    result = np.zeros(shape, dtype=bool)
    part = (shape[0] - start, *shape[1:])
    result[start:] = (
        sample(grid_mask[None], template_index @ shift(start, 0, 0), part, "border")[0] > 0.5
    ).numpy()
    return result


def _main_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a bool mask, its holes filled."""
    from scipy import ndimage

    filled: np.ndarray = ndimage.binary_fill_holes(largest_part(mask))
    return filled


def _closed(mask: np.ndarray, view: AslView) -> np.ndarray:
    """The paper's closing of the emptied voxels (section 2.2): gaps of up to 2 mm, without growing."""
    import torch

    voxels = max(1, round(1.0 / min(view.spacing)))
    closed: np.ndarray = erode(dilate(torch.from_numpy(mask), voxels), voxels).numpy()
    return closed


def bfloat16(device: object) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the processor computes in it, else nothing."""
    import torch

    kind = torch.device(str(device)).type
    if kind == "cuda" or (kind == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()
