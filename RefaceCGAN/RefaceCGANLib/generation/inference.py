"""Inference: the generator of a model on one device, sub-volume by sub-volume."""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING

from ..anatomy.location import bfloat16
from ..errors import InputError
from . import sliding_window

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..models.model import Model

log = logging.getLogger(__name__)


class Inference:
    """Runs the generator of one model; where the memory of its device does not suffice, on the processor.

    warnings: what a user should hear of that."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        self.warnings: list[str] = []
        self._one_at_a_time = Lock()

    def __call__(self, channels: dict[str, Tensor], seed: int, dropout: float, wanted: Tensor) -> Tensor:
        """What the generator makes of its condition: (A, S, L), -1..1, on the network grid.

        channels: (A, S, L), by their names in the card.  seed: of the dropout, which stays on (Molchanova et al.
        2023, section 2.2).  wanted: bool (A, S, L), the voxels that are needed.
        Raises InputError where no memory suffices."""
        import torch

        card, generator = self.model.card, self.model.generator
        condition = torch.stack([channels[name] for name in card["condition"]])[None]
        shape, overlap = tuple(card["sub_volume"]["shape"]), float(card["sub_volume"]["overlap"])
        for device in dict.fromkeys([self.device, torch.device("cpu")]):
            source = torch.Generator().manual_seed(seed)

            def run(block: Tensor, device: torch.device = device) -> Tensor:
                result: Tensor = generator(block.to(device, memory_format=torch.channels_last_3d))
                return result

            try:
                with self._one_at_a_time, torch.inference_mode(), bfloat16(device):
                    generator.set_dropout(dropout, source)
                    generator.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
                    return sliding_window.apply(run, condition, shape, overlap, wanted)[0, 0]
            except torch.OutOfMemoryError:
                message = f"The memory of {device} did not suffice; the face was drawn on the processor."
                log.warning(message)
                self.warnings.append(message)
                self.device = torch.device("cpu")
        raise InputError("The memory did not suffice to draw a face; close programs and try again.")
