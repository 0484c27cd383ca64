"""Training of the anatomy network, and of the second opinion on the brain, on heads whose brain labels and
template coordinates are known.

Everything a scan can do to us is drawn at random for each example: pose, field of view, voxel size, bias
field, noise, contrast (so that T2, FLAIR and PD work too), and faces already removed by other programs.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..anatomy.location import bfloat16, contrast_input, scale_input
from ..face_model.template import Template
from ..generation.networks import AnatomyNetwork, BrainNetwork
from ..spatial.grid import dilate, shift

log = logging.getLogger(__name__)
Network = TypeVar("Network", AnatomyNetwork, BrainNetwork)
GRIDS = ((128, 128, 96), (112, 112, 80), (96, 112, 80))
"""Shapes (A, S, L) of the training examples at 2 mm: scans come in many sizes."""
COARSE_GRIDS = ((64, 64, 48), (56, 56, 48), (48, 56, 40))
"""The like at 4 mm, for the second opinion."""
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

    def coarser(self) -> PreparedHead:
        """The same head at 4 mm; `brain` is then the share of each voxel that is brain."""
        image, brain = (
            functional.avg_pool3d(torch.from_numpy(array.astype(np.float32))[None, None], 2)[0, 0].numpy()
            for array in (self.image, self.brain)
        )
        to_fine = np.diag([2.0, 2.0, 2.0, 1.0]) @ shift(0.25, 0.25, 0.25)
        return PreparedHead(self.name, image, brain, self.index_to_template @ to_fine)


def near_head(template: Template) -> np.ndarray:
    """The average head and what is close to it: bool (A, S, L) on the template grid."""
    return dilate(torch.from_numpy(template.head), HEAD_MARGIN).numpy()


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


def receive_bias(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """The sensitivity of a coil that lies on one side of the head: (1, 1, A, S, L), 1 at its brightest.

    It falls by a factor of 1.5 to 30 across the grid, exponentially or as the inverse square of the distance."""
    direction = rng.standard_normal(3)
    if rng.random() < 0.6:  # most coils lie along an axis of the scan
        direction = np.eye(3)[rng.integers(3)] * rng.choice([-1.0, 1.0]) + 0.2 * direction
    direction /= np.abs(direction).sum()
    axes = [torch.linspace(-0.5, 0.5, n) * float(d) for n, d in zip(shape, direction, strict=True)]
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    along = i + j + k + 0.5  # 0 to 1
    factor = math.exp(rng.uniform(math.log(1.5), math.log(30.0)))
    if rng.random() < 0.5:
        return torch.exp(-math.log(factor) * along)[None, None]
    return (1 + (math.sqrt(factor) - 1) * along)[None, None] ** -2


def degrade(image: Tensor, rng: np.random.Generator, difficulty: float) -> Tensor:
    """Bias fields, coarser voxels along one axis, and Rician noise on an image (1, 1, A, S, L) in 0..1."""
    shape = tuple(image.shape[2:])
    if rng.random() < 0.8:
        image = image * torch.exp(random_field(shape, 4, rng) * float(rng.uniform(0, 0.4)))
    if rng.random() < 0.5 * difficulty:
        image = image * receive_bias(shape, rng)
        image = image / image.amax().clamp(1e-6)
    if rng.random() < 0.4 * difficulty:
        window = [1, 1, 1]
        for axis in range(3):
            if rng.random() < 0.4:
                window[axis] = int(rng.integers(2, 4))
        coarse = functional.avg_pool3d(image, window)
        image = functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)
    if rng.random() < 0.7:
        sigma = float(rng.uniform(0, 0.06) ** 2 / 0.06) * difficulty
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
    if rng.random() < 0.2:  # one half of it
        empty &= x * float(rng.choice([-1.0, 1.0])) > rng.uniform(-15, 15)
    margin = int(rng.integers(1, 4))
    return empty & ~dilate(brain[0, 0] > 0.5, margin)


def lesions(image: Tensor, brain: Tensor, rng: np.random.Generator) -> Tensor:
    """The image with one to three ellipsoids in or at the brain, darker or brighter: tumours, cavities, wide
    ventricles. The brain mask stays: what lies in the skull is the brain's place."""
    inside = torch.nonzero(brain[0, 0] > 0.5)
    if len(inside) == 0:
        return image
    axes = [torch.arange(n, dtype=torch.float32) for n in image.shape[2:]]
    extent = float(len(inside)) ** (1 / 3)  # voxels
    for _ in range(int(rng.integers(1, 4))):
        centre = inside[int(rng.integers(len(inside)))].float()
        radii = extent * rng.uniform(0.04, 0.3, 3)
        i, j, k = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)]
        hit = (i[:, None, None] + j[:, None] + k < 1) & (brain[0, 0] > 0.5)
        level = float(rng.choice([0.0, rng.uniform(0, 1.0), rng.uniform(1.0, 1.6)]))
        share = float(rng.uniform(0.5, 1.0))
        image = torch.where(hit, (1 - share) * image + share * level, image)
    return image


