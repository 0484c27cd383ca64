"""Training of the anatomy network on heads whose brain labels and template coordinates are known.

Everything a scan can do to us is drawn at random for each example: pose, field of view, voxel size, bias
field, noise, contrast (so that T2, FLAIR and PD work too), and faces already removed by other programs.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..anatomy import bfloat16, scale_input
from ..grid import dilate
from ..networks import AnatomyNetwork
from ..template import Template

log = logging.getLogger(__name__)
GRID = (128, 128, 96)
"""Shape (A, S, L) of one training example at 2 mm."""
HEAD_MARGIN = 2
"""Voxels of the template grid: coordinates count this far outside the average skin, where the air mask is."""


@dataclass(frozen=True)
class PreparedHead:
    """One training head along its own axes at 2 mm, arrays (A, S, L).

    image: any intensities, air near 0.  brain: bool or 0 and 1.  index_to_template: (4, 4) index -> template
    RAS mm, the affine map that fits best."""

    name: str
    image: np.ndarray
    brain: np.ndarray
    index_to_template: np.ndarray

    @classmethod
    def read(cls, path: str | Path) -> PreparedHead:
        path = Path(path)
        with np.load(path, allow_pickle=False) as data:
            return cls(path.stem, data["image"], data["brain"], data["index_to_template"])


def inside_head(template: Template, coordinates: Tensor) -> Tensor:
    """Which template points (..., 3), RAS mm, lie in the average head or close to it: bool (...)."""
    head = dilate(torch.from_numpy(template.head), HEAD_MARGIN).numpy()
    return template.sample(head, coordinates) > 0.5


def rotation(angles: np.ndarray) -> np.ndarray:
    """3x3 rotation by `angles` (radians) about the three axes, one after the other."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


def grid_of(matrix: np.ndarray, shape: tuple[int, ...], source: tuple[int, ...]) -> Tensor:
    """The sampling grid (1, *shape, 3) for `grid_sample`: output index -> `matrix` -> index in `source`."""
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    m = torch.from_numpy(np.asarray(matrix, dtype=np.float32))
    columns = []
    for row in (2, 1, 0):  # grid_sample wants the last axis first
        index = m[row, 0] * i + m[row, 1] * j + m[row, 2] * k + m[row, 3]
        columns.append(2.0 * index / (source[row] - 1) - 1.0)
    return torch.stack(columns, dim=-1)[None]


