"""The training of Molchanova et al. 2023 (section 2.2) as written.

The generator's whole output is compared with the original by the L1.5 norm and judged by the discriminator, beside
the defaced scan, with the logistic loss. Weights are validated and kept every `save_epochs` epochs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .examples import Example
from .trainer import Trainer, l15, noise_from

log = logging.getLogger(__name__)
VALIDATION = "validation.json"
"""In the training's folder: the L1.5 loss on the validation heads after each epoch that was validated."""


def logistic(score: Tensor, real: bool) -> Tensor:
    """The logistic loss of a discriminator's scores (any shape) that ought to say real, or generated."""
    return functional.softplus(-score.float() if real else score.float()).mean()


def difference(face: Tensor, target: Tensor, known: Tensor, power: float) -> Tensor:
    """The L1.5 norm (power 1.5) or the mean absolute difference (power 1) of each example (N, 1, A, S, L) in the
    voxels that are `known`, averaged over the examples."""
    pairs = zip(face - target, known, strict=True)
    if power == 1:
        return torch.stack([(d.abs() * k).sum() / k.sum().clamp(min=1) for d, k in pairs]).mean()
    return torch.stack([l15(d, k) for d, k in pairs]).mean()


class PaperTrainer(Trainer):
    """Like `Trainer`, with the paper's losses. Further settings: reconstruction ("L1.5" or "L1", the mean, as of
    vox2vox), stop_epoch (None: train to the end). `validation`: examples of heads that are not trained on."""

    def __init__(self, *arguments: Any, validation: Sequence[Example] = ()) -> None:
        super().__init__(*arguments)
        self.validation = validation

    def iterate(self, example: Example, adversarial: bool) -> dict[str, float]:
        """One optimisation step of both networks; returns the losses."""
        settings, example = self.settings, example.to(self.device)
        condition, target = example.condition, example.target
        if self.channels_last:
            condition = condition.contiguous(memory_format=torch.channels_last_3d)
        with self.autocast():
            face = self.generator(condition)
        losses: dict[str, float] = {}
        if adversarial:
            with self.autocast():
                real = self.discriminator(condition, target)[0]
                fake = self.discriminator(condition, face.detach())[0]
            loss_d = 0.5 * (logistic(real, True) + logistic(fake, False))
            self._step(1, loss_d)
            losses["D"] = loss_d.item()
        power = 1.0 if settings.get("reconstruction") == "L1" else 1.5
        distance = difference(face, target, example.loss_region, power)
        loss = float(settings["loss_lambda"]) * distance
        losses["L1" if power == 1 else "L1.5"] = distance.item()
        if adversarial:
            self.discriminator.requires_grad_(False)
            with self.autocast():
                score = self.discriminator(condition, face)[0]
            loss_g = logistic(score, True)
            losses["G"] = loss_g.item()
            loss = loss + loss_g
        self._step(0, loss)
        self.discriminator.requires_grad_(True)
        return losses

    def _step(self, which: int, loss: Tensor) -> None:
        self.optimisers[which].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers[which].step()

    @property
    def iterations(self) -> int:
        """How many iterations the training takes, with early stopping."""
        most = super().iterations
        if "stop_epoch" not in self.settings:
            return most
        return min(most, int(self.settings["stop_epoch"]) * int(self.settings["epoch_length"]))

    def epoch_done(self, epoch: int) -> None:
        """Validate the weights of an epoch that was kept."""
        if self.validation:
            loss = self.validated()
            log.info("epoch %d: L1.5 %.2f on %d validation heads", epoch, loss, len(self.validation))
            path = self.folder / VALIDATION
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            path.write_text(json.dumps({**known, str(epoch): round(loss, 3)}) + "\n", encoding="utf-8")

    def validated(self) -> float:
        """The mean L1.5 norm of the difference in the validation examples' face regions, with dropout."""
        total = 0.0
        noise_from(self.average, torch.Generator().manual_seed(int(self.settings["seed"])))
        with torch.inference_mode(), self.autocast():
            for example in (one.to(self.device) for one in self.validation):
                face = self.average(example.condition).float()
                total += float(difference(face, example.target, example.region, 1.5))
        noise_from(self.average, None)
        return total / len(self.validation)
