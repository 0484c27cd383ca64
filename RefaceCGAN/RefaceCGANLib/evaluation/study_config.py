"""What a study compares: the configuration of `refacecgan evaluate CONFIG.toml`.

Testing/benchmarks/val.toml of the repository is a whole example. All paths are relative to the file's folder.

    originals = ["scans/*.nii.gz"]       # files or patterns
    brain_masks = "{scan}_seg.nii.gz"    # > 0 in the brain, beside each scan; left out: the anatomy network's
    output = "study"                     # folder of the results; its `work` lets a study go on where it stopped
    workers = 2                          # processes; left out: one for each core
    false_match_rate = 0.01              # sets the threshold below which two faces match

    [[tool]]                             # see `tools` and `programs` for each kind and its keys
    name = "reface"                      # as in the tables; left out: the kind
    kind = "reface"
    seeds = [1, 2]                       # the first is measured throughout, the others for what differs
    epoch = 40                           # for the tuning table and figure

    [faces]                              # re-identification; left out: none
    detector = "yunet.onnx"
    gallery = ["others/*.nii.gz"]        # originals of other people, for the gallery
    training = ["train/*.nii.gz"]        # scans of those who trained the model
    [faces.embedders]
    arcface = "arcface.onnx"             # or a table, see `faces.FaceModels`
    [faces.thresholds]                   # distances, in place of those of false_match_rate
    arcface = 0.4

    [attackers]                          # left out: they learn from the originals alone pairs =
    ["train/*.nii.gz"]           # of the gallery: people whose outputs the learned attacker learns from, too
    seeds = 2                            # outputs of each, with the tool's first seeds

    [volumetry]                          # left out: none
    scans = ["a", "b"]                   # of these originals alone; left out: of all
    backends = [{name = "meshnet", weights = "model18cls"}, {name = "hmrf", weights = "mindgrab"}]
    csv = {morphobox = "volumes.csv"}    # volumes from anything else: scan, tool (or original), region, ml

    [limits]                             # what differs from `statistics.LIMITS`
    tissue_left_percent = 50
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration import read_toml
from ..errors import InputError
from ..volume.files import SUFFIXES
from .measurements import ORIGINAL
from .tool_base import Tool, scan_name
from .tools import tool_of

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"} | {
    list: "a list", dict: "a table"
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A configuration, checked; all paths are absolute.

    originals, gallery, training, pairs: scan name -> path (gallery: all originals and others; pairs: what the
    learned attacker learns from, besides the originals, with `pair_seeds` outputs each).  tools: their [[tool]]
    tables.  embedders: name -> path or table.  backends: tables.  volumetry: names of scans.  volumes: name ->
    CSV file.  epochs: tool -> (epoch, dropout)."""

    path: Path
    output: Path
    originals: dict[str, Path]
    masks: dict[str, Path]
    tables: list[dict[str, Any]]
    workers: int
    false_match_rate: float
    limits: dict[str, float]
    detector: Path | None = None
    embedders: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    gallery: dict[str, Path] = field(default_factory=dict)
    training: dict[str, Path] = field(default_factory=dict)
    pairs: dict[str, Path] = field(default_factory=dict)
    pair_seeds: int = 2
    backends: list[dict[str, Any]] = field(default_factory=list)
    volumetry: frozenset[str] = frozenset()
    volumes: dict[str, Path] = field(default_factory=dict)
    epochs: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def scans(self) -> dict[str, Path]:
        """All scans that are looked at, by name; the originals first."""
        return self.originals | self.gallery | self.training

    @property
    def tools(self) -> list[Tool]:
        return [tool_of(table, self.path.parent) for table in self.tables]


def read(path: Path) -> Study:
    """Read and check a configuration. Raises InputError, one sentence that names the key."""
    path = path.resolve()
    content = read_toml(path)
    top = _Table(content, path, "")
    pattern = top.take("brain_masks", str, "")
    originals = _scans(top, "originals", pattern)
    tables = [_Table(table, path, "tool.").copy() for table in top.take("tool", list)]
    epochs = {
        str(table.get("name", table.get("kind"))): (float(table.pop("epoch")), float(table.get("dropout", "nan")))
        for table in tables
        if "epoch" in table
    }
    faces, attackers, volumetry = (
        _Table(top.take(key, dict, {}), path, f"{key}.") for key in ("faces", "attackers", "volumetry")
    )
    further = _scans(faces, "gallery", pattern) if "gallery" in faces.left else {}
    training = _scans(faces, "training", pattern) if "training" in faces.left else {}
    pairs = _scans(attackers, "pairs", pattern) if "pairs" in attackers.left else {}
    pair_seeds = attackers.take("seeds", int, 2)
    further = _together(further, {name: scan for name, scan in pairs.items() if name not in originals}, path)
    _together(originals | further, training, path)
    detector = faces.take("detector", str) if faces.left else None
    some = volumetry.take("scans", list, list(originals))
    study = Study(
        path=path,
        output=path.parent / Path(top.take("output", str)).expanduser(),
        originals=originals,
        masks={name: scan.parent / _filled(pattern, scan) for name, scan in originals.items()} if pattern else {},
        tables=tables,
        workers=top.take("workers", int, os.cpu_count() or 1),
        false_match_rate=top.take("false_match_rate", float, 0.01),
        limits=_numbers(top.take("limits", dict, {}), path, "limits"),
        detector=path.parent / detector if detector else None,
        embedders={
            name: _with_paths(spec, path) for name, spec in faces.take("embedders", dict, {}).items()
        },
        thresholds=_numbers(faces.take("thresholds", dict, {}), path, "faces.thresholds"),
        gallery=_together(originals, further, path) if detector else {},
        training=training,
        pairs={name: scan for name, scan in pairs.items() if name not in originals} if detector else {},
        pair_seeds=pair_seeds,
        backends=[_with_paths(table, path) for table in volumetry.take("backends", list, [])],
        volumetry=frozenset(map(str, some)),
        volumes={
            name: Path(_with_paths(text, path)) for name, text in volumetry.take("csv", dict, {}).items()
        },
        epochs=epochs,
    )  # fmt: skip
    for table in (top, faces, attackers, volumetry):
        table.nothing_left()
    _check(study, tables)
    return study


