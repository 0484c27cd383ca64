"""The stages: everything measured on one scan, one result after the other, each kept in the store.

    original ─► reference ─────────────┐
       │  └───► look, look at a re-scan │
       │  └───► place in the template   │
       │  └───► segmentation ───────────┤
       └─► tool ─► output ─► comparison ┴─► rows of the tidy table
                     └─► look, skin  └─► segmentation, Dice, brain changed
                     └─► tissue, slices

Of the people whom attackers learn from, besides the originals, outputs are looked at and not kept.

A stage that fails is a failure of its scan and tool, with its reason, and what does not need it goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.model import DEFAULT, Model
from ..rendering.skin_surface import skin_threshold
from ..report import write_json
from ..volume.volume import Volume
from .measurements import ORIGINAL
from .process_pool import Say, reason
from .reidentification import SIZE, VIEWS, FaceModels, Look, portraits, rescan
from .skin_shape import place_in_template, skin_distances, skin_left_percent
from .store import Store, code, stamp
from .study_config import Study
from .tool_base import Tool
from .tools import ENGINE, loaded

if TYPE_CHECKING:
    from .exclusion import Reference
    from .meshnet import Network
    from .segmentation import Segmentation
    from .volumetry import Backend

log = logging.getLogger(__name__)

RUN, LOOK, SEGMENT = 5.0, 3.0, 40.0
"""About how many seconds a stage takes: what the progress counts."""
VOLUMETRY = "segmentation", "volumetry", "volumetry_external", "meshnet"
OUTPUT, LABELS, PICTURES, NUMBERS = "output.nii.gz", "labels.nii.gz", "pictures.npz", "numbers.json"
SKIN, PLACE, SLICES = "skin.npy", "place.npy", "slices.npz"
TISSUE, SHAPE = 6.0, 2.0
ERODED_MM = 3.0
"""By which a network's brain mask is made smaller before voxels in it count as brain."""

Row = tuple[str, str, str, str, float]
"""scan, tool, measure, part, value"""
Failure = tuple[str, str, str, str]
"""scan, tool, stage, reason"""


@dataclass(frozen=True)
class Measured:
    """What came of one scan."""

    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def measure(task: tuple[Study, str], say: Say) -> Measured:
    """Everything about one original of the study; a look at any other of its scans. The work of the pool."""
    study, name = task
    scan = Scan(study, name)
    if name not in study.originals:
        scan.try_look(say)
        if name in study.pairs:
            scan.measure_pairs(say)
        return scan.measured
    kept = scan.kept
    if not kept.is_file():
        scan.measure(say)
        if not scan.measured.failures:
            scan.keep()
        return scan.measured
    return scan.recall()


