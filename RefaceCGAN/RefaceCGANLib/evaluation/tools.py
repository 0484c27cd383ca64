"""Tools: programs that deface or reface a scan, ours and other people's, behind one interface.

A tool reads an original file and writes its output in the original's grid. `tool_of` makes one of a
[[tool]] table of the configuration; `kind` says which:

    reface, deface             ours, with any model
    average, blur              references of our own: the average head's face instead of a generated one, and the
                               face region blurred
    other-face                 the floor: another person's real face in the face region
    niimath-deface, niimath-reface, pydeface, afni, afni2, mri_reface, mideface, quickshear
                               other people's programs (`programs`)
    files                      outputs made elsewhere: AnonyMI's, which runs inside 3D Slicer, or any others
"""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..models.model import DEFAULT, Model
from ..volume.volume import Volume
from .programs import PROGRAMS
from .store import code
from .tool_base import Tool, on_grid_of, scan_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..refacer import Refacer, Result

MEAN_SHAPE = 1e-6
"""Spread of shapes in place of none: practically the mean shape."""
BLUR_MM = 4.0
"""Standard deviation of the blur, mm: wide enough to remove the shape of eyes, nose and mouth."""
ENGINE = (
    *("anatomy/location", "checks", "composition", "defacing", "face_model/template", "generation/networks"),
    *("generation/painting", "generation/sliding_window", "generation/tissue_bank", "intensity", "models/model"),
    *("paper", "refacer", "rendering/skin_surface", "spatial/grid", "volume"),
)
"""The modules that decide the output of our tools: when one of them changes, it is made again."""


def tool_of(config: dict[str, Any], base: Path = Path()) -> Tool:
    """The tool of a [[tool]] table, whose paths are relative to the folder `base`.

    Raises InputError for an unknown kind or key, and for a file of its own that is not there."""
    kinds: dict[str, type[Tool]] = {
        "reface": Reface, "deface": Deface, "average": Average, "blur": Blur,
        "other-face": OtherFace, "files": Files, **PROGRAMS,
    }  # fmt: skip
    table = dict(config)
    kind = table.pop("kind", None)
    name = str(table.pop("name", kind))
    if kind not in kinds:
        raise InputError(f"Tool {name}: kind must be one of {', '.join(kinds)}.")
    for key in set(kinds[kind].paths) & set(table):
        table[key] = str(base / Path(table[key]).expanduser())
    if kind == "other-face":
        table["base"] = str(base)
    if (base / str(table.get("model", ""))).is_file():
        table["model"] = str(base / table["model"])
    try:
        return kinds[kind](name, **table)
    except TypeError as error:
        wrong = str(error).partition("() ")[2] or str(error)
        raise InputError(f"Tool {name}, kind {kind}: {wrong}; mend its table.") from None


# --- ours -------------------------------------------------------------------------------------------------


WITHOUT = ("generator", "dropout", "shape")
"""What an ablation may leave out: the generator (the prior is painted as it is), the noise in it, the random shape
(everyone gets the mean shape)."""


@lru_cache(maxsize=2)
def loaded(model: str, device: str, average: bool = False, without: str = "") -> Refacer:
    """A refacer with its networks in memory; kept, as loading takes longer than refacing. without: one of
    `WITHOUT`. average: without generator and shape: it paints the average head in its mean shape."""
    from ..refacer import Refacer

    found = Model.load(model)
    if average or without == "shape":
        found = Model(found.card | {"shape_spread": MEAN_SHAPE}, found.path)
    if average or without == "generator":
        found = Model(found.card, found.path)
        found.__dict__["generator"] = _through(found.card["condition"].index("prior"))
    refacer = Refacer.from_pretrained(found, device)
    for role in ("template", "anatomy", "generator"):
        getattr(refacer.model, role)
    return refacer


def _through(channel: int) -> nn.Module:
    """In place of a generator: the channel of its input as it is."""
    from torch import nn

    class Through(nn.Module):
        def set_dropout(self, probability: float, source: object) -> None:
            """There is none."""

        def forward(self, condition: Tensor) -> Tensor:
            return condition[:, channel : channel + 1]

    return Through()


