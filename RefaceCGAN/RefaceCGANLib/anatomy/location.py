"""Anatomy: where the brain and the face of one scan are, from the scan alone.

A small network, trained on scans of random pose, field of view and contrast, says for every voxel whether it
is brain and roughly where it lies in the template. An affine map through these coordinates, then refined until
brain and skull lie on those of the average head, carries the template's face region into the scan. The region
follows the scan's own skin, goes down to the bone of the forehead, keeps away from the brain, and has the ears of
the scan and of the average head. (The paper takes AFNI's registration for this: two minutes.)

Masks are bool in ASL order (`AslView`), on the native grid unless said otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckError
from ..rendering.skin_surface import skin_threshold
from ..spatial.grid import (
    AslView,
    axes_matrix,
    bounding_box,
    dilate,
    erode,
    largest,
    largest_part,
    mapped,
    resample_axes,
    sample,
    shift,
    smooth,
    solid,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..face_model.template import Template
    from ..generation.networks import AnatomyNetwork, BrainNetwork

SPACING = 2.0
"""mm; the anatomy grid, along the scan's own axes."""
BRAIN_MARGIN = 4
"""Voxels of the template grid (2 mm): the face region keeps this far from both networks' brain masks, from the
average brain, and from the mirror image of all three, in case they miss a part."""
SHALLOW, DEEP_MARGIN = 1, 8
"""Voxels of the template grid. Tissue deeper in the average head than the first (which is no skin) stays further
from the brain than the second: emptied it would hide nothing, and brain segmentations look at it."""
SKIN_DEPTH, SKIN_CLEFT = 2, 3
"""Voxels of the template grid: at least this much of the scan's own skin is in the face region, also in clefts, as
beside the nose, but for those narrower than twice the second."""
SCALP_DEPTH, FREE = 2, 0.2
"""Voxels of the template grid that the face region goes deeper where it ends in tissue: without bone between, that
is scalp; and the weight of a random shape above which it does."""
EAR_MM, EAR_Y_MM, EAR_Z_MM = 50.0, (-58.0, 12.0), (-80.0, 0.0)
"""Ears lie so far from the middle plane of the template, and between these y and z."""
EAR_THICK, EAR_LEAST, EAR_AROUND = 6, 20, 2
"""Voxels of the template grid. At the side of a head, what is thinner than twice the first is an ear, if it has at
least as many voxels as the second; the third is how far around it the face region goes."""
ROUNDING = 1.0
"""Voxels of the template grid: takes the corners off the face region's border."""
SMOOTHING = 0.7
"""Voxels of the anatomy grid: takes the roughness off the brain probability."""
LEVEL_SIGMA, LEVEL_TO, LEAST_LEVEL = 12.0, 0.6, 0.01
"""`scale_input`: sigma of the Gaussian in voxels of 2 mm; the value of tissue at the local level; the least local
level as a share of the highest, so that noise in the air stays noise."""
CONTRAST_SIGMA, LEAST_SPREAD = 6.0, 2e-4
"""`contrast_input`: sigma of the Gaussian in voxels of 4 mm, and the least spread, so that what is flat stays
flat."""
AIR_PERCENTILE = 0.1
"""Of all voxels: the level of air. Not the minimum, as single voxels may be broken."""
BRAIN_ML = (150.0, 2600.0)
"""A brain outside this range is no brain; newborns have 250 ml, and the field of view may cut some off."""
BRAIN_MM = (50.0, 250.0)
"""Extent of a brain in view along each axis of the scan."""
SCALES = (0.5, 1.6)
"""Size of a head against the template's."""
STRETCH = 1.12
"""The affine map may stretch a head by this against its similarity map along any direction; 1.09 at most in 156
real heads. Beyond, it has been misled, by what is not in view or not there, and the similarity map is kept."""
FACE_MOVED_MM = 14.0
"""The affine fit places the face no further than this from where the similarity fit has it (12 mm on the heads at
hand): further away it has followed something before the face."""
MISFIT_MM = 12.0
"""Mean distance between the network's coordinates and the affine map through them, at most."""
IN_VIEW = 0.5
"""Fraction of the average face that must lie in the field of view."""
OVERLAP = 0.75
"""Dice of the scan's brain with the average one after alignment, at least."""
SKULL_MM, SKULL_LAYERS, NO_SKULL = 2.0, 13, 0.92
"""The skull is looked for in layers under the skin: thickness of a layer in mm, number of layers, and a
ratio. Where the darkest layer has more than that ratio of the brightness of the layers on both sides, there
is no skull: 0.14 to 0.90 in heads of eight contrasts, also with slices of 5.5 mm; 0.93 to 1.03 in stripped
brains and phantoms."""
FULL = 0.68
"""Share of the scan that is brighter than its skin from which on that is noise where there is no signal."""
EMPTIED = 0.25
"""A scan is already defaced where this fraction of the average face is constant (at most 0.002 in whole heads,
0.46 and more in defaced ones)."""
HOLE_REACH, HOLE_CLEFT, HOLE_RIM = 10, 6, 3
"""Voxels of the template grid. Emptied tissue within the first of the largest emptied part belongs to the face
that came off, and so do clefts there (the second, as `solid` takes it); emptied air is painted unless kept tissue
is nearer by more than the third."""
DISAGREE_ML = 0.5
"""Brain that the second opinion finds in the face region, at most: with more, one of the two is wrong."""
AGREE = 0.7
"""Dice of the two brain masks, at least."""
WRAP_SHARE, WRAP_ML, WRAP_MM, WRAP_SAME = 0.002, 0.2, 8.0, 0.5
"""Wrap-around: the share of the average face beyond an end of the field of view from which on it is looked for at
the opposite end; the least volume and extent of a part of a face there; and the share of the head in the last
slice that must be in the first, too."""


