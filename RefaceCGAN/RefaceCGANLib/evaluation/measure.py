"""All attackers and the realism of slices and renders, for a folder of originals and folders of refaced outputs.

    python -m RefaceCGANLib.evaluation.measure \\
        --originals heads/val --originals heads/train \\
        --outputs out/seed1 --outputs out/seed2 \\
        --detector yunet.onnx --recogniser MobileFaceNet.onnx --meshnet model18cls --cache work

A folder holds NIfTI files; an output has the name of its original, and each folder of outputs is one seed. All
originals are the gallery (`--gallery` adds more); every person with outputs in all seeds is attacked, and with
`--judge FOLDER` the people of that folder alone, while the others are learned from. What is measured on each
scan is kept in the cache, under the times of its files: a second call with one more seed measures that seed.
Without `--meshnet` its features are left out, without `--realism` none of the measures of slices is made. Prints
one line for each measure.

To steer work on a generator from Python: `Measures`, `Cohort`, `tissue_of`, `slices`, and the pure functions of
`attackers`, `made_or_real` and `tissue`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..rendering.skin_surface import skin_threshold
from ..volume.volume import Volume
from . import attackers
from .attackers import Attack, judged
from .face_recognition import FaceModels, Look
from .made_or_real import Separability, patch_separability, render_separability
from .reidentification import portraits
from .skin_shape import place_in_template, skin_distances
from .store import Store, code, stamp
from .tissue_realism import (
    Patches,
    Scale,
    changed_region,
    meshnet_features,
    patch_centres,
    texture_features,
    texture_ratios,
)


@dataclass(frozen=True)
class Seen:
    """What an attacker sees of one scan. look: by a recogniser.  distances: (R,) mm, see `skin_shape`."""

    look: Look
    distances: np.ndarray


@dataclass
class Measures:
    """What measures scans: the face models, the MeshNet and the store that remembers.

    detector, recogniser: ONNX files (or a table, see `FaceModels`).  meshnet: a folder, or None for no such
    features.
    """

    cache: Path
    detector: Path
    recogniser: Path | dict[str, Any]
    meshnet: Path | None = None
    _places: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def store(self) -> Store:
        return Store(Path(self.cache))

    @cached_property
    def faces(self) -> FaceModels:
        return FaceModels(Path(self.detector), {"look": self.recogniser})

    @cached_property
    def network(self) -> Any:
        from .meshnet import Network

        return Network(Path(self.meshnet)) if self.meshnet else None

    def to_template(self, original: Path) -> np.ndarray:
        """(4, 4) voxel index of the original -> template RAS mm, from its own anatomy."""

        def make(folder: Path) -> None:
            write_place(place_in_template(Volume.read(original)), folder)

        place = self.store.get(_name(original), "place", stamp(original), make)
        return np.array(json.loads((place / "place.json").read_text(encoding="utf-8")))

    def see(self, original: Path, output: Path | None = None) -> Seen:
        """What is seen of an original, or of its output."""

        def make(folder: Path) -> None:
            reference = Volume.read(original)
            volume = Volume.read(output) if output else reference
            self.faces.look(portraits(volume, reference))["look"].write(folder / "look.npz")
            threshold = skin_threshold(reference.array, reference.spacing)
            matrix = self.to_template(original) @ np.linalg.inv(reference.affine) @ volume.affine
            np.save(folder / "distances.npy", skin_distances(volume.array, matrix, threshold))

        modules = code(
            "evaluation/skin_shape",
            "evaluation/face_recognition",
            "evaluation/reidentification",
            "rendering/skin_surface",
        )
        key = [stamp(original), stamp(output) if output else None, str(self.recogniser), modules]
        place = self.store.get(_name(original), "seen", key, make)
        return Seen(Look.read(place / "look.npz"), np.load(place / "distances.npy"))

    def tissue(self, original: Path, output: Path) -> tuple[Patches, Patches, dict[str, float]]:
        """Patches of the original and of the output in what the tool changed, and the texture ratios."""

        def make(folder: Path) -> None:
            volumes = Volume.read(original), Volume.read(output)
            *both, ratios = tissue_of(*volumes, self.network)
            for name, patches in zip(("real", "made"), both, strict=True):
                patches.write(folder / f"{name}.npz")
            (folder / "ratios.json").write_text(json.dumps(ratios))

        key = [
            stamp(original),
            stamp(output),
            str(self.meshnet),
            code("evaluation/tissue_realism", "evaluation/meshnet"),
        ]
        place = self.store.get(_name(original), "tissue", key, make)
        real, made = (Patches.read(place / f"{name}.npz") for name in ("real", "made"))
        return real, made, json.loads((place / "ratios.json").read_text(encoding="utf-8"))


def write_place(matrix: np.ndarray, folder: Path) -> None:
    (folder / "place.json").write_text(json.dumps(matrix.tolist()))


def tissue_of(
    original: Volume, output: Volume, network: Any = None, region: np.ndarray | None = None
) -> tuple[Patches, Patches, dict[str, float]]:
    """Patches of the tissue of an original and of its output, and `texture_ratios`, in what the tool changed.

    network: a MeshNet, or None.  region: bool (I, J, K), in place of what was changed."""
    threshold = skin_threshold(original.array, original.spacing)
    if region is None:
        region = changed_region(original.array, output.array, original.spacing)
    if not region.any():
        none = Patches(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
        return none, none, texture_ratios(original.array, output.array, region, original.spacing, threshold)
    scale = Scale.of(original.array, region, threshold)
    level = float(scale(np.array(threshold)))
    found = []
    for volume in (original, output):
        centres = patch_centres(volume.array, region, volume.spacing, threshold)
        texture = texture_features(scale(volume.array), centres, volume.spacing, level)
        seen = meshnet_features(volume, centres, network) if network else np.empty((len(centres), 0), np.float32)
        found.append(Patches(texture, seen))
    ratios = texture_ratios(original.array, output.array, region, original.spacing, threshold)
    return found[0], found[1], ratios


@dataclass(frozen=True)
class Cohort:
    """What is seen of a cohort. names: P people with outputs.  looks: (S, P, V, D) and shapes: (S, P, R) of their
    outputs.  gallery_looks: (G, V, D) and gallery_shapes: (G, R) of the originals, the P people's first."""

    names: list[str]
    looks: np.ndarray
    shapes: np.ndarray
    gallery_looks: np.ndarray
    gallery_shapes: np.ndarray

    @classmethod
    def of(cls, outputs: Mapping[str, Sequence[Seen | None]], originals: Mapping[str, Seen]) -> Cohort:
        """outputs: person -> one for each seed (None, or fewer than others have: missing). originals: person ->
        original; all people of the outputs and more."""
        names = sorted(outputs)
        order = names + sorted(originals.keys() - outputs.keys())
        seeds = max((len(found) for found in outputs.values()), default=0)
        gallery = attackers.embeddings_of([originals[name].look for name in order])
        distances = np.stack([originals[name].distances for name in order])
        looks = np.full((seeds, len(names), *gallery.shape[1:]), np.nan, np.float32)
        shapes = np.full((seeds, len(names), distances.shape[1]), np.nan, np.float32)
        for person, name in enumerate(names):
            for seed, seen in enumerate(outputs[name]):
                if seen is not None:
                    looks[seed, person], shapes[seed, person] = seen.look.embeddings, seen.distances
        return cls(names, looks, shapes, gallery, distances)

    def attacks(self, judge: Iterable[str] | None = None) -> list[Attack]:
        """All attackers. judge: the people that are attacked; the others are only learned from (default: all)."""
        wanted = set(self.names if judge is None else judge)
        first = [i for i, name in enumerate(self.names) if name in wanted]
        rest = [i for i, name in enumerate(self.names) if name not in wanted]
        order, count = first + rest, len(first)
        gallery = order + list(range(len(self.names), len(self.gallery_looks)))
        looks, shapes = self.looks[:, order], self.shapes[:, order]
        known_looks, known_shapes = self.gallery_looks[gallery], self.gallery_shapes[gallery]
        joined, known = attackers.joined(looks), attackers.joined(known_looks)
        near = attackers.nearness(shapes[:, :count], known_shapes)
        alike = attackers.correlation(shapes[:, :count], known_shapes)
        both, known_both = attackers.together(joined, shapes), attackers.together(known, known_shapes)
        people = None if not rest else count
        return [
            judged("standard, recogniser", attackers.standard(looks[:, :count], known_looks)),
            judged("informed, distance of the skins", near),
            judged("informed, correlation of the skins", alike),
            judged("learned, recogniser", attackers.learned(joined, known, people), learned=True),
            judged("learned, skin", attackers.learned(shapes, known_shapes, people), learned=True),
            judged("learned, both", attackers.learned(both, known_both, people), learned=True),
        ]

    def renders(self, seed: int = 0) -> Separability:
        """Made or real in renders, of one seed."""
        real = {name: self.gallery_looks[i] for i, name in enumerate(self.names)}
        made = {name: self.looks[seed, i] for i, name in enumerate(self.names)}
        return render_separability(real, made)