class Ours(Tool):
    """What the tools of this package share: a model and a device."""

    def __init__(
        self, name: str, model: str = DEFAULT, device: str = "cpu", settings: dict[str, Any] | None = None
    ) -> None:
        if device == "auto":
            raise InputError(f"Tool {name}: name its device, cpu, cuda or mps; times depend on it.")
        self.model, self.device = model, device
        files = Model.load(model).card["files"]
        made_of = {
            "kind": type(self).__name__.lower(),
            "code": code(*ENGINE),
            "model": {role: entry["sha256"] for role, entry in files.items()},
            "device": device,
        }
        super().__init__(name, made_of | (settings or {}))

    def run(self, original: Path, output: Path, seed: int | None = None) -> float:
        self.load()
        began = time.perf_counter()
        self.apply(Volume.read(original), seed).write(output)
        return time.perf_counter() - began

    def load(self) -> Refacer:
        return loaded(self.model, self.device)

    @abstractmethod
    def apply(self, volume: Volume, seed: int | None) -> Volume:
        """The scan after the tool. Raises InputError and CheckError."""


class Reface(Ours):
    """`refacecgan reface`; dropout: the model's by default.  without: an ablation, one of `WITHOUT`."""

    def __init__(
        self, name: str, seeds: list[int] | None = None, dropout: float | None = None, without: str = "",
        **ours: Any,
    ) -> None:  # fmt: skip
        if without and without not in WITHOUT:
            raise InputError(f"Tool {name}: without must be one of {', '.join(WITHOUT)}.")
        if without in ("generator", "shape") and Model.load(ours.get("model", DEFAULT)).native:
            raise InputError(f"Tool {name}: the paper's model has no prior and no shape to leave out.")
        dropout = 0.0 if without == "dropout" else dropout
        super().__init__(name, **ours, settings={"dropout": dropout} | ({"without": without} if without else {}))
        self.seeds = tuple(seeds or [0])
        self.without = without
        self._last: Result | None = None

    def load(self) -> Refacer:
        return loaded(self.model, self.device, without=self.without) if self.without else super().load()

    def apply(self, volume: Volume, seed: int | None) -> Volume:
        """The first seed, whose time counts, does all the work; the others draw another face on the same scan."""
        again = self._last and seed != self.seeds[0] and self._last.original.source == volume.source
        scan = self._last if self._last and again else volume
        self._last = self.load().reface(scan, seed or 0, self.settings["dropout"])
        return self._last.volume


class Deface(Ours):
    """`refacecgan deface`."""

    def apply(self, volume: Volume, seed: int | None) -> Volume:
        return self.load().deface(volume)


class Average(Ours):
    """One face for all: what our refacer would be without its generator."""

    def load(self) -> Refacer:
        return loaded(self.model, self.device, average=True)

    def apply(self, volume: Volume, seed: int | None) -> Volume:
        return self.load().reface(volume, 0).volume


class Blur(Ours):
    """The face region blurred; sigma_mm: the standard deviation of the Gaussian."""

    def __init__(self, name: str, sigma_mm: float = BLUR_MM, **ours: Any) -> None:
        super().__init__(name, **ours, settings={"sigma_mm": sigma_mm})

    def apply(self, volume: Volume, seed: int | None) -> Volume:
        from scipy.ndimage import gaussian_filter

        anatomy = self.load().prepare(volume).anatomy
        region = anatomy.view.to_native(anatomy.face_region)
        smooth = gaussian_filter(volume.array, self.settings["sigma_mm"] / np.array(volume.spacing))
        stored = volume.stored.copy()
        stored[region] = volume.to_stored(smooth[region])
        return volume.with_stored(stored)