@dataclass(frozen=True)
class Anatomy:
    """What `locate` found. Masks are bool (A, S, L) on the native grid in ASL order.

    brain_mask: the brain. face_region: what is emptied and generated. second_brain: the second opinion on the
    brain, eroded by 2 mm. to_template: (4, 4) ASL index -> template RAS mm. skin: intensity above air where
    tissue begins (real values). already_defaced: the scan came without a face, or with part of one. misfit_mm,
    in_view: how well the template fits, and how much of the average face the field of view holds (0..1).
    disputed_ml: brain by the second opinion in what would be the face region; none of it is left there.
    agreement: Dice of the two brain masks."""

    view: AslView
    brain_mask: np.ndarray
    face_region: np.ndarray
    to_template: np.ndarray
    skin: float
    already_defaced: bool
    misfit_mm: float
    in_view: float
    second_brain: np.ndarray
    disputed_ml: float
    agreement: float
    warnings: tuple[str, ...] = ()


def air_level(values: np.ndarray) -> float:
    """The level of air in a scan of real values (any shape). Stages after `locate` see the scan above this
    level."""
    return float(np.percentile(values, AIR_PERCENTILE))


def locate(
    values: np.ndarray,
    view: AslView,
    network: AnatomyNetwork,
    second: BrainNetwork,
    template: Template,
    defaced: str = "auto",
) -> Anatomy:
    """Find brain and face. values: (A, S, L) float32 in ASL order, real values above `air_level`.

    `defaced`: "yes" or "no" where the caller knows whether the face has been removed, else "auto".
    Raises CheckError where there is no head, no brain, or no face in the field of view, or where the two opinions
    on the brain are far apart."""
    import torch
    from scipy import ndimage

    small = resample_axes(values, view.spacing, SPACING)
    probability, coordinates = apply_network(network, small)
    brain = main_part(probability > 0.5)
    _check_brain(brain)
    second_small = main_part(_second_opinion(second, small))
    agreement = _dice(brain, second_small)

    level, everything = tissue_threshold(small)
    noisy_air = float(everything.mean()) > FULL
    head = largest_part(everything)
    guess, misfit = fit(coordinates, head, template)
    brain_map = np.where(brain, probability, 0.0)
    outline = None if noisy_air else head
    similarity = refine(guess, brain_map, outline, template, with_face=False)
    _check_size(similarity)
    if not noisy_air:
        _check_skull(head, brain, small / level)
    if agreement < AGREE:
        raise CheckError(
            f"Two segmentations of the brain do not agree (Dice {agreement:.2f} of at least {AGREE}); "
            "give an MR scan of a whole head with less artefact."
        )
    constant = _constant(values)
    empty = resample_axes(constant, view.spacing, SPACING) > 0.5
    already = defaced == "yes" or (defaced == "auto" and _emptied_share(empty, similarity, template) > EMPTIED)
    small_to_template = similarity
    if not already and not noisy_air:
        affine = refine(similarity, brain_map, outline, template, with_face=True)
        moved = face_moved(similarity, affine, (SPACING,) * 3, template)
        if stretch(similarity, affine) < STRETCH and moved < FACE_MOVED_MM:
            small_to_template = affine
    to_template = small_to_template @ np.linalg.inv(axes_matrix(view.spacing, SPACING))
    brain_map = _agreed(probability, small_to_template, template)

    grid_to_small = np.linalg.inv(small_to_template) @ template.affine
    shape = template.mean.shape
    stacked = np.stack([head, np.ones_like(small), brain_map, second_small])
    scan, valid, first, second_brain = sample(torch.from_numpy(stacked.astype(np.float32)), grid_to_small, shape)
    seen, tissue = valid > 0.99, scan > 0.5
    average_head = torch.from_numpy(template.head)
    if noisy_air:
        tissue = average_head
    in_view = _face_in_view(seen, template)
    here, average_brain = first > 0.5, torch.from_numpy(template.brain.astype(np.float32)) > 0.5
    overlap = 2 * float((here & average_brain & seen).sum()) / float(here.sum() + (average_brain & seen).sum())
    if overlap < OVERLAP:
        raise CheckError("The scan does not look like a head; give an MR scan of a whole head.")

    native = values.shape
    brain_native = resample_axes(brain_map, (SPACING,) * 3, view.spacing, native) > 0.5
    sure = ndimage.binary_erosion(second_small, border_value=1)  # its grid is coarse
    second_native = resample_axes(sure, (SPACING,) * 3, view.spacing, native) > 0.5
    template_index = np.linalg.inv(template.affine) @ to_template
    first_alone = here | average_brain
    wanted = [
        _wanted(tissue, seen, brain, template) for brain in (first_alone | (second_brain > 0.5), first_alone)
    ]
    if already:
        was_emptied = sample(torch.from_numpy(empty.astype(np.float32))[None], grid_to_small, shape)[0] > 0.5
        front = torch.from_numpy(template.face_region & template.window)
        wanted.append((dilate(front, 10) & _before_hole(was_emptied, tissue, template)).float())
    region, of_first_alone, *holes = _carry(torch.stack(wanted), template_index, native)
    for hole in holes:
        region |= _closed(hole & constant, view)
    region |= _wrapped(everything, head, small_to_template, template, view, native)
    region &= ~brain_native
    voxel_ml = float(np.prod(view.spacing)) / 1000
    disputed_ml = float(np.count_nonzero(of_first_alone & second_native & ~brain_native)) * voxel_ml
    region &= ~second_native
    warnings = []
    if in_view < 0.9:
        warnings.append(f"{1 - in_view:.0%} of the face lies outside the field of view and was left as it is.")
    return Anatomy(
        view=view,
        brain_mask=brain_native,
        face_region=region,
        to_template=to_template,
        skin=_skin(small, level, head, to_template, view, template, already),
        already_defaced=already,
        misfit_mm=misfit,
        in_view=in_view,
        second_brain=second_native,
        disputed_ml=disputed_ml,
        agreement=agreement,
        warnings=tuple(warnings),
    )


