"""The work on one session: look at its series, decide what happens to each, and do that.

A dry run and a real run take the same decisions, as they are made by the same code from the same voxels. Torch and
SimpleITK use as many threads as the options say, so that the result does not depend on how many sessions run at a
time.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import __version__
from ..anatomy.location import EMPTIED, IN_VIEW, Anatomy, air_level
from ..errors import CheckError, RefaceError
from ..spatial.grid import mapped, resample_axes
from ..volume.volume import Volume
from .coregistration import SHARPNESS, Grey, carry, near_brain, register, rigid, sharpness
from .discovery import Layout, Series
from .plan import Action, Outcome, Row, only_changed
from .records import Records
from .timeseries import TimeSeries, read_typical, volumes_in

if TYPE_CHECKING:
    from ..refacer import Refacer

log = logging.getLogger(__name__)

Timeseries = Literal["deface", "keep", "reface"]
RANKS = ("T1w", "UNIT1", "MP2RAGE", "T2w", "FLAIR", "PDw", "")
"""Which contrast makes the better reference; what is not here comes last. A contrast agent ranks after the same
without; time series rank after all others."""
FACE_POINTS = 4000
"""Number of points of the average face that are looked up to see how much of it a field of view holds."""


@dataclass(frozen=True)
class Options:
    """What a run was asked for. model: id or path.  timeseries: what happens to series of several volumes.
    masks: write the face region of each scan beside it.  pictures: draw the thumbnails of the page.
    originals: folder for pictures of the originals, "" for none.  derivatives: the output is a BIDS derivatives
    folder, with nothing in it but what was changed.  link: what is copied becomes a hard link where possible."""

    model: str = "default"
    device: str = "cpu"
    threads: int = 1
    timeseries: Timeseries = "deface"
    masks: bool = False
    pictures: bool = True
    originals: str = ""
    derivatives: bool = False
    link: bool = False


@dataclass(frozen=True)
class Job:
    """One session. input, output: folders.  seed: decides the person's new face; from the identity key.
    also: masks and derivatives to be emptied alike.  dry: decide, and write nothing."""

    input: str
    output: str
    layout: Layout
    subject: str
    session: str
    seed: int
    uid_key: bytes
    series: tuple[Series, ...]
    also: tuple[Series, ...]
    options: Options
    dry: bool = False

    @property
    def name(self) -> str:
        return f"{self.subject} {self.session}".strip()


@dataclass(frozen=True)
class Decision:
    """What is to happen to one series, and with which anatomy."""

    action: Action
    reason: str
    region_from: str = ""
    anatomy: Anatomy | None = None
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def fingerprint(job: Job) -> str:
    """SHA-256 over all that decides a session's outputs: the content of its files, model, seed, options, program.

    Raises OSError where a file cannot be read."""
    from ..models.model import Model

    digest = hashlib.sha256()
    options = job.options
    asked = (
        options.threads, options.timeseries, options.masks, options.device, options.derivatives, job.layout,
        job.uid_key.hex(),
    )  # fmt: skip
    card = Model.load(options.model).card
    weights = sorted(str(entry["sha256"]) for entry in card["files"].values())
    digest.update(repr((__version__, weights, job.seed, asked, job.subject, job.session)).encode())
    for series in (*job.series, *job.also):
        digest.update(repr((series.path, series.suffix, series.entities)).encode("utf-8", "surrogateescape"))
        for name in (*series.files, *_beside(job, series)):
            with (Path(job.input) / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _beside(job: Job, series: Series) -> list[str]:
    """The sidecars of a series, whose content ends up in the output or decides it."""
    if series.kind == "dicom":
        return []
    from .bids import sidecars_of

    stem, root = series.path[: -len(suffix_of(series.path))], Path(job.input)
    names = [stem + ".json", stem + ".bval"]
    if job.options.derivatives:
        names = [*sidecars_of(root, series.path), stem + ".bval", stem + ".bvec"]
    return [name for name in names if (root / name).is_file()]


def suffix_of(path: str) -> str:
    """The ending of an image's name, .nii.gz and the like."""
    from ..volume.volume import SUFFIXES

    return next(suffix for suffix in SUFFIXES if path.lower().endswith(suffix))


