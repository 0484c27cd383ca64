"""Models: a folder with a model card (card.json), the weights it names, and the template.

Nothing is loaded before its SHA-256 matched the card, and weights hold tensors alone (weights_only).
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..face_model.template import Template
    from ..generation.networks import AnatomyNetwork, BrainNetwork, Generator
    from ..generation.tissue_bank import TissueBank

CARD = "card.json"
SCALE = "/scale"
"""What the name of a kernel's scales ends in."""
DEFAULT = "default"


def folder() -> Path:
    """Where the models of this installation lie: Resources/Models beside the package, else in the wheel."""
    beside = Path(__file__).resolve().parents[2] / "Resources" / "Models"
    if beside.is_dir():
        return beside
    return Path(__file__).resolve().parents[1] / "_models"


def available() -> list[Model]:
    """All models of this installation, by id."""
    return [Model.load(card.parent) for card in sorted(folder().glob(f"*/{CARD}"))]


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Model:
    """One model: its card (the content of card.json) and the folder it lies in."""

    card: dict[str, Any]
    path: Path

    @classmethod
    def load(cls, name: str | Path = DEFAULT) -> Model:
        """Find a model by id, or by the path of its folder or card. Raises InputError if it is not there."""
        path = folder() / str(name)
        if not (path / CARD).is_file():
            path = Path(name).parent if Path(name).is_file() else Path(name)
        card = path / CARD
        try:
            content = _completed(json.loads(card.read_text(encoding="utf-8")))
            needed = {
                "id",
                "files",
                "generator",
                "anatomy",
                "brain_check",
                "working_grid",
                "sub_volume",
                "condition",
                "dropout",
            }
            missing = needed - set(content)
        except FileNotFoundError:
            known = ", ".join(sorted(p.parent.name for p in folder().glob(f"*/{CARD}"))) or "none"
            raise InputError(
                f"There is no model {name}; installed are: {known}, or give the path of a card."
            ) from None
        except (ValueError, TypeError, AttributeError, KeyError, OSError):
            raise InputError(f"{card} is not a readable model card; install the model again.") from None
        if missing:
            raise InputError(f"{card} lacks {', '.join(sorted(missing))}; install the model again.")
        return cls(content, path)

    @property
    def native(self) -> bool:
        """Whether the generator works on each scan's own grid (the paper's), not on one in template space."""
        return bool(self.card["working_grid"].get("space") == "native")

    @property
    def size(self) -> int:
        """Bytes of the files in the model's own folder."""
        paths = (self.path / entry["file"] for entry in self.card["files"].values())
        return sum(path.stat().st_size for path in paths if path.parent == self.path)

    @property
    def id(self) -> str:
        return str(self.card["id"])

    def _verified(self, role: str) -> bytes:
        """The bytes of the file in `role`, read once, after their SHA-256 matched the card."""
        entry = self.card["files"].get(role)
        if entry is None:
            raise InputError(f"The card of model {self.id} names no {role} file; install the model again.")
        path = self.path / entry["file"]
        try:
            content = path.read_bytes()
        except OSError:
            raise InputError(f"{path} is missing or unreadable; install the model again.") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise InputError(
                f"{path} is not the file its model card describes (SHA-256 differs); install the model again."
            )
        return content

    def _network(self, role: str) -> nn.Module:
        import torch

        from ..generation.networks import build

        network = build(role, self.card[role])
        state = torch.load(io.BytesIO(self._verified(role)), weights_only=True, map_location="cpu")
        try:
            network.load_state_dict(unpacked(state))
        except (KeyError, RuntimeError):
            raise InputError(
                f"The {role} weights of model {self.id} do not fit its card; install the model again."
            ) from None
        return network.eval().requires_grad_(False)

    @cached_property
    def generator(self) -> Generator:
        return self._network("generator")  # type: ignore[return-value]

    @cached_property
    def anatomy(self) -> AnatomyNetwork:
        return self._network("anatomy")  # type: ignore[return-value]

    @cached_property
    def brain_check(self) -> BrainNetwork:
        """The network of the second opinion on the brain."""
        return self._network("brain_check")  # type: ignore[return-value]

    @cached_property
    def template(self) -> Template:
        from ..face_model.template import Template

        try:
            return Template.read(io.BytesIO(self._verified("template")))
        except (KeyError, ValueError):
            raise InputError(f"The template of model {self.id} is incomplete; install the model again.") from None

    @cached_property
    def working_template(self) -> Template:
        """The template on the network grid of a model that works on a part of the template grid."""
        grid = self.card["working_grid"]
        a, s, left = (slice(at, at + n) for at, n in zip(grid["first_voxel"], grid["shape"], strict=True))
        return self.template.crop((a, s, left))

    @cached_property
    def tissue(self) -> TissueBank | None:
        """The tissue bank; None where the card names none (the paper's model)."""
        from ..generation.tissue_bank import TissueBank

        if "tissue" not in self.card["files"]:
            return None
        try:
            return TissueBank.read(io.BytesIO(self._verified("tissue")))
        except (KeyError, ValueError):
            raise InputError(f"The tissue of model {self.id} is incomplete; install the model again.") from None

    @property
    def generator_sha256(self) -> str:
        return str(self.card["files"]["generator"]["sha256"])


def _completed(card: dict[str, Any]) -> dict[str, Any]:
    """A card in which files of another installed model, {"of": ID}, are named with that model's SHA-256, and what
    networks they hold. Raises InputError where that model is not installed."""
    files = card.get("files", {})
    borrowed = {role: entry["of"] for role, entry in files.items() if "of" in entry}
    if not borrowed:
        return card
    result = card | {"files": dict(files)}
    for role, name in borrowed.items():
        other = Model.load(str(name))
        entry = other.card["files"][role]
        result["files"][role] = entry | {"file": str(other.path.resolve() / entry["file"])}
        if role in other.card:
            result[role] = other.card[role]
    return result


def unpacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a release as float32: a kernel may be stored as int8 with a scale for each of its output
    channels (`training.release.packed`), all else is float16."""
    import torch

    return {
        name: tensor.float() * (state[name + SCALE].float() if tensor.dtype == torch.int8 else 1.0)
        for name, tensor in state.items()
        if not name.endswith(SCALE)
    }
