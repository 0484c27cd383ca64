"""Generation: real tissue in the drawn shape on the scan's own grid, and the generator that paints the face from
it.

The mosaic of a tissue bank (`tissue`) is read once, where the scan has its voxels, through the field that gives
the average head the drawn shape; a smooth gain, found on the kept tissue around the face region, makes it as
bright as the scan is there.
Arrays are in ASL order; intensities 0 (air) to 2, the networks' range + 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..spatial.grid import dilate, mapped, sample_at, smooth

if TYPE_CHECKING:
    from torch import Tensor

    from ..defacing import Defaced
    from ..face_model.template import Template
    from .inference import Inference
    from .network_input import NetworkInput
    from .tissue_bank import TissueBank

BAND = 4
"""Working-grid voxels around the face region on whose tissue the gain is found."""
GAIN_SIGMA = 6.0
"""Working-grid voxels over which the gain is smooth: that of a receive coil is, and a border's texture is not."""
SEAM_SIGMA, SEAM_SHARE = 2.0, 0.1
"""Working-grid voxels over which what the gain leaves at the border is evened out, and the share of border tissue
nearby below which that fades."""
GAIN_FAR = 1e-3
"""Weight of the median gain against that of the border nearby: it decides far from the border."""
GAIN_MOST = 2.5
"""The gain is no larger than this, and no smaller than its inverse."""
TISSUE = 0.5
"""Intensity from which on a voxel is tissue whose brightness tells the gain."""
CHANGED, DARKEST = 1.35, 0.5
"""The generator makes tissue brighter or darker by this factor at most, and none darker than this."""
ROW_POINTS = 4096
"""Points that are read at once; the cores share what is more."""


@dataclass(frozen=True)
class DrawnTissue:
    """A mosaic in a drawn shape, to be read anywhere in one scan.

    bank, spline: the mosaic and its spline coefficients.  field: (3, A, S, L) displacement on the working grid,
    voxel y shows the average head at y + field(y).  to_mm: (4, 4) working index -> template mm.  gain: (A, S, L),
    log."""

    bank: TissueBank
    spline: np.ndarray
    field: Tensor
    to_mm: np.ndarray
    gain: Tensor | None = None

    def at(self, points: np.ndarray) -> np.ndarray:
        """Tissue at points (N, 3) in voxels of the working grid: float32 (N,), 0 to 2."""
        values = np.empty(len(points), np.float32)
        for start in range(0, len(points), 2_000_000):
            part = points[start : start + 2_000_000]
            moves = read(self.field, part, "border")
            values[start : start + len(part)] = self.bank.read_at(self.spline, mapped(part + moves.T, self.to_mm))
            if self.gain is not None:
                values[start : start + len(part)] *= np.exp(read(self.gain[None], part, "border")[0])
        return values.clip(0, 2)

    def matched(self, scan: Tensor, region: Tensor) -> DrawnTissue:
        """The same, as bright as the kept tissue around the face region. scan: (A, S, L) on the working grid,
        -1..1; region: bool."""
        import torch

        band = dilate(region, BAND) & ~region & (scan + 1 > TISSUE)
        index = np.argwhere(band.numpy())
        made = torch.zeros_like(scan)
        made[band] = torch.from_numpy(self.at(index.astype(np.float32)))
        both = band & (made > TISSUE)
        if not both.any():
            return self
        known = torch.where(both, (scan + 1) * made, 0.0)  # dim voxels are in part bone or air, and tell little
        ratio = torch.where(both, torch.log((scan + 1).clamp(min=TISSUE) / made.clamp(min=TISSUE)), 0.0)
        usual = float(torch.median(ratio[both]))
        gain = (smooth(known * ratio, GAIN_SIGMA) + GAIN_FAR * usual) / (smooth(known, GAIN_SIGMA) + GAIN_FAR)
        left = known * (ratio - gain)
        gain = gain + smooth(left, SEAM_SIGMA) / smooth(known, SEAM_SIGMA).clamp(min=SEAM_SHARE)
        most = float(np.log(GAIN_MOST))
        return replace(self, gain=gain.clamp(-most, most))


def paint(
    seen: NetworkInput,
    coefficients: np.ndarray | None,
    defaced: Defaced,
    run: Inference,
    seed: int,
    dropout: float,
) -> np.ndarray:
    """Paint one face: (N,) -1..1, at the True voxels of the face region, in C order. coefficients: (K,) its shape;
    None for a model without shapes, whose generator paints from the defaced scan alone."""
    import torch

    model, region = run.model, defaced.face_region
    at = mapped(np.argwhere(region), np.linalg.inv(seen.to_native)).astype(np.float32)
    channels = {"defaced": seen.scan, "face_region": seen.region.float()}
    if coefficients is None or model.tissue is None:
        painted = run(channels, seed, dropout, seen.region)
        if painted.shape == region.shape:
            return np.asarray(painted.numpy()[region])
        return read(painted[None], at, "border")[0]
    template = model.working_template
    field = template.field(coefficients, seen.meeting)
    voxel_mm = float(np.prod(defaced.view.spacing)) ** (1 / 3)
    sharpness = seen.texture / float(model.card["tissue_texture"])
    tissue = drawn_tissue(model.tissue, template, field, np.random.default_rng([seed, 2]), voxel_mm, sharpness)
    tissue = tissue.matched(seen.scan, seen.region)
    # the generator paints on its own grid; what is finer than that is the tissue's
    prior = seen.scan.clone()
    index = np.argwhere(seen.region.numpy()).astype(np.float32)
    prior[seen.region] = torch.from_numpy(tissue.at(index) - 1)
    painted = run(channels | {"prior": prior}, seed, dropout, seen.region)
    near = read(dilate(prior > -1, 1)[None].float(), at)[0] > 0  # elsewhere there is air
    values = np.zeros(len(at), np.float32)
    values[near] = bounded(tissue.at(at[near]), read((painted - prior)[None], at[near], "border")[0])
    return values - 1


def drawn_tissue(
    bank: TissueBank,
    template: Template,
    field: Tensor,
    rng: np.random.Generator,
    voxel_mm: float,
    sharpness: float = 1.0,
) -> DrawnTissue:
    """A random mosaic in the shape of a field (3, A, S, L). template: on the working grid.
    voxel_mm, sharpness: as for `TissueBank.mosaic`."""
    return DrawnTissue(bank, bank.spline(bank.mosaic(rng, voxel_mm, sharpness)), field, template.affine)


def bounded(tissue: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Tissue (N,), 0 to 2, after the generator's change (N,), which is no larger than `CHANGED` allows: where it
    is unsure it would tear thin skin, or let tissue hang in the air."""
    least, most = np.minimum(tissue, np.maximum(tissue / CHANGED, DARKEST)), tissue * CHANGED
    return np.asarray((tissue + changed).clip(least, most).clip(0, 2), np.float32)


def read(images: Tensor, points: np.ndarray, outside: str = "zeros") -> np.ndarray:
    """Images (C, A, S, L) at points (N, 3) in voxels, trilinear: (C, N)."""
    import torch

    rows = -(-len(points) // ROW_POINTS)
    index = torch.zeros(3, rows * ROW_POINTS)
    index[:, : len(points)] = torch.from_numpy(np.ascontiguousarray(points.T, dtype=np.float32))
    values = sample_at(images, index.reshape(3, rows, ROW_POINTS, 1), outside)
    return np.asarray(values.reshape(len(images), -1)[:, : len(points)].numpy())