class Scan:
    """One scan of a study: where its results are in the store, and how each is made."""

    def __init__(self, study: Study, name: str) -> None:
        self.study, self.name = study, name
        self.path = study.scans[name]
        self.store = Store(study.output / "work")
        self.measured = Measured()
        self.source = stamp(self.path)

    # --- keys and places ---

    @cached_property
    def tools(self) -> list[Tool]:
        return self.study.tools

    @cached_property
    def backends(self) -> dict[str, dict[str, Any]]:
        """Name -> table of the volumetry backends that this scan is measured by."""
        tables = self.study.backends if self.name in self.study.volumetry else []
        return {str(table["name"]): table for table in tables}

    def output_key(self, tool: Tool | None, seed: int | None = None) -> list[Any]:
        """Of the original itself without a tool."""
        if tool is None:
            return self.source
        return [self.source, tool.settings, seed, [stamp(path) for path in tool.inputs(self.path)]]

    def reference_key(self) -> list[Any]:
        mask = self.study.masks.get(self.name)
        files = Model.load(DEFAULT).card["files"]
        anatomy = [files[role]["sha256"] for role in ("anatomy", "template")]
        return [self.source, stamp(mask) if mask else None, anatomy, code(*ENGINE, "evaluation/exclusion")]

    def look_key(self, tool: Tool | None, seed: int | None = None) -> list[Any]:
        return [self.output_key(tool, seed), faces_key(self.study), self.source]

    def output_place(self, tool: Tool, seed: int | None) -> Path:
        return self.store.path(self.name, str(tool.settings["kind"]), self.output_key(tool, seed))

    def look_place(self, tool: Tool | None, seed: int | None = None) -> Path:
        return self.store.path(self.name, "look", self.look_key(tool, seed))

    def skin_key(self, tool: Tool | None, seed: int | None = None) -> list[Any]:
        program = code("rendering/skin_surface", "evaluation/skin_shape")
        return [self.output_key(tool, seed), self.place_key(), program]

    def place_key(self) -> list[Any]:
        files = Model.load(DEFAULT).card["files"]
        anatomy = [files[role]["sha256"] for role in ("anatomy", "template")]
        return [self.source, anatomy, code("anatomy/location", "spatial/grid", "evaluation/skin_shape")]

    def skin_place(self, tool: Tool | None, seed: int | None = None) -> Path:
        return self.store.path(self.name, "skin", self.skin_key(tool, seed))

    def tissue_key(self, tool: Tool) -> list[Any]:
        weights = self.meshnet_folder
        program = code(
            "rendering/skin_surface", "evaluation/tissue_realism", "evaluation/meshnet", "evaluation/measure"
        )
        return [self.output_key(tool, first(tool)), self.source, stamp(weights) if weights else None, program]

    def tissue_place(self, tool: Tool) -> Path:
        return self.store.path(self.name, "tissue", self.tissue_key(tool))

    @property
    def meshnet_folder(self) -> Path | None:
        """Of the MeshNet whose layers tell made from real; of the originals alone, as it takes a while."""
        if self.name not in self.study.originals:
            return None
        return next((Path(t["weights"]) for t in self.study.backends if t["name"] == "meshnet"), None)

    def rescan_place(self) -> Path:
        return self.store.path(self.name, "rescan", self.look_key(None))

    def segment_key(self, backend: str, tool: Tool | None) -> list[Any]:
        table = self.backends[backend]
        files = [stamp(Path(text)) for text in table.values() if isinstance(text, str) and Path(text).exists()]
        program = code("spatial/grid", "volume", *(f"evaluation/{name}" for name in VOLUMETRY))
        return [self.output_key(tool, first(tool)), table, files, program]

    @property
    def kept(self) -> Path:
        """All rows of this scan, where nothing failed: a whole study that is done is read in seconds."""
        keys = [
            [tool.name, tool.device, [self.look_key(tool, seed) for seed in tool.seeds or [None]],
             {name: self.segment_key(name, tool) for name in self.backends}, self.tissue_key(tool),
             self.place_key(), self.slices_key(tool)]
            for tool in self.tools
        ]  # fmt: skip
        program = code(*(f"evaluation/{name}" for name in ("stages", "exclusion", "realism", "reidentification")))
        original = [program, self.look_key(None), {n: self.segment_key(n, None) for n in self.backends}]
        return self.store.path(self.name, "rows", [self.reference_key(), original, keys]).with_suffix(".json")

    @property
    def pairs_kept(self) -> bool:
        """Whether all that a learned attacker learns from this scan is there."""
        places = [self.look_place(None), self.skin_place(None)]
        for tool in self.tools:
            for seed in self.pair_seeds(tool):
                places += [self.look_place(tool, seed), self.skin_place(tool, seed)]
            places.append(self.tissue_place(tool))
        return all(place.is_dir() for place in places)

    def pair_seeds(self, tool: Tool) -> list[int | None]:
        return list(tool.seeds[: self.study.pair_seeds]) or [None]

    def keep(self) -> None:
        write_json({"rows": self.measured.rows}, self.kept)

    def recall(self) -> Measured:
        rows = json.loads(self.kept.read_text(encoding="utf-8"))["rows"]
        return Measured([(str(a), str(b), str(c), str(d), float(e)) for a, b, c, d, e in rows])

    # --- what is done ---

    def measure(self, say: Say) -> None:
        """Fill `measured`; `say` hears of every stage."""
        reference = None
        with self.trying(ORIGINAL, "reference", say, RUN):
            reference = self.reference()
        self.try_look(say)
        if self.study.detector:
            with self.trying(ORIGINAL, "re-scan", say, LOOK):
                self.look_at_rescan()
        for backend in self.backends:
            with self.trying(ORIGINAL, backend, say, SEGMENT):
                self.segment(backend, None)
        for tool in self.tools:
            self.measure_tool(tool, reference, say)

    def measure_tool(self, tool: Tool, reference: Reference | None, say: Say) -> None:
        drawn: list[int | None] = [*tool.seeds] or [None]
        output = None
        with self.trying(tool.name, "output", say, RUN):
            output = self.output(tool, first(tool))
        if output is None:
            say(f"{self.name}: {tool.name} failed", self.tool_work(tool) - RUN)
            return
        self.add(tool.name, "time_s", tool.device, read_numbers(output / NUMBERS)["time_s"])
        if reference:  # if not, that has failed and said so
            with self.trying(tool.name, "comparison", say, 0.0):
                self.compare(tool, reference)
        with self.trying(tool.name, "seam", say, 0.0):
            self.seam(tool)
        with self.trying(tool.name, "tissue", say, TISSUE):
            self.tissue(tool)
        with self.trying(tool.name, "slices", say, 0.0):
            self.slices(tool)
        for seed in drawn[1:]:
            with self.trying(tool.name, f"output, seed {seed}", say, RUN):
                self.output(tool, seed)
        for seed in drawn if self.study.detector else []:
            with self.trying(tool.name, "look" if seed == first(tool) else f"look, seed {seed}", say, LOOK):
                self.look(tool, seed)
            with self.trying(tool.name, "skin" if seed == first(tool) else f"skin, seed {seed}", say, SHAPE):
                self.skin(tool, seed)
        for backend in self.backends:
            with self.trying(tool.name, backend, say, SEGMENT):
                self.segment(backend, tool)
        with self.trying(tool.name, "brain changed", say, 0.0):
            self.brain_changed(tool)

    def measure_pairs(self, say: Say) -> None:
        """What a learned attacker learns from a scan that is none of the originals. Its outputs are not kept."""
        with self.trying(ORIGINAL, "skin", say, SHAPE):
            self.skin(None)
        for tool in self.tools:
            for seed in self.pair_seeds(tool):
                with self.trying(tool.name, f"pair, seed {seed}", say, RUN + LOOK + SHAPE + TISSUE):
                    self.measure_pair(tool, seed)

    def measure_pair(self, tool: Tool, seed: int | None) -> None:
        wanted = [self.look_place(tool, seed), self.skin_place(tool, seed)]
        if seed == first(tool):
            wanted.append(self.tissue_place(tool))
        if all(place.is_dir() for place in wanted):
            return
        with tempfile.TemporaryDirectory(prefix="refacecgan-") as folder:
            path = Path(folder) / OUTPUT
            tool.run(self.path, path, seed)
            output = Volume.read(path)
        self.look(tool, seed, output)
        self.skin(tool, seed, output)
        if seed == first(tool):
            self.tissue(tool, output)

    def work(self) -> float:
        """How much `measure` has to say."""
        look = 2 * LOOK + SHAPE if self.study.detector else 0.0
        return RUN + look + SEGMENT * len(self.backends) + sum(self.tool_work(tool) for tool in self.tools)

    def tool_work(self, tool: Tool) -> float:
        look = LOOK + SHAPE if self.study.detector else 0.0
        return max(1, len(tool.seeds)) * (RUN + look) + TISSUE + SEGMENT * len(self.backends)

    def look_work(self) -> float:
        """How much `measure` has to say of a scan that is none of the originals."""
        if self.name not in self.study.pairs:
            return LOOK
        outputs = sum(len(self.pair_seeds(tool)) for tool in self.tools)
        return LOOK + SHAPE + outputs * (RUN + LOOK + SHAPE + TISSUE)

    @contextmanager
    def trying(self, tool: str, stage: str, say: Say, work: float) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.info("%s, %s, %s", self.name, tool, stage, exc_info=True)
            self.measured.failures.append((self.name, tool, stage, reason(error)))
        say(f"{self.name}: {tool}, {stage}", work)

    def add(self, tool: str, measure: str, part: str, value: float) -> None:
        if not math.isnan(value):
            self.measured.rows.append((self.name, tool, measure, part, float(value)))

    # --- the stages ---

    def reference(self) -> Reference:
        from .exclusion import Reference

        def make(folder: Path) -> None:
            refacer = loaded(DEFAULT, "cpu", average=True)  # for its anatomy: the generator need not be loaded
            Reference.of(self.original, refacer, self.study.masks.get(self.name)).write(folder / "reference.npz")

        return Reference.read(self.store.get(self.name, "reference", self.reference_key(), make) / "reference.npz")

    @cached_property
    def original(self) -> Volume:
        return Volume.read(self.path)

    def output(self, tool: Tool, seed: int | None) -> Path:
        def make(folder: Path) -> None:
            seconds = tool.run(self.path, folder / OUTPUT, seed)
            write_numbers({"time_s": seconds}, folder / NUMBERS)

        return self.store.get(self.name, str(tool.settings["kind"]), self.output_key(tool, seed), make)

    def volume(self, tool: Tool | None, seed: int | None = None) -> Volume:
        return Volume.read(self.output(tool, seed) / OUTPUT) if tool else self.original

    def compare(self, tool: Tool, reference: Reference) -> None:
        """C1 and C2."""
        from .exclusion import changed

        def make(folder: Path) -> None:
            different = changed(self.original, self.volume(tool, first(tool)))
            found = {
                "brain_voxels_changed": float(reference.brain_voxels_changed(different)),
                "tissue_left_percent": reference.tissue_left_percent(different),
            }
            write_numbers(found, folder / NUMBERS)

        key = [self.output_key(tool, first(tool)), self.reference_key()]
        place = self.store.get(self.name, "comparison", key, make)
        for name, value in read_numbers(place / NUMBERS).items():
            self.add(tool.name, name, "", value)

    def seam(self, tool: Tool) -> None:
        """The gradient across the border of what the tool changed."""
        from .exclusion import changed
        from .realism import seam

        def make(folder: Path) -> None:
            output = self.volume(tool, first(tool))
            skin = skin_threshold(self.original.array, self.original.spacing)
            write_numbers({"seam": seam(output, changed(self.original, output), skin)}, folder / NUMBERS)

        program = code("rendering/skin_surface", "evaluation/realism", "evaluation/exclusion")
        key = [self.output_key(tool, first(tool)), program]
        place = self.store.get(self.name, "seam", key, make)
        self.add(tool.name, "seam", "", read_numbers(place / NUMBERS)["seam"])

    def try_look(self, say: Say) -> None:
        if self.study.detector:
            with self.trying(ORIGINAL, "look", say, LOOK):
                self.look(None)

    def place(self) -> np.ndarray:
        """(4, 4) voxel index of the original -> template RAS mm."""

        def make(folder: Path) -> None:
            np.save(folder / PLACE, place_in_template(self.original))

        found: np.ndarray = np.load(self.store.get(self.name, "place", self.place_key(), make) / PLACE)
        return found

    def skin(self, tool: Tool | None, seed: int | None = None, output: Volume | None = None) -> None:
        """The shape of the skin of an output, or of the original, and how much of the original's is left."""

        def make(folder: Path) -> None:
            volume = output or self.volume(tool, seed)
            threshold = skin_threshold(self.original.array, self.original.spacing)
            np.save(folder / SKIN, skin_distances(volume.array, self.place(), threshold))

        place = self.store.get(self.name, "skin", self.skin_key(tool, seed), make)
        if tool and seed == first(tool) and self.name in self.study.originals:
            self.skin(None)
            own = np.load(self.skin_place(None) / SKIN)
            self.add(tool.name, "skin_left_percent", "", skin_left_percent(own, np.load(place / SKIN)))

    def tissue(self, tool: Tool, output: Volume | None = None) -> None:
        """Patches of original and output, and how much texture is left."""
        from .measure import tissue_of

        def make(folder: Path) -> None:
            network = network_of(str(self.meshnet_folder)) if self.meshnet_folder else None
            volume = output or self.volume(tool, first(tool))
            *both, ratios = tissue_of(self.original, volume, network)
            for name, patches in zip(("real", "made"), both, strict=True):
                patches.write(folder / f"{name}.npz")
            write_numbers(ratios, folder / NUMBERS)

        place = self.store.get(self.name, "tissue", self.tissue_key(tool), make)
        if self.name in self.study.originals:
            for name, value in read_numbers(place / NUMBERS).items():
                self.add(tool.name, name, "", value)

    def slices_key(self, tool: Tool) -> list[Any]:
        return [self.output_key(tool, first(tool)), self.source, code("evaluation/slices")]

    def slices_place(self, tool: Tool) -> Path:
        return self.store.path(self.name, "slices", self.slices_key(tool))

    def slices(self, tool: Tool) -> None:
        """Slices of original and output at full resolution, for the eye."""
        from .slices import slices_of

        def make(folder: Path) -> None:
            pairs = slices_of(self.original, self.volume(tool, first(tool)))
            with open(folder / SLICES, "wb") as file:
                np.savez_compressed(file, **pairs)  # type: ignore[arg-type]

        self.store.get(self.name, "slices", self.slices_key(tool), make)

    def brain_changed(self, tool: Tool) -> None:
        """Brain voxels changed, in ml, by masks that no tool under test has made: the labels that are given, and
        the original's segmentation by each backend, eroded by `ERODED_MM`."""
        from .exclusion import changed

        def make(folder: Path) -> None:
            different = changed(self.original, self.volume(tool, first(tool)))
            voxel_ml = float(np.prod(self.original.spacing)) / 1000
            counts = {name: np.count_nonzero(different & mask) for name, mask in self.brain_masks().items()}
            write_numbers({name: count * voxel_ml for name, count in counts.items()}, folder / NUMBERS)

        mask = self.study.masks.get(self.name)
        segmented = {name: self.segment_key(name, None) for name in self.backends}
        program = code("evaluation/exclusion", "evaluation/stages")
        key = [self.output_key(tool, first(tool)), stamp(mask) if mask else None, segmented, program]
        place = self.store.get(self.name, "brain-changed", key, make)
        for name, value in read_numbers(place / NUMBERS).items():
            self.add(tool.name, "brain_changed_ml", name, value)

    def brain_masks(self) -> dict[str, np.ndarray]:
        """Name -> bool (I, J, K) on the original's grid."""
        from .tool_base import on_grid_of

        masks: dict[str, np.ndarray] = {}
        given = self.study.masks.get(self.name)
        if given:
            masks["labels"] = on_grid_of(self.original, Volume.read(given)).array > 0
        for backend in self.backends:
            place = self.store.path(self.name, backend, self.segment_key(backend, None)) / LABELS
            if place.is_file():
                masks[backend] = brain_of(self._segmentation(backend, None), self.original)
        return masks

    def look(self, tool: Tool | None, seed: int | None = None, output: Volume | None = None) -> None:
        """Look at the pictures of an output, or of the original; keep them of those that are in the study."""

        def make(folder: Path) -> None:
            pictures = portraits(output or self.volume(tool, seed), self.original)
            write_looks(models_of(self.study).look(pictures), folder)
            if self.name in self.study.originals:
                np.savez_compressed(folder / PICTURES, pictures=np.stack(pictures))

        place = self.store.get(self.name, "look", self.look_key(tool, seed), make)
        if seed == first(tool) and self.name in self.study.originals:
            look = next(iter(read_looks(place).values()))
            for view, score in zip(VIEWS, look.scores, strict=True):
                self.add(tool.name if tool else ORIGINAL, "face_score", view, float(score))

    def look_at_rescan(self) -> None:
        def make(folder: Path) -> None:
            seed = int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16)
            again = rescan(self.original, np.random.default_rng(seed))
            write_looks(models_of(self.study).look(portraits(again, self.original)), folder)

        self.store.get(self.name, "rescan", self.look_key(None), make)

    def segment(self, backend: str, tool: Tool | None) -> None:
        """Volumes and, of an output, Dice against the original's segmentation."""
        from .segmentation import dice

        name = tool.name if tool else ORIGINAL
        key = self.segment_key(backend, tool)
        place = self.store.get(self.name, backend, key, lambda folder: self._segment(backend, tool, folder))
        for region, ml in read_numbers(place / NUMBERS).items():
            self.add(name, "volume_ml", f"{backend}/{region}", ml)
        if tool is None:
            return

        def make(folder: Path) -> None:
            pair = (self._segmentation(backend, which) for which in (None, tool))
            write_numbers(dice(*pair), folder / NUMBERS)

        key = [key, self.segment_key(backend, None)]
        place = self.store.get(self.name, f"{backend}-dice", key, make)
        for region, overlap in read_numbers(place / NUMBERS).items():
            self.add(name, "dice", f"{backend}/{region}", overlap)

    def _segment(self, backend: str, tool: Tool | None, folder: Path) -> None:
        found = backend_of_table(json.dumps(self.backends[backend])).segment(self.volume(tool, first(tool)))
        found.write(folder / LABELS)
        write_numbers(found.volumes(), folder / NUMBERS)

    def _segmentation(self, backend: str, tool: Tool | None) -> Segmentation:
        from .segmentation import Segmentation

        place = self.store.path(self.name, backend, self.segment_key(backend, tool))
        return Segmentation.read(place / LABELS)