def _wanted(tissue: Tensor, seen: Tensor, brain: Tensor, template: Template) -> Tensor:
    """The face region on the template grid, float (A, S, L), above 0.5 inside. tissue: of the scan, bool; seen: in
    its field of view; brain: the scan's and the average brain."""
    import torch
    from scipy import ndimage

    air = ~solid(tissue | ~seen, SKIN_CLEFT)
    shallow = dilate(~torch.from_numpy(template.head), SHALLOW)
    wanted = torch.from_numpy(template.face_region) & (shallow | ~dilate(brain, DEEP_MARGIN))
    window = torch.from_numpy(template.window)
    wanted |= window & dilate(air, SKIN_DEPTH)
    beside = beside_head(template)
    # a lesion or the receive bias may hide a part of the brain on one side
    brain = brain | _mirrored(brain, template)
    wanted &= torch.from_numpy(~beside) | dilate(_ears(tissue | brain, beside, template), EAR_AROUND)
    # down to the bone: what is kept of the scalp would be a second skin under the painted one
    face = torch.from_numpy(template.weight > FREE) & dilate(air, SKIN_DEPTH + SCALP_DEPTH)
    scalp = ndimage.binary_dilation(
        (wanted & face).numpy(), iterations=SCALP_DEPTH, mask=(wanted | tissue & face).numpy()
    )
    near_brain = dilate(brain, BRAIN_MARGIN)
    wanted = (wanted | torch.from_numpy(scalp)) & ~near_brain
    wanted |= _cut_ears(tissue, wanted, template) & ~near_brain
    return torch.from_numpy(ndimage.gaussian_filter(wanted.float().numpy(), ROUNDING))


