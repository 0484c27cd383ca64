"""What the command line, the worker and data sets share: load, deface, draw faces, report, explain errors.

Importing this file imports no heavy package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, CheckError, InputError, RefaceError
from ..progress import Progress, another_face, part, prepared_only

if TYPE_CHECKING:
    import numpy as np

    from ..checks import Check
    from ..refacer import Prepared, Refacer, Result
    from ..volume.volume import Volume

TO_DEFACE = ("template", "anatomy", "brain_check")
TO_REFACE = ("template", "anatomy", "generator")
"""The parts of a model that a call needs, to be loaded before its work begins."""


def load(
    model: str, device: str = "auto", threads: int | None = None, parts: Iterable[str] = TO_REFACE
) -> Refacer:
    """The refacer with its weights in memory. The card is checked first, as torch takes two seconds to import.

    model: id or path of a card. Raises InputError as `Refacer.from_pretrained` does."""
    from ..models.model import Model
    from ..refacer import Refacer as Class

    loaded = Model.load(model)
    refacer = Class.from_pretrained(loaded, device, threads)
    for name in parts:
        getattr(loaded, name)
    return refacer


@dataclass(frozen=True)
class DefacedScan:
    """A defaced scan that passed its checks. volume: original geometry.  face_region, brain_mask: bool (I, J, K).
    report: what report.json holds, but for the names of files.  warnings: sentences for the user."""

    volume: Volume
    face_region: np.ndarray
    brain_mask: np.ndarray
    checks: list[Check]
    report: dict[str, Any]
    warnings: tuple[str, ...]


def prepare(refacer: Refacer, volume: Volume, defaced: str = "auto", progress: Progress | None = None) -> Prepared:
    """Find brain and face of a scan that gets no face yet. Raises CheckError and InputError."""
    return refacer.prepare(volume, defaced, prepared_only(progress) if progress else None)


def deface(refacer: Refacer, prepared: Prepared) -> DefacedScan:
    """The scan with its face region emptied. Raises CheckError where a check fails."""
    from ..refacer import checked_deface
    from ..report import scan_report

    volume, checks = checked_deface(prepared)
    anatomy = prepared.anatomy
    report = scan_report(refacer, prepared, volume, checks, prepared.seconds)
    return DefacedScan(
        volume, anatomy.view.to_native(anatomy.face_region), anatomy.view.to_native(anatomy.brain_mask),
        checks, report, tuple(report["warnings"]),
    )  # fmt: skip


def candidates(
    refacer: Refacer,
    scan: Volume | Result | Prepared,
    seeds: Sequence[int],
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[Result]:
    """Draw one face for each seed, in their order; brain and face of the scan are found once.

    options: of `Refacer.reface`. Raises CheckError (it names the seed where there are several) and InputError."""
    for index, seed in enumerate(seeds):
        share = part(progress, index / len(seeds), (index + 1) / len(seeds)) if progress else None
        if share and index > 0:
            share = another_face(share)
        try:
            scan = refacer.reface(scan, seed, progress=share, **options)
        except CheckError as error:
            raise CheckError(f"Seed {seed}: {error}") if len(seeds) > 1 else error from None
        yield scan


def failed_checks(result: Result) -> list[str]:
    """Sentences for a result that is written although it failed checks (`force`)."""
    return [
        f"{check.failure} Written all the same ({check.name} is {check.value:g})."
        for check in result.checks
        if not check.passed
    ]


# --- errors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """What a user is told about an error. kind: input, check, cancelled, memory or crash.  status: of the command
    line.  sentence: one, on one line."""

    kind: str
    status: int
    sentence: str


def explain(error: BaseException) -> Failure:
    """The one sentence about an error that command line, worker and reports of data sets give."""
    text = " ".join(str(error).split())
    status = error.exit_status if isinstance(error, RefaceError) else InputError.exit_status
    if isinstance(error, (KeyboardInterrupt, Cancelled)):
        return Failure("cancelled", Cancelled.exit_status, text or "cancelled.")
    if isinstance(error, RefaceError):
        return Failure("check" if isinstance(error, CheckError) else "input", status, text)
    if isinstance(error, MemoryError) or "out of memory" in text or "DefaultCPUAllocator" in text:
        sentence = "The memory does not suffice for this scan; close programs or resample it to larger voxels."
        return Failure("memory", status, sentence)
    if isinstance(error, ModuleNotFoundError):
        sentence = f"{error.name} is missing in {Path(sys.executable)}; install it there, or use another Python."
        return Failure("input", status, sentence)
    if isinstance(error, OSError):
        where = f"{error.filename} cannot be used" if error.filename else "The system refused"
        return Failure("crash", status, f"{where} ({error.strerror or text}); mend that and try again.")
    bug = f"This is a bug in RefaceCGAN ({type(error).__name__}: {text[:200]}); please report it."
    return Failure("crash", status, bug)