def brain_of(segmentation: Segmentation, original: Volume) -> np.ndarray:
    """Where a segmentation has a label, eroded by `ERODED_MM`, on the grid of the original: bool (I, J, K)."""
    import torch
    from scipy import ndimage

    from ..spatial.grid import sample

    spacing = np.linalg.norm(segmentation.affine[:3, :3], axis=0)
    inner = ndimage.distance_transform_edt(segmentation.labels > 0, spacing) > ERODED_MM
    matrix = np.linalg.inv(segmentation.affine) @ original.affine
    carried = sample(torch.from_numpy(inner.astype(np.float32))[None], matrix, original.shape)
    return np.asarray(carried[0].numpy() > 0.5)


@lru_cache(maxsize=1)
def network_of(folder: str) -> Network:
    from .meshnet import Network

    return Network(Path(folder))


def first(tool: Tool | None) -> int | None:
    """The seed that is measured throughout."""
    return tool.seeds[0] if tool and tool.seeds else None


def write_numbers(numbers: dict[str, float], path: Path) -> None:
    """Names and numbers as JSON; NaN, which JSON does not know, as null."""
    write_json({name: None if math.isnan(value) else float(value) for name, value in numbers.items()}, path)


def read_numbers(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: math.nan if value is None else float(value) for name, value in content.items()}


