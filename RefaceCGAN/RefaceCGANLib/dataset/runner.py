"""The runner: every session of a data set, on the processes of this machine or on a Dask cluster.

An output folder has one run at a time (a lock), keeps what is finished (records), and never holds a file that is
not complete under its own name. What may show a face and could not be handled is in the list at the end alone.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..report import write_json
from . import bids, plan, qc_page
from .discovery import Found, Wanted, discover
from .faces import read_faces
from .plan import Outcome, Row
from .records import FOLDER, Records
from .review import QC, QC_TABLE, SCANS, write_scans
from .series_output import copy_file
from .session_work import Job, Options, Stop, work
from .sessions import default_key_file, jobs, key_of

log = logging.getLogger(__name__)

PLAN, LOG, PAGE = "plan.tsv", "log.jsonl", "index.html"
LOCK, ASKED, STAGED = "lock", "options.json", "other-face"
"""In the output's own folder: the lock, what the last run was asked for, and where another face is made."""
MEMORY_BASE, MEMORY_VOXEL = 1.3e9, 60
"""Bytes that a process needs for program and model, and for each voxel of a scan; rough upper figures."""
DASK_SECONDS = 15
"""So long a Dask scheduler has to answer."""
DASK_RETRIES = 2

Progress = Callable[[int, int], None]
"""Called with how many series are done, and of how many."""