def _mirrored(mask: Tensor, template: Template) -> Tensor:
    """A mask (A, S, L; bool) on the template grid, mirrored at the middle plane of the template."""
    to_index = np.linalg.inv(template.affine)
    mirror = to_index @ np.diag([-1.0, 1.0, 1.0, 1.0]) @ template.affine
    return sample(mask.float()[None], mirror, tuple(mask.shape))[0] > 0.5


def _face_in_view(seen: Tensor, template: Template) -> float:
    """The share of the average face that lies in the field of view. seen: bool (A, S, L) on the template grid.

    Raises CheckError, which names the parts that are missing, where it is less than `IN_VIEW`."""
    import torch

    face = torch.from_numpy(template.head & template.face_region & template.window)
    in_view = float((seen & face).sum() / face.sum())
    if in_view < IN_VIEW:
        z = torch.from_numpy(_coordinates(template)[2]).expand(face.shape)
        parts = {"eyes": (-45, -15), "nose": (-70, -45), "mouth": (-90, -70), "chin": (-130, -90)}
        missing = []
        for name, (low, high) in parts.items():
            part = face & (low <= z) & (z < high)
            if float((seen & part).sum()) < 0.5 * float(part.sum()):
                missing.append(name)
        raise CheckError(
            f"Only {in_view:.0%} of the face lies in the field of view (not in it: "
            f"{', '.join(missing) or 'its front'}); give a scan that shows all of it."
        )
    return in_view


def stretch(one: np.ndarray, other: np.ndarray) -> float:
    """The factor, 1 or more, by which a map (4, 4) stretches or shrinks most against another."""
    factors = np.linalg.svd(other[:3, :3] @ np.linalg.inv(one[:3, :3]), compute_uv=False)
    return float(max(factors.max(), 1 / factors.min()))


def face_moved(
    one: np.ndarray, other: np.ndarray, spacing: tuple[float, float, float], template: Template
) -> float:
    """How far apart (root mean square, mm) two maps (4, 4) place the average face: index of a scan with voxels
    of `spacing` mm -> template mm."""
    face = mapped(np.argwhere(template.face_region & template.window & template.head), template.affine)
    apart = (mapped(face, np.linalg.inv(one)) - mapped(face, np.linalg.inv(other))) * np.array(spacing)
    return float(np.sqrt(np.mean(np.sum(apart**2, axis=1))))


def _check_brain(brain: np.ndarray) -> None:
    """Raise CheckError unless a brain mask (A, S, L) at 2 mm has the volume and the extent of a brain."""
    volume_ml = float(np.count_nonzero(brain)) * SPACING**3 / 1000
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        raise CheckError(
            f"No brain was found (the best guess has {volume_ml:.0f} ml); give an MR scan of a whole head. "
            "Echo-planar and diffusion images show too little of a face to replace it; refacecgan dataset empties "
            "them with the face region of a T1-weighted scan of the same person."
        )
    extent = [SPACING * (span.stop - span.start) for span in bounding_box(brain)]
    if min(extent) < BRAIN_MM[0] or max(extent) > BRAIN_MM[1]:
        size = " x ".join(f"{mm:.0f}" for mm in extent)
        raise CheckError(f"What was found has {size} mm, which is no brain; give an MR scan of a whole head.")


