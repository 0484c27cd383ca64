"""Release: weights, template and card of a trained model, as a folder that `Model.load` reads."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..face_model.template import Template
from ..models.model import CARD, SCALE


def release(
    folder: Path,
    card: dict[str, Any],
    generator: dict[str, Tensor],
    anatomy: dict[str, Tensor],
    brain_check: dict[str, Tensor],
    template: Template,
) -> None:
    """Write generator.pt (`packed`), anatomy.pt and brain_check.pt (float16), template.npz and card.json with
    their SHA-256 into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for role, state in (("generator", generator), ("anatomy", anatomy), ("brain_check", brain_check)):
        buffer = io.BytesIO()
        half = {name: tensor.detach().half().contiguous().clone() for name, tensor in state.items()}
        torch.save(packed(half) if role == "generator" else half, buffer)
        files[role] = (f"{role}.pt", buffer.getvalue())
    template.write(folder / "template.npz")
    files["template"] = ("template.npz", (folder / "template.npz").read_bytes())
    entries = {}
    for role, (name, content) in files.items():
        (folder / name).write_bytes(content)
        entries[role] = {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps({**card, "files": entries}, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights at half the size of float16: kernels as int8 with one scale for each output channel, which is about
    as fine as the bfloat16 they are computed in. `models.unpacked` is the inverse."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() < 3:
            result[name] = tensor
            continue
        scale = tensor.float().abs().flatten(1).amax(1).clamp(min=1e-8).div(127).half()
        scale = scale.view(-1, *[1] * (tensor.dim() - 1))
        result[name + SCALE] = scale
        result[name] = (tensor.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return result