_ONE_AT_A_TIME = Lock()
"""A Dask worker may run several sessions in threads; a model is used by one of them."""
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What makes it useless to go on: the output can hold no more."""


@dataclass(frozen=True)
class Stop:
    """The whole run has to end; the sentence says why."""

    sentence: str


def work(job: Job, say: Callable[[str, float], None] | None = None) -> list[Outcome] | Stop:
    """Do one session, and return what happened to each of its series, or why the whole run has to end.

    say: called with the path of a series once it is done. A series that fails is withheld; the others go on."""
    with _ONE_AT_A_TIME, _threads(job.options.threads):
        try:
            return _Session(job, say or (lambda *_: None)).run()
        except (OSError, RefaceError) as error:
            if _no_place(error):
                return Stop(str(error) if isinstance(error, RefaceError) else f"{job.output}: {error.strerror}.")
            raise


def _no_place(error: BaseException) -> bool:
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in NO_PLACE


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The order of a sum is part of its result, so the number of threads is fixed; it is put back after."""
    import SimpleITK as sitk
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    try:
        with threadpool_limits(limits=count):  # NumPy's linear algebra
            yield
    finally:
        torch.set_num_threads(before[0])
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[1])


@lru_cache(maxsize=1)
def _refacer(model: str, device: str) -> Refacer:
    from ..refacer import Refacer

    return Refacer.from_pretrained(model, device)


