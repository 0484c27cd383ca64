"""Composition: the generated face goes into the scan, voxel for voxel; it is not painted over.

What is air becomes as noisy as the scan's own air so far from the head, and tissue gets the noise that the scan
has and the generated face lacks. Only voxels of the face region change.
Arrays are in ASL order and native.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .face_model.template import Template
from .intensity import IntensityScale
from .spatial.grid import bounding_box, dilate, largest_part, sample

if TYPE_CHECKING:
    from .defacing import Defaced

AIR = 0.12
"""Fraction of the way from air to the brightest tissue under which generated voxels are air (the paper: 3 of
255)."""
NOISE = 1.0
"""Part of the scan's noise that is added to generated tissue, which has some of its own."""
AIR_MM, AIR_SAMPLES = (4, 6, 8, 12, 16, 24, 32, 48), 100
"""The distances from tissue between which air is as noisy as the scan's own, if there are so many samples of it:
the nearer to the head, the more of its signal is in the air."""
AWAY_MM = 2.0
"""The distance from the head is found on a grid that is about so coarse."""
OUTSIDE = 4
"""Voxels, of some 2 mm, around the average head beyond which there is no tissue of the scan."""
EDGE_VOXELS = 1
"""Voxels from the head within which what is painted stays in the air: the foot of the skin's edge."""


@dataclass(frozen=True)
class Background:
    """What the scan looks like where there is no signal, and how noisy tissue is, in real values.

    air: samples of its air voxels, one array for each of the distances from tissue that `AIR_MM` parts.  noise:
    standard deviation in tissue.  blur: in voxels, that white noise needs for neighbouring voxels to agree as
    those do."""

    air: tuple[np.ndarray, ...]
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
        outside = ~dilate(torch.from_numpy(head), OUTSIDE).numpy() & ~region
        if outside.any() and np.median(some[outside]) > 0.5 * defaced.skin:  # noise where there is no signal
            quiet = ~head[front]
        else:
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
        return cls(air=tuple(air[1:]), noise=noise, blur=blur)


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
class Composed:
    """values: real values of the voxels in `face_region` (its True voxels in C order), to be written there.
    air_mask: bool (A, S, L), the face region's voxels that ended as air."""

    values: np.ndarray
    air_mask: np.ndarray


def compose(
    face: np.ndarray, defaced: Defaced, scale: IntensityScale, background: Background, rng: np.random.Generator
) -> Composed:
    """Put a generated face into the scan. face: (N,) -1..1, at the True voxels of the face region, in C order."""
    import torch
    from scipy.ndimage import distance_transform_edt

    region = defaced.face_region
    box = bounding_box(region)
    inside = region[box]
    around = (defaced.values > defaced.skin)[box] & ~inside
    tissue = np.zeros(inside.shape, bool)
    tissue[inside] = face > 2 * AIR - 1
    head = largest_part(tissue | around)  # without crumbs in the air
    air = ~head[inside]
    steps = [max(1, round(AWAY_MM / mm)) for mm in defaced.view.spacing]
    every = tuple(slice(None, None, step) for step in steps)
    away = distance_transform_edt(~head[every], np.multiply(defaced.view.spacing, steps))
    away = away[tuple(index // step for index, step in zip(np.nonzero(inside), steps, strict=True))]
    values = scale.restore(face)
    grain = _grain(inside.shape, background.blur, rng)[inside] * np.float32(NOISE * background.noise)
    values = np.abs(values - scale.low + grain) + scale.low  # magnitudes, as an MR image's
    ring = np.digitize(away, AIR_MM)
    quiet = np.empty_like(values)
    for where, samples in enumerate(background.air):
        there = ring == where
        quiet[there] = rng.choice(samples, size=np.count_nonzero(there))
    near = air & dilate(torch.from_numpy(head), EDGE_VOXELS).numpy()[inside]  # the foot of the skin's edge
    values = np.where(air, np.where(near, np.maximum(quiet, values), quiet), values)
    air_mask = np.zeros(region.shape, dtype=bool)
    air_mask[region] = air
    return Composed(values=values.astype(np.float32), air_mask=air_mask)


def _grain(shape: tuple[int, ...], blur: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 on a grid of `shape`, blurred by `blur` voxels."""
    from scipy import ndimage

    noise = rng.standard_normal(shape, dtype=np.float32)
    if blur > 0.1:
        noise = ndimage.gaussian_filter(noise, blur)
        noise /= max(float(noise.std()), 1e-6)
    return noise