def phantom(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """No head: one or two ellipsoids, plain, layered or textured: (1, 1, A, S, L) in 0..1."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    image = torch.zeros(shape)
    for _ in range(int(rng.integers(1, 3))):
        radii, centre = rng.uniform(0.3, 0.95, 3), rng.uniform(-0.2, 0.2, 3)
        if rng.random() < 0.3:
            radii[:] = radii[0]
        i, j, k = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)]
        distance = torch.sqrt(i[:, None, None] + j[:, None] + k)
        inside = torch.full(shape, float(rng.uniform(0.3, 1.0)))
        kind = rng.random()
        if kind < 0.3:  # layers, as a fruit has
            inside = inside * (0.7 + 0.3 * torch.sign(torch.sin(distance * float(rng.uniform(5, 25)))))
        elif kind < 0.6:
            inside = inside * (1 + 0.3 * random_field(shape, int(rng.integers(4, 16)), rng)[0, 0])
        image = torch.where(distance < 1, inside, image)
    return image.clamp(0, 1)[None, None]


def cut_view(head: Tensor, rng: np.random.Generator) -> Tensor:
    """A field of view that ends within the head: bool (A, S, L). head: bool, same shape.

    One to three faces of the box that holds the head are moved in, by up to 55 % of its length, and 40 % of it
    stay; half of the cuts come from below, where fields of view end most often."""
    view, left = torch.ones_like(head), [0.6, 0.6, 0.6]
    for _ in range(int(rng.integers(1, 4))):
        axis, from_start = (1, True) if rng.random() < 0.5 else (int(rng.integers(3)), rng.random() < 0.5)
        others = tuple(other for other in range(3) if other != axis)
        used = torch.nonzero(head.any(others[1]).any(others[0])).flatten()
        if len(used) == 0:
            break
        first, last = int(used[0]), int(used[-1])
        share = min(rng.uniform(0, 0.55), left[axis])
        left[axis] -= share
        depth = int(share * (last - first))
        span = torch.arange(head.shape[axis])
        keep = span >= first + depth if from_start else span <= last - depth
        view &= keep.reshape([-1 if i == axis else 1 for i in range(3)])
    return view


def example(
    head: PreparedHead,
    template: Template,
    near: np.ndarray,
    rng: np.random.Generator,
    difficulty: float = 1.0,
    grid_shape: tuple[int, int, int] = GRIDS[0],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One training example: image (1, 1, A, S, L) with air near 0, brain (same), coordinates (1, 3, A/2, S/2, L/2)
    in units of 100 mm, and the weight (1, 1, A/2, S/2, L/2) of the coordinates (the template's head, in view).
    near: `near_head(template)`.  difficulty: 0..1, widens the poses and makes odd scans more frequent.
    grid_shape: A, S, L."""
    image = torch.from_numpy(head.image.astype(np.float32))[None, None]
    brain = torch.from_numpy(head.brain.astype(np.float32))[None, None]
    source = tuple(image.shape[2:])
    angle = math.radians(8 + (26 * difficulty if rng.random() < 0.6 else 0))
    linear = rotation(rng.uniform(-angle, angle, 3) * rng.choice([0.4, 1.0], 3))
    size = rng.uniform(0, 0.5) if rng.random() < 0.3 * difficulty else rng.uniform(-0.2, 0.2)
    linear = linear @ np.diag(np.exp(size + rng.uniform(-0.08, 0.08, 3)))
    centre_out = (np.array(grid_shape) - 1) / 2 + rng.uniform(-0.1, 0.1, 3) * grid_shape
    centre_in = (np.array(source) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre_in - linear @ centre_out
    grid = grid_of(matrix, grid_shape, source)
    both = functional.grid_sample(torch.cat([image, brain], dim=1), grid, align_corners=True)
    x, b = both[:, :1], both[:, 1:]
    seen = (grid.abs() <= 1).all(dim=-1)[None]
    to_template = torch.from_numpy((head.index_to_template @ matrix).astype(np.float32))
    axes = [torch.arange(n, dtype=torch.float32) for n in grid_shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    coordinates = index @ to_template[:3, :3].T + to_template[:3, 3]

    in_head = template.sample(near, coordinates) > 0.5
    if rng.random() < 0.65 * difficulty:
        seen = seen & cut_view(in_head, rng)
    x = x / float(np.percentile(head.image[::3, ::3, ::3], 99.5))
    x = random_contrast(x, rng) if rng.random() < 0.75 * difficulty else x
    if rng.random() < 0.35 * difficulty:
        x = lesions(x, b, rng)
    stripped = rng.random() < 0.15 * difficulty
    if stripped:
        kept = b[0, 0] > 0.5
        x = x * (dilate(kept, 1) if rng.random() < 0.4 else kept)
    elif rng.random() < 0.35 * difficulty:
        filling = rng.choice([0.0, 0.0, 0.0, 1.0, 2.0])
        noise = float(rng.uniform(0.05, 1.0)) * (torch.rand(x.shape) if filling == 1 else float(filling > 1))
        x = torch.where(removed_face(coordinates, b, rng), torch.as_tensor(noise), x)
    if rng.random() < 0.08 * difficulty:  # MP2RAGE: where there is no signal, the ratio is noise
        x = torch.where(x < 0.08, float(rng.uniform(0.3, 1.0)) * torch.rand(x.shape), x)
    elif rng.random() < 0.05 * difficulty:  # air and bone set to 0
        x = torch.where(x < float(rng.uniform(0.05, 0.25)), 0.0, x)
    if rng.random() < 0.08 * difficulty:
        x, b, in_head = phantom(grid_shape, rng), torch.zeros_like(b), torch.zeros_like(in_head)
    x = degrade(x, rng, difficulty)
    if rng.random() < 0.1 * difficulty:  # padding below the level of the air
        x = x + float(rng.uniform(0, 0.15))
    x = x * seen
    inside = in_head & seen[0, 0] & ((b[0, 0] > 0.5) if stripped else torch.ones_like(in_head))
    half = functional.avg_pool3d(inside.float()[None, None], 2)
    target = functional.avg_pool3d(coordinates.permute(3, 0, 1, 2)[None], 2) / 100.0
    return x, b * seen, target, half * (half > 0.5)


Losses = dict[str, Tensor]
"""What is added up to the loss ("loss") and what is only logged, each a scalar."""
Step = Callable[[np.random.Generator, float], Losses]
"""One training step: from random numbers and a difficulty (0..1) to the losses."""


def train(heads: list[PreparedHead], template: Template, folder: Path, settings: dict[str, Any]) -> AnatomyNetwork:
    """Train the anatomy network; writes `checkpoint.pt` into `folder` (and resumes from it).

    `settings`: seed, steps, learning_rate, filters; and where wanted device (a torch.device, else the
    processor) and init (a state dict to start from). Returns the network with averaged weights."""
    device = torch.device(settings.get("device", "cpu"))
    torch.manual_seed(int(settings["seed"]))
    network = AnatomyNetwork(settings["filters"])
    if settings.get("init"):
        network.load_state_dict(settings["init"])
    network = network.to(device)
    near = near_head(template)

    def step(rng: np.random.Generator, difficulty: float) -> Losses:
        shape = GRIDS[int(rng.integers(len(GRIDS)))]
        head = heads[int(rng.integers(len(heads)))]
        x, brain, target, weight = (
            part.to(device) for part in example(head, template, near, rng, difficulty, shape)
        )
        with bfloat16(device):
            logits, coordinates = network(scale_input(x))
        error = functional.smooth_l1_loss(coordinates, target, beta=0.05, reduction="none").mean(1, True)
        coordinate_loss = (error * weight).sum() / (weight.sum() + 1)
        distance = (torch.linalg.vector_norm(coordinates - target, dim=1, keepdim=True) * weight).sum()
        brain_loss, overlap = _brain_loss(logits, brain)
        return {
            "loss": brain_loss + coordinate_loss,
            "Dice": overlap,
            "coordinates, mm": 100 * distance / (weight.sum() + 1),
        }

    return _trained(network, step, folder, settings)


def train_brain_check(
    heads: list[PreparedHead], template: Template, folder: Path, settings: dict[str, Any]
) -> BrainNetwork:
    """Train the network of the second opinion on the brain; writes `checkpoint.pt` into `folder` (and resumes from
    it). It shares the heads with the anatomy network, but no weights, no grid and no intensity rule.

    `settings`: as for `train`. Returns the network with averaged weights."""
    device = torch.device(settings.get("device", "cpu"))
    torch.manual_seed(int(settings["seed"]))
    network = BrainNetwork(settings["filters"])
    if settings.get("init"):
        network.load_state_dict(settings["init"])
    network = network.to(device)
    coarse, near = [head.coarser() for head in heads], near_head(template)

    def step(rng: np.random.Generator, difficulty: float) -> Losses:
        shape = COARSE_GRIDS[int(rng.integers(len(COARSE_GRIDS)))]
        head = coarse[int(rng.integers(len(coarse)))]
        x, brain, _, _ = example(head, template, near, rng, difficulty, shape)
        loss, overlap = _brain_loss(network(contrast_input(x.to(device))), brain.to(device))
        return {"loss": loss, "Dice": overlap}

    return _trained(network, step, folder, settings)


def _brain_loss(logits: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and 0.3 times what is missing of a Dice of 1; and that Dice."""
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * brain).sum() / (probability.sum() + brain.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, brain) + 0.3 * (1 - overlap), overlap


def _trained(network: Network, draw: Step, folder: Path, settings: dict[str, Any]) -> Network:
    """Train a network by `draw` for the steps of `settings`, from the folder's checkpoint where there is one.
    Returns the network with averaged weights."""
    seed, steps, rate = int(settings["seed"]), int(settings["steps"]), float(settings["learning_rate"])
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    checkpoint, start = folder / "checkpoint.pt", 0
    parts: dict[str, Any] = {"network": network, "average": average, "optimiser": optimiser, "schedule": schedule}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=next(network.parameters()).device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start = int(state["step"])
    totals: dict[str, float] = {}
    for step in range(start, steps):
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(seed * 1_000_003 + step)
        # easy and hard scans side by side; the hardest only once there is something to build on
        losses = draw(rng, float(rng.uniform(0, 1)) * min(1.0, 0.3 + step / (0.3 * steps)))
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        decay = min(0.99, (step + 1) / (step + 20))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        totals = {name: totals.get(name, 0.0) + value.item() for name, value in losses.items()}
        if (step + 1) % 25 == 0:
            means = "  ".join(f"{name} {total / 25:.3f}" for name, total in totals.items())
            log.info("step %d/%d  %s", step + 1, steps, means)
            totals = {}
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    return average
