"""Tissue: does what a tool painted look like MR tissue, in the slices?

Two kinds of answers. `made_or_real`: a classifier that has seen patches of other people's originals and outputs
tells made from real, by texture features of scikit-image or by the first layers of a segmentation network.
`texture_ratios`: how much fine texture and local contrast is left of what the original has there.

All of it looks at the voxels that the tool changed (`changed_region`), so that a tool that replaces little is not
flattered by the real tissue that it keeps. The pure functions take arrays along any axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..spatial.grid import bounding_box
from ..volume.files import atomic_path
from ..volume.volume import Volume

if TYPE_CHECKING:
    from .meshnet import Network

PATCH_MM = 16.0
"""Side of a patch: about what a reader of slices sees as one texture."""
FILLED = 0.6
"""How much of a patch must be tissue within the region, 0..1."""
PATCHES = 60
"""The most patches of one scan, drawn at random."""
SIGMAS = 0.7, 1.0, 2.0, 4.0
"""Voxels: Gaussians whose residuals are features."""
GREY_LEVELS = 16
"""Of the co-occurrence matrices, over 0 to `BRIGHT_END` of the scan's scale."""
BRIGHT_END = 1.5
FINE_MM = 2.5
"""Fine texture is what a Gaussian of this standard deviation takes away."""
CONTRAST_MM = 8.0
"""Side of the windows in which the local contrast is measured."""
MESHNET_LAYERS = 3
"""Of a MeshNet, the first ones: they see 15 mm."""