def _size(small_to_template: np.ndarray) -> float:
    """The size of a head against the template's, from the map (4, 4) index of the 2 mm scan -> template mm."""
    return float(1 / np.cbrt(abs(np.linalg.det(small_to_template[:3, :3] / SPACING))))


def _check_size(small_to_template: np.ndarray) -> None:
    scale = _size(small_to_template)
    if not SCALES[0] < scale < SCALES[1]:
        raise CheckError("The scan does not look like a head; give an MR scan of a whole head.")


def _check_skull(head: np.ndarray, brain: np.ndarray, scaled: np.ndarray) -> None:
    """Raise CheckError where no dark layer, the skull, lies between the skin and what is deeper.

    Looked for in the upper half of the head, from the skin inwards, whatever was taken for the brain. head, brain:
    bool (A, S, L) at 2 mm.  scaled: the scan over the local tissue level, same shape."""
    from scipy import ndimage

    middle = int(np.argwhere(brain)[:, 1].mean())
    first = max(0, bounding_box(brain)[1].start)
    whole = (head | brain)[:, min(first, middle) :]
    for slices in (whole.transpose(1, 0, 2), whole):  # axial and coronal: there the scalp is a closed ring
        for part in slices:
            part |= ndimage.binary_fill_holes(part)
    depth = ndimage.distance_transform_edt(np.pad(whole, 1, mode="edge"))[1:-1, 1:-1, 1:-1] * SPACING
    upper = slice(middle - min(first, middle), None)
    depth, values = depth[:, upper], scaled[:, middle:]
    layers = [values[(SKULL_MM * n < depth) & (depth <= SKULL_MM * (n + 1))] for n in range(SKULL_LAYERS)]
    profile = np.array([np.median(layer) for layer in layers if len(layer) > 50])
    brighter = [np.minimum(profile[:n].max(), profile[n + 1 :].max()) for n in range(1, len(profile) - 1)]
    dips = profile[1:-1] / np.array(brighter)
    if dips.min(initial=1.0) > NO_SKULL:
        raise CheckError(
            "There is no skull around what looks like a brain, so this is a brain without a head, or no head; "
            "give an MR scan of a whole head, as it was before skull stripping."
        )


def _second_opinion(network: BrainNetwork, small: np.ndarray) -> np.ndarray:
    """The brain by a second network, from a coarser scan, another intensity rule and without the template:
    bool (A, S, L) of the 2 mm scan `small`."""
    import torch
    from torch.nn import functional

    shape = small.shape
    padded = np.pad(small, [(0, length % 2) for length in shape], mode="edge")
    coarse = functional.avg_pool3d(torch.from_numpy(padded)[None, None], 2)
    padding = [side for length in reversed(coarse.shape[2:]) for side in (0, -length % network.multiple)]
    with torch.inference_mode():
        logits = network(functional.pad(contrast_input(coarse), padding))
        a, s, length = coarse.shape[2:]
        fine = functional.interpolate(
            logits[:, :, :a, :s, :length], scale_factor=2.0, mode="trilinear", align_corners=False
        )
    return (fine[0, 0].numpy() > 0)[: shape[0], : shape[1], : shape[2]]


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    """The Dice overlap of two bool masks of one shape."""
    together = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * float(np.count_nonzero(one & other)) / max(1, together)


