"""Another face for one person of a finished run, in all of their series at once, or in none.

The series are made beside the output by the functions of the run, and put into their places once all of them are
there. So the bytes are those that `refacecgan dataset` makes for that face, and an output never holds two faces of
one person: a run that goes on later makes the new one, too (`faces`).
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CheckError, InputError
from ..evaluation import process_pool
from . import plan
from .discovery import discover
from .faces import read_faces, write_faces
from .plan import Outcome
from .records import FOLDER, Records
from .review import QC, QC_TABLE, Review
from .runner import (
    LOG,
    PLAN,
    STAGED,
    Progress,
    check_folders,
    counted,
    locked,
    read_asked,
    remove_unfinished,
    write_log,
    write_page,
)
from .session_work import Job, Stop, fingerprint, work
from .sessions import default_key_file, jobs, key_of
from .verdicts import read_verdicts, write_verdicts


def another_face(
    source: Path, output: Path, subject: str, key_file: Path | None = None, progress: Progress | None = None
) -> list[Outcome]:
    """Give a person the face after the one they have, and return what became of their series.

    source, output: input and output of the run.  subject: as in the plan.  key_file: None for beside the output.
    The verdicts on the old face are taken out of qc.tsv. Raises InputError and CheckError; then nothing has
    changed, unless the disk failed while files were put into place: those missing are made by the next run."""
    check_folders(source, output)
    options, wanted = read_asked(output)
    with locked(output):
        remove_unfinished(output)
        key = key_of(key_file or default_key_file(output), output, make=False)
        records, numbers = Records(output), read_faces(output)
        planned = {row.path for row in plan.read(output / QC / PLAN)}
        done = [one.row.path for one in records.all() if one.row.subject == subject]
        if not done:
            raise InputError(f"{output} holds no scan of {subject}; choose a person who is in it.")
        found = discover(source, replace(wanted, subjects=(subject,)))
        found = replace(
            found,
            series=tuple(one for one in found.series if one.path in planned),
            also=tuple(one for one in found.also if one.path in planned),
        )
        _check_same(records, done, jobs(found, source, output, key, options, numbers=numbers))
        numbers = {**numbers, subject: numbers.get(subject, 0) + 1}
        staged = output / FOLDER / STAGED
        try:
            outcomes = _make(jobs(found, source, staged, key, options, numbers=numbers), progress)
            for outcome in outcomes:
                if outcome.row.action == "withhold" and outcome.row.path in done:
                    raise CheckError(f"Nobody's face was changed: {outcome.row.path}: {outcome.row.reason}")
            made = [outcome for outcome in outcomes if outcome.row.action != "withhold"]
            _put_into_place(output, staged, numbers, done, made)
        finally:
            _remove(staged)
        return made


def _put_into_place(
    output: Path, staged: Path, numbers: Mapping[str, int], done: Sequence[str], made: Sequence[Outcome]
) -> None:
    """Replace the outputs of the old face. The old ones go first: what is killed here leaves scans missing, never
    two faces, and the next run makes the missing ones, with the new face."""
    records = Records(output)
    try:
        write_faces(output, numbers)
        for path in done:
            records.forget(path)
        for outcome in made:
            records.adopt(Records(staged), outcome.row.path)
    except OSError as error:
        why = f"{output} cannot be written ({error.strerror}); run refacecgan dataset again."
        raise InputError(why) from error
    _write_lists(output, made)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


WHOLE = {
    function.__code__
    for function in (
        _put_into_place, _remove, inspect.unwrap(locked), inspect.unwrap(process_pool.processes),
    )
}  # fmt: skip
"""What must not be interrupted, lest something is left half done: see `app.worker.Cancellation`."""


def _check_same(records: Records, done: Sequence[str], tasks: Sequence[Job]) -> None:
    """Are the files, the options and the program those of the run? Raises InputError."""
    prints: dict[str, str] = {}
    for task in tasks:
        try:
            prints |= dict.fromkeys((one.path for one in (*task.series, *task.also)), fingerprint(task))
        except OSError as error:
            raise InputError(f"A file of {task.name} may not be read ({error.strerror}).") from error
    for path in done:
        if path not in prints:
            raise InputError(f"{path} is not among the originals; give the input of the run.")
        if records.load(path, prints[path]) is None:
            raise InputError(
                f"{path} was made of other files, by other options or by another version; run refacecgan dataset "
                "on it first."
            )


def _make(tasks: Sequence[Job], progress: Progress | None) -> list[Outcome]:
    """Do the sessions, in a process of its own, which can be ended at any time."""
    outcomes: list[Outcome] = []

    def finished(task: Job, result: list[Outcome] | Stop | None, reason: str | None) -> None:
        if isinstance(result, Stop):
            raise InputError(result.sentence)
        if result is None:
            raise CheckError(f"Nobody's face was changed, as {task.name} could not be finished: {reason}")
        outcomes.extend(result)

    process_pool.run(work, tasks, 1, counted(tasks, progress), finished, apart=True)
    return outcomes


def _write_lists(output: Path, made: Sequence[Outcome]) -> None:
    """Plan, log, verdicts and page, as they are after the new face."""
    rows = {row.path: row for row in plan.read(output / QC / PLAN)}
    rows |= {outcome.row.path: outcome.row for outcome in made}
    plan.write(rows.values(), output / QC / PLAN)
    write_log(output / QC / LOG, made)
    judged = read_verdicts(output / QC / QC_TABLE)
    for outcome in made:
        judged.pop(outcome.row.path, None)
    write_page(output)
    if (output / QC / QC_TABLE).is_file():
        order = [scan.path for scan in Review.open(output).scans]
        write_verdicts(output / QC / QC_TABLE, ((path, *judged.get(path, ("", ""))) for path in order))
        write_page(output)