def texture_summary(ratios: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Median, lowest and highest of each texture ratio over people."""
    rows = list(ratios)
    return {
        name: tuple(float(f([row[name] for row in rows])) for f in (np.nanmedian, np.nanmin, np.nanmax))  # type: ignore[misc]
        for name in (rows[0] if rows else ())
    }


def slices(found: Mapping[str, tuple[Patches, Patches, Mapping[str, float]]]) -> list[Separability]:
    """Made or real in slices: by texture features and, where there are such, by MeshNet's."""
    found_by = []
    for kind, name in (("texture", "slices, texture"), ("meshnet", "slices, MeshNet")):
        real = {person: getattr(part[0], kind) for person, part in found.items()}
        made = {person: getattr(part[1], kind) for person, part in found.items()}
        if any(rows.shape[1] for rows in real.values() if len(rows)):
            found_by.append(patch_separability(real, made, name))
    return found_by


def heads_in(folder: Path) -> dict[str, Path]:
    """Name -> NIfTI file of a folder, without the segmentations (*_seg.nii.gz)."""
    paths = sorted(Path(folder).glob("*.nii*"))
    return {_name(path): path for path in paths if not _name(path).endswith("_seg")}


def _name(path: Path) -> str:
    return path.name.partition(".nii")[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m RefaceCGANLib.evaluation.measure", description=__doc__)
    for name, text in (
        ("originals", "folder of originals"), ("outputs", "folder of outputs, one seed"),
        ("gallery", "folder of further originals"), ("judge", "folder of originals that are attacked"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=Path, action="append", default=[], help=text)
    for name in ("cache", "detector", "recogniser"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--meshnet", type=Path)
    parser.add_argument("--realism", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--limit", type=int, help="of people whose slices are measured")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--card", type=Path, help="file for what a model card carries as its risk, JSON")
    parser.add_argument("--on", default="", help="for the card: which people and seeds, in words")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    measures = Measures(args.cache, args.detector, args.recogniser, args.meshnet)
    originals = {name: path for folder in args.originals for name, path in heads_in(folder).items()}
    gallery = {name: path for folder in args.gallery for name, path in heads_in(folder).items()}
    judge = {name for folder in args.judge for name in heads_in(folder)} or None
    seeds = [heads_in(folder) for folder in args.outputs]
    people = sorted(name for name in originals if all(name in seed for seed in seeds))
    seen = {name: measures.see(path) for name, path in (originals | gallery).items()}
    outputs = {name: [measures.see(originals[name], seed[name]) for seed in seeds] for name in people}
    cohort = Cohort.of(outputs, seen)
    attacks = cohort.attacks(judge)
    lines: list[Attack | Separability] = [*attacks, cohort.renders()]
    for line in lines:
        print(line, flush=True)
    print("worst:", attackers.worst(attacks), flush=True)
    numbers: dict[str, Any] = {line.name: vars(line) for line in lines}
    if args.card:
        from .risk import of_cohort

        args.card.write_text(json.dumps(of_cohort(cohort, args.recogniser, args.on), indent=1))
    if args.realism:
        shown = sorted(people, key=lambda name: (name not in (judge or ()), name))[: args.limit]
        found = {name: measures.tissue(originals[name], seeds[0][name]) for name in shown}
        for one in slices(found):
            print(one, flush=True)
            numbers[one.name] = vars(one)
        for name, (middle, low, high) in texture_summary(part[2] for part in found.values()).items():
            print(f"{name}, refaced over original: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)
            numbers[name] = [middle, low, high]
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