def tissue_threshold(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The threshold of tissue at every voxel of the 2 mm scan, in its own intensity, and what is brighter: the
    head and what else there is. Both (A, S, L). The threshold follows the receive bias."""
    import torch

    scan = torch.from_numpy(small)[None, None]
    scaled, level = scale_input(scan)[0, 0].numpy(), tissue_level(scan[0, 0]).numpy() / LEVEL_TO
    threshold = skin_threshold(scaled, (SPACING,) * 3)
    return threshold * level, scaled > threshold


def _skin(
    small: np.ndarray,
    level: np.ndarray,
    head: np.ndarray,
    to_template: np.ndarray,
    view: AslView,
    template: Template,
    defaced: bool,
) -> float:
    """The intensity where the tissue of the face begins: the scan's threshold, or that at the face where receive
    bias makes the face darker. small, level, head: (A, S, L) at 2 mm (`tissue_threshold`)."""
    import torch

    matrix = np.linalg.inv(template.affine) @ to_template @ axes_matrix(view.spacing, SPACING)
    face = torch.from_numpy((template.face_region & template.window & template.head).astype(np.float32))[None]
    there = (sample(face, matrix, small.shape)[0].numpy() > 0.5) & head
    everywhere = skin_threshold(small, (SPACING,) * 3)
    return min(everywhere, float(np.median(level[there]))) if there.any() and not defaced else everywhere


def _constant(values: np.ndarray) -> np.ndarray:
    """Where a scan (A, S, L) is constant: voxels equal to both neighbours along each axis, bool (A, S, L). Noise
    is never constant, so this is what a program has emptied or padded, whatever value it wrote there."""
    constant = np.ones(values.shape, dtype=bool)
    for axis in range(3):
        moved, flat = np.moveaxis(values, axis, 0), np.moveaxis(constant, axis, 0)
        same = moved[1:] == moved[:-1]
        flat[1:] &= same
        flat[:-1] &= same
    return constant


def _wrapped(
    everything: np.ndarray,
    head: np.ndarray,
    small_to_template: np.ndarray,
    template: Template,
    view: AslView,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Parts of the face that come in again at the opposite end of the field of view, and a little air around them:
    bool, native (A, S, L). everything, head: all tissue and that of the head, bool (A, S, L) at 2 mm.

    Raises CheckError where such a part touches the head, as it cannot be told from it then."""
    from scipy import ndimage

    result = np.zeros_like(head)
    face = np.argwhere(template.head & template.face_region & template.window)
    at = mapped(face, np.linalg.inv(small_to_template) @ template.affine)
    beyond = {0: at[:, 0] > head.shape[0] - 0.5, 1: at[:, 1] < -0.5}  # before the field of view, and below it
    for axis, outside in beyond.items():
        if np.mean(outside) < WRAP_SHARE:
            continue
        first, last = (np.moveaxis(head, axis, 0)[end] for end in (0, -1))
        again = np.count_nonzero(first & last)  # the first and the last slice adjoin where a head is wrapped
        if axis == 0 and again * SPACING**2 > WRAP_MM**2 and again > WRAP_SAME * np.count_nonzero(last):
            raise CheckError(
                "The face is wrapped around to the back of the field of view and touches the head there; "
                "give a scan with a larger field of view."
            )
        labels, _ = ndimage.label(everything & ~head)
        at_end = np.unique(np.moveaxis(labels, axis, 0)[0 if axis == 0 else -1])
        for label in at_end[at_end > 0]:
            part = labels == label
            extent = sorted(SPACING * (span.stop - span.start) for span in bounding_box(part))
            if np.count_nonzero(part) * SPACING**3 > WRAP_ML * 1000 and extent[1] > WRAP_MM:
                result |= part
    if not result.any():
        return np.zeros(shape, dtype=bool)
    around = ndimage.binary_dilation(result, iterations=2) & ~ndimage.binary_dilation(head)
    return resample_axes((around | result).astype(np.float32), (SPACING,) * 3, view.spacing, shape) > 0.5


def beside_head(template: Template) -> np.ndarray:
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
    """The ears of the scan and of the average head, bool (A, S, L) on the template grid. tissue: of the scan,
    and its brain.  beside: where ears may be."""
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


def apply_network(network: AnatomyNetwork, small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    """The intensity rule of the anatomy network: each voxel over the local tissue level, so that receive bias does
    not matter. image: (1, 1, A, S, L) at 2 mm, air near 0; the result has tissue near `LEVEL_TO`, 0 to 1.5."""
    import torch

    x = image[0, 0].float().clamp(min=0)
    return torch.clamp(LEVEL_TO * x / tissue_level(x), 0, 1.5)[None, None]


def tissue_level(image: Tensor) -> Tensor:
    """The local intensity of tissue, (A, S, L): the intensity's mean within a Gaussian, weighted by intensity, as
    air then weighs nothing. image: (A, S, L) at 2 mm, air near 0."""
    x = image.float().clamp(min=0)
    level = smooth(x * x, LEVEL_SIGMA) / smooth(x, LEVEL_SIGMA).clamp(min=1e-6)
    return (level + LEAST_LEVEL * level.max()).clamp(min=1e-6)


def contrast_input(image: Tensor) -> Tensor:
    """The intensity rule of the second opinion's network: how far each voxel lies from the mean around it, in
    standard deviations around it, -3 to 3. image: (1, 1, A, S, L) at 4 mm, any level of air."""
    import torch

    x = image[0, 0].float()
    x = x / x.abs().max().clamp(min=1e-6)
    mean = smooth(x, CONTRAST_SIGMA)
    spread = (smooth(x * x, CONTRAST_SIGMA) - mean * mean).clamp(min=0).sqrt()
    return torch.clamp((x - mean) / (spread + LEAST_SPREAD), -3, 3)[None, None]


def fit(coordinates: np.ndarray, head: np.ndarray, template: Template) -> tuple[np.ndarray, float]:
    """The affine map (4, 4) index of the 2 mm scan -> template mm that fits the network's coordinates best, and
    the mean distance left. head: its tissue, bool (A, S, L). Voxels that the map misses by much count less
    (Tukey's biweight)."""
    import torch

    blocks = tuple(length // 2 for length in head.shape)
    a, s, length = blocks
    points = coordinates[:, :a, :s, :length].reshape(3, -1).T
    index = np.stack(np.meshgrid(*[2 * np.arange(n) + 0.5 for n in blocks], indexing="ij"), -1).reshape(-1, 3)
    tissue = head[: 2 * a : 2, : 2 * s : 2, : 2 * length : 2].reshape(-1)
    inside = template.sample(template.head, torch.from_numpy(points)).numpy() > 0.5
    use = inside & tissue
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
    near = ndimage.binary_dilation(main_part(both > 0.5))
    return np.where(near, both, 0.0).astype(np.float32)


def refine(
    guess: np.ndarray, brain: np.ndarray, head: np.ndarray | None, template: Template, with_face: bool
) -> np.ndarray:
    """Improve the map (4, 4) index of the 2 mm scan -> template mm: brain and skull onto the average ones.

    Gauss-Newton on the differences of two soft masks, brain and head, at 4 mm, first strongly smoothed, then
    less. Masks and not intensities, so any contrast works; the neck does not count. With the face, the map is
    affine; without (a scan that may have none), a rotation, a shift and one scale. head: None where the scan does
    not show where it ends; then the brain alone counts."""
    import torch
    from torch.nn import functional

    def soft(*masks: np.ndarray | Tensor) -> Tensor:
        stacked = torch.stack([torch.as_tensor(mask).float() for mask in masks])
        return functional.avg_pool3d(stacked[None], 2)[0]

    def blur(maps: Tensor, times: int) -> Tensor:
        for _ in range(times):
            maps = functional.avg_pool3d(maps[None], 3, 1, 1, count_include_pad=False)[0]
        return maps

    moving = soft(brain, brain if head is None else head, np.ones(brain.shape, dtype=np.float32))
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
        mapping = nearest_similarity(mapping)
    scaled = points / np.array([100.0, 100.0, 100.0, 1.0])  # parameters of like size
    for times, rounds in ((4, 8), (1, 8)):
        maps, target = blur(moving[:2], times), blur(fixed, times)[:, ::2, ::2, ::2].reshape(2, -1).numpy()
        gradients = torch.stack([torch.stack(torch.gradient(image)) for image in maps]).reshape(6, *maps.shape[1:])
        stack = torch.cat([maps, gradients, moving[2:]])
        for _ in range(rounds):
            at = sample(stack, mapping @ to_mm, tuple(shape)).reshape(9, -1).numpy()
            weights = np.stack([at[8] > 0.99, (at[8] > 0.99) & skull]).astype(np.float64)
            normal, right = np.zeros((12, 12)), np.zeros(12)
            for image in range(2 if head is not None else 1):
                use = weights[image] > 0
                slope = at[2 + 3 * image : 5 + 3 * image, use].T
                jacobian = (slope[:, :, None] * scaled[use][:, None, :]).reshape(-1, 12)
                normal += jacobian.T @ jacobian
                right += jacobian.T @ (target[image, use] - at[image, use])
            damping = 1e-3 * np.trace(normal) / 12
            normal += damping * np.eye(12)
            free = np.eye(12) if with_face else similar_steps(mapping)
            step = (free @ np.linalg.solve(free.T @ normal @ free, free.T @ right)).reshape(3, 4)
            mapping[:3] += step / np.array([100.0, 100.0, 100.0, 1.0])
            if np.abs(step).max() < 0.01:
                break
    return np.asarray(np.linalg.inv(halved @ mapping))


def nearest_similarity(mapping: np.ndarray) -> np.ndarray:
    """The rotation, shift and single scale (4, 4) nearest to an affine map; the template's origin stays put."""
    left, scales, right = np.linalg.svd(mapping[:3, :3])
    result = mapping.copy()
    result[:3, :3] = scales.mean() * left @ right
    return result


def similar_steps(mapping: np.ndarray) -> np.ndarray:
    """How the entries of a map (as `refine` scales them) change with a small rotation about each axis, a
    small change of scale, and a shift along each axis: (12, 7)."""
    steps = np.zeros((7, 3, 4))
    for axis in range(3):
        i, j = (k for k in range(3) if k != axis)
        steps[axis, i, :3], steps[axis, j, :3] = -mapping[j, :3], mapping[i, :3]
        steps[4 + axis, axis, 3] = 1.0
    steps[3, :, :3] = mapping[:3, :3]
    return (steps * np.array([100.0, 100.0, 100.0, 1.0])).reshape(7, 12).T


def _carry(grid_masks: Tensor, template_index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Masks (C, A, S, L) of the template grid, where above 0.5, on the native grid: bool (C, A, S, L). Slabs that
    they do not reach are skipped."""
    first = int(np.flatnonzero(grid_masks.numpy().any((0, 2, 3)))[0]) - 1
    corners = np.array([[a, s, k, 1.0] for a in (0, shape[0] - 1) for s in (0, shape[1]) for k in (0, shape[2])])
    behind = (corners @ template_index.T)[:, 0].reshape(2, -1).max(axis=1)
    start = 0
    if behind[0] < first < behind[1]:  # the A index grows along the scan: leave out what lies behind the face
        start = int((first - behind[0]) / (behind[1] - behind[0]) * (shape[0] - 1))
    result = np.zeros((len(grid_masks), *shape), dtype=bool)
    part = (shape[0] - start, *shape[1:])
    carried = sample(grid_masks, template_index @ shift(start, 0, 0), part, "border")
    result[:, start:] = (carried > 0.5).numpy()
    return result


def main_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a bool mask, its holes filled."""
    from scipy import ndimage

    filled: np.ndarray = ndimage.binary_fill_holes(largest_part(mask))
    return filled


def _closed(mask: np.ndarray, view: AslView) -> np.ndarray:
    """The paper's closing of the emptied voxels (section 2.2): gaps of up to 2 mm, without growing."""
    import torch

    voxels = max(1, round(1.0 / min(view.spacing)))
    closed = np.zeros_like(mask)
    if mask.any():
        spans = bounding_box(mask)
        box = tuple(slice(max(0, span.start - voxels), span.stop + voxels) for span in spans)
        closed[box] = erode(dilate(torch.from_numpy(mask[box]), voxels), voxels).numpy()
    return closed


def bfloat16(device: object) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the processor computes in it, else nothing."""
    import torch

    kind = torch.device(str(device)).type
    if kind == "cuda" or (kind == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()