def random_field(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> Tensor:
    """A smooth random field of standard deviation about 1: (1, 1, *shape), `cells` knots an axis."""
    knots = torch.from_numpy(rng.standard_normal((1, 1, cells, cells, cells)).astype(np.float32))
    return functional.interpolate(knots, size=shape, mode="trilinear", align_corners=True)


def random_contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Another contrast: intensities in 0..1 through a random piecewise-linear curve that keeps air dark."""
    if rng.random() < 0.6:
        return image.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.35)))
    values = np.r_[0.0, rng.uniform(0.05, 1.0, 7)].astype(np.float32)
    position = image.clamp(0, 1) * (len(values) - 1)
    low = position.floor().long().clamp(max=len(values) - 2)
    table = torch.from_numpy(values)
    return table[low] + (position - low) * (table[low + 1] - table[low])


def degrade(image: Tensor, rng: np.random.Generator, difficulty: float) -> Tensor:
    """Bias field, coarser voxels along one axis, and Rician noise on an image (1, 1, A, S, L) in 0..1."""
    shape = tuple(image.shape[2:])
    if rng.random() < 0.8:
        image = image * torch.exp(random_field(shape, 4, rng) * float(rng.uniform(0, 0.4)))
    if rng.random() < 0.4 * difficulty:
        window = [1, 1, 1]
        for axis in range(3):
            if rng.random() < 0.5:
                window[axis] = 2
        coarse = functional.avg_pool3d(image, window)
        image = functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)
    if rng.random() < 0.7:
        sigma = float(rng.uniform(0, 0.06)) * difficulty
        noise = torch.randn((2, *shape)) * sigma
        image = torch.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)
    return image


def removed_face(coordinates: Tensor, brain: Tensor, rng: np.random.Generator) -> Tensor:
    """What another program may have emptied: bool (A, S, L), in front of a random surface, off the brain."""
    x, y, z = coordinates.unbind(-1)
    kind = rng.random()
    if kind < 0.4:  # a plane, as quickshear cuts
        slope = rng.uniform(0.2, 1.6)
        empty = y - rng.uniform(20, 70) > slope * (z - rng.uniform(-60, -10))
    elif kind < 0.8:  # a shell before the face, as pydeface and AFNI cut
        radius = (x / rng.uniform(60, 100)) ** 2 + ((z + 60) / rng.uniform(60, 110)) ** 2
        empty = (y > rng.uniform(20, 75) - 25 * radius) & (z < rng.uniform(-15, 30))
    else:  # a box
        empty = (y > rng.uniform(15, 60)) & (z < rng.uniform(-45, 0)) & (x.abs() < rng.uniform(50, 90))
    margin = int(rng.integers(1, 4))
    return empty & ~dilate(brain[0, 0] > 0.5, margin)


def example(
    head: PreparedHead, template: Template, rng: np.random.Generator, difficulty: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One training example: image (1, 1, A, S, L), brain (same), coordinates (1, 3, A/2, S/2, L/2) in units
    of 100 mm, and the weight (1, 1, A/2, S/2, L/2) of the coordinates (the template's head, in view).
    `difficulty` (0..1) widens the poses and makes odd scans more frequent."""
    image = torch.from_numpy(head.image.astype(np.float32))[None, None]
    brain = torch.from_numpy(head.brain.astype(np.float32))[None, None]
    source = tuple(image.shape[2:])
    angle = math.radians(8 + (26 * difficulty if rng.random() < 0.6 else 0))
    linear = rotation(rng.uniform(-angle, angle, 3) * rng.choice([0.4, 1.0], 3))
    linear = linear @ np.diag(np.exp(rng.uniform(-0.2, 0.2) + rng.uniform(-0.06, 0.06, 3)))
    centre_out = (np.array(GRID) - 1) / 2 + rng.uniform(-12, 12, 3)
    centre_in = (np.array(source) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre_in - linear @ centre_out
    grid = grid_of(matrix, GRID, source)
    x = functional.grid_sample(image, grid, align_corners=True)
    b = functional.grid_sample(brain, grid, align_corners=True)
    seen = functional.grid_sample(torch.ones_like(image), grid, align_corners=True) > 0.99
    to_template = torch.from_numpy((head.index_to_template @ matrix).astype(np.float32))
    axes = [torch.arange(n, dtype=torch.float32) for n in GRID]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    coordinates = index @ to_template[:3, :3].T + to_template[:3, 3]

    if rng.random() < 0.5 * difficulty:  # a cut field of view: chin, vertex, ears, occiput or nose
        for _ in range(int(rng.integers(1, 4))):
            axis, front = int(rng.integers(0, 3)), rng.random() < 0.5
            cut = int(rng.uniform(5, 32))
            span = torch.arange(GRID[axis])
            keep = span < GRID[axis] - cut if front else span >= cut
            seen = seen & keep.reshape([-1 if i == axis else 1 for i in range(3)])
    x = x / float(np.percentile(head.image[::3, ::3, ::3], 99.5))
    x = random_contrast(x, rng) if rng.random() < 0.75 * difficulty else x
    if rng.random() < 0.35 * difficulty:
        x = x.masked_fill(removed_face(coordinates, b, rng), 0.0)
    x = degrade(x, rng, difficulty) * seen
    inside = inside_head(template, coordinates) & seen[0, 0]
    half = functional.avg_pool3d(inside.float()[None, None], 2)
    target = functional.avg_pool3d(coordinates.permute(3, 0, 1, 2)[None], 2) / 100.0
    return scale_input(x), b * seen, target, half * (half > 0.5)


def train(heads: list[PreparedHead], template: Template, folder: Path, settings: dict[str, Any]) -> AnatomyNetwork:
    """Train the anatomy network; writes `checkpoint.pt` into `folder` (and resumes from it).

    `settings`: seed, steps, learning_rate, filters; and where wanted device (a torch.device, else the
    processor) and init (a state dict to start from). Returns the network with averaged weights."""
    seed, steps, rate = int(settings["seed"]), int(settings["steps"]), float(settings["learning_rate"])
    device = torch.device(settings.get("device", "cpu"))
    torch.manual_seed(seed)
    network = AnatomyNetwork(settings["filters"])
    if settings.get("init"):
        network.load_state_dict(settings["init"])
    network = network.to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    checkpoint = folder / "checkpoint.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        for part, name in ((network, "network"), (average, "average")):
            part.load_state_dict({"scale": torch.ones(3)} | state[name])  # the first checkpoints had no scale
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start = int(state["step"])
    totals = np.zeros(3)
    began = time.monotonic()
    for step in range(start, steps):
        rng = np.random.default_rng([seed, step])
        head = heads[int(rng.integers(len(heads)))]
        torch.manual_seed(seed * 1_000_003 + step)
        # easy and hard scans side by side; the hardest only once there is something to build on
        difficulty = float(rng.uniform(0, 1)) * min(1.0, 0.3 + step / (0.3 * steps))
        x, brain, target, weight = (part.to(device) for part in example(head, template, rng, difficulty))
        with bfloat16(device):
            logits, coordinates = network(x)
        probability = torch.sigmoid(logits)
        overlap = 2 * (probability * brain).sum() / (probability.sum() + brain.sum() + 1)
        brain_loss = functional.binary_cross_entropy_with_logits(logits, brain) + 0.3 * (1 - overlap)
        error = functional.smooth_l1_loss(coordinates, target, beta=0.05, reduction="none").mean(1, True)
        coordinate_loss = (error * weight).sum() / (weight.sum() + 1)
        loss = brain_loss + coordinate_loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        decay = min(0.99, (step + 1) / (step + 20))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        distance = (torch.linalg.vector_norm(coordinates - target, dim=1, keepdim=True) * weight).sum()
        totals += [brain_loss.item(), overlap.item(), 100 * (distance / (weight.sum() + 1)).item()]
        if (step + 1) % 25 == 0:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            log.info(
                "step %d/%d  brain loss %.3f  Dice %.3f  coordinates %.1f mm  %.2f s a step",
                step + 1, steps, *(totals / 25), seconds,
            )  # fmt: skip
            totals[:] = 0
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    return average
