"""The command line: refacecgan reface, deface, render, compare, risk, demo, train, export, evaluate, dataset and
models.

What is heavy is imported when it is needed: --help and a wrong call answer at once, and an unreadable scan is
refused before torch is loaded. Every output is made in a hidden folder beside its place and moved there when
all of them are complete, so a call that fails or is cancelled leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import Cancelled, InputError
from ..progress import DRAWN, LOAD, LOADED
from ..seeds import SEEDS, chosen_seed, read_key
from . import service
from .outputs import Outputs, numbered
from .terminal import DEBUG, Parser, Work, abort, complain, on_signals, say, set_up_logging

if TYPE_CHECKING:
    import numpy as np

    from ..rendering.skin_surface import Surface
    from ..volume.volume import Volume

CANCELLED = Cancelled.exit_status
SAMPLE_HEAD = "average_head.nii.gz"
PICTURE, REPORT = (".png",), (".json",)
VIEWS = ("frontal", "three-quarter")


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """Run one command and return its exit status; `argv` is what follows the program's name (default: that
    of the process, whose signals are then handled here); `parser`: of another program with the same manners.

    0: done.  2: the call or the input is unusable.  3: the result failed a check.  130: cancelled, by SIGINT
    or SIGTERM. On all but 0 one sentence goes to stderr and no output exists; what was there before still is.
    """
    outputs = Outputs()
    program = argv is None
    if program:
        # leave at once: an exception might be swallowed by the library that the signal comes upon
        on_signals(lambda *_: abort(outputs))
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args = (parser or make_parser()).parse_args(argv)
            set_up_logging(args.run is _train)
            if program and getattr(args, "interruptible", False):  # it has files to close and processes to end
                on_signals(signal.default_int_handler)
            lines, notes = args.run(args, outputs)
            if program:
                on_signals(signal.SIG_IGN)  # from here on the outputs exist
            outputs.commit()
        for note in dict.fromkeys(notes):
            complain(f"warning: {note}")
        say(lines)
        return 0
    except SystemExit as error:  # --help, --version
        return int(error.code or 0)
    except KeyboardInterrupt:
        complain("cancelled.")
        return CANCELLED
    except Exception as error:
        if os.environ.get(DEBUG):
            import traceback

            traceback.print_exc()
        failure = service.explain(error)
        hint = f" {DEBUG}=1 shows where." if failure.kind == "crash" and not isinstance(error, OSError) else ""
        complain(outputs.without_hidden_folders(failure.sentence) + hint)
        return failure.status
    finally:
        outputs.discard()


def sample_head() -> Path:
    """The head that `demo` refaces. Raises InputError where this installation has none."""
    package = Path(__file__).resolve().parents[1]
    # of a checkout, of the installed Slicer extension, of an installed package
    places = [parent / "Resources" / "SampleData" for parent in (package.parents[1], package.parent)]
    places.append(package / "_sample")
    for place in places:
        if (place / SAMPLE_HEAD).is_file():
            return place / SAMPLE_HEAD
    raise InputError("The sample head is missing; install RefaceCGAN again or reface a scan of your own.")


# --- the commands -----------------------------------------------------------------------------------------

Said = tuple[list[str], Sequence[str]]
"""What a command returns: the lines for stdout, once its outputs are in place, and warnings."""


def _reface(args: argparse.Namespace, outputs: Outputs, side_by_side: bool = False) -> Said:
    """side_by_side: the picture shows the original too, for a head whose face is no secret."""
    from ..volume.files import SUFFIXES
    from ..volume.volume import Volume

    first = _first_seed(args)
    seeds = range(first, first + args.candidates)
    if seeds[-1] >= SEEDS:
        raise InputError(f"Seed {seeds[-1]} is too large; give one below 2**63.")
    numbers = [None] if len(seeds) == 1 else list(range(1, len(seeds) + 1))

    def plan(path: Path | None, suffixes: Sequence[str]) -> list[Path]:
        return [outputs.plan(numbered(path, n), suffixes, [args.input]) for n in numbers] if path else []

    heads = [outputs.plan_scan(numbered(args.output, n), args.input) for n in numbers]
    reports = plan(args.report, REPORT)
    pictures = plan(args.render, PICTURE)
    if args.mask:
        outputs.plan(args.mask, SUFFIXES, [args.input])

    work = Work(args.progress)
    with work.stage("read", 0.0):
        volume = Volume.read(args.input)
        region = _given_region(args.face_region, volume)
    with work.stage("load", LOAD):
        refacer = service.load(args.model, args.device, args.threads)
        from ..report import report_of, rounded, write_json
    lines, notes = [], []
    drawn = service.candidates(
        refacer, volume, seeds, work.part(LOADED, DRAWN), dropout=args.dropout, defaced=args.defaced,
        force=args.force, face_region=region,
    )  # fmt: skip
    for index, result in enumerate(drawn):
        work.seconds |= result.report["seconds"]
        done = LOADED + (DRAWN - LOADED) * (index + 1) / len(seeds)
        with work.stage("write", done):
            notes += _write_scan(args.input, outputs.hidden(heads[index]), volume, result.volume, result.seed)
        already = ", whose face had been removed before" if result.report["already_defaced"] else ""
        lines.append(f"Wrote {heads[index]}: the refaced head{already} (seed {result.seed})")
        if pictures:
            with work.stage("render", done):
                _draw(outputs.hidden(pictures[index]), volume, result.volume, VIEWS, side_by_side)
            lines.append(f"Wrote {pictures[index]}: what it looks like")
        if reports:
            report = report_of(result, args.input, outputs.hidden(heads[index]))
            report["seconds"] = rounded(work.seconds)
            write_json(report, outputs.hidden(reports[index]))
            lines.append(f"Wrote {reports[index]}: the report")
        notes += [*result.report["warnings"], *service.failed_checks(result)]
        work.seconds = {}
    if args.mask:
        Volume.from_array(result.face_region, volume.affine).write(outputs.hidden(args.mask))
        lines.append(f"Wrote {args.mask}: the face region")
    work.show("done", 1.0)
    return lines, notes


def _first_seed(args: argparse.Namespace) -> int:
    """The seed of the first face: the given one, that of the given identity, or a random one."""
    if args.identity is None and args.key_file is not None:
        raise InputError("--key-file is of no use without --identity; give both.")
    if args.identity is not None and args.seed is not None:
        raise InputError("Give --seed or --identity, not both.")
    key = read_key(args.key_file, "give a file with some secret bytes") if args.key_file is not None else None
    seed = chosen_seed(args.seed, args.identity, key)
    return seed if args.identity is None else min(seed, SEEDS - args.candidates)


def _given_region(path: Path | None, volume: Volume) -> np.ndarray | None:
    """The face region of a mask file: bool (I, J, K)."""
    if path is None:
        return None
    from ..defacing import given_region
    from ..volume.volume import Volume as Class

    return given_region(volume, Class.read(path))


def _deface(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..volume.files import SUFFIXES
    from ..volume.volume import Volume

    outputs.plan_scan(args.output, args.input)
    if args.mask:
        outputs.plan(args.mask, SUFFIXES, [args.input])
    if args.report:
        outputs.plan(args.report, REPORT, [args.input])

    work = Work(args.progress)
    with work.stage("read", 0.0):
        volume = Volume.read(args.input)
    with work.stage("load", LOAD):
        refacer = service.load(args.model, args.device, args.threads, service.TO_DEFACE)
        from ..report import report_of, rounded, write_json
    prepared = service.prepare(refacer, volume, args.defaced, work.part(LOADED, DRAWN))
    done = service.deface(refacer, prepared)
    work.seconds |= prepared.seconds
    with work.stage("write", DRAWN):
        notes = _write_scan(args.input, outputs.hidden(args.output), volume, done.volume, None)
    already = ", whose face had been removed before" if done.report["already_defaced"] else ""
    lines = [f"Wrote {args.output}: the defaced head{already}"]
    if args.report:
        report = report_of(done, args.input, outputs.hidden(args.output))
        report["seconds"] = rounded(work.seconds)
        write_json(report, outputs.hidden(args.report))
        lines.append(f"Wrote {args.report}: the report")
    if args.mask:
        Volume.from_array(done.face_region, volume.affine).write(outputs.hidden(args.mask))
        lines.append(f"Wrote {args.mask}: the face region")
    work.show("done", 1.0)
    return lines, [*done.warnings, *notes]


def _render(args: argparse.Namespace, outputs: Outputs) -> Said:
    import numpy as np

    from ..rendering.skin_surface import MESHES, render, skin_surface, write_mesh, write_png
    from ..volume.volume import Volume

    outputs.plan(args.picture, PICTURE, [args.input])
    if args.mesh:
        outputs.plan(args.mesh, MESHES, [args.input])
    work = Work(args.progress)
    with work.stage("read", 0.0):
        volume = Volume.read(args.input)
    with work.stage("surface", 0.2):
        if args.method == "paper":
            from ..evaluation.paper_skin import paper_surface

            surface = paper_surface(volume, args.threshold)
        else:
            surface = skin_surface(volume.array, volume.affine, args.threshold)
    with work.stage("render", 0.6):
        pictures = render(surface, args.view or VIEWS, args.size)
        write_png(np.concatenate(pictures, axis=1), outputs.hidden(args.picture))
    lines = [f"Wrote {args.picture}: the head"]
    if args.mesh:
        with work.stage("write", 0.9):
            write_mesh(surface, outputs.hidden(args.mesh))
        lines.append(f"Wrote {args.mesh}: its skin")
    work.show("done", 1.0)
    return lines, volume.warnings


def _compare(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..volume.volume import Volume

    outputs.plan(args.picture, PICTURE, [args.original, args.refaced])
    work = Work(args.progress)
    with work.stage("read", 0.0):
        original, refaced = Volume.read(args.original), Volume.read(args.refaced)
    with work.stage("render", 0.2):
        _draw(outputs.hidden(args.picture), original, refaced, args.view or VIEWS, side_by_side=True)
    work.show("done", 1.0)
    return [f"Wrote {args.picture}: original and refaced side by side"], original.warnings + refaced.warnings


def _risk(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..report import write_json
    from ..volume.volume import Volume

    if bool(args.detector) != bool(args.recogniser):
        raise InputError("A distance needs both --detector and --recogniser; give the other one, too.")
    if args.report:
        outputs.plan(args.report, REPORT, [args.original, args.refaced])
    work = Work(args.progress)
    with work.stage("read", 0.0):
        original, refaced = Volume.read(args.original), Volume.read(args.refaced)
    with work.stage("load", 0.1):
        from ..evaluation.risk import risk, sentences
        from ..models.model import Model

        model = Model.load(args.model)
    with work.stage("measure", 0.2):
        found = risk(original, refaced, model, args.detector, args.recogniser)
    lines = sentences(found)
    if args.report:
        write_json(found, outputs.hidden(args.report))
        lines.append(f"Wrote {args.report}: the numbers")
    work.show("done", 1.0)
    return lines, original.warnings + refaced.warnings


def _demo(args: argparse.Namespace, outputs: Outputs) -> Said:
    args.input, folder = sample_head(), args.folder
    outputs.make_folder(folder)
    args.output, args.mask = folder / "refaced.nii.gz", folder / "face_region.nii.gz"
    args.report, args.render = folder / "report.json", folder / "side-by-side.png"
    lines, notes = _reface(args, outputs, side_by_side=True)
    seconds = json.loads(outputs.hidden(args.report).read_text(encoding="utf-8"))["seconds"]
    table = [["stage", "seconds"], *([stage, f"{value:.2f}"] for stage, value in seconds.items())]
    table.append(["all", f"{sum(seconds.values()):.2f}"])
    return [f"Refaced {args.input}", *lines, "", *_table(table)], notes


def _train(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..training.training_config import run

    run(args.config)
    return [], []


def _export(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..training.export import export

    outputs.plan_folder(args.folder)
    name = args.id or args.folder.resolve().name
    options = {"small": args.small} | ({} if args.air is None else {"air": args.air})
    card = export(args.checkpoint, outputs.hidden(args.folder), name, args.licence, **options)
    return [f"Wrote {args.folder}: model {card['id']}; use it with --model {args.folder}"], []


def _evaluate(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..evaluation.study import evaluate

    work = Work(args.progress)
    outcome = evaluate(args.config, work.show, args.output)
    lines = [f"Wrote {outcome.page}: {outcome.tools} tools on {outcome.scans} scans, tables beside it"]
    return lines, outcome.warnings


def _dataset(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..dataset.command import carry_out, settings_of

    return carry_out(settings_of(args), args.progress, say)


def _models(args: argparse.Namespace, outputs: Outputs) -> Said:
    from ..models import model as models

    table = [["id", "description", "licence", "size", "working grid"]]
    for model in models.available():
        card, grid = model.card, model.card["working_grid"]
        spacing = f"{grid['spacing_mm']:g} mm" if grid.get("spacing_mm") else "native"
        table.append([
            model.id, card.get("description", "-"), card.get("licence", "-"), f"{model.size / 1e6:.1f} MB",
            f"{spacing}, {'x'.join(map(str, card['sub_volume']['shape']))}",
        ])  # fmt: skip
    if len(table) == 1:
        raise InputError(f"There is no model in {models.folder()}; install RefaceCGAN again or train one.")
    return _table(table), []


# --- what they share --------------------------------------------------------------------------------------


def _draw(picture: Path, original: Volume, refaced: Volume, views: Sequence[str], side_by_side: bool) -> None:
    """Draw the refaced head, or both, with the skin threshold and the frame of the original."""
    import numpy as np

    from ..rendering.skin_surface import compare_image, frame_of, render, skin_surface, skin_threshold, write_png

    values = original.array
    threshold = skin_threshold(values, original.spacing)
    before: Surface = skin_surface(values, original.affine, threshold)
    after: Surface = skin_surface(refaced.array, refaced.affine, threshold)
    if side_by_side:
        write_png(compare_image(before, after, views), picture)
    else:
        write_png(np.concatenate(render(after, views, frame=frame_of(before)), axis=1), picture)


def _write_scan(source: Path, target: Path, before: Volume, after: Volume, seed: int | None) -> list[str]:
    """Write a scan to a file, or a DICOM series to a folder; returns warnings. seed: None without a new face."""
    from ..volume.files import SUFFIXES

    if target.name.lower().endswith(SUFFIXES):
        after.write(target)
        return []
    from ..volume.dicom_output import write_folder

    what = "face region emptied" if seed is None else "face replaced by a generated one"
    return write_folder(source, target, before, after, f"{seed}".encode(), what)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]


# --- the call ---------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The parser of `refacecgan` and all its commands."""
    parser = Parser(
        prog="refacecgan",
        description="Gives a head MRI a new, anonymous face and leaves the brain untouched.",
        epilog="Exit status: 0 done, 2 the call or the input is unusable, 3 the result failed a check, "
        "130 cancelled. On 2, 3 and 130 nothing is written. COMMAND --help tells more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"RefaceCGAN {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[..., Said], text: str) -> argparse.ArgumentParser:
        description = f"{text[:1].upper()}{text[1:]}."
        added = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    scan = "NIfTI, NRRD or MGH file, or a folder with one DICOM series"
    written = ".nii.gz, .nii, .nrrd, .mgh or .mgz file to write; for a DICOM series also a new folder"

    reface = command("reface", _reface, "give a head a new face")
    reface.add_argument("input", type=Path, metavar="INPUT", help=scan)
    reface.add_argument("output", type=Path, metavar="OUTPUT", help=written)
    reface.add_argument("--seed", type=_seed, metavar="N", help="draws a face again (default: a new one)")
    reface.add_argument(
        "--identity", metavar="TEXT",
        help="stands for the person, who gets the same new face in every scan; in place of a seed",
    )  # fmt: skip
    reface.add_argument(
        "--key-file", type=Path, metavar="FILE",
        help="a secret: without it nobody can find out which identity has which face",
    )  # fmt: skip
    reface.add_argument(
        "--face-region", type=Path, metavar="MASK",
        help="empty and generate what is above 0 in this file, on the scan's grid, in place of the region that is "
        "found; what it holds is not looked at",
    )  # fmt: skip
    reface.add_argument(
        "--dropout", type=_dropout, metavar="P", help="strength of the noise, 0 to 1 (default: the model's)"
    )
    reface.add_argument(
        "--candidates", type=_count, default=1, metavar="K",
        help="draw K faces, with the seeds N, N+1, ...: OUTPUT_1.nii.gz, OUTPUT_2.nii.gz, ... and so for "
        "--report and --render (default: 1)",
    )  # fmt: skip
    reface.add_argument("--render", type=Path, metavar="PNG", help="picture of the refaced head to write")
    reface.add_argument(
        "--force", action="store_true", help="write a result that failed a check too; the report says so"
    )
    add_engine(reface)
    _add_defacing(reface)

    deface = command("deface", _deface, "empty the face region of a head")
    deface.add_argument("input", type=Path, metavar="INPUT", help=scan)
    deface.add_argument("output", type=Path, metavar="OUTPUT", help=written)
    add_engine(deface)
    _add_defacing(deface)

    render = command("render", _render, "draw the skin of a head")
    render.add_argument("input", type=Path, metavar="INPUT", help=scan)
    render.add_argument("picture", type=Path, metavar="PNG", help="picture to write, the views side by side")
    render.add_argument("--mesh", type=Path, metavar="FILE", help="skin to write: .gii, .stl or .ply")
    render.add_argument("--threshold", type=float, metavar="T", help="where the skin begins (default: found)")
    render.add_argument(
        "--method", choices=("skin", "paper"), default="skin",
        help="paper: as Molchanova et al. 2023, appendix C, with T from 0 to 255 (default: skin)",
    )  # fmt: skip
    render.add_argument(
        "--size", type=_size, default=(512, 512), metavar="WxH", help="pixels of each view (default: 512x512)"
    )
    _add_view(render)

    compare = command("compare", _compare, "draw the original and the refaced head side by side")
    compare.add_argument("original", type=Path, metavar="ORIGINAL", help=scan)
    compare.add_argument("refaced", type=Path, metavar="REFACED", help="the same")
    compare.add_argument("picture", type=Path, metavar="PNG", help="picture to write, one row for each view")
    _add_view(compare)

    risk = command("risk", _risk, "say what is known of one refaced scan, and what is not")
    risk.add_argument("original", type=Path, metavar="ORIGINAL", help=scan)
    risk.add_argument("refaced", type=Path, metavar="REFACED", help="the same head, refaced by any tool")
    risk.add_argument("--model", default="default", metavar="ID|CARD", help="whose card carries the cohort")
    risk.add_argument("--detector", type=Path, metavar="ONNX", help="face detector (YuNet)")
    risk.add_argument("--recogniser", type=Path, metavar="ONNX", help="face recogniser (ArcFace family)")
    risk.add_argument("--report", type=Path, metavar="JSON", help="numbers to write")
    _add_progress(risk)

    demo = command("demo", _demo, "reface the sample head: a first look")
    demo.add_argument(
        "folder", type=Path, nargs="?", default=Path("demo-output"), metavar="OUTPUT_DIR",
        help="made where missing (default: demo-output)",
    )  # fmt: skip
    demo.add_argument("--seed", type=_seed, default=1, metavar="N", help="draws another face (default: 1)")
    demo.set_defaults(
        candidates=1, dropout=None, defaced="no", force=False, identity=None, key_file=None, face_region=None
    )
    add_engine(demo)

    train = command("train", _train, "train a model on a folder of heads")
    train.set_defaults(interruptible=True)
    train.add_argument("config", type=Path, metavar="CONFIG.toml", help="what to train, and on which heads")

    export = command("export", _export, "make a model of a generator that was trained on the scans' own grid")
    export.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt or generator-epochNN.pt of `train`"
    )
    export.add_argument("folder", type=Path, metavar="FOLDER", help="new folder for card, weights and licence")
    export.add_argument("--id", metavar="NAME", help="of the model (default: the folder's name)")
    export.add_argument("--licence", metavar="TEXT", default="", help="of the weights, for the card")
    export.add_argument("--small", action="store_true", help="weights at half the size: int8 in place of float16")
    export.add_argument(
        "--air", type=_dropout, metavar="SHARE",
        help="of the intensity range, below which what is generated is air (default: the paper's 3 of 255; scans "
        "with noisier air need more)",
    )  # fmt: skip

    evaluate = command("evaluate", _evaluate, "compare tools that take the face out of scans")
    evaluate.set_defaults(interruptible=True)
    evaluate.add_argument("config", type=Path, metavar="CONFIG.toml", help="which tools, on which scans")
    evaluate.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="for the results, in place of the configured one; a study that was stopped goes on from there",
    )  # fmt: skip
    _add_progress(evaluate)

    from ..dataset.command import add_options

    dataset = command("dataset", _dataset, "give everybody in a data set a new face, the same in every series")
    dataset.add_argument(
        "input", type=Path, metavar="INPUT", help="BIDS data set, or folder with NIfTI, NRRD, MGH or DICOM"
    )
    dataset.add_argument("output", type=Path, metavar="OUTPUT", help="new folder, or an earlier run's to go on")
    dataset.set_defaults(interruptible=True)
    add_options(dataset)
    add_engine(dataset, "1 for each process")

    command("models", _models, "list the models of this installation")
    return parser


