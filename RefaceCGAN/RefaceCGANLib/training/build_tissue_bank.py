"""Builds the tissue bank: faces of training heads in the shape of the average head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from ..anatomy.location import SPACING, air_level, beside_head, locate
from ..errors import CheckError, InputError
from ..face_model.template import CLEFT, SKIN_LEVEL, Meeting, Template, moved, reader, warp
from ..generation.tissue_bank import SKIN, TissueBank, fine_texture
from ..intensity import RING_MM, IntensityScale
from ..models.model import Model
from ..spatial.grid import (
    AslView,
    axes_matrix,
    bounding_box,
    dilate,
    mapped,
    resample_axes,
    sample,
    sample_at,
    shift,
    solid,
)
from ..volume.volume import Volume, atomic_path

log = logging.getLogger(__name__)

BANK_MM = 1.25
"""Voxel size of the bank: at most two thirds of the donors', so that reading it once more keeps their texture."""
READ_AGAIN = 0.5
"""Part of a mosaic's fine texture that is left once it is read on a scan's grid, as measured on val/."""
MARGIN = 10
"""Template voxels around the average face region that the bank holds, too: drawn shapes reach there."""
EAR_BLEND = 2.0
"""Template voxels over which the average's ears go over into the donors' cheeks."""
INVERSE_ITERATIONS = 12
FREE = 0.3
"""Skin points with at least this weight of a random shape measure how well a donor was laid onto the average."""
EVEN_MM = 8.0
"""Gaussian sigma over which a donor gets the brightness of the average of all donors."""
SKIN_MM, SKIN_LEAST = (1.0, 4.0), 0.9
"""mm below the average skin between which a donor has at least this part of the donors' mean brightness: thin skin
over bone has holes at 2 mm, and not at the same places in two donors."""
RESIDUAL_ROUNDS, RESIDUAL_SIGMA = 3, 0.8
"""Rounds in which a donor's skin is laid onto the average skin, and the template voxels over which what is missed
is smoothed: eyelids, lips and nostrils stay."""


@dataclass(frozen=True)
class Donor:
    """One training head and its map to the average shape.

    values: (A, S, L) in the networks' range + 1 (0 to 2), native.  to_native: (4, 4) working index -> native
    index.  code: (K,) its shape coefficients.  inverse: (3, a, s, l) working voxels: voxel x of the average head
    is found in the donor at x + inverse(x).  off_mm: how far its skin, so carried, is off the average skin."""

    values: np.ndarray
    to_native: np.ndarray
    code: np.ndarray
    inverse: np.ndarray
    off_mm: float


def donor(path: Path, model: Model, template: Template) -> Donor:
    """Measure one head; template: `Model.working_template`. Raises CheckError where it is no whole head."""
    volume = Volume.read(path)
    view = AslView.of(volume)
    values = np.ascontiguousarray(view.to_asl(volume.array))
    values -= air_level(values)
    found = locate(values, view, model.anatomy, model.brain_check, model.template, "no")
    small = resample_axes(values, view.spacing, SPACING)
    brain = torch.from_numpy(resample_axes(found.brain_mask, view.spacing, SPACING) > 0.5)
    ring = dilate(brain, round(RING_MM / SPACING))
    outside = resample_axes(found.face_region, view.spacing, SPACING) < 1e-3
    scale = IntensityScale.measure(small, ring.numpy(), outside)
    to_native = np.linalg.inv(found.to_template) @ template.affine
    to_small = np.linalg.inv(axes_matrix(view.spacing, SPACING)) @ to_native
    stacked = torch.from_numpy(np.stack([scale.normalise(small) + 1, np.ones_like(small)]))
    image, seen = sample(stacked, to_small, template.mean.shape)
    normal, valid = image.numpy() - 1, seen.numpy() > 0.99
    code = template.code_of(template.heights(normal, valid))
    solid_head = solid(torch.from_numpy(normal > SKIN_LEVEL), CLEFT).numpy()
    nothing = np.zeros_like(normal)
    # also where random shapes do not move it, at the border of the face region, the skin is to be the average's
    meeting = template.meeting(template.face_region, solid_head, valid, reader(normal), reader(nothing))
    raised = np.zeros(len(template.relief_points))
    for _ in range(RESIDUAL_ROUNDS):
        field = shape_field(template, code, meeting, raised)
        # what its skin, carried to the average shape, lies in front of the average skin
        missed = template.heights(*_carried(normal, valid, inverted(field)))
        raised = raised + _smooth_along(template, missed)
    field = shape_field(template, code, meeting, raised)
    inverse = inverted(field)
    left = template.heights(_carried(normal, valid, inverse)[0], valid)[template._relief_weight > FREE]
    off = float(np.sqrt(np.nanmean(left**2)))
    return Donor(scale.normalise(values) + 1, to_native, code, inverse, off)


