"""The attack on reconstruction: a small 3D U-Net, trained on pairs (refaced, original) of other people, restores
the face of refaced scans it has not seen. (Gao et al. 2025 did so with diffusion models; a small network is a
lower bound.)

    python -m RefaceCGANLib.evaluation.reconstruction --originals heads/val --originals heads/train \\
        --outputs out/seed1 --judge heads/val --restored restored [--iterations 2000]

writes the restored heads of the people in `--judge` to a folder, and prints how far they are from their
originals, beside the refaced scans and the mean face of the training people. Give that folder to `measure
--outputs` to see how well a face recogniser finds the owners in what was restored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..rendering.skin_surface import skin_threshold
from ..spatial.grid import mapped, sample
from ..volume.volume import Volume
from .measure import heads_in
from .skin_shape import place_in_template
from .tissue_realism import Scale, changed_region

if TYPE_CHECKING:
    from torch import Tensor, nn

SPACING_MM = 3.0
BOX_MM = ((-84.0, 84.0), (-10.0, 134.0), (-118.0, 26.0))
"""The block that the network sees, RAS mm of the template: the face and some of what is kept behind it."""
SHAPE = tuple(int((high - low) / SPACING_MM) for low, high in BOX_MM)  # multiples of 8
FILTERS = 12
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Pair:
    """One person on the network's grid, float32 (X, Y, Z), air 0 and bright tissue 1. changed: bool, what the tool
    replaced. to_native: (4, 4) grid index -> voxel index of the scan."""

    refaced: np.ndarray
    original: np.ndarray
    changed: np.ndarray
    to_native: np.ndarray
    scale: Scale

    @classmethod
    def of(cls, original: Volume, refaced: Volume, place: np.ndarray | None = None) -> Pair:
        """place: (4, 4) voxel index -> template RAS mm, by default from the original's anatomy."""
        import torch

        place = place_in_template(original) if place is None else place
        grid = np.diag([SPACING_MM] * 3 + [1.0])
        grid[:3, 3] = [low for low, _ in BOX_MM]
        to_native = np.linalg.inv(place) @ grid
        region = changed_region(original.array, refaced.array, original.spacing)
        scale = Scale.of(original.array, region, skin_threshold(original.array, original.spacing))
        images = np.stack([scale(refaced.array), scale(original.array), region.astype(np.float32)])
        seen = sample(torch.from_numpy(images), to_native, SHAPE).numpy()
        return cls(seen[0], seen[1], seen[2] > 0.5, to_native, scale)


