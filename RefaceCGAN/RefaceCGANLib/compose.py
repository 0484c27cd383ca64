"""Composition: the generated face, back on the native grid and into the scan.

Only voxels of the face region change. The skin lies where the average head's in its new shape does, meets the
kept skin, and gets its sharpness; tissue and air get the noise of the scan; and what the generator says of the
tissue just outside the region takes out the seam.
Arrays are in ASL order; `face` is on the working grid in the range [-1, 1], `values` native in real values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .anatomy import SPACING
from .grid import bounding_box, dilate, erode, finer, largest_part, mapped, sample, sample_at, shift, smooth, solid
from .intensity import IntensityScale
from .template import CLEFT, SKIN_LEVEL, Meeting, Template, Values, trilinear

if TYPE_CHECKING:
    from torch import Tensor

    from .defacing import Defaced
    from .refacer import WorkingScan

AIR = 0.12
"""Fraction of the way from air to the brightest tissue under which generated voxels are air (the paper:
values below 3 of 255; ours is relative to the scan's own scale and finer, as the skin is sharpened afterwards)."""
TERRACES = 0.7
"""Working-grid voxels: a Gaussian that keeps skin on a fine native grid from showing the working grid's steps; on
one as coarse as that there are none."""
STEEPEST = 4.0
"""The skin is made this many times steeper at most; the working grid and resampling blur it."""
STEEPENED = 3
"""Rounds in which that is found, as part of it is lost between the voxels of the native grid."""
PIT = 2
"""Working-grid voxels that the skin of a face may lie below that of its prior."""
LID = 2
"""Working-grid voxels of skin over kept air that would lie open, as the cells beside the nose do."""
THICK = 3
"""Working-grid voxels: half the width of what is too thin for pits, such as ears."""
CHANGED, SMOOTH = 0.4, 0.5
"""How much of what the generator changes at the skin stays, and the standard deviation of the smoothing of that in
working-grid voxels. Where the shape is far from the average, generators narrow the mouth and draw folds."""
BRIGHTNESS_SIGMA, DARKER, BRIGHTER = 5.0, 0.65, 1.8
"""The prior's skin is made as bright as the generated face within so many working-grid voxels, and what the
generator changes there may be so many times as dark and as bright: skin that is darker looks torn, and what is
brighter lies in front of it."""
SKIN_DEPTH = 3
"""Working-grid voxels from the air around the head in which edges are the skin's."""
TISSUE_SIGMA = 1.5
"""Working-grid voxels; the reach of the local tissue intensity that the skin's edge rises to."""
GRAIN = 3.0
"""Noise fades into the air at the skin's edge by so many times the intensity over the local tissue's."""
ROW_POINTS = 4096
"""Points that are read at once; the cores share what is more."""
AIR_MM, AIR_SAMPLES = (4, 6, 8, 12, 16, 24, 32, 48), 100
"""The distances from tissue between which air is as noisy as the scan's own, if there are so many samples of it:
the nearer to the head, the more of its signal is in the air."""
AWAY_GRID = 2
"""The distance to the head is worked out on a grid so many times coarser than the working grid."""
AROUND, QUANTILES = 4, (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
"""Voxels, of some 2 mm, around the region, less than the brain is away, whose tissue tells how bright that of the
face is to be, and the quantiles that are carried over."""
FACE_TO_AROUND = (1.0, 1.0, 1.03, 1.06, 1.03, 0.95, 1.0)
"""How bright a face's tissue is to that around it, at these quantiles: mean of 21 training heads."""
SEAM_SIGMA = 2.5
"""Working-grid voxels; how far the correction at the border reaches into the face region."""


@dataclass(frozen=True)
class Background:
    """What the scan looks like where there is no signal, and how bright and noisy tissue is, in real values.

    air: samples of its air voxels, one array for each of the distances from tissue that `AIR_MM` parts.  around:
    of the voxels around the face region.  noise: standard deviation in tissue.  blur: in voxels, that white noise
    needs for neighbouring voxels to agree as those do."""

    air: tuple[np.ndarray, ...]
    around: np.ndarray
    noise: float
    blur: float

    @classmethod
    def measure(cls, defaced: Defaced, template: Template) -> Background:
        """Read them off the kept voxels."""
        import torch
        from scipy.ndimage import distance_transform_edt

        values = defaced.values
        step = tuple(slice(None, None, max(1, length // 96)) for length in values.shape)
        some, region = values[step], defaced.face_region[step]
        spacing = np.multiply(defaced.view.spacing, [span.step for span in step])
        corner = np.diag([*(span.step for span in step), 1.0])
        at = np.linalg.inv(template.affine) @ defaced.to_template @ corner
        masks = torch.from_numpy(np.stack([template.head, template.brain > 0.5]).astype(np.float32))
        head, brain = (sample(masks, at, some.shape) > 0.5).numpy()
        front = slice(int(np.argmax(region.any(axis=(1, 2)))), None)  # behind the face ghosts and clothes differ
        quiet = ((some < 0.5 * defaced.skin) & ~(region & head))[front]
        away = np.digitize(distance_transform_edt(quiet, spacing), AIR_MM)
        quiet &= ~region[front]
        air = [np.array([values[~defaced.face_region].min()], dtype=np.float32)]
        for ring in range(len(AIR_MM) + 1):
            there = some[front][quiet & (away == ring)]
            air.append(there.astype(np.float32) if there.size >= AIR_SAMPLES else air[-1])
        noise, blur = 0.0, 0.0
        if brain.any():
            centre = [
                int(mean * span.step) for mean, span in zip(np.argwhere(brain).mean(axis=0), step, strict=True)
            ]
            reach = [max(8, int(25 / mm)) for mm in defaced.view.spacing]  # well within the brain
            box = tuple(
                slice(max(0, c - r), min(n, c + r)) for c, r, n in zip(centre, reach, values.shape, strict=True)
            )
            noise, blur = _noise(values[box], ~defaced.face_region[box])
        around = some[dilate(torch.from_numpy(region), AROUND).numpy() & ~region]
        return cls(air=tuple(air[1:]), around=around.astype(np.float32), noise=noise, blur=blur)


def _noise(block: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """Noise in tissue: the median absolute second difference along each axis, where white matter and the like
    are smooth (the quieter half), and the blur that explains how neighbours agree."""
    difference = block[2:, 1:-1, 1:-1] - 2 * block[1:-1, 1:-1, 1:-1] + block[:-2, 1:-1, 1:-1]
    single = block[1:, 1:-1, 1:-1][:-1] - block[:-1, 1:-1, 1:-1][:-1]
    where = brain[1:-1, 1:-1, 1:-1]
    if where.sum() < 100:
        return 0.0, 0.0
    second = float(np.percentile(np.abs(difference[where]), 35)) / 0.4538 / np.sqrt(6)
    first = float(np.percentile(np.abs(single[where]), 35)) / 0.4538 / np.sqrt(2)
    # white noise gives second == first; smooth noise makes the second difference the smaller one
    ratio = second / max(first, 1e-9)
    blur = float(np.interp(ratio, [0.45, 0.6, 0.8, 1.0], [0.9, 0.65, 0.4, 0.0]))
    return second, blur


@dataclass(frozen=True)
class KeptSkin:
    """The skin around the face region on the native grid, which painted skin has to meet.

    level: where it begins, -1..1.  heights: (R,) voxels in front of where it has `SKIN_LEVEL`
    (`Meeting.from_kept`).  fall: per voxel, how steep it is (`Meeting.fall`)."""

    level: float
    heights: np.ndarray
    fall: float

    @classmethod
    def measure(cls, values: Values, level: float, meeting: Meeting) -> KeptSkin:
        """values: of the defaced scan (`defaced_readers`).  level: as above."""
        return cls(level=level, heights=meeting.from_kept(values, level), fall=meeting.fall(values))


def defaced_readers(defaced: Defaced, scale: IntensityScale, to_native: np.ndarray) -> tuple[Values, Values]:
    """What tells the intensity of the defaced scan, -1..1, and how much of it is emptied, 0..1, at points of the
    working grid. to_native: (4, 4)."""

    def at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        return trilinear(image[None], mapped(points, to_native))[0]

    emptied = np.where(defaced.face_region, np.float32(scale.low), defaced.values)
    hidden = defaced.face_region.astype(np.float32)
    return lambda points: scale.normalise(at(emptied, points)), lambda points: at(hidden, points)


@dataclass(frozen=True)
class Composed:
    """values: real values of the voxels in `face_region` (its True voxels in C order), to be written there.
    air_mask: bool (A, S, L), the face region's voxels that ended as air."""

    values: np.ndarray
    air_mask: np.ndarray


def compose(
    face: Tensor,
    working: WorkingScan,
    defaced: Defaced,
    scale: IntensityScale,
    background: Background,
    rng: np.random.Generator,
) -> Composed:
    """Carry a generated face (A, S, L) on the working grid, -1..1, to the native grid."""
    box = bounding_box(defaced.face_region)
    shape = tuple(span.stop - span.start for span in box)
    inside = defaced.face_region[box]
    to_working = np.linalg.inv(working.to_native) @ shift(*[span.start for span in box])
    at = mapped(np.argwhere(inside), to_working).astype(np.float32)
    painted = _Painted.of(face, working)
    values, local = painted.at(at)
    fraction = values / np.maximum(local, 1e-3)
    values -= 1.0  # beyond the working grid there is air
    values = _with_tissue_of(scale.normalise(background.around), values)

    air = values < 2 * AIR - 1
    values = scale.restore(values)
    grain = _grain(shape, background.blur, rng)[inside] * background.noise
    grain *= np.clip(GRAIN * fraction, 0.0, 1.0)
    signal = values - scale.low
    away = _read(painted.away[None], np.clip(at / AWAY_GRID, 0, np.array(painted.away.shape) - 1))[0]
    ring = np.digitize(away, AIR_MM)
    quiet = np.zeros_like(values)
    for where, samples in enumerate(background.air):
        there = air & (ring == where)
        quiet[there] = rng.choice(samples, size=np.count_nonzero(there))
    magnitude = np.abs(signal + grain) + scale.low
    values = np.where(
        air, np.maximum(quiet, np.where(signal > 0.02 * (scale.high - scale.low), magnitude, 0)), magnitude
    )
    air_mask = np.zeros(defaced.face_region.shape, dtype=bool)
    air_mask[defaced.face_region] = air
    return Composed(values=values.astype(np.float32), air_mask=air_mask)


@dataclass(frozen=True)
class _Painted:
    """A face at any point of the working grid, as it is to be on the native grid.

    fine: (1, 2A, 2S, 2L), the face on half the spacing, and coarse: (2, A, S, L), the local tissue intensity and
    how near the skin is (0..1); intensities from 0 (air) to 2.  away: mm from the head, on a grid `AWAY_GRID`
    times coarser.  moves: (3, A, S, L) voxels, displacement by which its skin meets the kept skin.  steep: how
    many times its skin gets steeper."""

    fine: Tensor
    coarse: Tensor
    away: Tensor
    moves: Tensor
    steep: float = 1.0

    @classmethod
    def of(cls, face: Tensor, working: WorkingScan) -> _Painted:
        import torch
        from scipy.ndimage import distance_transform_edt

        meeting, kept = working.meeting, working.kept
        face = _without_seam(face, working.scan, working.region)
        head = _connected(((face + 1) / 2 > AIR) | (~working.region & ((working.scan + 1) / 2 > AIR)))
        specks = working.region & ~dilate(head, SKIN_DEPTH)  # the foot of the skin's edge is none
        face = torch.where(specks, torch.full_like(face, -1.0), face)
        skin = _soft(dilate(~solid(head, CLEFT), SKIN_DEPTH))
        finer_by = abs(float(np.linalg.det(working.to_native[:3, :3]))) ** (1 / 3)
        if finer_by > 1:
            face = face + skin * (smooth(face, TERRACES * float(np.sqrt(1 - finer_by**-2))) - face)
        coarse = torch.stack([_tissue_level(face, head) + 1.0, skin])
        away = distance_transform_edt(~head[(slice(None, None, AWAY_GRID),) * 3].numpy(), AWAY_GRID * SPACING)
        painted = cls(finer(face[None]) + 1.0, coarse, torch.from_numpy(away).float(), torch.zeros(3, *face.shape))
        if meeting is None or kept is None:
            return painted
        # first as the working grid shows both skins, then, once they are equally steep, as the native grid does
        missed = meeting.kept - meeting.rim.heights(face.numpy())
        painted = replace(painted, moves=meeting.led_on(missed))
        for _ in range(STEEPENED):
            steep = painted.steep * kept.fall / max(meeting.fall(painted.on_grid(working.to_native)), 1e-3)
            painted = replace(painted, steep=float(np.clip(steep, 1.0, STEEPEST)))
        missed = kept.heights - meeting.from_kept(painted.normalised, kept.level)
        return replace(painted, moves=painted.moves + meeting.led_on(missed))

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The intensity (N,) at points (N, 3) in voxels, 0 beyond the grid, and the local tissue's."""
        points = points + _read(self.moves, points).T
        painted = _read(self.fine, 2.0 * points + 0.5)[0]
        local, near = _read(self.coarse, points)
        edge = (painted > 0) & (painted < local) & (near > 0)
        part, full = painted[edge], local[edge]
        least = np.minimum((SKIN_LEVEL + 1) / full, 0.5)  # there the skin stays where it is
        odds = part / (full - part) * (1 - least) / least
        with np.errstate(over="ignore"):  # at the foot: 0
            steeper = full / (1 + (1 - least) / least * odds**-self.steep)
        painted[edge] += np.minimum(near[edge], 1) * (steeper - part)
        return painted, local

    def on_grid(self, to_native: np.ndarray) -> Values:
        """What tells the intensity, -1..1, at points (M, 3) in voxels of this grid as the native one shows it,
        between its voxels. to_native: (4, 4)."""
        back = np.linalg.inv(to_native)

        def values(points: np.ndarray) -> np.ndarray:
            at = mapped(points, to_native)
            first = np.floor(at)
            corners = [first + corner for corner in np.ndindex(2, 2, 2)]
            read = self.normalised(mapped(np.concatenate(corners), back)).reshape(8, -1)
            shares = np.stack([(1 - np.abs(at - corner)).prod(axis=1) for corner in corners])
            return np.asarray((shares * read).sum(axis=0))

        return values

    def normalised(self, points: np.ndarray) -> np.ndarray:
        """The intensity (N,) at points (N, 3), -1..1."""
        return self.at(points)[0] - 1.0


def _read(images: Tensor, points: np.ndarray) -> np.ndarray:
    """Images (C, A, S, L) at points (N, 3) in voxels, 0 beyond their grid: (C, N)."""
    import torch

    rows = -(-len(points) // ROW_POINTS)
    index = torch.zeros(3, rows * ROW_POINTS)
    index[:, : len(points)] = torch.from_numpy(np.ascontiguousarray(points.T, dtype=np.float32))
    values = sample_at(images, index.reshape(3, rows, ROW_POINTS, 1), "zeros")
    return np.asarray(values.reshape(len(images), -1)[:, : len(points)].numpy())


def with_skin_of(prior: Tensor, face: Tensor, scan: Tensor, region: Tensor, inner: Tensor) -> Tensor:
    """A generated face (A, S, L), -1..1, whose skin is that of its prior but for what changed smoothly and little,
    and lies at most `PIT` voxels below it.

    prior: the average head the face was made of; its skin is smooth, and has no gaps where those of the training
    heads do: from dental work, or as thin tissue lies on the skull.  scan: the defaced scan, region: bool, what
    was emptied, inner: bool, what lay below the original skin."""
    import torch
    from scipy import ndimage

    outer = ~solid(prior > SKIN_LEVEL, CLEFT)
    near = _soft(dilate(outer, SKIN_DEPTH))
    tissue = region & ~outer
    drawn, wanted = (smooth(tissue * (image + 1), BRIGHTNESS_SIGMA) for image in (face, prior))
    like = drawn / wanted.clamp(1e-3) * (prior + 1)
    skin = like + CHANGED * smooth(face + 1 - like, SMOOTH)
    skin = torch.minimum(torch.maximum(skin, DARKER * like), BRIGHTER * like + AIR) - 1
    face = torch.where(region, face + near * (skin - face), face)
    air = torch.where(region, face, scan) < SKIN_LEVEL
    labels, _ = ndimage.label(air.numpy())
    outside = torch.from_numpy((labels == labels[-1].max()) & air.numpy())
    thick = dilate(erode(~outer, THICK), THICK)  # not ears
    opened = outside & ~region & inner & thick & dilate(outside & region, 1)
    lid = region & dilate(opened, LID)
    pits = (outside & region & erode(thick, PIT) & (prior > SKIN_LEVEL)) | lid  # an ear has hollows
    if not pits.any():
        return face
    level = _tissue_level(face, ~air)
    least = (level + 1) * _soft(dilate(pits, 1)) - 1
    return torch.where(region & (~outer | lid), torch.maximum(face, least), face)


def _with_tissue_of(around: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Intensities of a face (N,), -1..1, whose tissue is as dark and bright as that of a face in a scan that has
    those `around` it (M,): generators keep away from both ends, and the working grid blurs. What is darker than
    skin stays."""
    painted, kept = (part[part > SKIN_LEVEL] for part in (values, around))
    if min(len(painted), len(kept)) < 1000:
        return values
    wanted = (np.quantile(kept, QUANTILES) + 1) * FACE_TO_AROUND - 1
    old, new = ([-1.0, SKIN_LEVEL, *quantiles, 1.0] for quantiles in (np.quantile(painted, QUANTILES), wanted))
    return np.interp(values, old, np.maximum.accumulate(new).clip(-1, 1)).astype(np.float32)


def _without_seam(face: Tensor, original: Tensor, region: Tensor) -> Tensor:
    """Shift the face near its border by how much the generator misses the kept tissue just outside."""
    import torch

    band = dilate(region, 2) & ~region & (original > SKIN_LEVEL) & (face > SKIN_LEVEL)
    correction = _mean_within(band, original - face, SEAM_SIGMA, 0.02)
    tissue = ((face + 1) / 0.5).clamp(0, 1)  # air stays air
    return torch.where(region, (face + correction * tissue).clamp(-1, 1), face)


def _connected(tissue: Tensor) -> Tensor:
    """The head without loose specks in the air: the largest connected part."""
    import torch

    return torch.from_numpy(largest_part(tissue.numpy()))


def _tissue_level(face: Tensor, head: Tensor) -> Tensor:
    """Local intensity of the tissue at and around each voxel, -1..1: what the skin's edge rises to."""
    return _mean_within(head & (face > SKIN_LEVEL), face + 1, TISSUE_SIGMA, 1e-3) - 1


def _mean_within(mask: Tensor, image: Tensor, sigma: float, least: float) -> Tensor:
    """Local mean of an image (A, S, L) over the voxels of a mask, by a Gaussian; it fades to 0 where less than the
    share `least` of what is near is in the mask."""
    return smooth(mask * image, sigma) / smooth(mask, sigma).clamp(least)


def _soft(mask: Tensor) -> Tensor:
    """A mask with soft borders: float32 (A, S, L), 1 well inside."""
    return (1.5 * smooth(mask, 1.0)).clamp(0, 1)


def _grain(shape: tuple[int, ...], blur: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 on a grid of `shape`, blurred by `blur` voxels."""
    from scipy import ndimage

    noise = rng.standard_normal(shape, dtype=np.float32)
    if blur > 0.1:
        noise = ndimage.gaussian_filter(noise, blur)
        noise /= max(float(noise.std()), 1e-6)
    return noise
