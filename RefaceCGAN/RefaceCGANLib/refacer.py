"""Refacer: the stages of `pipeline` as one reusable object, which does once what is the same for every face.

>>> refacer = Refacer.from_pretrained()
>>> result = refacer.reface(Volume.read("head.nii.gz"), seed=7)
>>> another = refacer.reface(result, seed=8)      # anatomy and defacing are not done twice
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import paper, pipeline
from .anatomy.location import Anatomy, air_level
from .checks import Check, check_defaced, enforce
from .defacing import Defaced
from .errors import CheckError, InputError
from .generation.inference import Inference
from .generation.network_input import NetworkInput
from .models.model import DEFAULT, Model
from .progress import Progress, Timer
from .report import scan_report
from .seeds import chosen_seed
from .spatial.grid import AslView, mapped
from .volume.volume import Volume

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Candidates that are in work at a time."""


@dataclass(frozen=True)
class Prepared:
    """All that is the same for every face drawn on one scan.

    original: the scan with its face, for the checks and to be shown.  anatomy: as it was found, except that its
    map to the template is that of `defaced`.  All that is drawn and painted is made of `defaced` and what follows
    it, which know nothing of the emptied voxels."""

    original: Volume
    anatomy: Anatomy
    defaced: Defaced
    network_input: NetworkInput
    expected_ml: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Result:
    """One refaced scan. All volumes and masks are in the original's geometry.

    volume: refaced.  seed: draws this face again.  checks: what was measured.  report: what report.json holds.
    """

    volume: Volume
    seed: int
    checks: list[Check]
    report: dict[str, Any]
    prepared: Prepared = field(repr=False)
    _air_mask: np.ndarray = field(repr=False)

    @property
    def original(self) -> Volume:
        return self.prepared.original

    def _native(self, mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.prepared.anatomy.view.to_native(mask))

    @property
    def face_region(self) -> np.ndarray:
        """bool (I, J, K): the voxels that were emptied and generated."""
        return self._native(self.prepared.anatomy.face_region)

    @property
    def brain_mask(self) -> np.ndarray:
        """bool (I, J, K): the voxels that are bit-identical."""
        return self._native(self.prepared.anatomy.brain_mask)

    @property
    def air_mask(self) -> np.ndarray:
        """bool (I, J, K): the voxels of the face region that ended as air."""
        return self._native(self._air_mask)

    @property
    def defaced(self) -> Volume:
        """The scan with the face region emptied."""
        return self.prepared.defaced.scan


def checked_deface(prepared: Prepared) -> tuple[Volume, list[Check]]:
    """The scan with its face region emptied, and its checks. Raises CheckError where one fails."""
    defaced = prepared.defaced.scan
    return defaced, check_defaced(prepared.original, defaced, prepared.anatomy, prepared.defaced.air)