def write_looks(looks: dict[str, Look], folder: Path) -> None:
    for name, look in looks.items():
        look.write(folder / f"{name}.npz")


def read_looks(folder: Path) -> dict[str, Look]:
    """Embedder -> look; nothing where the stage failed."""
    return {path.stem: Look.read(path) for path in sorted(folder.glob("*.npz")) if path.name != PICTURES}


@lru_cache(maxsize=1)
def _faces_key(detector: str, embedders: str) -> list[Any]:
    files = [Path(detector)]
    for spec in json.loads(embedders).values():
        network = Path(spec["path"] if isinstance(spec, dict) else spec)
        files += [network, network.with_name(f"{network.name}.data")]
    program = code("rendering/skin_surface", "evaluation/face_recognition", "evaluation/reidentification")
    return [VIEWS, SIZE, embedders, [stamp(path) for path in files if path.exists()], program]


def faces_key(study: Study) -> list[Any]:
    """What a look is made with."""
    return _faces_key(str(study.detector), json.dumps(study.embedders, sort_keys=True))


@lru_cache(maxsize=1)
def _models(detector: Path, embedders: str) -> FaceModels:
    return FaceModels(detector, json.loads(embedders))


def models_of(study: Study) -> FaceModels:
    assert study.detector
    return _models(study.detector, json.dumps(study.embedders, sort_keys=True))


def require_models(study: Study) -> None:
    """Raise InputError, before any work, for face models or a volumetry that cannot be had here."""
    if study.detector:
        models_of(study)
    for table in study.backends:
        backend_of_table(json.dumps(table))


@lru_cache(maxsize=4)
def backend_of_table(table: str) -> Backend:
    """A volumetry backend, kept as loading its weights takes a while. table: JSON."""
    from .volumetry import backend_of

    return backend_of(json.loads(table))
