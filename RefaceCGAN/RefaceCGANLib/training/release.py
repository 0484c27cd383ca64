"""Release: weights, template and card of a trained model, as a folder that `Model.load` reads."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import CARD
from ..template import Template


def release(
    folder: Path,
    card: dict[str, Any],
    generator: dict[str, Tensor],
    anatomy: dict[str, Tensor],
    template: Template,
) -> None:
    """Write generator.pt and anatomy.pt (float16), template.npz and card.json with their SHA-256 into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for role, state in (("generator", generator), ("anatomy", anatomy)):
        buffer = io.BytesIO()
        torch.save({name: tensor.detach().half().contiguous().clone() for name, tensor in state.items()}, buffer)
        files[role] = (f"{role}.pt", buffer.getvalue())
    template.write(folder / "template.npz")
    files["template"] = ("template.npz", (folder / "template.npz").read_bytes())
    entries = {}
    for role, (name, content) in files.items():
        (folder / name).write_bytes(content)
        entries[role] = {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps({**card, "files": entries}, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