class _Session:
    """The series of one session, read when they are needed, and what is known of them."""

    def __init__(self, job: Job, say: Callable[[str, float], None]) -> None:
        self.job, self.say = job, say
        self.input, self.output = Path(job.input), Path(job.output)
        self.volumes: dict[str, Volume | RefaceError] = {}
        self.own: dict[str, Anatomy | RefaceError] = {}
        self.maps: dict[str, tuple[Series, np.ndarray, float]] = {}  # path -> like series, reference -> series
        self.greys: dict[str, Grey] = {}
        self._near_brain: np.ndarray | None = None

    @cached_property
    def refacer(self) -> Refacer:
        return _refacer(self.job.options.model, self.job.options.device)

    def run(self) -> list[Outcome]:
        job = self.job
        everything = (*job.series, *job.also)
        try:
            print_ = fingerprint(job)
        except OSError as error:
            why = f"A file of the session may not be read ({error.strerror})."
            return [Outcome(Row(one.path, one.subject, one.session, "withhold", why)) for one in everything]
        records = Records(self.output)
        done = {} if job.dry else {one.path: records.load(one.path, print_) for one in everything}
        outcomes = [_without_picture(outcome) for outcome in done.values() if outcome]
        left = [one for one in everything if not done.get(one.path)]
        if not left:
            for outcome in outcomes:
                self.say(outcome.row.path, 1.0)
            return outcomes
        decisions = self.decide(left)
        for one in left:
            if not job.dry:
                records.forget(one.path)
            decision = decisions[one.path]
            began = time.perf_counter()
            outcome = self._outcome(one, decision)
            if not job.dry:
                outcome.facts["seconds"] = round(time.perf_counter() - began, 2)
                if outcome.row.action != "withhold":
                    records.store(outcome, print_)
            outcomes.append(_without_picture(outcome))
            self.volumes.pop(one.path, None)  # a session may have many, and a decided series is read anew
            self.say(one.path, 1.0)
        return outcomes

    def _outcome(self, one: Series, decision: Decision) -> Outcome:
        row = Row(
            one.path, one.subject, one.session, decision.action, decision.reason, decision.region_from,
            decision.warnings,
        )  # fmt: skip
        if self.job.options.derivatives:
            row = only_changed(row)
        if self.job.dry or row.action in ("withhold", "leave"):
            return Outcome(row, facts=dict(decision.facts))
        from .series_output import write

        try:
            return write(self, one, decision, row)
        except RefaceError as error:
            if _no_place(error):
                raise
            reason = self._sentence(error)
        except Exception as error:  # one broken scan never stops the rest
            from ..app.service import explain

            failure = explain(error)
            if failure.kind == "crash":
                log.exception("%s", one.path)
            reason = failure.sentence
        return Outcome(Row(one.path, one.subject, one.session, "withhold", reason, warnings=row.warnings))

    def _sentence(self, error: BaseException) -> str:
        """An error's sentence without the folders of this machine."""
        text = " ".join(str(error).split())
        for folder in (self.output, self.input):
            text = text.replace(f"{folder}/", "")
        return text

    # --- what the series hold -----------------------------------------------------------------------------

    def is_timeseries(self, one: Series) -> bool:
        return one.kind == "nifti" and volumes_in(self.input / one.path) > 1

    def volume(self, one: Series) -> Volume:
        """The series as one volume; for a time series what stands for it. Raises RefaceError."""
        if one.path not in self.volumes:
            try:
                self.volumes[one.path] = read_typical([self.input / name for name in one.files])
            except RefaceError as error:
                self.volumes[one.path] = error
        result = self.volumes[one.path]
        if isinstance(result, RefaceError):
            raise result
        return result

    def anatomy_of(self, one: Series) -> Anatomy:
        """The anatomy that the series shows by itself, and where it lies in the template as the scan without its
        face shows it (`defacing`): this map leads to what is painted. Raises CheckError."""
        from .. import pipeline

        if one.path not in self.own:
            volume, model = self.volume(one), self.refacer.model
            try:
                found = self.refacer.locate(volume)
                emptied = pipeline.deface(volume, found, model, aligned=model.native)
                self.own[one.path] = replace(found, to_template=emptied.to_template)
            except RefaceError as error:
                self.own[one.path] = error
        result = self.own[one.path]
        if isinstance(result, RefaceError):
            raise result
        return result

    def grey(self, one: Series) -> Grey:
        if one.path not in self.greys:
            self.greys[one.path] = Grey.of(self.volume(one))
        return self.greys[one.path]

    # --- decisions ----------------------------------------------------------------------------------------

    def decide(self, wanted: list[Series]) -> dict[str, Decision]:
        """What happens to each of some series and derivatives, by path; more are decided where that needs them."""
        decisions: dict[str, Decision] = {}
        if any(one.derivative for one in wanted):
            wanted = list(self.job.series)
        readable = []
        for one in wanted:
            if one.derivative:
                continue
            if self.job.options.timeseries == "keep" and self.is_timeseries(one):
                reason = "Time series, kept as it is on request (--timeseries keep)."
                decisions[one.path] = Decision("copy", reason)
                continue
            try:
                self.volume(one)
                readable.append(one)
            except RefaceError as error:
                decisions[one.path] = Decision("withhold", self._sentence(error))
        reference = self._reference() if readable else None
        for one in sorted(readable, key=self._rank):
            try:
                decided = self._decide(one, reference)
                decisions[one.path] = replace(decided, warnings=(*self.volume(one).warnings, *decided.warnings))
            except RefaceError as error:
                decisions[one.path] = Decision("withhold", self._sentence(error))
        for one in self.job.also:
            if wanted == list(self.job.series):
                decisions[one.path] = self._decide_derivative(one, decisions)
        return decisions

    def _rank(self, one: Series) -> tuple[bool, bool, int, bool, float, str]:
        """Less is better as a reference."""
        rank = RANKS.index(one.suffix) if one.suffix in RANKS else len(RANKS)
        with_agent = bool(one.entity("ce"))
        coarsest = max(self.volume(one).spacing)
        return (one.phase, self.is_timeseries(one), rank, with_agent, round(coarsest, 2), one.path)

    def _reference(self) -> Series | None:
        """The best scan of the session with a whole face, if there is any."""
        readable = []
        for one in self.job.series:
            with suppress(RefaceError):
                self.volume(one)
                readable.append(one)
        for one in sorted(readable, key=self._rank):
            with suppress(RefaceError):
                if not one.phase and not self.anatomy_of(one).already_defaced:
                    return one
        return None

    def _decide(self, one: Series, reference: Series | None) -> Decision:
        if reference is None or one is reference:
            return self._by_itself(one, ())
        found, sharp = self._map(reference, one)
        if found is None:
            warning = f"Could not be registered to {reference.path}; it has a face region of its own."
            try:
                return self._by_itself(one, (warning,), {"sharpness": sharp})
            except CheckError as error:
                raise CheckError(
                    f"Could not be registered to {reference.path}, and by itself: {self._sentence(error)}"
                ) from error
        volume = self.volume(one)
        anatomy = carry(self.anatomy_of(reference), volume, found, self._face_points, self.skin(volume))
        facts = {"sharpness": sharp, "in_view": round(anatomy.in_view, 3)}
        what = self._what(one)
        if not anatomy.face_region.any():
            return Decision("copy", "The face lies outside the field of view.", reference.path, facts=facts)
        emptied = False
        if not one.phase and self._is_emptied(volume, anatomy):
            try:
                if self.anatomy_of(one).already_defaced:
                    return self._by_itself(one, (), facts)
            except RefaceError:  # a brain without a head, for one
                emptied = True
        action: Action = "reface"
        reason = f"{what}; face region from {_name(reference)}."
        if emptied:
            action = "deface"
            reason = f"{what}, empty where the face would be; face region from {_name(reference)}."
        elif one.unlike:
            action, reason = "deface", f"{what}, {one.unlike}; face region from {_name(reference)}."
        elif self.is_timeseries(one):
            action = "reface" if self.job.options.timeseries == "reface" else "deface"
        elif anatomy.in_view < IN_VIEW:
            action, share = "deface", f"{anatomy.in_view:.0%}" if anatomy.in_view > 0.01 else "the border"
            reason = f"{what}, with only {share} of the face in view; face region from {_name(reference)}."
        return Decision(action, reason, reference.path, anatomy, (), facts)

    def _by_itself(self, one: Series, warnings: tuple[str, ...], facts: dict[str, Any] | None = None) -> Decision:
        if one.phase:
            raise CheckError("Holds no magnitudes, so that no head can be found in it by itself.")
        anatomy = self.anatomy_of(one)
        facts = {**(facts or {}), "in_view": round(anatomy.in_view, 3), "misfit_mm": round(anatomy.misfit_mm, 2)}
        what = self._what(one)
        action: Action = "reface"
        reason = f"{what}; face region of its own."
        if anatomy.already_defaced:
            reason = f"{what}, already defaced; the new face goes where the old one was."
        if one.unlike:
            action, reason = "deface", f"{what}, {one.unlike}; face region of its own."
        elif self.is_timeseries(one) and self.job.options.timeseries != "reface":
            action = "deface"
        return Decision(action, reason, one.path, anatomy, (*warnings, *anatomy.warnings), facts)

    def _what(self, one: Series) -> str:
        if self.is_timeseries(one):
            return "Time series"
        return one.suffix or "Scan"

    def _decide_derivative(self, one: Series, decisions: dict[str, Decision]) -> Decision:
        """A mask takes the region of a scan on its grid."""
        try:
            grid = read_grid(self.input / one.path)
        except RefaceError as error:
            return Decision("withhold", self._sentence(error))
        near = sorted(self.job.series, key=lambda other: Path(other.path).parent != Path(one.path).parent)
        for other in near:
            decision = decisions[other.path]
            if decision.action in ("withhold", "leave") or isinstance(self.volumes.get(other.path), RefaceError):
                continue
            if other.path in self.volumes and same_grid(grid, self.volume(other)):
                if decision.anatomy is None:
                    return Decision("copy", f"On the grid of {other.path}, which shows no face.", other.path)
                reason = f"Mask or derivative on the grid of {other.path} (--also)."
                return Decision("empty", reason, other.path, decision.anatomy)
        return Decision("withhold", "Is a mask or a derivative on a grid that no scan of its session has.")

    def _map(self, reference: Series, one: Series) -> tuple[np.ndarray | None, float]:
        """Where the reference lies in a series, and how sharp that is; None where that is not certain."""
        for other, found, sharp in self.maps.values():
            alike = other.acquisition == one.acquisition and same_grid(_grid(self.volume(other)), self.volume(one))
            if alike:
                return found, sharp
        if reference.acquisition == one.acquisition and same_grid(_grid(self.volume(reference)), self.volume(one)):
            return np.eye(4), 1.0
        near = self._near(reference)
        sharp = 0.0
        for start in self._starts(reference, one):
            try:
                found = register(self.grey(reference), near, self.grey(one), [start()])
            except RuntimeError:
                continue
            value = round(sharpness(self.grey(reference), near, self.grey(one), found), 3)
            if value >= SHARPNESS:
                self.maps[one.path] = (one, found, value)
                return found, value
            sharp = max(sharp, value)
        return None, sharp

    def _starts(self, reference: Series, one: Series) -> list[Callable[[], np.ndarray]]:
        """Where to begin: the scanner's coordinates, the middles of both, and what the series shows by itself."""

        def middles() -> np.ndarray:
            start = np.eye(4)
            first, second = self.grey(reference), self.grey(one)
            for grey, sign in ((second, 1), (first, -1)):
                start[:3, 3] += sign * mapped((np.array(grey.values.shape) - 1) / 2, grey.affine)
            return start

        def anatomies() -> np.ndarray:
            first = self.anatomy_of(reference)
            try:
                second = self.anatomy_of(one)
            except RefaceError as error:
                raise RuntimeError(str(error)) from error
            middle = mapped(np.argwhere(first.brain_mask).mean(axis=0), first.view.asl_affine)
            across = second.view.asl_affine @ np.linalg.inv(second.to_template)
            return rigid(across @ first.to_template @ np.linalg.inv(first.view.asl_affine), middle)

        return [lambda: np.eye(4), middles, anatomies]

    def _near(self, reference: Series) -> np.ndarray:
        if self._near_brain is None:
            self._near_brain = near_brain(self.anatomy_of(reference))
        return self._near_brain

    @cached_property
    def _face_points(self) -> np.ndarray:
        """Points (N, 3) of the average face, template mm."""
        template = self.refacer.model.template
        at = np.argwhere(template.head & template.face_region)
        return mapped(at[:: max(1, len(at) // FACE_POINTS)], template.affine)

    def skin(self, volume: Volume) -> float:
        """Where tissue begins, above the level of air (real values)."""
        from ..rendering.skin_surface import skin_threshold

        small = resample_axes(volume.array, volume.spacing, 2.0)
        small -= air_level(small)
        try:
            return skin_threshold(small, (2.0, 2.0, 2.0))
        except (RefaceError, ValueError):  # what shows nothing has no skin
            return float(volume.array.max())

    def _is_emptied(self, volume: Volume, anatomy: Anatomy) -> bool:
        """Is much of the face empty to the bit?"""
        template = self.refacer.model.template
        index = np.linalg.inv(anatomy.to_template)
        inner = mapped(self._inner_points(template), index)
        at = np.rint(inner).astype(int)
        values = anatomy.view.to_asl(volume.stored)
        at = at[((at >= 0) & (at < values.shape)).all(axis=1)]
        if not len(at):
            return False
        lowest = volume.stored.min() if volume.slope > 0 else volume.stored.max()
        return float((values[tuple(at.T)] == lowest).mean()) > EMPTIED

    def _inner_points(self, template: Any) -> np.ndarray:
        import torch

        from ..spatial.grid import erode

        core = erode(torch.from_numpy(template.head & template.face_region), 2).numpy()
        at = np.argwhere(core)
        return mapped(at[:: max(1, len(at) // FACE_POINTS)], template.affine)


def _without_picture(outcome: Outcome) -> Outcome:
    """As it is kept in memory; the page takes the pictures from the records."""
    return replace(outcome, facts={key: value for key, value in outcome.facts.items() if key != "picture"})


Grid = tuple[tuple[int, ...], np.ndarray]


def _grid(volume: Volume) -> Grid:
    return volume.shape, volume.affine


def read_grid(path: Path) -> Grid:
    """Shape (I, J, K) and affine of an image, whatever it holds. Raises RefaceError."""
    if path.name.lower().endswith(".nrrd"):
        return _grid(Volume.read(path))
    series = TimeSeries.read(path)
    return series.stored.shape[:3], series.affine


def same_grid(grid: Grid, volume: Volume) -> bool:
    """Do the voxels lie at the same places, to a tenth of a millimetre?"""
    shape, affine = grid
    if tuple(shape) != volume.shape:
        return False
    corners = np.array([[i, j, k] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], float)
    return bool(np.abs(mapped(corners, affine) - mapped(corners, volume.affine)).max() < 0.1)


def _name(one: Series) -> str:
    return f"the session's {one.suffix}" if one.suffix else one.path