@dataclass(frozen=True)
class Settings:
    """One call. jobs: processes, None for what cores and memory allow.  key_file: None for beside the output.
    another_face: the subject who is to get another face in a finished run; None for a run."""

    source: Path
    output: Path
    wanted: Wanted = field(default_factory=Wanted)
    options: Options = field(default_factory=Options)
    jobs: int | None = None
    dask: str | None = None
    key_file: Path | None = None
    dry: bool = False
    another_face: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a run came to. rows: the plan as it was carried out, for every file.  identifying: DICOM tags in the
    output that may still say who it is."""

    rows: tuple[Row, ...]
    identifying: tuple[str, ...] = ()

    @property
    def withheld(self) -> list[Row]:
        return sorted((row for row in self.rows if row.action == "withhold"), key=lambda row: row.path)


def run(settings: Settings, progress: Progress | None = None) -> Summary:
    """Carry out the plan for a data set, or with `dry` make it. Raises InputError for what concerns all of it."""
    source, output = settings.source, settings.output
    check_folders(source, output)
    found = discover(source, settings.wanted)
    derivatives = settings.options.derivatives
    if derivatives and found.layout != "bids":
        raise InputError(f"{source} is no BIDS data set, of which alone --layout derivatives can be made.")
    from ..models.model import Model

    model = Model.load(settings.options.model)
    with locked(output):
        _check_layout(output, derivatives)
        remove_unfinished(output)
        key = key_of(settings.key_file or default_key_file(output), output, make=not settings.dry)
        if not settings.dry:
            write_asked(output, settings, model.id)
        tasks = jobs(found, source, output, key, settings.options, settings.dry, read_faces(output))
        outcomes = _work(tasks, settings, progress)
        rows = [*found.rows, *(outcome.row for outcome in outcomes)]
        rows = bids.without_orphans(rows)
        if derivatives:
            rows = [plan.only_changed(row) for row in rows]
        if not settings.dry:
            if not _partial(settings):
                Records(output).forget_others(one.path for one in (*found.series, *found.also))
            _remove_withheld(rows, output)
            rows = _copy(rows, found, settings)
            if found.layout == "bids":
                bids.finish(source, output, rows, derivatives)
        # runs on other people and sessions are in the plan, too
        known = {row.path: row for row in plan.read(output / QC / PLAN) if _still_there(row, settings)}
        known |= {row.path: row for row in rows}
        plan.write(known.values(), output / QC / PLAN)
        if not settings.dry:
            write_page(output)
            if settings.options.originals:
                qc_page.write_originals(Path(settings.options.originals), Records(output).all())
        tags = sorted({tag for outcome in outcomes for tag in outcome.facts.get("identifying", ())})
        return Summary(tuple(rows), tuple(tags))


def _partial(settings: Settings) -> bool:
    """Is the run on some people, sessions or scans alone?"""
    wanted = settings.wanted
    return bool(wanted.subjects or wanted.sessions or wanted.filters)


def _still_there(row: Row, settings: Settings) -> bool:
    return _partial(settings) and (settings.source / row.path).exists()


def group(source: Path, output: Path) -> Path:
    """Make the page over all runs on an output; returns where it is. Raises InputError where there were none."""
    check_folders(source, output)
    if not (output / QC / PLAN).is_file():
        raise InputError(f"{output} holds no finished run; do the level participant first.")
    with locked(output):
        return write_page(output)


def write_page(output: Path) -> Path:
    """The page, and the list of scans that Slicer reads. Raises InputError where they cannot be written."""
    page = output / QC / PAGE
    entries = qc_page.write(page, Records(output).all(), plan.read(output / QC / PLAN), output / QC / QC_TABLE)
    write_scans(output / QC / SCANS, entries)
    return page


def write_asked(output: Path, settings: Settings, model: str) -> None:
    """Keep what a run was asked for, so that a person's face can be made again in the same way; nothing in it says
    where anything lies."""
    options, wanted = settings.options, settings.wanted
    content = {
        "model": model, "device": options.device, "threads": options.threads, "timeseries": options.timeseries,
        "masks": options.masks, "derivatives": options.derivatives, "link": options.link,
        "also": wanted.also, "keep": wanted.keep, "skip": wanted.skip,
    }  # fmt: skip
    write_json(content, output / FOLDER / ASKED)


def read_asked(output: Path) -> tuple[Options, Wanted]:
    """What the last run was asked for. Raises InputError where there was none, or that is damaged."""
    path = output / FOLDER / ASKED
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        also, keep, skip = (tuple(map(str, content.pop(name))) for name in ("also", "keep", "skip"))
        wanted = Wanted(also, keep, skip)
        return Options(**content), wanted
    except FileNotFoundError as error:
        raise InputError(
            f"{output} holds no finished run; choose the output folder of refacecgan dataset."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; run refacecgan dataset again.") from error


def _check_layout(output: Path, derivatives: bool) -> None:
    if (output / FOLDER / ASKED).is_file() and read_asked(output)[0].derivatives != derivatives:
        raise InputError(f"{output} was made with another --layout; give that one or choose another output.")


def check_folders(source: Path, output: Path) -> None:
    """Raises InputError unless the input is a folder and the output a new one, an empty one or an earlier run's,
    and neither lies in the other."""
    if not source.is_dir():
        why = "is a file" if source.exists() else "does not exist"
        raise InputError(f"{source} {why}; give the folder of a data set.")
    inside, around = output.resolve(), source.resolve()
    if inside == around:
        raise InputError(f"{output} is the input itself, which is never touched; choose another output.")
    if around in inside.parents:
        raise InputError(f"{output} lies in the input, which is never touched; choose an output outside it.")
    if inside in around.parents:
        raise InputError(f"The input lies in {output}; choose an output that does not hold it.")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the output.")
    if output.is_dir() and not (output / FOLDER).is_dir() and any(output.iterdir()):
        raise InputError(f"{output} holds files that no run of this program made; choose an empty folder.")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """One run at a time on an output, whose folders are made. Raises InputError where another one is on."""
    from filelock import FileLock, Timeout

    try:
        (output / FOLDER).mkdir(parents=True, exist_ok=True)
        (output / QC).mkdir(exist_ok=True)
        lock = FileLock(output / FOLDER / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"Another run is writing to {output}; wait until it ends, or choose another.") from error
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror}); choose another output.") from error
    try:
        yield
    finally:
        lock.release()


def remove_unfinished(output: Path) -> None:
    """Remove what a run that was killed has left: files under temporary names, and a face that was not put into
    place."""
    shutil.rmtree(output / FOLDER / STAGED, ignore_errors=True)
    for folder, _, names in os.walk(output):
        for name in names:
            if name.startswith(".refacecgan-"):
                with suppress(OSError):
                    (Path(folder) / name).unlink()


def counted(tasks: Sequence[Job], progress: Progress | None) -> Callable[[str, float], None]:
    """Tell the listener that none of the files of some tasks is done, and return what says that one more is."""
    count, done = sum(len(task.series) + len(task.also) for task in tasks), 0

    def one_more(_: str, __: float) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(min(done, count), count)

    if progress:
        progress(0, count)
    return one_more


def _work(tasks: Sequence[Job], settings: Settings, progress: Progress | None) -> list[Outcome]:
    outcomes: list[Outcome] = []

    def finished(task: Job, result: list[Outcome] | Stop | None, reason: str | None) -> None:
        if isinstance(result, Stop):
            raise InputError(result.sentence)
        if result is None:
            why = f"Its session could not be finished: {reason}"
            result = [
                Outcome(Row(one.path, one.subject, one.session, "withhold", why))
                for one in (*task.series, *task.also)
            ]
        outcomes.extend(result)
        if not settings.dry:
            write_log(settings.output / QC / LOG, result)

    if settings.dask:
        _run_on_dask(settings.dask, tasks, counted(tasks, progress), finished)
    else:
        from ..evaluation.process_pool import run as run_processes

        workers = settings.jobs or possible_jobs(tasks)
        run_processes(work, tasks, workers, counted(tasks, progress), finished)
    return outcomes


def write_log(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Add one JSON line for each file; nothing in it says where the data set lies."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("a", encoding="ascii") as file:
        for outcome in outcomes:
            row = outcome.row
            entry: dict[str, Any] = {
                "time": now, "version": __version__, "path": row.path, "action": row.action, "reason": row.reason,
                "region_from": row.region_from, "warnings": list(row.warnings), **outcome.facts,
            }  # fmt: skip
            file.write(json.dumps(entry) + "\n")


def possible_jobs(tasks: Sequence[Job]) -> int:
    """How many processes the cores and the free memory allow, at least one."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    largest = 0
    for task in tasks:
        sizes = [(Path(task.input) / name).stat().st_size for one in task.series for name in one.files[:1]]
        largest = max([largest, *sizes])
    need = MEMORY_BASE + MEMORY_VOXEL * largest  # a gzipped file has about a byte a voxel
    return max(1, min(cores, int(psutil.virtual_memory().available / need)))


