"""The command `refacecgan dataset`: its options, what it says, and its exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckError, InputError

if TYPE_CHECKING:
    from .runner import Settings, Summary


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `refacecgan dataset` and `refacecgan-bids` share, but model, device and progress."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan, and write it to OUTPUT/qc/plan.tsv"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE",
        help="secret key of the new faces, made where it is missing; never give it away (default: "
        "OUTPUT.refacecgan-key beside the output)",
    )  # fmt: skip
    parser.add_argument(
        "--timeseries", choices=("deface", "keep", "reface"), default="deface",
        help="what happens to series of several volumes (default: deface)",
    )  # fmt: skip
    parser.add_argument(
        "--also", action="append", default=[], metavar="GLOB",
        help="masks and derivatives on the grid of a scan of their session: their face region becomes 0",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="files that show no face, as you know: copied"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="GLOB", help="files to leave out")
    parser.add_argument(
        "--masks", action="store_true", help="write the face region of each scan: _defacemask files"
    )
    parser.add_argument(
        "--layout", choices=("copy", "derivatives"), default="copy",
        help="a complete copy of the data set, or a BIDS derivatives folder with the changed scans alone "
        "(default: copy)",
    )  # fmt: skip
    parser.add_argument(
        "--link", action="store_true",
        help="hard links instead of copies for files that are not changed, where the disk allows it; never edit "
        "these in place",
    )  # fmt: skip
    parser.add_argument(
        "--another-face", metavar="SUBJECT",
        help="give one person of a finished run another face in all series; with the options of that run",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=_count, metavar="N", help="processes (default: as many as cores and free memory allow)"
    )
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="run on this dask.distributed scheduler, tcp://host:port"
    )
    parser.add_argument(
        "--qc-originals", type=Path, metavar="FOLDER",
        help="for pictures of the originals, which show their faces: a private folder outside the output",
    )  # fmt: skip


def settings_of(args: argparse.Namespace, subjects: Sequence[str] = (), sessions: Sequence[str] = ()) -> Settings:
    """A call as the runner takes it. Raises InputError where options contradict each other."""
    from .discovery import Wanted
    from .runner import Settings
    from .session_work import Options

    if args.dask and args.jobs:
        raise InputError("--jobs is for this machine and --dask for a cluster; give one of them.")
    originals = _private(args.qc_originals, args.output) if args.qc_originals else ""
    wanted = Wanted(tuple(args.also), tuple(args.keep), tuple(args.skip), tuple(subjects), tuple(sessions))
    options = Options(
        model=args.model, device=args.device, threads=args.threads or 1,
        timeseries=args.timeseries, masks=args.masks, originals=originals,
        derivatives=args.layout == "derivatives", link=args.link,
    )  # fmt: skip
    return Settings(
        Path(os.path.abspath(args.input)), Path(os.path.abspath(args.output)), wanted, options, args.jobs,
        args.dask, args.key_file, args.dry_run, args.another_face,
    )  # fmt: skip


def carry_out(
    settings: Settings, progress: str, say: Callable[[Sequence[str]], None]
) -> tuple[list[str], list[str]]:
    """Do a run and return the lines for stdout and the warnings. say: prints what comes before a failure.

    Raises InputError, and CheckError where something was withheld; the rest of the output is there."""
    from ..volume.dicom_output import NOT_ANONYMOUS
    from .plan import as_tsv, summary
    from .review import QC
    from .runner import PAGE, PLAN, run

    if settings.another_face is not None:
        return _another_face(settings, progress)
    done: Summary = run(settings, Progress(progress).show)
    lines = [*as_tsv(done.rows).splitlines(), ""] if settings.dry else []
    lines += summary(done.rows)
    lines.append(f"Wrote {settings.output / QC / PLAN}: the plan")
    if not settings.dry:
        lines.append(f"Wrote {settings.output / QC / PAGE}: the page to look at")
    notes = [NOT_ANONYMOUS.format(tags=", ".join(done.identifying))] if done.identifying else []
    if done.withheld:
        lines += ["", f"Withheld: {'would not be' if settings.dry else 'not'} in the output"]
        lines += [f"{row.path}: {row.reason}" for row in done.withheld]
        say([*lines, *notes])
        count = len(done.withheld)
        files = "1 file that may show a face" if count == 1 else f"{count} files that may show a face"
        verb = "would not be" if settings.dry else "is not" if count == 1 else "are not"
        raise CheckError(f"{files} {verb} in the output; the list above says why.")
    return lines, notes


def _another_face(settings: Settings, progress: str) -> tuple[list[str], list[str]]:
    from . import plan
    from .another_face import another_face
    from .review import QC
    from .runner import PLAN

    subject = str(settings.another_face)
    if subject not in {row.subject for row in plan.read(settings.output / QC / PLAN)}:
        subject = subject.removeprefix("sub-")
    made = another_face(settings.source, settings.output, subject, settings.key_file, Progress(progress).show)
    lines = [f"{subject} has another face in {len(made)} series:"]
    lines += [f"  {one.row.path}: {one.row.action}" for one in sorted(made, key=lambda one: one.row.path)]
    return lines, [warning for one in made for warning in one.row.warnings]


class Progress:
    """Series done, rate and time left, on stderr: a bar on a terminal, or JSON lines."""

    def __init__(self, kind: str) -> None:
        self.kind = kind if kind == "json" or (kind == "bar" and sys.stderr.isatty()) else "none"
        self.began = time.monotonic()

    def show(self, done: int, count: int) -> None:
        if self.kind == "none":
            return
        share = done / count if count else 1.0
        hours = max(time.monotonic() - self.began, 1e-3) / 3600
        rate = done / hours
        left = (count - done) / rate * 3600 if rate else None
        if self.kind == "json":
            fields = {
                "stage": "dataset", "fraction": round(share, 3), "done": done, "of": count,
                "per_hour": round(rate, 1), "seconds_left": None if left is None else round(left),
            }  # fmt: skip
            text = json.dumps(fields) + "\n"
        else:
            wait = (
                ""
                if left is None
                else f", {int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d} left"
            )
            bar = f"{'#' * round(30 * share):-<30}"
            text = f"\r{bar} {done} of {count} series, {rate:.0f} an hour{wait}\033[K"
            text = "\r\033[K" if done >= count else text
        with suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)


def _private(folder: Path, output: Path) -> str:
    """The folder for pictures of the originals, made and marked. Raises InputError where it lies in the output."""
    place = Path(os.path.abspath(folder))
    if Path(os.path.abspath(output)) in (place, *place.parents):
        raise InputError(
            f"{folder} lies in the output, which is given away; put the originals' pictures elsewhere."
        )
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / "PRIVATE.txt").write_text(
            "These pictures show the faces of real people. Do not give them away.\n"
        )
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another folder.") from error
    return str(place)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 1000")
    return int(text)
