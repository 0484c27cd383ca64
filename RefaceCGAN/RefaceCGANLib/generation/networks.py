"""The networks: the anatomy network, and the generator and discriminator of Molchanova et al. 2023.

All take and return tensors (N, C, A, S, L): batch, channel, then the axes of the working grid
(Anterior, Superior, Left). Intensities are in [-1, 1] with -1 for air and for emptied voxels.
Importing this module imports torch; nothing else in the package does so at import.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

LEAK = 0.2
"""Slope of the LeakyReLU (vox2vox, and Molchanova et al. 2023, section 2.2)."""


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm3d(channels, affine=True)


class Resize(nn.Sequential):
    """Trilinear doubling, then a 3x3x3 convolution: a transposed convolution without its checkerboard."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_out, 3, padding=1, padding_mode="replicate"),
            nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
        )


def _upsampling(kind: str, channels_in: int, channels_out: int) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose3d(channels_in, channels_out, 4, stride=2, padding=1)
    if kind == "resize":
        return Resize(channels_in, channels_out)
    raise ValueError(f"upsampling is 'transposed' or 'resize', not {kind!r}")


class NoiseDropout(nn.Module):
    """Dropout that stays on at inference and draws its noise from `source`.

    The noise is drawn on the CPU, so that a seed means the same face whatever the device. Without a
    source (in training) torch's global generator is used.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.source: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.probability <= 0:
            return x
        keep = torch.rand(x.shape, generator=self.source) >= self.probability
        return x * keep.to(x.device, x.dtype) / (1.0 - self.probability)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm beside an identity path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1),
            _norm(channels),
            nn.LeakyReLU(LEAK),
            nn.Conv3d(channels, channels, 3, padding=1),
            _norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class Generator(nn.Module):
    """The paper's generator: a 3D U-Net (vox2vox) with residual blocks and dropout in its bottleneck.

    4x4x4 convolutions of stride 2 with instance norm and LeakyReLU 0.2 go down `levels` times, residual
    blocks with dropout between them form the bottleneck, upsampling with skip connections goes back up, tanh
    ends it (Molchanova et al. 2023, section 2.2; Cirillo et al. 2020). Three things are ours, each chosen in
    the model card: `upsampling` "resize" (no checkerboard; the paper's is "transposed"); `detail`, a pair of
    3x3x3 convolutions that see the input at full resolution (0 channels: none, as in the paper); and
    `residual`, the input channel that the network corrects instead of painting from nothing (none).

    Input (N, channels_in, A, S, L), each axis a multiple of 2**levels; output (N, 1, A, S, L) in [-1, 1].
    """

    def __init__(
        self,
        channels_in: int = 1,
        filters: int = 64,
        levels: int = 4,
        filters_max: int = 512,
        residual_blocks: int = 4,
        dropout: float = 0.25,
        upsampling: str = "transposed",
        detail: int = 0,
        residual: int | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        widths = [min(filters * 2**level, filters_max) for level in range(levels)]
        self.down = nn.ModuleList()
        previous = channels_in
        for level, width in enumerate(widths):
            layers: list[nn.Module] = [nn.Conv3d(previous, width, 4, stride=2, padding=1)]
            if level > 0:
                layers.append(_norm(width))
            layers.append(nn.LeakyReLU(LEAK))
            self.down.append(nn.Sequential(*layers))
            previous = width
        bottleneck: list[nn.Module] = []
        for _ in range(residual_blocks):
            bottleneck += [ResidualBlock(previous), NoiseDropout(dropout)]
        self.bottleneck = nn.Sequential(*bottleneck)
        self.up = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up.append(
                nn.Sequential(_upsampling(upsampling, previous, width), _norm(width), nn.LeakyReLU(LEAK))
            )
            previous = 2 * width
        self.last = _upsampling(upsampling, previous, detail or 1)
        self.detail: nn.Module | None = None
        if detail:
            self.detail = nn.Sequential(
                nn.Conv3d(detail + channels_in, detail, 3, padding=1),
                nn.LeakyReLU(LEAK),
                nn.Conv3d(detail, 1, 3, padding=1),
            )

    def set_dropout(self, probability: float, source: torch.Generator | None = None) -> None:
        """Set the dropout probability and the source of its noise in every dropout layer."""
        for module in self.modules():
            if isinstance(module, NoiseDropout):
                module.probability, module.source = probability, source

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        y = x
        for down in self.down:
            y = down(y)
            skips.append(y)
        y = self.bottleneck(y)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            y = torch.cat([up(y), skip], dim=1)
        y = self.last(y)
        if self.detail is not None:
            y = self.detail(torch.cat([functional.leaky_relu(y, LEAK), x], dim=1))
        y = y.float()
        if self.residual is not None:
            y = y + torch.atanh(x[:, self.residual : self.residual + 1].float().clamp(-0.99, 0.99))
        return torch.tanh(y)


class Discriminator(nn.Module):
    """The paper's 3D PatchGAN on (condition, face) pairs.

    Input: the condition (N, C, A, S, L) and a real or generated face (N, 1, A, S, L); output: a map of
    scores (N, 1, a, s, l), one a patch, without an activation (the least-squares or logistic loss is the
    trainer's matter), and the intermediate features for feature matching.
    """

    def __init__(self, channels_in: int = 2, filters: int = 64, levels: int = 3) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.layers = nn.ModuleList()
        previous = channels_in
        for level in range(levels):
            width = min(filters * 2**level, 512)
            layers: list[nn.Module] = [nn.Conv3d(previous, width, 4, stride=2, padding=1)]
            if level > 0:
                layers.append(_norm(width))
            layers.append(nn.LeakyReLU(LEAK))
            self.layers.append(nn.Sequential(*layers))
            previous = width
        self.score = nn.Conv3d(previous, 1, 3, padding=1)

    def forward(self, condition: Tensor, face: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = torch.cat([condition, face], dim=1)
        features: list[Tensor] = []
        for layer in self.layers:
            y = layer(y)
            features.append(y)
        return self.score(y), features


class PortraitDiscriminator(nn.Module):
    """A 2D PatchGAN on portraits: the directions of the skin as seen from one side (`training.portraits`).

    Input (N, 3, S, L); output: a map of scores (N, 1, s, l). Spectral norm keeps it from growing steep.
    """

    def __init__(self, filters: int = 32, levels: int = 3) -> None:
        super().__init__()
        widths = [3, *(filters * 2**level for level in range(levels))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(LEAK)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, portrait: Tensor) -> Tensor:
        result: Tensor = self.layers(portrait)
        return result


def _fold(x: Tensor) -> Tensor:
    """(N, C, 2a, 2s, 2l) -> (N, 8C, a, s, l): each 2x2x2 block becomes channels."""
    n, c, a, s, length = x.shape
    x = x.reshape(n, c, a // 2, 2, s // 2, 2, length // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, 8 * c, a // 2, s // 2, length // 2)


def _unfold(x: Tensor) -> Tensor:
    """The inverse of `_fold` for 8 channels: (N, 8, a, s, l) -> (N, 1, 2a, 2s, 2l)."""
    n, _, a, s, length = x.shape
    x = x.reshape(n, 1, 2, 2, 2, a, s, length).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, 1, 2 * a, 2 * s, 2 * length)


def _down_and_up(y: Tensor, downs: nn.ModuleList, ups: nn.ModuleList) -> Tensor:
    """The levels of a U-Net: down, and up again beside what was on the way down. y: (N, C, a, s, l)."""
    skips = [y]
    for down in downs:
        y = down(y)
        skips.append(y)
    skips.pop()
    narrow: nn.Module
    merge: nn.Module
    for narrow, merge in ups:  # type: ignore[misc,assignment]
        y = functional.interpolate(narrow(y), scale_factor=2.0, mode="trilinear", align_corners=False)
        y = merge(torch.cat([y, skips.pop()], dim=1))
    return y


class AnatomyNetwork(nn.Module):
    """Where the brain is, and where every voxel lies in the template, from one scan of any contrast.

    A U-Net whose finest convolutions run on the folded grid (2x2x2 blocks as channels), which costs an eighth.
    It sees and corrects a first guess of the coordinates: the distance from the scan's centre of intensity.
    Input (N, 1, A, S, L) on the anatomy grid, each axis a multiple of `multiple`; output: brain logits
    (N, 1, A, S, L) and template coordinates (N, 3, A/2, S/2, L/2), RAS in units of 100 mm, one for each block.
    """

    SPACING = 2.0
    """mm; the anatomy grid."""

    scale: Tensor

    def __init__(self, filters: tuple[int, ...] | list[int] = (24, 40, 64, 96)) -> None:
        super().__init__()
        self.multiple = 2 ** len(filters)
        self.enter = self._block(8 + 3, filters[0])
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(a, b, 2, stride=2),
                self._norm(b),
                nn.LeakyReLU(LEAK),
                self._block(b, b),
                self._block(b, b),
            )
            for a, b in pairwise(filters)
        )
        self.up = nn.ModuleList(
            nn.ModuleList([nn.Conv3d(b, a, 1), self._block(2 * a, a)])
            for a, b in reversed(list(pairwise(filters)))
        )
        self.leave = nn.Conv3d(filters[0], 8 + 3, 1)
        self.register_buffer("scale", torch.ones(3))  # template mm for each mm of the training's coordinates

    @staticmethod
    def _norm(channels: int) -> nn.Module:
        # instance norm would wipe out what is constant over the scan: a shift of all coordinates
        return nn.GroupNorm(1, channels)

    @classmethod
    def _block(cls, channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, padding=1), cls._norm(channels_out), nn.LeakyReLU(LEAK)
        )

    def _first_guess(self, x: Tensor) -> Tensor:
        """Distance from the centre of intensity in units of 100 mm, RAS: (N, 3, A/2, S/2, L/2)."""
        mass = functional.avg_pool3d(x.float().clamp(0, 1), 2)[:, 0]
        total = mass.sum((1, 2, 3)) + 1e-6
        guess = []
        for axis, sign in ((3, -1.0), (1, 1.0), (2, 1.0)):
            position = torch.arange(mass.shape[axis], device=x.device, dtype=torch.float32)
            position = position.reshape([-1 if i == axis else 1 for i in range(1, 4)])
            centre = (mass * position).sum((1, 2, 3)) / total
            distance = (position[None] - centre[:, None, None, None]) * (sign * 2 * self.SPACING / 100)
            guess.append(distance.expand_as(mass))
        return torch.stack(guess, dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        guess = self._first_guess(x)
        y = self.enter(torch.cat([_fold(x), guess], dim=1))
        y = _down_and_up(y, self.down, self.up)
        y = self.leave(y).float()
        return _unfold(y[:, :8]), (guess + y[:, 8:]) * self.scale.reshape(3, 1, 1, 1)


class BrainNetwork(nn.Module):
    """Where the brain is, on a coarse grid: the second opinion on the anatomy network's brain mask.

    A plain U-Net on the folded grid (2x2x2 blocks as channels). Input (N, 1, A, S, L), contrast against the
    surroundings, each axis a multiple of `multiple`; output: brain logits of the same shape.
    """

    SPACING = 4.0
    """mm; the grid of the second opinion."""

    def __init__(self, filters: tuple[int, ...] | list[int] = (32, 48, 64)) -> None:
        super().__init__()
        self.multiple = 2 ** len(filters)
        self.enter = self._block(8, filters[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 2, stride=2), nn.LeakyReLU(LEAK), self._block(b, b))
            for a, b in pairwise(filters)
        )
        self.up = nn.ModuleList(
            nn.ModuleList([nn.Conv3d(b, a, 1), self._block(2 * a, a)])
            for a, b in reversed(list(pairwise(filters)))
        )
        self.leave = nn.Conv3d(filters[0], 8, 1)

    @staticmethod
    def _block(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, padding=1),
            nn.GroupNorm(channels_out // 8, channels_out),
            nn.LeakyReLU(LEAK),
            nn.Conv3d(channels_out, channels_out, 3, padding=1),
            nn.GroupNorm(channels_out // 8, channels_out),
            nn.LeakyReLU(LEAK),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = _down_and_up(self.enter(_fold(x)), self.down, self.up)
        return _unfold(self.leave(y))


NETWORKS = {
    "generator": Generator,
    "discriminator": Discriminator,
    "anatomy": AnatomyNetwork,
    "brain_check": BrainNetwork,
}


def build(kind: str, options: dict[str, Any]) -> nn.Module:
    """Make the network a model card names: `kind` is a key of `NETWORKS`, `options` its arguments."""
    return NETWORKS[kind](**options)
