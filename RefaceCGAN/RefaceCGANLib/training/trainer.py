"""Training of the generator against the discriminator (Molchanova et al. 2023, section 2.2)."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import bfloat16
from ..networks import Discriminator, Generator, NoiseDropout
from .data import Example

log = logging.getLogger(__name__)
LOG_EVERY = 25
"""Iterations over which the losses are averaged for the log."""


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

    `draw` makes one example from a random generator (and torch's global one, which it has for itself); it is
    called in a second thread, one iteration ahead, so that an accelerator need not wait. The example of an
    iteration depends on the seed and the iteration alone, so a resumed run repeats an uninterrupted one.

    `settings` is the table [training] of a configuration: seed, iterations (or epochs and epoch_length, in
    iterations), reconstruction_iterations (the first ones without the discriminator, so that there is a face
    before it is judged), learning_rate, cosine_period, loss_lambda, feature_matching, adversarial_weight (1),
    average_decay (of the weights that are kept), save_every; and where wanted save_epochs
    (`generator-epochNN.pt` each so many epochs), tensorboard (log losses, and pictures every pictures_every
    iterations), bf16 (false: float32 even where bfloat16 is fast), and channels_last (the memory layout; always
    on CUDA, and on processors with bfloat16 one and a half times as fast).
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
        self.channels_last = device.type == "cuda" or bool(settings.get("channels_last"))
        if self.channels_last:
            for network in (self.generator, self.discriminator):
                network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.draw, self.settings, self.folder, self.device = draw, settings, folder, device
        rate = float(settings["learning_rate"])
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]
        self.step = 0
        if (folder / "checkpoint.pt").exists():
            self.resume()

    def resume(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", weights_only=True, map_location=self.device)
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.discriminator.load_state_dict(state["discriminator"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = int(state["step"])

    def save(self) -> None:
        state = {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "discriminator": self.discriminator.state_dict(),
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

    def prepare(self, step: int) -> tuple[Example, torch.Generator]:
        """The example of an iteration, and the source of its dropout noise (torch's generator after it)."""
        seed = int(self.settings["seed"])
        torch.manual_seed(seed * 1_000_003 + step)
        example = self.draw(np.random.default_rng([seed, step]))
        noise = torch.Generator()
        noise.set_state(torch.get_rng_state())
        return example, noise

    def run(self, report: Callable[[int, dict[str, float]], None] | None = None) -> Generator:
        """Train to the end; returns the generator with averaged weights."""
        settings, total = self.settings, self.iterations
        warm = int(settings["reconstruction_iterations"])
        epoch_length, save_epochs = int(settings.get("epoch_length", 0)), int(settings.get("save_epochs", 0))
        board = _board(self.folder, self.step) if settings.get("tensorboard") else None
        sums: dict[str, float] = {}
        began, first = time.monotonic(), self.step
        with ThreadPoolExecutor(1, "examples") as ahead:
            coming = ahead.submit(self.prepare, self.step) if self.step < total else None
            while coming:
                example, noise = coming.result()
                coming = ahead.submit(self.prepare, self.step + 1) if self.step + 1 < total else None
                _noise_from(self.generator, noise)
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
        _noise_from(self.generator, None)
        if board:
            board.close()
        return self.average

    def picture(self, example: Example) -> np.ndarray:
        """Defaced, prior (where there is one), generated and target, side by side: uint8 (height, width).

        Above the middle sagittal slices, the front to the right; below the axial slices through the middle of
        the face region, the front up."""
        _noise_from(self.average, torch.Generator().manual_seed(int(self.settings["seed"])))
        with torch.inference_mode(), bfloat16(self.device):
            face = self.average(example.condition.to(self.device)).float().cpu()
        _noise_from(self.average, None)
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
        """One optimisation step of both networks on one example; returns the losses."""
        condition, target = example.condition.to(self.device), example.target.to(self.device)
        region, known = example.region.to(self.device), example.loss_region.to(self.device)
        if self.channels_last:
            condition = condition.contiguous(memory_format=torch.channels_last_3d)
        optimiser_g, optimiser_d = self.optimisers
        autocast = bfloat16(self.device) if self.settings.get("bf16", True) else nullcontext()
        with autocast:
            face = self.generator(condition)
        reconstruction = float(self.settings["loss_lambda"]) * l15(face - target, known)
        losses = {"L1.5": reconstruction.item()}
        loss = reconstruction
        if adversarial:
            # the scan as it is written: generated inside the face region, unchanged outside
            fake = torch.where(region > 0.5, face, target)
            with autocast:
                score_real, features_real = self.discriminator(condition, target)
                score_fake, _ = self.discriminator(condition, fake.detach())
            # patches without a face are the same in both and would only dilute the judgement
            drawn = (region > 0.5) & (torch.maximum(target, face.detach()) > -0.9)
            patches = functional.adaptive_max_pool3d(drawn.float(), score_real.shape[2:])
            loss_d = 0.5 * (judged(score_real, 1.0, patches) + judged(score_fake, 0.0, patches))
            optimiser_d.zero_grad(set_to_none=True)
            loss_d.backward()
            optimiser_d.step()
            self.discriminator.requires_grad_(False)
            with autocast:
                score, features = self.discriminator(condition, fake)
            self.discriminator.requires_grad_(True)
            loss_g = judged(score, 1.0, patches)
            matching = torch.zeros((), device=self.device)
            for a, b in zip(features, features_real, strict=True):
                matching = matching + functional.l1_loss(a.float(), b.detach().float())
            loss = (
                loss
                + float(self.settings.get("adversarial_weight", 1.0)) * loss_g
                + float(self.settings["feature_matching"]) * matching
            )
            losses |= {"G": loss_g.item(), "D": loss_d.item(), "features": matching.item()}
        optimiser_g.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        optimiser_g.step()
        return losses


def _noise_from(generator: Generator, source: torch.Generator | None) -> None:
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