def _check(study: Study, tables: list[dict[str, Any]]) -> None:
    names = [tool.name for tool in study.tools]
    for name in names:
        if names.count(name) > 1 or name == ORIGINAL:
            raise InputError(f"{study.path}: {name} cannot be the name of a tool, or not of two; set name.")
    if unknown := sorted(study.volumetry - set(study.originals)):
        raise InputError(f"{study.path}: volumetry.scans names {unknown[0]}, which is none of the originals.")
    for name, mask in study.masks.items():
        if not mask.is_file():
            raise InputError(f"{study.path}: brain_masks leads to {mask} for {name}, which is no file.")
    parts = [str(table.get("name", "")) for table in study.backends] + [*study.volumes, *study.embedders]
    for name in parts:
        if not name or "/" in name or parts.count(name) > 1:
            raise InputError(f"{study.path}: each volumetry and embedder needs its own name, without a slash.")
    if study.detector and not study.embedders:
        raise InputError(f"{study.path}: faces.embedders names none; add one.")
    if not 0 < study.false_match_rate < 1 or study.workers < 1 or study.pair_seeds < 1:
        raise InputError(
            f"{study.path}: false_match_rate lies between 0 and 1; workers and attackers.seeds are at least 1."
        )


class _Table:
    """A table of the configuration, from which keys are taken until nothing is left."""

    def __init__(self, content: Any, path: Path, where: str) -> None:
        if not isinstance(content, dict):
            raise InputError(f"{path}: {where.rstrip('.')} must be a table; see the example.")
        self.left, self.path, self.where = dict(content), path, where

    def take(self, key: str, kind: type, default: Any = ...) -> Any:
        value = self.left.pop(key, default)
        if value is ...:
            raise InputError(f"{self.path}: {self.where}{key} is missing; add it.")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{self.path}: {self.where}{key} must be {KINDS[kind]}.")
        return value

    def copy(self) -> dict[str, Any]:
        return dict(self.left)

    def nothing_left(self) -> None:
        for key in self.left:
            raise InputError(f"{self.path}: {self.where}{key} is no known key; remove it or mend its name.")


def _scans(table: _Table, key: str, masks: str) -> dict[str, Path]:
    """Scan name -> path of all that the patterns match, in the order of the names, without the masks of others."""
    found: set[Path] = set()
    for entry in table.take(key, list):
        pattern = str(table.path.parent / Path(str(entry)).expanduser())
        matches = {Path(os.path.normpath(path)) for path in glob.glob(pattern)}
        scans = {path for path in matches if path.name.lower().endswith(SUFFIXES) or path.is_dir()}
        if not scans:
            raise InputError(f"{table.path}: {table.where}{key} names {pattern}, where there is no scan.")
        found |= scans
    if masks:
        found -= {path.parent / _filled(masks, path) for path in found}
    names: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: path.name):
        _add(names, path, table.path)
    return names


def _add(names: dict[str, Path], path: Path, config: Path) -> None:
    name = scan_name(path)
    if names.setdefault(name, path) != path:
        raise InputError(f"{config}: {names[name]} and {path} have the same name; rename one of them.")


def _together(first: dict[str, Path], second: dict[str, Path], config: Path) -> dict[str, Path]:
    both = dict(first)
    for path in second.values():
        _add(both, path, config)
    return both


def _filled(pattern: str, scan: Path) -> str:
    return pattern.replace("{scan}", scan_name(scan))


def _with_paths(value: Any, config: Path) -> Any:
    """A path, or a table in which the texts that name something beside the configuration become paths."""
    if isinstance(value, str):
        return str(config.parent / Path(value).expanduser())
    if not isinstance(value, dict):
        raise InputError(f"{config}: {value!r} must be a path or a table.")
    there = {key: config.parent / text for key, text in value.items() if isinstance(text, str)}
    return value | {key: str(place) for key, place in there.items() if key != "name" and place.exists()}


def _numbers(table: dict[str, Any], config: Path, where: str) -> dict[str, float]:
    checked = _Table(table, config, f"{where}.")
    return {key: checked.take(key, float) for key in table}