def add_engine(parser: argparse.ArgumentParser, threads: str = "all") -> None:
    parser.add_argument("--model", default="default", metavar="ID|CARD", help="id or path of a model card")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="where to compute (default: auto: cuda, then mps, then cpu)",
    )  # fmt: skip
    parser.add_argument("--threads", type=_count, metavar="N", help=f"of the processor (default: {threads})")
    _add_progress(parser)


def _add_defacing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--defaced", choices=("auto", "yes", "no"), default="auto",
        help="has the face been removed already? (default: auto: look)",
    )  # fmt: skip
    parser.add_argument("--mask", type=Path, metavar="FILE", help="face region to write, e.g. mask.nii.gz")
    parser.add_argument("--report", type=Path, metavar="JSON", help="report to write")


def _add_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--view", type=_view, action="append",
        help="frontal, [left-|right-]three-quarter, [left-|right-]profile, from-above or from-below; may be "
        "given several times (default: frontal and three-quarter)",
    )  # fmt: skip
    _add_progress(parser)


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress", choices=("bar", "json", "none"), default="bar",
        help="on stderr: a bar if that is a terminal, or JSON lines with stage and fraction (default: bar)",
    )  # fmt: skip


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to below 2**63")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 1000")
    return int(text)


def _dropout(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to below 1")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    sizes = [int(part) for part in (width, height or width) if part.isdecimal()]
    if len(sizes) != 2 or not 16 <= min(sizes) <= max(sizes) <= 8192:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give e.g. 512x512")
    return sizes[0], sizes[1]


def _view(text: str) -> str:
    from ..rendering.skin_surface import VIEWS as KNOWN

    known = [name.replace(" ", "-") for name in KNOWN]
    name = text.lower().replace(" ", "-").replace("_", "-")
    if name not in known:
        raise argparse.ArgumentTypeError(f"there is no view {text!r}; choose from {', '.join(known)}")
    return name
