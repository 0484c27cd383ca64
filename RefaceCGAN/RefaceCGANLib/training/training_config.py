"""Training from a configuration: what `refacecgan train CONFIG.toml` does.

`configs/` holds those of the default model, in the order they run (template, anatomy, tissue, default), and the
paper's settings (paper). A key is described where it is read: in `KEYS` and in the comments of these files.
"""

from __future__ import annotations

import glob
import json
import logging
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..configuration import read_toml
from ..errors import InputError
from ..models.model import unpacked
from ..volume.volume import SUFFIXES

if TYPE_CHECKING:
    import torch

    from ..face_model.template import Template
    from .examples import Example, WorkingHead

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """What a key may hold. kind: bool, int, float, str; [int] or [str] for a list. default: ... where the key
    may not be left out. least, most: limits of a number, or of each number of a list."""

    kind: type | list[type]
    default: Any = ...
    least: float | None = None
    most: float | None = None


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
COMMON: dict[str, Any] = {
    "kind": Key(str),
    "folder": Key(str),  # for the results; a training that was stopped goes on from what it finds there
}
NETWORKS: dict[str, Any] = {
    "device": Key(str, "auto"),  # auto, cpu or cuda
    "init": Key(str, None),  # weights to start from
}


def _brain_keys(filters: list[int]) -> dict[str, Any]:
    """The keys of a network that finds the brain; filters: those of the default model."""
    training = {
        "seed": Key(int, 1, 0),
        "steps": Key(int, ..., 1),
        "learning_rate": Key(float, 2e-3, 0),
        "filters": Key([int], filters, 1),
    }
    paths = {"template": Key(str), "heads": Key([str])}  # template.npz, and prepared heads (.npz)
    return COMMON | NETWORKS | paths | {"training": training}


KEYS: dict[str, dict[str, Any]] = {
    "template": COMMON
    | {
        "reference": Key(str),  # a head in MNI152 space with its face
        "heads": Key([str]),  # folders of scans that make the average
        "others": Key([str], []),  # folders of scans that are only brought into its space
        "labels": Key(str, "{name}_seg.nii.gz"),  # brain labels beside each scan
        "catalogue": Key(str, None),  # JSON: a list of {"name", "notes"}, which tell of spoilt faces
        "workers": Key(int, 0, 0),  # processes; 0: one for each core
    },
    "anatomy": _brain_keys([24, 40, 64, 96]),
    "brain_check": _brain_keys([32, 48, 64]),
    "tissue": COMMON
    | {
        "model": Key(str),  # a model card, for its template and its anatomy network
        "heads": Key([str]),  # scans
        "donors": Key(int, 9, 2),  # heads that give their tissue; all give their shapes
    },
    "generator": COMMON
    | NETWORKS
    | {
        "heads": Key([str]),  # with `template` working heads (.npz), with `masks` scans
        "template": Key(str, None),
        "masks": Key(str, None),  # mask of the face region beside each scan, e.g. "{name}_face.nii.gz"
        "validation": Key([str], None),  # scans with masks that are validated on and not trained on, with `masks`
        "sub_volume": Key([int], None, 8),  # shape (A, S, L) of the blocks, with `masks`
        "resampled": Key(float, 0.0, 0, 1),  # share of the blocks that are cut from a resampled scan, with `masks`
        "resampled_mm": Key([float], [1.0, 1.5], 0.1, 10),  # least and most voxel size of these
        "mirror": Key(bool, False),  # exchange left and right in every second block, with `masks`
        "generator": {
            "channels_in": Key(int, ..., 1),
            "filters": Key(int, 64, 1),
            "levels": Key(int, 4, 1),
            "filters_max": Key(int, 512, 1),
            "residual_blocks": Key(int, 4, 0),
            "dropout": Key(float, 0.25, 0, 0.99),
            "upsampling": Key(str, "transposed"),
            "detail": Key(int, 0, 0),
            "residual": Key(int, None, 0),
        },
        "discriminator": {"filters": Key(int, 64, 1), "levels": Key(int, 3, 1)},
        "training": {
            "seed": Key(int, 1, 0),
            "iterations": Key(int, None, 1),
            "epochs": Key(int, None, 1),  # in place of iterations
            "examples_per_head": Key(int, 1, 1),  # in each epoch
            "stop_epoch": Key(int, None, 1),  # early stopping, with `masks`; an epoch that is saved
            "reconstruction": Key(str, "L1.5"),  # or L1, with `masks`
            "reconstruction_iterations": Key(int, 0, 0),
            "learning_rate": Key(float, 2e-4, 0),
            "cosine_period": Key(int, 1000, 1),
            "loss_lambda": Key(float, 0.015, 0),
            "feature_matching": Key(float, 0.0, 0),
            "adversarial_weight": Key(float, 1.0, 0),
            "skin_weight": Key(float, 0.0, 0),
            "portrait_weight": Key(float, 0.0, 0),
            "batch": Key(int, 1, 1),
            "echo": Key(int, 1, 1),  # iterations for each batch that was drawn
            "workers": Key(int, 1, 0),  # processes that draw examples
            "average_decay": Key(float, 0.0, 0, 1),
            "save_every": Key(int, 100, 1),
            "save_epochs": Key(int, 0, 0),
            "tensorboard": Key(bool, False),
            "pictures_every": Key(int, 500, 1),
            "bf16": Key(bool, True),
            "channels_last": Key(bool, False),
        },
    },
}


