"""Training of the generator against the discriminator (Molchanova et al. 2023, section 2.2)."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from ..anatomy.location import bfloat16
from ..generation.networks import Discriminator, Generator, NoiseDropout, PortraitDiscriminator
from .examples import Example
from .portraits import portraits, random_views, skin_loss

log = logging.getLogger(__name__)
LOG_EVERY = 25
"""Iterations over which the losses are averaged for the log."""
POOL = 16
"""Batches that are kept to be seen again."""
SEED_STEP = 1_000_003
"""Between the random numbers of one seed and the next."""


def l15(difference: Tensor, region: Tensor) -> Tensor:
    """The L1.5 norm of a difference inside a region: (sum |d|^1.5)^(2/3); the paper's reconstruction loss.

    A norm and not a mean: with the paper's lambda of 0.015 it then weighs about as much as the adversarial
    term, which a mean over a million voxels would not."""
    total = ((difference.abs() + 1e-6) ** 1.5 * region).sum()
    result: Tensor = total ** (2.0 / 3.0)
    return result


def judged(score: Tensor, wanted: float, patches: Tensor) -> Tensor:
    """Least-squares loss of a discriminator's scores against `wanted` over the patches that are 1."""
    return ((score.float() - wanted) ** 2 * patches).sum() / patches.sum().clamp(min=1)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights of a network in float16, which is what a model ships; the file appears complete."""
    part = path.with_suffix(".part")
    torch.save({name: tensor.detach().half().cpu() for name, tensor in network.state_dict().items()}, part)
    part.replace(path)


class Trainer:
    """Trains a generator; everything it needs to resume is in `<folder>/checkpoint.pt`.

    `draw` makes one example from a random generator (and torch's global one, which it has for itself). `workers`
    processes draw ahead, so that an accelerator need not wait. What an iteration sees depends on the seed and the
    iteration alone, so a resumed run repeats an uninterrupted one.

    The discriminator judges scan and face, not the wanted shape: of the condition it sees the first channels, as
    many as it has. Where an example has a free face, it and the discriminator of portraits judge that, too.

    `settings` is the table [training] of a configuration: seed, iterations (or epochs and epoch_length, in
    iterations), reconstruction_iterations (the first ones without the discriminator, so that there is a face
    before it is judged), learning_rate, cosine_period, loss_lambda, feature_matching, adversarial_weight (1),
    average_decay (of the weights that are kept), save_every; and where wanted batch (examples an iteration),
    workers, skin_weight (of `skin_loss`), portrait_weight (of what the discriminator of portraits says),
    echo (iterations for each batch that was drawn: all but the first see one of the last `POOL` again; a
    run that was stopped then does not go on exactly as it would have), save_epochs
    (`generator-epochNN.pt` each so many epochs), tensorboard (log losses, and pictures every pictures_every
    iterations), bf16 (false: float32 even where bfloat16 is fast), and channels_last (the memory layout that is
    faster on processors).
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        draw: Callable[[np.random.Generator], Example],
        settings: dict[str, Any],
        folder: Path,
        device: torch.device,
    ) -> None:
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.critic = PortraitDiscriminator().to(device)
        self.channels_last = device.type == "cpu" and bool(settings.get("channels_last"))
        if self.channels_last:
            for network in (self.generator, self.discriminator):
                network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.draw, self.settings, self.folder, self.device = draw, settings, folder, device
        self.networks = {"generator": self.generator, "discriminator": self.discriminator, "critic": self.critic}
        rate = float(settings["learning_rate"])
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.999))
            for network in self.networks.values()
        ]
        self.step = 0
        if (folder / "checkpoint.pt").exists():
            self.resume()

    def resume(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", weights_only=True, map_location=self.device)
        for name, network in (self.networks | {"average": self.average}).items():
            network.load_state_dict(state[name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = int(state["step"])

    def save(self) -> None:
        state = {
            **{name: network.state_dict() for name, network in self.networks.items()},
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    @property
    def iterations(self) -> int:
        """How many iterations the whole training takes."""
        if "iterations" in self.settings:
            return int(self.settings["iterations"])
        return int(self.settings["epochs"]) * int(self.settings["epoch_length"])

    def rate(self) -> float:
        """Cosine decay with a restart every `cosine_period` iterations, down to a fiftieth."""
        period = int(self.settings["cosine_period"])
        phase = (self.step % period) / period
        falling = 0.5 * (1 + float(np.cos(np.pi * phase)))
        return float(self.settings["learning_rate"]) * (0.02 + 0.98 * falling)

    def examples(self) -> DataLoader[Example]:
        """The batches that are left to draw, for `echo` iterations each."""
        batch, echo = int(self.settings.get("batch", 1)), int(self.settings.get("echo", 1))
        left = range(self.step // echo * batch, -(-self.iterations // echo) * batch)
        return DataLoader(
            Subset(_Examples(self.draw, int(self.settings["seed"])), left), batch,
            num_workers=int(self.settings.get("workers", 0)), collate_fn=Example.joined,
        )  # fmt: skip

    def batches(self) -> Iterator[Example]:
        """What the iterations that are left see, one after the other, on the device."""
        pool: deque[Example] = deque(maxlen=POOL)
        choice = np.random.default_rng([int(self.settings["seed"]), self.step])
        for example in self.examples():
            pool.append(example.to(self.device))
            for repeat in range(int(self.settings.get("echo", 1))):
                if self.step < self.iterations:
                    yield pool[int(choice.integers(len(pool)))] if repeat else pool[-1]

    def run(self, report: Callable[[int, dict[str, float]], None] | None = None) -> Generator:
        """Train to the end; returns the generator with averaged weights."""
        settings, total = self.settings, self.iterations
        warm = int(settings["reconstruction_iterations"])
        epoch_length, save_epochs = int(settings.get("epoch_length", 0)), int(settings.get("save_epochs", 0))
        board = _board(self.folder, self.step) if settings.get("tensorboard") else None
        sums: dict[str, float] = {}
        began, first = time.monotonic(), self.step
        for example in self.batches():
            noise_from(self.generator, _source(settings, self.step))
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = self.rate()
            for name, value in self.iterate(example, adversarial=self.step >= warm).items():
                sums[name] = sums.get(name, 0.0) + value / LOG_EVERY
            self.step += 1
            decay = min(float(settings["average_decay"]), self.step / (self.step + 20.0))
            with torch.no_grad():
                for kept, new in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
            if self.step % LOG_EVERY == 0:
                seconds = (time.monotonic() - began) / (self.step - first)
                text = "  ".join(f"{name} {value:.3f}" for name, value in sums.items())
                log.info("iteration %d/%d  %s  %.2f s each", self.step, total, text, seconds)
                if report:
                    report(self.step, sums)
                if board:
                    for name, value in sums.items():
                        board.add_scalar(f"loss/{name}", value, self.step)
                sums = {}
            if board and self.step % int(settings["pictures_every"]) == 0:
                board.add_image("faces", self.picture(example), self.step, dataformats="HW")
            if self.step % int(settings["save_every"]) == 0 or self.step == total:
                self.save()
            if save_epochs and self.step % (epoch_length * save_epochs) == 0:
                epoch = self.step // epoch_length
                save_weights(self.average, self.folder / f"generator-epoch{epoch:02d}.pt")
                self.epoch_done(epoch)
        noise_from(self.generator, None)
        if board:
            board.close()
        return self.average

    def epoch_done(self, epoch: int) -> None:
        """Called after the weights of an epoch were kept."""

    def picture(self, example: Example) -> np.ndarray:
        """Defaced, prior (where there is one), generated and target, side by side: uint8 (height, width).

        Above the middle sagittal slices, the front to the right; below the axial slices through the middle of
        the face region, the front up."""
        noise_from(self.average, torch.Generator().manual_seed(int(self.settings["seed"])))
        with torch.inference_mode(), bfloat16(self.device):
            face = self.average(example.condition.to(self.device)).float().cpu()
        noise_from(self.average, None)
        refaced = torch.where(example.region > 0.5, face, example.target)
        condition = example.condition
        shown = [condition[0, 0], *condition[0, 2:], refaced[0, 0], example.target[0, 0]]
        slices = example.region[0, 0].any(dim=2).any(dim=0).nonzero()
        level = int(slices.median()) if len(slices) else condition.shape[3] // 2
        images = torch.stack(shown)
        sagittal = images[..., images.shape[3] // 2].transpose(1, 2).flip(1)
        axial = images[:, :, level].flip(1)
        width = max(sagittal.shape[2], axial.shape[2])
        rows = [
            torch.cat(list(functional.pad(part, (0, width - part.shape[2]), value=-1.0)), dim=1)
            for part in (sagittal, axial)
        ]
        return ((torch.cat(rows) + 1) * 127.5).clamp(0, 255).byte().numpy()

    def iterate(self, example: Example, adversarial: bool) -> dict[str, float]:
        """One optimisation step of all networks on one batch; returns the losses."""
        settings, example = self.settings, example.to(self.device)
        target, known = example.target, example.loss_region
        condition = example.condition
        if adversarial and example.free is not None:
            condition = torch.cat([condition, example.free])
        if self.channels_last:
            condition = condition.contiguous(memory_format=torch.channels_last_3d)
        with self.autocast():
            faces = self.generator(condition)
        face = faces[: len(target)]
        each = zip(face - target, known, strict=True)
        loss = float(settings["loss_lambda"]) * torch.stack([l15(*one) for one in each]).mean()
        losses = {"L1.5": loss.item()}
        if weight := float(settings.get("skin_weight", 0.0)):
            skin = skin_loss(face, target, known)
            losses["skin"] = skin.item()
            loss = loss + weight * skin
        if adversarial:
            judgement, said = self.judgement(example, condition, faces)
            loss, losses = loss + judgement, losses | said
        optimiser_g = self.optimisers[0]
        optimiser_g.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        optimiser_g.step()
        return losses

    def judgement(self, example: Example, condition: Tensor, faces: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Let both discriminators learn from generated faces, and what they then say of them: the generator's
        loss, and the parts of it and of their own.

        condition, faces: (N, ...) of the wanted shapes, then as many free ones where the example has such."""
        settings, count, losses = self.settings, len(example.target), {}
        natural = example.target if example.natural is None else example.natural
        originals = torch.cat([example.target, natural][: len(faces) // count])
        region = example.region.repeat(len(faces) // count, 1, 1, 1, 1) > 0.5
        scan = condition[:, : self.discriminator.channels_in - 1]
        # the scan as it is written: generated inside the face region, unchanged outside
        fake = torch.where(region, faces, originals)
        # patches without a face are the same in both and would only dilute the judgement
        drawn = region & (torch.maximum(originals, faces.detach()) > -0.9)
        cells = [side // 2 ** len(self.discriminator.layers) for side in drawn.shape[2:]]
        patches = functional.adaptive_max_pool3d(drawn.float(), cells)
        views = random_views(count, _source(settings, self.step)).to(self.device)
        portrait_weight = float(settings.get("portrait_weight", 0.0)) if len(faces) > count else 0.0

        def judge(what: Tensor, wanted: float) -> tuple[Tensor, list[Tensor]]:
            with self.autocast():
                score, features = self.discriminator(scan[: len(what)], what)
            return judged(score, wanted, patches[: len(what)]), features

        def look(what: Tensor, wanted: float) -> Tensor:
            return ((self.critic(portraits(what, views)) - wanted) ** 2).mean()

        loss_d = 0.5 * (judge(natural, 1.0)[0] + judge(fake.detach(), 0.0)[0])
        losses["D"] = loss_d.item()
        if portrait_weight:
            loss_c = 0.5 * (look(natural, 1.0) + look(fake[count:].detach(), 0.0))
            losses["C"] = loss_c.item()
            loss_d = loss_d + loss_c
        judges = (self.discriminator, self.critic)
        for optimiser in self.optimisers[1:]:
            optimiser.zero_grad(set_to_none=True)
        loss_d.backward()
        for optimiser in self.optimisers[1:]:
            optimiser.step()
        for network in judges:
            network.requires_grad_(False)
        loss_g, features = judge(fake, 1.0)
        with torch.no_grad():
            _, wanted = judge(example.target, 1.0)
        matching = torch.zeros((), device=self.device)
        for ours, theirs in zip(features, wanted, strict=True):
            matching = matching + functional.l1_loss(ours[:count].float(), theirs.float())
        losses |= {"G": loss_g.item(), "features": matching.item()}
        loss = float(settings.get("adversarial_weight", 1.0)) * loss_g
        loss = loss + float(settings["feature_matching"]) * matching
        if portrait_weight:
            loss_p = look(fake[count:], 1.0)
            losses["P"] = loss_p.item()
            loss = loss + portrait_weight * loss_p
        for network in judges:
            network.requires_grad_(True)
        return loss, losses

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it is fast and wanted."""
        return bfloat16(self.device) if self.settings.get("bf16", True) else nullcontext()


def _source(settings: dict[str, Any], step: int) -> torch.Generator:
    """Random numbers of one iteration."""
    return torch.Generator().manual_seed(int(settings["seed"]) * SEED_STEP + step)


class _Examples(Dataset[Example]):
    """An endless list of examples, each from its own number."""

    def __init__(self, draw: Callable[[np.random.Generator], Example], seed: int) -> None:
        self.draw, self.seed = draw, seed

    def __getitem__(self, number: int) -> Example:
        torch.manual_seed(self.seed * SEED_STEP + number)
        return self.draw(np.random.default_rng([self.seed, number]))


def noise_from(generator: Generator, source: torch.Generator | None) -> None:
    """Let the dropout layers draw from `source`: torch's global generator is for the thread of examples."""
    for module in generator.modules():
        if isinstance(module, NoiseDropout):
            module.source = source


def _board(folder: Path, step: int) -> Any:
    """A TensorBoard writer into `<folder>/tensorboard`, going on at `step`; None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("TensorBoard is not installed, so nothing is logged for it; pip install tensorboard")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
