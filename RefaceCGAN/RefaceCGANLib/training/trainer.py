"""Training of the generator against the discriminator (Molchanova et al. 2023, section 2.2)."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..networks import Discriminator, Generator
from .data import Example

log = logging.getLogger(__name__)


def l15(difference: Tensor, region: Tensor) -> Tensor:
    """The L1.5 norm of a difference inside a region: (sum |d|^1.5)^(2/3); the paper's reconstruction loss.

    A norm and not a mean: with the paper's lambda of 0.015 it then weighs about as much as the adversarial
    term, which a mean over a million voxels would not."""
    total = ((difference.abs() + 1e-6) ** 1.5 * region).sum()
    result: Tensor = total ** (2.0 / 3.0)
    return result


class Trainer:
    """Trains a generator; everything it needs to resume is in `<folder>/checkpoint.pt`.

    `settings` is the table [training] of a configuration: seed, iterations, reconstruction_iterations (the
    first ones without the discriminator, so that there is a face before it is judged), learning_rate,
    cosine_period, loss_lambda, feature_matching, average_decay (of the weights that are kept), save_every.
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

    def rate(self) -> float:
        """Cosine decay with a restart every `cosine_period` iterations."""
        period = int(self.settings["cosine_period"])
        phase = (self.step % period) / period
        return float(self.settings["learning_rate"]) * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * phase))))

    def run(self, report: Callable[[int, dict[str, float]], None] | None = None) -> Generator:
        """Train to the end; returns the generator with averaged weights."""
        settings = self.settings
        total, warm = int(settings["iterations"]), int(settings["reconstruction_iterations"])
        sums: dict[str, float] = {}
        began, first = time.monotonic(), self.step
        while self.step < total:
            rng = np.random.default_rng([int(settings["seed"]), self.step])
            torch.manual_seed(int(settings["seed"]) * 1_000_003 + self.step)
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = self.rate()
            for name, value in self.iterate(self.draw(rng), adversarial=self.step >= warm).items():
                sums[name] = sums.get(name, 0.0) + value / 25
            self.step += 1
            decay = min(float(settings["average_decay"]), self.step / (self.step + 20.0))
            with torch.no_grad():
                for kept, new in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
            if self.step % 25 == 0:
                seconds = (time.monotonic() - began) / (self.step - first)
                text = "  ".join(f"{name} {value:.3f}" for name, value in sums.items())
                log.info("iteration %d/%d  %s  %.2f s each", self.step, total, text, seconds)
                if report:
                    report(self.step, sums)
                sums = {}
            if self.step % int(settings["save_every"]) == 0 or self.step == total:
                self.save()
        return self.average

    def iterate(self, example: Example, adversarial: bool) -> dict[str, float]:
        """One optimisation step of both networks on one example; returns the losses."""
        condition, target = example.condition.to(self.device), example.target.to(self.device)
        region, known = example.region.to(self.device), example.loss_region.to(self.device)
        optimiser_g, optimiser_d = self.optimisers
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)
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
            loss_d = 0.5 * (
                functional.mse_loss(score_real.float(), torch.ones_like(score_real).float())
                + functional.mse_loss(score_fake.float(), torch.zeros_like(score_fake).float())
            )
            optimiser_d.zero_grad(set_to_none=True)
            loss_d.backward()
            optimiser_d.step()
            self.discriminator.requires_grad_(False)
            with autocast:
                score, features = self.discriminator(condition, fake)
            self.discriminator.requires_grad_(True)
            loss_g = functional.mse_loss(score.float(), torch.ones_like(score).float())
            matching = sum(
                functional.l1_loss(a.float(), b.detach().float())
                for a, b in zip(features, features_real, strict=True)
            )
            loss = loss + loss_g + float(self.settings["feature_matching"]) * matching
            losses |= {"G": loss_g.item(), "D": loss_d.item(), "features": float(matching)}
        optimiser_g.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        optimiser_g.step()
        return losses