def read(path: Path) -> dict[str, Any]:
    """Read and check a configuration; every key that was left out and may be has its default, all paths are
    absolute (in the file they are relative to it).

    Raises InputError, one sentence that names the key, for whatever is unknown, missing, of the wrong kind,
    out of range, or a path that is not there."""
    content = read_toml(path)
    if content.get("kind") not in KEYS:
        raise InputError(f"{path}: kind must be one of {', '.join(KEYS)}.")
    settings = _checked(content, KEYS[content["kind"]], f"{path}: ")
    base = path.resolve().parent
    for key in ("folder", "reference", "template", "catalogue", "init", "model", "detector", "recogniser"):
        if settings.get(key) is not None:
            settings[key] = base / Path(settings[key]).expanduser()
            if key != "folder" and not settings[key].is_file():
                raise InputError(f"{path}: {key} is {settings[key]}, which is no file; check the path.")
    for key in ("heads", "others", "validation"):
        if settings.get(key):
            settings[key] = [base / Path(entry).expanduser() for entry in settings[key]]
    settings["path"] = path
    return settings


def _checked(content: dict[str, Any], keys: dict[str, Any], where: str) -> dict[str, Any]:
    """The content of a table with its defaults. Raises InputError."""
    for name in content:
        if name not in keys:
            raise InputError(f"{where}{name} is no known key; known here are {', '.join(keys)}.")
    result = {}
    for name, key in keys.items():
        if isinstance(key, dict):
            table = content.get(name, {})
            if not isinstance(table, dict):
                raise InputError(f"{where}{name} must be a table; write [{name}] and its keys below.")
            result[name] = _checked(table, key, f"{where}{name}.")
        elif name in content:
            result[name] = _value(content[name], key, where + name)
        elif key.default is ...:
            raise InputError(f"{where}{name} is missing; add it.")
        else:
            result[name] = key.default
    return result


def _value(value: Any, key: Key, where: str) -> Any:
    """A value of the right kind, in range; one text stands for a list of one. Raises InputError."""
    several = isinstance(key.kind, list)
    kind = key.kind[0] if isinstance(key.kind, list) else key.kind
    values = value if isinstance(value, list) else [value]
    if kind is float:
        values = [float(item) if type(item) is int else item for item in values]
    right_form = isinstance(value, list) == several or (several and kind is str)
    if not (right_form and values and all(type(item) is kind for item in values)):
        raise InputError(f"{where} must be {'a list, each ' if several else ''}{NAMES[kind]}.")
    least = -math.inf if key.least is None else key.least
    most = math.inf if key.most is None else key.most
    for item in values if kind in (int, float) else ():
        if not least <= item <= most:
            limits = f"at least {least:g}" + (f" and at most {most:g}" if key.most is not None else "")
            raise InputError(f"{where} must be {limits}, not {item:g}.")
    return values if several else values[0]