class Refacer:
    """Refaces scans with one model on one device; keep it, as loading takes longer than refacing."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.inference = Inference(model, device)

    @property
    def device(self) -> torch.device:
        """Where the generator runs; the processor, once another device's memory did not suffice."""
        return self.inference.device

    @property
    def warnings(self) -> list[str]:
        """What a user should hear of the device."""
        return self.inference.warnings

    @classmethod
    def from_pretrained(
        cls, model: str | Path | Model = DEFAULT, device: str = "auto", threads: int | None = None
    ) -> Refacer:
        """Load a model: an id, the path of a card, or a Model. device: auto (cuda, then mps, then cpu), cpu, cuda
        or mps; threads: of the processor, all of them by default.

        Raises InputError for an unknown model, tampered weights, or a device that is not there."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        loaded = model if isinstance(model, Model) else Model.load(model)
        return cls(loaded, _device(device))

    def prepare(
        self,
        volume: Volume,
        defaced: str = "auto",
        progress: Progress | None = None,
        anatomy: Anatomy | None = None,
        face_region: np.ndarray | None = None,
    ) -> Prepared:
        """Anatomy, defacing and normalisation: everything that does not depend on the face to be drawn.

        defaced: "auto", "yes" or "no": has the face been removed already?  anatomy: that of this scan where it is
        known (`Prepared.anatomy` of a scan on the same grid, or carried over from another series of the same
        head), and is not looked for.  face_region: bool (I, J, K), to be emptied in place of the one that is
        found; what it holds is not looked at.
        Raises CheckError (no head, no brain, no face in view), and InputError, also for a face region of another
        shape, without a voxel, or with voxels of the brain."""
        timer = Timer(progress)
        with timer("locate"):
            view, known = AslView.of(volume), anatomy is not None
            if anatomy is None:
                anatomy = self._located(volume, view, defaced, face_region)
            elif anatomy.face_region.shape != view.to_asl(volume.stored).shape:
                raise InputError("The anatomy is that of another scan: its masks have other voxels.")
            if self.model.native and face_region is None:
                anatomy = replace(anatomy, face_region=paper.face_mask(anatomy))
        with timer("deface"):
            # on the native grid the map to the template serves the checks alone, and may know the face
            emptied = pipeline.deface(volume, anatomy, self.model, aligned=known or self.model.native)
        return self._prepared(volume, anatomy, emptied, timer)

    def _located(self, volume: Volume, view: AslView, defaced: str, face_region: np.ndarray | None) -> Anatomy:
        """Brain and face of a scan; with a given face region (I, J, K), of the scan without what that holds."""
        if face_region is None:
            return self.locate(volume, defaced)
        if face_region.shape != volume.shape:
            raise InputError("The face region has other voxels than the scan; give it on the scan's own grid.")
        region = np.ascontiguousarray(view.to_asl(face_region)).astype(bool)
        if not region.any() or region.all():
            raise InputError("The face region is empty, or the whole scan; give the face and the air before it.")
        kept = view.to_asl(volume.stored)[~region]
        stored = volume.stored.copy()
        view.to_asl(stored)[region] = kept.min() if volume.slope > 0 else kept.max()
        try:
            found = self.locate(volume.with_stored(stored), "yes")
        except CheckError as error:
            raise InputError(f"What the face region leaves is no whole head. {error}") from error
        if in_brain := np.count_nonzero(region & (found.brain_mask | found.second_brain)):
            raise InputError(f"The face region holds {in_brain} voxels of the brain; take them out of it.")
        return replace(found, face_region=region, already_defaced=False, disputed_ml=0.0)

    def locate(self, volume: Volume, defaced: str = "auto") -> Anatomy:
        """Brain and face of a scan (`pipeline.locate`). Raises CheckError."""
        return pipeline.locate(volume, self.model, defaced)

    def _prepared(self, volume: Volume, anatomy: Anatomy, emptied: Defaced, timer: Timer) -> Prepared:
        """What follows from a defaced scan."""
        with timer("normalise"):
            seen = pipeline.normalise(emptied, self.model)
        anatomy = replace(anatomy, to_template=emptied.to_template)
        return Prepared(volume, anatomy, emptied, seen, self._expected_ml(anatomy), timer.seconds)

    def with_region(self, prepared: Prepared, face_region: np.ndarray) -> Prepared:
        """The same scan with a face region corrected by hand; the anatomy is not done again.

        face_region: bool (I, J, K). Brain voxels never get into it: those that were painted are left out. They are
        worth a warning, and so is tissue that was taken out of the region and therefore keeps the original.
        Raises InputError where it has another shape, is empty, or has tissue beyond what the generator sees."""
        found, seen, original = prepared.anatomy, prepared.network_input, prepared.original
        if face_region.shape != original.shape:
            raise InputError("The edited face region has other voxels than the scan; edit it on the scan itself.")
        view, warnings = found.view, list(found.warnings)
        painted = np.ascontiguousarray(view.to_asl(face_region))
        brain = found.brain_mask | found.second_brain
        region = painted & ~brain
        if not region.any():
            raise InputError("The edited face region is empty; paint the face outside the brain.")
        values = np.ascontiguousarray(view.to_asl(original.array))
        values -= air_level(values)
        added = region & ~found.face_region & (values > found.skin)
        at = mapped(np.argwhere(added), np.linalg.inv(seen.to_native))
        if ((at < -0.5) | (at > np.array(seen.scan.shape) - 0.5)).any():
            raise InputError("The edited face region reaches too far back, up or down; keep it to the face.")
        voxel_ml = float(np.prod(original.spacing)) / 1000
        if in_brain := np.count_nonzero(painted & brain):
            warnings.append(f"{in_brain} brain voxels were taken out of the edited face region.")
        if kept := np.count_nonzero(found.face_region & ~region & (values > found.skin)):
            warnings.append(f"{kept * voxel_ml:.1f} ml of the face were taken out by hand and keep the original.")
        anatomy = replace(found, face_region=region, warnings=tuple(warnings))

        emptied = pipeline.deface(original, anatomy, self.model, aligned=True)
        return replace(self._prepared(original, anatomy, emptied, Timer(None)), seconds=prepared.seconds)

    def _expected_ml(self, anatomy: Anatomy) -> float:
        """How much of the face region is tissue in the average head, told from every eighth voxel."""
        template = self.model.template
        matrix = np.linalg.inv(template.affine) @ anatomy.to_template @ np.diag([2.0, 2.0, 2.0, 1.0])
        at = np.rint(mapped(np.argwhere(anatomy.face_region[::2, ::2, ::2]), matrix)).astype(int)
        at = at[((at >= 0) & (at < template.head.shape)).all(axis=1)]
        tissue = np.count_nonzero(template.head[tuple(at.T)])
        return float(8 * tissue * np.prod(anatomy.view.spacing) / 1000)

    def deface(self, volume: Volume, defaced: str = "auto") -> Volume:
        """The scan with its face region emptied, everything else bit-identical; it passes the checks that a
        refaced scan has to pass. Raises CheckError and InputError."""
        return checked_deface(self.prepare(volume, defaced))[0]

    def reface(
        self,
        scan: Volume | Result | Prepared,
        seed: int | None = None,
        dropout: float | None = None,
        defaced: str = "auto",
        progress: Progress | None = None,
        force: bool = False,
        *,
        identity: str | None = None,
        key: bytes | None = None,
        face_region: np.ndarray | None = None,
    ) -> Result:
        """Give a scan a new face. `scan`: a Volume, or an earlier Result (or Prepared) of the same head, for
        which anatomy and defacing are not done again.

        seed: the same gives the same face on any scan, and the same bytes on the same scan and device; drawn by
        chance by default. identity, key: in place of a seed, a text that stands for the person, and a secret, from
        which the seed is derived (`seed_of`), so that one person gets one face in every scan. dropout: probability
        of the noise in the bottleneck, the card's by default. face_region: as for `prepare`. force: return a
        result that failed a check (the report says so) instead of raising.
        Raises CheckError and InputError."""
        seed = chosen_seed(seed, identity, key)
        if isinstance(scan, Volume):
            prepared = self.prepare(scan, defaced, progress, face_region=face_region)
            seconds = dict(prepared.seconds)
        else:
            prepared = scan.prepared if isinstance(scan, Result) else scan
            seconds = {}
        probability = float(self.model.card["dropout"]) if dropout is None else dropout
        if not 0 <= probability < 1:
            raise InputError(f"Dropout is a probability from 0 to below 1, not {probability:g}.")
        timer = Timer(progress)
        seen, defaced_scan = prepared.network_input, prepared.defaced
        with timer("sample shape"):
            coefficients = pipeline.sample_shape(seen, self.model, seed)
        with timer("generate"):
            face = pipeline.generate(seen, coefficients, defaced_scan, self.inference, seed, probability)
        with timer("compose"):
            refaced = pipeline.compose(face, seen, defaced_scan, self.model, seed)
        with timer("check"):
            checks = pipeline.check(
                prepared.original, refaced, prepared.anatomy, defaced_scan, prepared.expected_ml
            )
            if not force:
                enforce(checks)
        seconds |= timer.seconds
        report = scan_report(self, prepared, refaced.volume, checks, seconds, seed, probability, force)
        return Result(refaced.volume, seed, checks, report, prepared, refaced.air_mask)

    def candidates(self, scan: Volume | Result, seeds: list[int], **options: Any) -> Iterator[Result]:
        """Several faces for one scan, one for each seed, in the order of the seeds. Anatomy and defacing are done
        once, and one face is generated while another is composed."""
        if isinstance(scan, Volume):
            prepared = self.prepare(scan, options.get("defaced", "auto"), options.get("progress"))
        else:
            prepared = scan.prepared
        with ThreadPoolExecutor(AT_ONCE) as pool:
            drawn: deque[Future[Result]] = deque()
            for seed in seeds:
                drawn.append(pool.submit(self.reface, prepared, seed, **options))
                if len(drawn) == AT_ONCE:
                    yield drawn.popleft().result()
            while drawn:
                yield drawn.popleft().result()


def _device(name: str) -> torch.device:
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if name.split(":")[0] not in there:
        raise InputError(f"{name} is no device; give auto, cpu, cuda or mps.")
    if not there[name.split(":")[0]]:
        raise InputError(f"There is no {name} device here; use --device cpu or --device auto.")
    return torch.device(name)