def _run_on_dask(
    address: str,
    tasks: Sequence[Job],
    say: Callable[[str, float], None],
    finished: Callable[[Job, list[Outcome] | Stop | None, str | None], None],
) -> None:
    """The same sessions on an existing cluster; its workers see input and output under the same paths."""
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise InputError("Dask is missing; install it with: pip install refacecgan[dask].") from error
    try:
        client = Client(address, timeout=DASK_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"No Dask scheduler answers at {address}; check the address.") from error
    with client:
        futures = {client.submit(work, task, pure=False, retries=DASK_RETRIES): task for task in tasks}
        for future in as_completed(futures):
            task = futures[future]
            try:
                result, reason = future.result(), None
            except Exception as error:
                result, reason = None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}."
            for one in (*task.series, *task.also):
                say(one.path, 1.0)
            finished(task, result, reason)


def _remove_withheld(rows: Sequence[Row], output: Path) -> None:
    """A file that is withheld now may have been handled by a run before, from another input."""
    for row in rows:
        if row.action in ("withhold", "leave"):
            with suppress(OSError):
                (output / row.path).unlink()


def _copy(rows: Sequence[Row], found: Found, settings: Settings) -> list[Row]:
    """Copy what discovery says may be copied. What cannot be read is withheld."""
    handled = {one.path for one in (*found.series, *found.also)}
    written = {name for outcome in Records(settings.output).all() for name in outcome.outputs}
    result = []
    for row in rows:
        source, target = settings.source / row.path, settings.output / row.path
        if row.action == "copy" and row.path not in handled and row.path not in written:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_file(source, target, settings.options.link)
            except FileNotFoundError:
                row = Row(row.path, row.subject, row.session, "withhold", "Has gone while the run was on.")
            except OSError as error:
                raise InputError(f"{target} cannot be written ({error.strerror}); mend that first.") from error
        result.append(row)
    return result