def run(config: str | Path) -> None:
    """Train what the file `config` describes to the end, going on where an earlier run stopped.

    In the configured folder: for a template what `build_template` writes; for a tissue bank tissue.npz; for a
    network checkpoint.pt, and at the end its weights, anatomy.pt, brain_check.pt or generator.pt (float16);
    always training.json: all settings and the names of the heads, with which the training can be repeated.

    Raises InputError, one sentence that names the key, for a configuration that is no good (see `read`)."""
    settings = read(Path(config))
    try:
        settings["folder"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _wrong(settings, "folder", "cannot be made; choose another place") from error
    runs = {
        "template": _run_template,
        "anatomy": _run_brain,
        "brain_check": _run_brain,
        "generator": _run_generator,
        "tissue": _run_tissue,
    }
    runs[settings["kind"]](settings)


def _wrong(settings: dict[str, Any], key: str, what: str) -> InputError:
    return InputError(f"{settings['path']}: {key} {what}.")


def _files(settings: dict[str, Any], key: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of `suffixes` in the folders, or matching the patterns, of a key, sorted by name."""
    found: list[Path] = []
    for entry in settings[key]:
        candidates = entry.iterdir() if entry.is_dir() else map(Path, glob.glob(str(entry)))
        files = [path for path in candidates if path.name.lower().endswith(suffixes)]
        if not files:
            raise _wrong(settings, key, f"names {entry}, where there is no {' or '.join(suffixes)} file")
        found += files
    return sorted(found, key=lambda path: path.name)


def _name(path: Path) -> str:
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _pairs(settings: dict[str, Any], key: str, partner: str) -> list[tuple[Path, Path]]:
    """The scans of `key`, each with its file by the pattern `partner` (labels or masks); scans without one,
    and these files themselves, are left out."""
    pattern = settings[partner]
    if "{name}" not in pattern:
        raise _wrong(settings, partner, 'must have {name} in it, for example "{name}_face.nii.gz"')
    scans = _files(settings, key, SUFFIXES)
    partners = {scan: scan.parent / pattern.replace("{name}", _name(scan)) for scan in scans}
    pairs = [(scan, other) for scan, other in partners.items() if other.exists()]
    if not pairs:
        raise _wrong(settings, partner, f"is {pattern}, but beside no scan of {key} is there such a file")
    others = {other for _, other in pairs}
    lonely = [scan.name for scan in scans if not partners[scan].exists() and scan not in others]
    if lonely:
        log.warning("%d files are left out for want of a file %s: %s", len(lonely), pattern, ", ".join(lonely))
    return [(scan, other) for scan, other in pairs if scan not in others]


def _record(settings: dict[str, Any], heads: Iterable[str]) -> None:
    text = json.dumps({**settings, "heads_used": sorted(heads)}, indent=2, default=str)
    (settings["folder"] / "training.json").write_text(text + "\n", encoding="utf-8")


def _device(settings: dict[str, Any]) -> torch.device:
    import torch

    name = settings["device"]
    if name not in ("auto", "cpu", "cuda"):
        raise _wrong(settings, "device", f"must be auto, cpu or cuda, not {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise _wrong(settings, "device", "is cuda, but there is no such device here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _load_initial(settings: dict[str, Any], network: torch.nn.Module) -> None:
    """Load the weights of `init`, where given: a state dict, or the averaged weights of a checkpoint."""
    import torch

    if settings["init"] is None:
        return
    try:
        state = torch.load(settings["init"], weights_only=True, map_location="cpu")
        state = state.get("average", state)
        network.load_state_dict(unpacked(state))
    except Exception as error:  # whatever torch throws at a file that is none of its own, or of another network
        raise _wrong(settings, "init", f"is {settings['init']}, which does not fit this network") from error


def _run_template(settings: dict[str, Any]) -> None:
    from .build_template import HeadFiles, build_template, face_of

    notes: dict[str, str] = {}
    if settings["catalogue"]:
        try:
            entries = json.loads(settings["catalogue"].read_text(encoding="utf-8"))
            notes = {entry["name"]: entry.get("notes", "") for entry in entries}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _wrong(settings, "catalogue", "must be a JSON list of objects with name and notes") from error
    heads = [
        HeadFiles(_name(scan), scan, labels, scan.parent.name, key == "heads", face_of(notes.get(_name(scan), "")))
        for key in ("heads", "others")
        if settings[key]
        for scan, labels in _pairs(settings, key, "labels")
    ]
    _record(settings, [head.name for head in heads])
    build_template(heads, settings["reference"], settings["folder"], settings["workers"] or None)


def _run_brain(settings: dict[str, Any]) -> None:
    """Train one of the two networks that find the brain."""
    from ..generation.networks import build
    from .train_anatomy import PreparedHead, train, train_brain_check
    from .trainer import save_weights

    kind = settings["kind"]
    training = settings["training"] | {"device": _device(settings)}
    if settings["init"]:
        network = build(kind, {"filters": training["filters"]})
        _load_initial(settings, network)
        training["init"] = network.state_dict()
    heads = [_arrays(settings, "heads", PreparedHead.read, path) for path in _files(settings, "heads", (".npz",))]
    _record(settings, [head.name for head in heads])
    trained = (train if kind == "anatomy" else train_brain_check)(
        heads, _read_template(settings), settings["folder"], training
    )
    save_weights(trained, settings["folder"] / f"{kind}.pt")


def _run_tissue(settings: dict[str, Any]) -> None:
    from .build_tissue_bank import build

    scans = _files(settings, "heads", SUFFIXES)
    _record(settings, map(_name, scans))
    build(scans, settings["donors"], settings["model"], settings["folder"])


def _run_generator(settings: dict[str, Any]) -> None:
    import torch

    from ..generation.networks import Discriminator, Generator
    from .paper_trainer import PaperTrainer
    from .trainer import Trainer, save_weights

    training = {name: value for name, value in settings["training"].items() if value is not None}
    if ("iterations" in training) == ("epochs" in training):
        raise _wrong(settings, "training", "must have either iterations or epochs")
    if (settings["template"] is None) == (settings["masks"] is None):
        raise _wrong(settings, "template", "or masks must be there, and not both")
    options = settings["generator"]
    if options["upsampling"] not in ("transposed", "resize"):
        raise _wrong(settings, "generator.upsampling", "must be transposed or resize")
    if training["reconstruction"] not in ("L1.5", "L1"):
        raise _wrong(settings, "training.reconstruction", "must be L1.5 or L1")
    validation: list[Example] = []
    if settings["template"]:
        draw, names, channels, judged, shape = _draw_working(settings)
    else:
        (draw, names, channels, judged, shape), validation = _draw_native(settings)
    if options["channels_in"] != channels:
        raise _wrong(settings, "generator.channels_in", f"must be {channels} for this kind of heads")
    levels = max(options["levels"], settings["discriminator"]["levels"])
    if any(side % 2**levels for side in shape):
        raise _wrong(settings, "generator.levels", f"is too many: {shape} must divide by two {levels} times")
    training["epoch_length"] = len(names) * training["examples_per_head"]

    torch.manual_seed(training["seed"])
    generator = Generator(**options)
    discriminator = Discriminator(judged + 1, **settings["discriminator"])
    _load_initial(settings, generator)
    _record(settings, names)
    parts = (generator, discriminator, draw, training, settings["folder"], _device(settings))
    trainer = Trainer(*parts) if settings["template"] else PaperTrainer(*parts, validation=validation)
    save_weights(trainer.run(), settings["folder"] / "generator.pt")


Source = tuple[Callable[[np.random.Generator], "Example"], list[str], int, int, tuple[int, ...]]
"""What draws an example; the names of the heads; channels of the condition, and of it those that the discriminator
sees; shape of an example (A, S, L)."""


def _draw_working(settings: dict[str, Any]) -> Source:
    """Examples from working heads and the template."""
    from .examples import WorkingHead, example
    from .template_space import WORKING_SPANS

    template = _read_template(settings).crop(WORKING_SPANS)
    heads: list[WorkingHead] = []
    for path in _files(settings, "heads", (".npz",)):
        heads.append(_arrays(settings, "heads", WorkingHead.read, path))
        if heads[-1].image.shape != template.mean.shape:
            raise _wrong(settings, "heads", f"has {path}, which was made with another template")

    def draw(rng: np.random.Generator) -> Example:
        return example(heads[int(rng.integers(len(heads)))], template, rng)

    return draw, [head.name for head in heads], 3, 2, template.mean.shape


def _draw_native(settings: dict[str, Any]) -> tuple[Source, list[Example]]:
    """Examples from plain scans and masks of their faces, and those of the validation heads."""
    from .native_examples import NativeHead, example, highest_of

    if settings["sub_volume"] is None or len(settings["sub_volume"]) != 3:
        raise _wrong(settings, "sub_volume", "must be there with masks, for example [128, 128, 128]")
    if len(settings["resampled_mm"]) != 2:
        raise _wrong(settings, "resampled_mm", "must be two numbers, the least and the most mm")
    a, s, length = settings["sub_volume"]
    cache = settings["folder"] / "heads"
    pairs = _pairs(settings, "heads", "masks")
    heads = [NativeHead.read(scan, mask, cache) for scan, mask in pairs]
    settings["highest"] = highest = highest_of(heads)
    share, (least, most) = settings["resampled"], settings["resampled_mm"]

    def draw(rng: np.random.Generator) -> Example:
        head = heads[int(rng.integers(len(heads)))]
        spacing = float(rng.uniform(least, most)) if rng.random() < share else None
        return example(head, (a, s, length), rng, highest, spacing, settings["mirror"])

    validation = [
        example(NativeHead.read(scan, mask, cache), (a, s, length), np.random.default_rng(0), highest)
        for scan, mask in (_pairs(settings, "validation", "masks") if settings["validation"] else [])
    ]
    return (draw, [_name(scan) for scan, _ in pairs], 1, 1, (a, s, length)), validation


def _read_template(settings: dict[str, Any]) -> Template:
    from ..face_model.template import Template

    result: Template = _arrays(settings, "template", Template.read, settings["template"])
    return result


def _arrays(settings: dict[str, Any], key: str, reader: Callable[[Path], Any], path: Path) -> Any:
    """What `reader` makes of an .npz file. Raises InputError where it is another file."""
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise _wrong(settings, "heads or template", f"has {path}, which is damaged or another file") from error
