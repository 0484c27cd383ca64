"""Export: the model folder of a generator that was trained on the scans' own grid, as `--model` loads it.

Brain, face region and template come from another installed model: the card names it, and nothing is copied.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.model import CARD, DEFAULT, sha256
from ..paper import AIR

BORROWED = ("anatomy", "brain_check", "template")
"""What a generator on the native grid needs besides, to find the face region and to check the result."""
DROPOUT, OVERLAP = 0.25, 0.5
"""At inference: the probability of dropout (section 2.2), and of a sub-volume's side, what neighbours share at
least (the paper gives none)."""


def export(
    checkpoint: Path,
    folder: Path,
    name: str | None = None,
    licence: str = "",
    attribution: str = "",
    dropout: float = DROPOUT,
    air: float = AIR,
    small: bool = False,
) -> dict[str, Any]:
    """Write generator.pt, card.json and LICENSE.txt of a training into a new `folder`; returns the card.

    checkpoint: checkpoint.pt or other weights that the training left, beside its training.json.  name: the model's
    id, the folder's name by default.  licence: of the weights, a text.  attribution: whose scans they are.
    dropout: at inference.  air: share of the intensity range below which a generated voxel is air.  small: store
    int8 with a scale for each output channel in place of float16.
    Raises InputError where the checkpoint is none, or its training was not on the scans' own grid."""
    import torch

    from ..generation.networks import Generator
    from .release import packed

    record = checkpoint.parent / "training.json"
    try:
        training = json.loads(record.read_text(encoding="utf-8"))
        options, heads, settings = training["generator"], training["heads_used"], training["training"]
        sub_volume = training["sub_volume"]
    except FileNotFoundError:
        raise InputError(f"{record} is not there; give a checkpoint in the folder of its training.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{record} is no record of a generator's training; give that of `train`.") from None
    if "highest" not in training:
        raise InputError(f"{record} is not of a training on the scans' own grid (with masks); only these export.")
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"There is no {checkpoint}; give checkpoint.pt or other weights.") from None
    except Exception as error:  # whatever torch throws at a file that is none of its own
        raise InputError(f"{checkpoint} holds no weights; give checkpoint.pt or other weights.") from error
    iterations = state.get("step")
    state = {key: tensor.detach().half() for key, tensor in state.get("average", state).items()}
    try:
        Generator(**options).load_state_dict({key: tensor.float() for key, tensor in state.items()})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{checkpoint} does not fit the training in {record}; give its own weights.") from error
    buffer = io.BytesIO()
    torch.save(packed(state) if small else {key: tensor.clone() for key, tensor in state.items()}, buffer)

    folder.mkdir(parents=True)
    (folder / "generator.pt").write_bytes(buffer.getvalue())
    (folder / "LICENSE.txt").write_text((licence or "No licence is stated.") + "\n", encoding="utf-8")
    generator = {"file": "generator.pt", "sha256": sha256(folder / "generator.pt")}
    card: dict[str, Any] = {
        "id": name or folder.name,
        "description": "The cGAN of Molchanova et al. 2023 on each scan's own grid",
        "licence": licence or "not stated",
        "attribution": attribution,
        "paper": "Molchanova et al. 2023, arXiv:2305.16922",
        "intensity": "Winsorised at the training set's limit, in units of the tissue level; linear to [-1, 1]",
        "intensity_highest": training["highest"],
        "training": {
            "heads": len(heads),
            "iterations": iterations,
            "sub_volume": sub_volume,
            "settings": {key: value for key, value in settings.items() if value is not None},
            "resampled": training.get("resampled", 0.0),
            "resampled_mm": training.get("resampled_mm"),
            "mirror": training.get("mirror", False),
        },
        "generator": options,
        "working_grid": {"orientation": "ASL", "space": "native", "spacing_mm": None},
        "sub_volume": {"shape": sub_volume, "overlap": OVERLAP},
        "condition": ["defaced"],
        "dropout": dropout,
        "air_below": air,
        "files": {"generator": generator} | {role: {"of": DEFAULT} for role in BORROWED},
    }
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
    return card