@dataclass(frozen=True)
class Scale:
    """The intensity scale of a scan, from what a tool leaves alone: air and bright tissue, in real values."""

    air: float
    bright: float

    @classmethod
    def of(cls, original: np.ndarray, region: np.ndarray, threshold: float) -> Scale:
        """original: (I, J, K) real values.  region: bool, what is replaced.  threshold: where tissue begins."""
        kept = original[~region]
        tissue = kept[kept > threshold]
        return cls(float(np.percentile(kept, 1)), float(np.percentile(tissue, 95)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Air is 0 and bright tissue 1."""
        return np.asarray((values - self.air) / (self.bright - self.air), np.float32)


@dataclass(frozen=True)
class Patches:
    """Features of the patches of one scan: texture (N, F), and of MeshNet (N, F') or (N, 0)."""

    texture: np.ndarray
    meshnet: np.ndarray

    def write(self, path: Path) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, texture=self.texture.astype(np.float32), meshnet=self.meshnet.astype(np.float32))

    @classmethod
    def read(cls, path: Path) -> Patches:
        with np.load(path) as data:
            return cls(data["texture"], data["meshnet"])


def changed_region(original: np.ndarray, output: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Where a tool replaced the scan: bool (I, J, K), the voxels that differ, holes of equal voxels closed and
    loose voxels left out (a Gaussian of 2 mm above one half)."""
    from scipy import ndimage

    different = (original != output).astype(np.float32)
    region: np.ndarray = ndimage.gaussian_filter(different, 2.0 / np.asarray(spacing)) > 0.5
    return region


def patch_centres(
    values: np.ndarray, region: np.ndarray, spacing: tuple[float, ...], threshold: float, seed: int = 0
) -> np.ndarray:
    """The middle voxels of up to `PATCHES` patches that lie in the region's tissue: int (N, 3).

    values: (I, J, K).  region: bool.  spacing: mm.  threshold: tissue is brighter. The same seed draws the
    same."""
    from scipy import ndimage

    size = _patch_size(spacing)
    tissue = (values > threshold) & region
    share = ndimage.uniform_filter(tissue.astype(np.float32), size, mode="constant")
    half = size // 2
    steps = tuple(slice(int(h), int(n - h), max(1, int(h))) for h, n in zip(half, values.shape, strict=True))
    found = np.argwhere(share[steps] >= FILLED) * np.maximum(1, half) + half
    if len(found) > PATCHES:
        found = found[np.sort(np.random.default_rng(seed).choice(len(found), PATCHES, replace=False))]
    return found


def texture_features(
    scaled: np.ndarray, centres: np.ndarray, spacing: tuple[float, ...], threshold: float
) -> np.ndarray:
    """Texture of patches, (N, F) float32.

    scaled: (I, J, K), see `Scale`.  centres: int (N, 3).  threshold: where tissue begins, of `scaled`. Of the
    tissue of a patch: percentiles and moments of the values, the gradient's length and the Laplacian, and what
    Gaussians of `SIGMAS` voxels take away (filters that do not mix in the air). Of its three middle planes:
    co-occurrence (Haralick) and local binary patterns, by scikit-image."""
    if not len(centres):
        return np.empty((0, 0), np.float32)
    half = _patch_size(spacing) // 2
    low = np.maximum(centres.min(axis=0) - half - 8, 0)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, centres.max(axis=0) + half + 9, strict=True))
    values, at = scaled[box].astype(np.float32), centres - low
    tissue = values > threshold
    maps = _maps(values, tissue)
    rows = []
    for centre in at:
        cube = tuple(slice(int(max(0, c - h)), int(c + h)) for c, h in zip(centre, half, strict=True))
        inside = tissue[cube]
        planes = [np.take(values[cube], inside.shape[axis] // 2, axis) for axis in range(3)]
        rows.append(np.concatenate([_statistics(maps[:, *cube][:, inside]), _planes(planes)]))
    return np.array(rows, np.float32)


def meshnet_features(volume: Volume, centres: np.ndarray, network: Network) -> np.ndarray:
    """What the first layers of a MeshNet make of patches: (N, 2 F) float32, mean and standard deviation of each
    channel of `MESHNET_LAYERS` layers. centres: int (N, 3), voxels of the volume."""
    from ..spatial.grid import mapped
    from .meshnet import conform

    if not len(centres):
        return np.empty((0, 0), np.float32)
    image, affine = conform(volume)
    at = np.rint(mapped(centres, np.linalg.inv(affine) @ volume.affine)).astype(int)
    half, around = int(PATCH_MM // 2), 15
    low = np.clip(at.min(axis=0) - half - around, 0, None)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, at.max(axis=0) + half + around, strict=True))
    cubes = [tuple(slice(int(max(0, c - half)), int(c + half)) for c in centre) for centre in at - low]
    columns = []
    for maps in network.hidden(image[box].astype(np.float32) / 255, MESHNET_LAYERS):
        parts = [maps[(slice(None), *cube)].flatten(1) for cube in cubes]
        columns.append([np.concatenate([part.mean(1).numpy(), part.std(1).numpy()]) for part in parts])
    return np.concatenate(columns, axis=1).astype(np.float32)


def texture_ratios(
    original: np.ndarray, output: np.ndarray, region: np.ndarray, spacing: tuple[float, ...], threshold: float
) -> dict[str, float]:
    """Fine texture and local contrast of an output over those of its original, in the tissue of the region; 1 is
    best. original, output: (I, J, K) real values; threshold: tissue is brighter; each is judged in its own tissue.

    fine_texture: standard deviation of the scan less its Gaussian of `FINE_MM`.  local_contrast: median of the
    standard deviation in windows of `CONTRAST_MM`. The air is left out of both."""
    if not region.any():
        return {"fine_texture": float("nan"), "local_contrast": float("nan")}
    margin = np.ceil(4 * max(FINE_MM, CONTRAST_MM / 2) / np.asarray(spacing)).astype(int)
    box = tuple(
        slice(max(0, span.start - int(m)), span.stop + int(m))
        for span, m in zip(bounding_box(region), margin, strict=True)
    )
    before, after = (_texture(values[box], region[box], spacing, threshold) for values in (original, output))
    return {name: after[name] / before[name] if before[name] else float("nan") for name in before}


# --- parts ------------------------------------------------------------------------------------------------


def _texture(
    values: np.ndarray, region: np.ndarray, spacing: tuple[float, ...], threshold: float
) -> dict[str, float]:
    from scipy import ndimage

    tissue = ndimage.binary_erosion(values > threshold) & region
    if np.count_nonzero(tissue) < 27:
        return {"fine_texture": float("nan"), "local_contrast": float("nan")}
    weight = tissue.astype(np.float32)
    sigma, window = FINE_MM / np.asarray(spacing), np.maximum(1, np.rint(CONTRAST_MM / np.asarray(spacing)))
    smooth = ndimage.gaussian_filter(values * weight, sigma) / np.maximum(
        ndimage.gaussian_filter(weight, sigma), 1e-6
    )
    share, mean, square = (
        ndimage.uniform_filter(part, window.astype(int)) for part in (weight, values * weight, values**2 * weight)
    )
    share = np.maximum(share, 1e-6)
    spread = np.sqrt(np.maximum(square / share - (mean / share) ** 2, 0))
    return {
        "fine_texture": float((values - smooth)[tissue].std()),
        "local_contrast": float(np.median(spread[tissue & (share > 0.5)])),
    }


def _patch_size(spacing: tuple[float, ...]) -> np.ndarray:
    return np.maximum(2, np.rint(PATCH_MM / np.asarray(spacing))).astype(int)


def _maps(values: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """The values, and what filters make of them: (M, I, J, K) float32."""
    from scipy import ndimage

    weight = tissue.astype(np.float32)

    def smooth(sigma: float) -> np.ndarray:
        mixed = ndimage.gaussian_filter(values * weight, sigma)
        result: np.ndarray = mixed / np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-6)
        return result

    inner = np.where(tissue, values, smooth(2.0))  # air is continued from the tissue
    gradient = np.sqrt(sum(np.gradient(inner, axis=axis) ** 2 for axis in range(3)))
    return np.stack([
        values, gradient, np.abs(ndimage.laplace(inner)), *(np.abs(values - smooth(sigma)) for sigma in SIGMAS),
    ]).astype(np.float32)  # fmt: skip


def _statistics(inside: np.ndarray) -> np.ndarray:
    """Of maps within a patch's tissue, (M, N): those of the values, and mean, spread and tail of the others."""
    from scipy import stats

    values, others = inside[0], inside[1:]
    percentiles = np.percentile(values, (5, 25, 50, 75, 95))
    moments = [values.mean(), values.std(), stats.skew(values), stats.kurtosis(values)]
    tails = np.percentile(others, 90, axis=1)
    logs = np.log(np.maximum(others.mean(axis=1), 1e-6))
    relative = others.mean(axis=1) / max(float(values.std()), 1e-6)
    return np.nan_to_num(
        np.concatenate([percentiles, moments, others.mean(axis=1), others.std(axis=1), tails, logs, relative])
    )


def _planes(planes: list[np.ndarray]) -> np.ndarray:
    """Co-occurrence and local binary patterns, mean over three planes."""
    import warnings

    from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

    rows = []
    for plane in planes:
        levels = np.clip(plane / BRIGHT_END * GREY_LEVELS, 0, GREY_LEVELS - 1).astype(np.uint8)
        matrix = graycomatrix(
            levels, [1, 2], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], GREY_LEVELS, symmetric=True, normed=True
        )
        names = "contrast", "dissimilarity", "homogeneity", "energy", "correlation"
        haralick = [graycoprops(matrix, name).mean(axis=1) for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the values are no whole numbers
            pattern = local_binary_pattern(plane, 8, 1, "uniform")
        counts = np.bincount(pattern.astype(int).ravel(), minlength=10)
        rows.append(np.concatenate([*haralick, counts / pattern.size]))
    mean: np.ndarray = np.mean(rows, axis=0)
    return mean