def unet(seed: int = 0) -> nn.Module:
    """A U-Net of three levels: (N, 2, X, Y, Z), refaced scan and changed region, -> (N, 1, X, Y, Z), what is to be
    added to the refaced scan."""
    import torch
    from torch import nn

    def block(channels: int, filters: int) -> nn.Module:
        first, second = nn.Conv3d(channels, filters, 3, padding=1), nn.Conv3d(filters, filters, 3, padding=1)
        return nn.Sequential(first, nn.GroupNorm(4, filters), nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [FILTERS, 2 * FILTERS, 4 * FILTERS]
            self.down = nn.ModuleList(block(c, f) for c, f in zip([2, *sizes[:-1]], sizes, strict=True))
            self.up = nn.ModuleList(block(a + b, b) for a, b in zip(sizes[:0:-1], sizes[-2::-1], strict=True))
            self.last = nn.Conv3d(FILTERS, 1, 1)

        def forward(self, image: Tensor) -> Tensor:
            kept: list[Tensor] = []
            for level, layer in enumerate(self.down):
                image = layer(nn.functional.max_pool3d(image, 2) if level else image)
                kept.append(image)
            image = kept.pop()
            for layer in self.up:
                finer = nn.functional.interpolate(image, scale_factor=2.0, mode="trilinear", align_corners=False)
                image = layer(torch.cat([finer, kept.pop()], dim=1))
            result: Tensor = self.last(image)
            return result

    torch.manual_seed(seed)
    return Net()


def train(pairs: Sequence[Pair], iterations: int, seed: int = 0) -> nn.Module:
    """Train on pairs of other people, one a step, half of them mirrored; L1 loss where the tool replaced the
    scan."""
    import torch

    network = unet(seed).train()
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    random = np.random.default_rng(seed)
    for _ in range(iterations):
        pair = pairs[int(random.integers(len(pairs)))]
        refaced, original, changed = _tensors(pair, bool(random.integers(2)))
        restored = refaced + network(torch.cat([refaced, changed], dim=1))
        loss = ((restored - original).abs() * changed).sum() / changed.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def restored(network: nn.Module, pair: Pair) -> np.ndarray:
    """The restored block (X, Y, Z): the refaced scan, but where it was replaced what the network makes of it."""
    import torch

    with torch.inference_mode():
        refaced, _, changed = _tensors(pair, False)
        found = (refaced + network(torch.cat([refaced, changed], dim=1)))[0, 0].numpy()
    return np.where(pair.changed, found, pair.refaced).astype(np.float32)


def written(block: np.ndarray, pair: Pair, original: Volume, refaced: Volume) -> Volume:
    """The refaced scan with a restored block in it, where the tool had replaced the scan."""
    from scipy import ndimage

    region = changed_region(original.array, refaced.array, original.spacing)
    at = mapped(np.argwhere(region), np.linalg.inv(pair.to_native))
    inside = ((at >= 0) & (at <= np.array(SHAPE) - 1)).all(axis=1)
    values = ndimage.map_coordinates(block, at[inside].T, order=1)
    stored = refaced.stored.copy()
    real = (values * (pair.scale.bright - pair.scale.air) + pair.scale.air).astype(np.float32)
    places = np.argwhere(region)[inside]
    stored[tuple(places.T)] = refaced.to_stored(real).clip(refaced.stored.min(), refaced.stored.max())
    return refaced.with_stored(stored)


def errors(network: nn.Module, judged: Sequence[Pair], learned_from: Sequence[Pair]) -> dict[str, float]:
    """Mean absolute distance to the original where the tool replaced it (bright tissue is 1): of what was
    restored, of the refaced scan, and of the mean face of the people who were learned from, which knows nothing
    of the owner."""
    mean = np.mean([pair.original for pair in learned_from], axis=0)
    rows = [
        [
            float(np.abs(face - pair.original)[pair.changed].mean())
            for face in (restored(network, pair), pair.refaced, mean)
        ]
        for pair in judged
    ]
    return dict(zip(("restored", "refaced", "mean_face"), np.mean(rows, axis=0).tolist(), strict=True))


def _tensors(pair: Pair, mirrored: bool) -> list[Tensor]:
    """refaced, original and changed as tensors (1, 1, X, Y, Z)."""
    import torch

    arrays = (pair.refaced, pair.original, pair.changed.astype(np.float32))
    return [torch.from_numpy(np.ascontiguousarray(a[::-1] if mirrored else a))[None, None] for a in arrays]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m RefaceCGANLib.evaluation.reconstruction", description=__doc__)
    for name in ("originals", "outputs", "judge"):
        parser.add_argument(f"--{name}", type=Path, action="append", required=True)
    parser.add_argument("--restored", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=2000)
    args = parser.parse_args(argv)
    originals = {name: path for folder in args.originals for name, path in heads_in(folder).items()}
    outputs = {name: path for folder in args.outputs for name, path in heads_in(folder).items()}
    judge = {name for folder in args.judge for name in heads_in(folder)}
    pairs = {
        name: Pair.of(Volume.read(originals[name]), Volume.read(outputs[name]))
        for name in sorted(originals.keys() & outputs.keys())
    }
    learned_from = [pair for name, pair in pairs.items() if name not in judge]
    network = train(learned_from, args.iterations)
    print(errors(network, [pair for name, pair in pairs.items() if name in judge], learned_from))
    args.restored.mkdir(parents=True, exist_ok=True)
    for name in sorted(judge & pairs.keys()):
        original, refaced = Volume.read(originals[name]), Volume.read(outputs[name])
        block = restored(network, pairs[name])
        written(block, pairs[name], original, refaced).write(args.restored / f"{name}.nii.gz")


if __name__ == "__main__":
    main()