class OtherFace(Ours):
    """The floor of every attack: another person's real face in the face region, so that nothing but what is kept
    of the head can give its owner away. donors: patterns of scans with a face, of which the seed draws one at
    random (never the scan itself). The donor's head is laid on the scan's by the two anatomies and read once, by
    cubic interpolation; its intensities are scaled to the scan's kept tissue. Nothing is blended at the
    border."""

    def __init__(
        self, name: str, donors: list[str], seeds: list[int] | None = None, base: str = "", **ours: Any
    ) -> None:
        found = sorted({Path(path) for pattern in donors for path in glob(str(Path(base) / pattern))})
        self.donors = [path for path in found if not scan_name(path).endswith("_seg")]
        if len(self.donors) < 2:
            raise InputError(f"Tool {name}: donors must name at least two scans; check the patterns.")
        digest = hashlib.sha256("".join(path.name for path in self.donors).encode()).hexdigest()[:12]
        super().__init__(name, **ours, settings={"donors": digest, "floor": code("evaluation/tools")})
        self.seeds = tuple(seeds or [0])
        self._donor: _Donor | None = None

    def apply(self, volume: Volume, seed: int | None) -> Volume:
        from scipy.ndimage import map_coordinates

        from ..rendering.skin_surface import skin_threshold
        from ..spatial.grid import mapped
        from .tissue_realism import Scale

        choices = [path for path in self.donors if path.name != Path(volume.source or "").name]
        name = hashlib.sha256((Path(volume.source or "").name + str(seed)).encode()).digest()
        path = choices[int.from_bytes(name[:4], "big") % len(choices)]
        found = self._placed(str(path))
        own = self.load().prepare(volume).anatomy
        region = np.ascontiguousarray(own.view.to_native(own.face_region))
        matrix = own.to_template @ np.linalg.inv(own.view.asl_affine) @ volume.affine
        at = mapped(np.argwhere(region), np.linalg.inv(found.to_template) @ matrix)
        scale = Scale.of(volume.array, region, skin_threshold(volume.array, volume.spacing))
        values = map_coordinates(found.scaled, at.T, order=3, mode="constant", cval=0.0)
        stored = volume.stored.copy()
        painted = volume.to_stored((values * (scale.bright - scale.air) + scale.air).astype(np.float32))
        stored[region] = painted.clip(volume.stored.min(), volume.stored.max())
        return volume.with_stored(stored)

    def _placed(self, path: str) -> _Donor:
        """One donor, kept while it is the last."""
        if self._donor is None or self._donor.path != path:
            from ..rendering.skin_surface import skin_threshold
            from .tissue_realism import Scale

            donor = Volume.read(Path(path))
            anatomy = self.load().prepare(donor).anatomy
            region = np.ascontiguousarray(anatomy.view.to_native(anatomy.face_region))
            scale = Scale.of(donor.array, region, skin_threshold(donor.array, donor.spacing))
            to_template = anatomy.to_template @ np.linalg.inv(anatomy.view.asl_affine) @ donor.affine
            self._donor = _Donor(path, scale(donor.array), to_template)
        return self._donor


@dataclass(frozen=True)
class _Donor:
    """scaled: (I, J, K), air 0 and bright tissue 1.  to_template: (4, 4) voxel index -> template RAS mm."""

    path: str
    scaled: np.ndarray
    to_template: np.ndarray


# --- outputs that are there already -----------------------------------------------------------------------


class Files(Tool):
    """Outputs made elsewhere. pattern: their path, with {scan} for the scan's name. seconds: what each took, if
    known."""

    paths = ("pattern",)

    def __init__(self, name: str, pattern: str, seconds: float = float("nan")) -> None:
        if "{scan}" not in pattern:
            raise InputError(f"Tool {name}: pattern must have {{scan}} in it, for the name of the scan.")
        super().__init__(name, {"kind": "files", "pattern": pattern, "seconds": repr(seconds)})
        self.pattern, self.seconds = pattern, seconds

    def path(self, original: Path) -> Path:
        return Path(self.pattern.replace("{scan}", scan_name(original)))

    def inputs(self, original: Path) -> list[Path]:
        return [self.path(original)]

    def run(self, original: Path, output: Path, seed: int | None = None) -> float:
        on_grid_of(Volume.read(original), Volume.read(self.path(original))).write(output)
        return self.seconds