def _carried(image: np.ndarray, valid: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image (A, S, L) and where it is valid (bool), in the average shape."""
    both = warp(torch.from_numpy(np.stack([image, valid.astype(np.float32)])), torch.from_numpy(inverse))
    return both[0].numpy(), both[1].numpy() > 0.99


def shape_field(template: Template, code: np.ndarray, meeting: Meeting, raised: np.ndarray) -> np.ndarray:
    """Voxel y of a head of shape `code` (K,) shows the average head at y + field(y): (3, A, S, L) voxels. raised:
    (N,) mm by which its skin is higher still."""
    modes = len(template.modes)
    displacement = template.displacement(code[:modes]) + meeting.shift + template._bridge(code, meeting)
    heights = np.asarray(code[modes:], np.float32) @ template.relief_modes.astype(np.float32)
    return np.asarray((displacement + warp(template.raised(heights, raised), displacement)).numpy())


def inverted(field: np.ndarray) -> np.ndarray:
    """The inverse of a displacement field (3, A, S, L) in voxels, by fixed-point iteration."""
    forward = torch.from_numpy(field)
    inverse = -forward
    for _ in range(INVERSE_ITERATIONS):
        inverse = -sample_at(forward, moved(inverse), "border")
    return np.asarray(inverse.numpy())


def _smooth_along(template: Template, missed: np.ndarray) -> np.ndarray:
    """Heights (N,) in mm, NaN where unknown, smoothed along the skin; no higher than 6 mm."""
    from scipy.spatial import cKDTree

    known = np.isfinite(missed) & (np.abs(np.nan_to_num(missed)) < 6)
    points = template.relief_points.astype(np.float64)
    distance, nearest = cKDTree(points).query(points, 40)
    share = np.exp(-0.5 * (distance / RESIDUAL_SIGMA) ** 2) * known[nearest]
    total = share.sum(axis=1)
    return np.asarray((np.where(known, missed, 0)[nearest] * share).sum(axis=1) / np.maximum(total, 0.5))


def read_native(donor: Donor, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A donor's tissue at points (N, 3) of the average head, in working voxels: values 0 to 2 by one cubic
    interpolation, and whether the field of view holds them."""
    from scipy import ndimage

    moves = [ndimage.map_coordinates(part, points.T, order=1, mode="nearest") for part in donor.inverse]
    at = mapped(points + np.stack(moves, 1), donor.to_native)
    inside = np.all((at >= 0) & (at <= np.array(donor.values.shape) - 1), axis=1)
    values = ndimage.map_coordinates(donor.values, at.T, order=3, mode="nearest")
    return values.clip(0, 2), inside


def build(scans: Sequence[Path], donors: int, card: Path, folder: Path) -> TissueBank:
    """The bank of some heads, measured head by head in a folder, so that it goes on where it was stopped. donors:
    how many give their tissue, those whose skin could be laid onto the average's best; all give their shapes.

    Raises InputError where fewer than two heads can be used."""
    model = Model.load(card)
    template, measured = model.working_template, []
    for scan in scans:
        kept = folder / "heads" / f"{scan.name.partition('.nii')[0]}.npz"
        if not kept.exists():
            try:
                one = donor(scan, model, template)
            except CheckError as error:
                log.warning("%s is left out: %s", scan.name, error)
                continue
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(kept) as part, part.open("wb") as file:
                np.savez_compressed(file, **{f.name: getattr(one, f.name) for f in fields(Donor)})
        measured.append(kept)
    if len(measured) < 2:
        raise InputError("A tissue bank needs two heads or more; give more scans.")
    heads = []
    for path in measured:
        with np.load(path, allow_pickle=False) as data:
            heads.append(Donor(**{f.name: data[f.name] for f in fields(Donor)}))
    heads.sort(key=lambda head: float(head.off_mm))
    bank = build_bank(heads[:donors], template)
    bank.write(folder / "tissue.npz")
    log.info("tissue_texture, for the model card: %r", painted_texture(bank))
    return bank


def painted_texture(bank: TissueBank) -> float:
    """The fine texture of a face that is painted of a bank without sharpening: the card's `tissue_texture`."""
    voxel, level = (bank.spacing,) * 3, 255 * SKIN / 2
    each = [fine_texture(donor.astype(np.float32), donor > level, voxel) for donor in bank.donors]
    return READ_AGAIN * float(np.mean(each))


def build_bank(donors: list[Donor], template: Template) -> TissueBank:
    """The bank of some donors; template: `Model.working_template`."""
    from scipy import ndimage

    wanted = dilate(torch.from_numpy(template.face_region), MARGIN).numpy()
    box = bounding_box(wanted)
    first = np.array([span.start for span in box])
    step = BANK_MM / template.spacing
    shape = tuple(int((span.stop - span.start) / step) for span in box)
    to_working = shift(*(first + 0.5 * step - 0.5)) @ np.diag([step, step, step, 1.0])
    points = mapped(np.argwhere(np.ones(shape, bool)), to_working)
    held = ndimage.map_coordinates(wanted.astype(np.float32), points.T, order=1) > 0.5
    head = ndimage.map_coordinates(template.head.astype(np.float32), points.T, order=1).reshape(shape) > 0.5
    images, seen = np.zeros((2, len(donors), *shape), np.float32)
    for image, there, one in zip(images, seen, donors, strict=True):
        values, inside = read_native(one, points[held])
        full = np.zeros(len(points), np.float32)
        full[held] = values
        image[:] = full.reshape(shape)
        full[held] = inside
        there[:] = full.reshape(shape)
        image *= _within_head(image, head)
    sigma = EVEN_MM / BANK_MM
    tissue = (images > 2 * 0.12) * seen
    level = np.stack([ndimage.gaussian_filter(a * b, sigma) for a, b in zip(images, tissue, strict=True)])
    share = np.stack([ndimage.gaussian_filter(part, sigma) for part in tissue])
    mean = level.sum(axis=0) / np.maximum(share.sum(axis=0), 1e-3)
    gain = np.clip(mean * np.maximum(share, 1e-3) / np.maximum(level, 1e-3), 0.5, 2.0)
    images = (images * gain).clip(0, 2)
    average = (images * seen).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    images = np.where(seen > 0.5, images, average)
    images = _with_skin(images, points, template)
    # ears lie differently in everybody, and shape coefficients do not tell how: all get the average's
    beside = ndimage.gaussian_filter(beside_head(template).astype(np.float32), EAR_BLEND)
    share = ndimage.map_coordinates(beside, points.T, order=1).reshape(shape)
    mean = ndimage.map_coordinates(template.mean.astype(np.float32) + 1, points.T, order=3).reshape(shape)
    images += share * (np.where(mean > 0.1, mean, 0) - images)
    affine = template.affine @ to_working
    return TissueBank(np.rint(images * 127.5).astype(np.uint8), affine)


def _with_skin(images: np.ndarray, points: np.ndarray, template: Template) -> np.ndarray:
    """Donors (D, A, S, L) without holes in their skin: none is much darker than the donors' mean there. points: of
    their voxels in the working grid (N, 3)."""
    from scipy import ndimage

    depth = -ndimage.map_coordinates(template.skin[0], points.T, order=1).reshape(images.shape[1:])
    shallow, deep = (mm / template.spacing for mm in SKIN_MM)
    layer = (np.clip(depth - shallow + 1, 0, 1) * np.clip(deep - depth + 1, 0, 1)).astype(np.float32)
    return np.asarray(np.maximum(images, SKIN_LEAST * layer * images.mean(axis=0)), np.float32)


def _within_head(image: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Where a donor in the average shape has tissue, and what that encloses, within 5 mm of the average head: 0
    or 1, so that the air of a bank is empty. A voxel around it is left, too: the skin's edge."""
    from scipy import ndimage

    near = ndimage.binary_dilation(head, iterations=4)
    part = solid(torch.from_numpy((image > SKIN_LEVEL + 1) & near), CLEFT).numpy()
    labels, count = ndimage.label(part)
    if count:
        part = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_dilation(part, iterations=1).astype(np.float32))
