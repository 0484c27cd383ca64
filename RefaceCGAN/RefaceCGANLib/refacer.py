"""Refacer: the whole pipeline as one reusable object.

    read -> anatomy -> deface -> normalise -> generate -> compose -> check -> write

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
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from . import paper
from .anatomy.location import SPACING, Anatomy, air_level, bfloat16, locate
from .checks import Check, check, check_defaced, enforce
from .composition import Background, compose
from .defacing import Defaced
from .errors import CheckError, InputError
from .face_model.template import CLEFT, Meeting, Template, Values, trilinear
from .generation.painting import bounded, drawn_tissue, read
from .intensity import RING_MM, IntensityScale
from .models.model import DEFAULT, Model
from .progress import Progress, Timer
from .report import scan_report
from .seeds import chosen_seed
from .spatial.grid import AslView, axes_matrix, dilate, mapped, resample_axes, sample, solid
from .volume.volume import Volume

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

EMPTIED = 0.25
"""A voxel of a resampled scan lies in the face region from this share on."""

AT_ONCE = 2
"""Candidates that are in work at a time."""


@dataclass(frozen=True)
class WorkingScan:
    """One scan as the generator sees it, before any face is drawn.

    scan, region: (A, S, L) on the working grid (for a model of the native grid: the scan's own): the defaced scan,
    -1..1, and the face region (bool).
    meeting: what a face of a drawn shape has to meet; None for a model without shapes.
    to_native: (4, 4) working-grid index -> native ASL index."""

    scan: Tensor
    region: Tensor
    meeting: Meeting | None
    to_native: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """All that is the same for every face drawn on one scan.

    original: the scan with its face, for the checks and to be shown.  anatomy: as it was found, except that its
    map to the template is that of `defaced`.  All that is drawn and painted is made of `defaced` and what follows
    it, which know nothing of the emptied voxels."""

    original: Volume
    anatomy: Anatomy
    defaced: Defaced
    scale: IntensityScale
    background: Background | None  # None for a model of the native grid
    working: WorkingScan
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
        self.model, self.device = model, device
        self.warnings: list[str] = []
        self._generating = Lock()

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
        with timer("anatomy"):
            view, known = AslView.of(volume), anatomy is not None
            if anatomy is None:
                anatomy = self._located(volume, view, defaced, face_region)
            elif anatomy.face_region.shape != view.to_asl(volume.stored).shape:
                raise InputError("The anatomy is that of another scan: its masks have other voxels.")
            if self.model.native and face_region is None:
                anatomy = replace(anatomy, face_region=paper.face_mask(anatomy))
        with timer("deface"):
            emptied = Defaced.of(volume, anatomy, self.model.anatomy, self.model.template, aligned=known)
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
        """Brain and face of a scan (`anatomy.locate`). Raises CheckError."""
        view = AslView.of(volume)
        values = np.ascontiguousarray(view.to_asl(volume.array))
        values -= air_level(values)
        model = self.model
        return locate(values, view, model.anatomy, model.brain_check, model.template, defaced)

    def _prepared(self, volume: Volume, anatomy: Anatomy, emptied: Defaced, timer: Timer) -> Prepared:
        """What follows from a defaced scan."""
        import torch

        template = self.model.template
        if self.model.native:
            with timer("normalise"):
                highest = float(self.model.card["intensity_highest"])
                scale = paper.scale_of(emptied.values, ~emptied.face_region, highest)
                working = _native_scan(emptied, scale, self.model.card["working_grid"].get("spacing_mm"))
            anatomy = replace(anatomy, to_template=emptied.to_template)
            return Prepared(
                original=volume, anatomy=anatomy, defaced=emptied, scale=scale, background=None,
                expected_ml=self._expected_ml(anatomy), working=working, seconds=timer.seconds,
            )  # fmt: skip
        with timer("normalise"):
            spacing = emptied.view.spacing
            small = resample_axes(emptied.values, spacing, SPACING)
            region_share = resample_axes(emptied.face_region, spacing, SPACING)
            brain = emptied.of_average(template.brain > 0.5, template, (SPACING,) * 3)
            ring = dilate(torch.from_numpy(brain), round(RING_MM / SPACING)).numpy()
            scale = IntensityScale.measure(small, ring, region_share < 1e-3)
            background = Background.measure(emptied, template)
            to_template = template.affine @ _first(self.model.card["working_grid"]["first_voxel"])
            to_native = np.linalg.inv(emptied.to_template) @ to_template
            working = self._working_scan(emptied, small, region_share, scale, to_native)
        anatomy = replace(anatomy, to_template=emptied.to_template)
        return Prepared(
            original=volume, anatomy=anatomy, defaced=emptied, scale=scale, background=background,
            expected_ml=self._expected_ml(anatomy), working=working, seconds=timer.seconds,
        )  # fmt: skip

    def with_region(self, prepared: Prepared, face_region: np.ndarray) -> Prepared:
        """The same scan with a face region corrected by hand; the anatomy is not done again.

        face_region: bool (I, J, K). Brain voxels never get into it: those that were painted are left out. They are
        worth a warning, and so is tissue that was taken out of the region and therefore keeps the original.
        Raises InputError where it has another shape, is empty, or has tissue beyond what the generator sees."""
        found, working, original = prepared.anatomy, prepared.working, prepared.original
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
        at = _indices(added, np.linalg.inv(working.to_native))
        if ((at < -0.5) | (at > np.array(working.scan.shape) - 0.5)).any():
            raise InputError("The edited face region reaches too far back, up or down; keep it to the face.")
        voxel_ml = float(np.prod(original.spacing)) / 1000
        if in_brain := np.count_nonzero(painted & brain):
            warnings.append(f"{in_brain} brain voxels were taken out of the edited face region.")
        if kept := np.count_nonzero(found.face_region & ~region & (values > found.skin)):
            warnings.append(f"{kept * voxel_ml:.1f} ml of the face were taken out by hand and keep the original.")
        anatomy = replace(found, face_region=region, warnings=tuple(warnings))

        emptied = Defaced.of(original, anatomy, self.model.anatomy, self.model.template, aligned=True)
        return replace(self._prepared(original, anatomy, emptied, Timer(None)), seconds=prepared.seconds)

    def _expected_ml(self, anatomy: Anatomy) -> float:
        """How much of the face region is tissue in the average head, told from every eighth voxel."""
        template = self.model.template
        matrix = np.linalg.inv(template.affine) @ anatomy.to_template @ np.diag([2.0, 2.0, 2.0, 1.0])
        at = np.rint(_indices(anatomy.face_region[::2, ::2, ::2], matrix)).astype(int)
        at = at[((at >= 0) & (at < template.head.shape)).all(axis=1)]
        tissue = np.count_nonzero(template.head[tuple(at.T)])
        return float(8 * tissue * np.prod(anatomy.view.spacing) / 1000)

    def _working_scan(
        self,
        emptied: Defaced,
        small: np.ndarray,
        region_share: np.ndarray,
        scale: IntensityScale,
        to_native: np.ndarray,
    ) -> WorkingScan:
        """The scan as the generator sees it. small, region_share: the defaced scan, real values, and how much of a
        voxel is face region (0..1), on the 2 mm grid along the scan's axes."""
        import torch

        card = self.model.card
        shape = tuple(card["working_grid"]["shape"])
        small = np.where(region_share > 0.5, scale.low, small)
        to_small = np.linalg.inv(axes_matrix(emptied.view.spacing, SPACING)) @ to_native
        scans = torch.from_numpy(np.stack([scale.normalise(small) + 1.0, np.ones_like(small)]))
        defaced, seen = sample(scans, to_small, shape)
        inside = sample(torch.from_numpy(region_share)[None], to_small, shape, "border")[0] > EMPTIED
        scan = torch.where(inside, torch.full_like(defaced, -1.0), defaced - 1.0)
        meeting = None
        if self.model.tissue is not None:
            template = self._cropped_template
            level = float(scale.normalise(np.array([emptied.skin]))[0])
            # what the head was like in the face region, the average head tells
            head = solid((scan > level) | (inside & torch.from_numpy(template.head)), CLEFT)
            values, hidden = _readers(emptied, scale, to_native)
            meeting = template.meeting(inside.numpy(), head.numpy(), seen.numpy() > 0.99, values, hidden)
        return WorkingScan(scan, inside, meeting, to_native)

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
        anatomy, original = prepared.anatomy, prepared.original
        probability = float(self.model.card["dropout"]) if dropout is None else dropout
        if not 0 <= probability < 1:
            raise InputError(f"Dropout is a probability from 0 to below 1, not {probability:g}.")
        timer = Timer(progress)
        with timer("generate"):
            face = self.draw(prepared, seed, probability)
        with timer("compose"):
            if prepared.background is None:
                dark = float(self.model.card.get("air_below", paper.AIR))
                composed = paper.compose(face, anatomy.face_region, prepared.scale, dark)
            else:
                rng = np.random.default_rng([seed, 1])
                composed = compose(face, prepared.defaced, prepared.scale, prepared.background, rng)
            stored = prepared.defaced.scan.stored.copy()
            painted = original.to_stored(composed.values + prepared.defaced.air).clip(*prepared.defaced.kept_range)
            anatomy.view.to_asl(stored)[anatomy.face_region] = painted
            if original.has_nan:  # so that air has one value all around the head
                anatomy.view.to_asl(stored)[composed.air_mask] = np.nan
            refaced = original.with_stored(stored)
        with timer("check"):
            air = prepared.defaced.air
            checks = check(original, refaced, anatomy, air, composed.air_mask, prepared.expected_ml)
            if not force:
                enforce(checks)
        seconds |= timer.seconds
        report = scan_report(self, prepared, refaced, checks, seconds, seed, probability, force)
        return Result(refaced, seed, checks, report, prepared, composed.air_mask)

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

    def draw(self, prepared: Prepared, seed: int, dropout: float) -> np.ndarray:
        """Generate one face: (N,) -1..1, at the voxels of the face region, in C order, not yet composed."""
        import torch

        working, region = prepared.working, prepared.defaced.face_region
        if self.model.native:
            painted = self._generated({"defaced": working.scan}, seed, dropout, working.region)
            if painted.shape == region.shape:
                return np.asarray(painted.numpy()[region])
        at = _indices(region, np.linalg.inv(working.to_native)).astype(np.float32)
        if self.model.native:
            return read(painted[None], at, "border")[0]
        if self.model.tissue is None:
            channels = {"defaced": working.scan, "face_region": working.region.float()}
            return read(self._generated(channels, seed, dropout, working.region)[None] + 1, at)[0] - 1
        template = self._cropped_template
        field = template.field(self.shape(prepared, seed), working.meeting)
        rng = np.random.default_rng([seed, 2])
        voxel = float(np.prod(prepared.defaced.view.spacing)) ** (1 / 3)
        tissue = drawn_tissue(self.model.tissue, template, field, rng, voxel)
        tissue = tissue.matched(working.scan, working.region)
        # the generator paints on its own grid; what is finer than that is the tissue's
        prior = working.scan.clone()
        index = np.argwhere(working.region.numpy()).astype(np.float32)
        prior[working.region] = torch.from_numpy(tissue.at(index) - 1)
        channels = {"defaced": working.scan, "face_region": working.region.float(), "prior": prior}
        painted = self._generated(channels, seed, dropout, working.region)
        near = read(dilate(prior > -1, 1)[None].float(), at)[0] > 0  # elsewhere there is air
        values = np.zeros(len(at), np.float32)
        values[near] = bounded(tissue.at(at[near]), read((painted - prior)[None], at[near], "border")[0])
        return values - 1

    def _generated(self, channels: dict[str, Tensor], seed: int, dropout: float, wanted: Tensor) -> Tensor:
        """What the generator makes of its condition: (A, S, L), -1..1. channels: by their names in the card.
        wanted: bool, the voxels that are needed."""
        import torch

        from .generation import sliding_window as tiling

        card, generator = self.model.card, self.model.generator
        condition = torch.stack([channels[name] for name in card["condition"]])[None]
        for device in dict.fromkeys([self.device, torch.device("cpu")]):
            source = torch.Generator().manual_seed(seed)
            try:
                with self._generating, torch.inference_mode(), bfloat16(device):
                    generator.set_dropout(dropout, source)
                    generator.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
                    return tiling.apply(
                        lambda block, device=device: generator(  # type: ignore[misc]
                            block.to(device, memory_format=torch.channels_last_3d)
                        ),
                        condition, tuple(card["sub_volume"]["shape"]), float(card["sub_volume"]["overlap"]),
                        wanted,
                    )[0, 0]  # fmt: skip
            except torch.OutOfMemoryError:
                message = f"The memory of {device} did not suffice; the face was drawn on the processor."
                log.warning(message)
                self.warnings.append(message)
                self.device = torch.device("cpu")
        raise InputError("The memory did not suffice to draw a face; close programs and try again.")

    def shape(self, prepared: Prepared, seed: int) -> np.ndarray:
        """The shape coefficients (K,) that a seed draws, the same for all heads, made to fit this one."""
        template, meeting = self._cropped_template, prepared.working.meeting
        drawn = np.random.default_rng(seed).standard_normal(template.modes_count)
        drawn = (float(self.model.card["shape_spread"]) * drawn).astype(np.float32)
        return drawn if meeting is None else template.fitting(drawn, meeting)

    @cached_property
    def _cropped_template(self) -> Template:
        grid = self.model.card["working_grid"]
        spans = tuple(slice(a, a + n) for a, n in zip(grid["first_voxel"], grid["shape"], strict=True))
        return self.model.template.crop(spans)  # type: ignore[arg-type]


def _native_scan(emptied: Defaced, scale: IntensityScale, spacing: float | None) -> WorkingScan:
    """The defaced scan as a generator of the native grid sees it: the scan's own voxels, or voxels of `spacing` mm
    along the scan's own axes."""
    import torch

    values, share, to_native = emptied.values, emptied.face_region.astype(np.float32), np.eye(4)
    if spacing is not None:
        to_native = axes_matrix(emptied.view.spacing, spacing)
        values, share = (resample_axes(array, emptied.view.spacing, spacing) for array in (values, share))
    region = share > EMPTIED
    scan = scale.normalise(values)
    scan[region] = -1.0
    return WorkingScan(torch.from_numpy(scan), torch.from_numpy(region), None, to_native)


def _readers(defaced: Defaced, scale: IntensityScale, to_native: np.ndarray) -> tuple[Values, Values]:
    """What tells the intensity of the defaced scan, -1..1, and how much of it is emptied, 0..1, at points of the
    working grid. to_native: (4, 4)."""

    def at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        return trilinear(image[None], mapped(points, to_native))[0]

    emptied = np.where(defaced.face_region, np.float32(scale.low), defaced.values)
    hidden = defaced.face_region.astype(np.float32)
    return lambda points: scale.normalise(at(emptied, points)), lambda points: at(hidden, points)


def _indices(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Where a 4x4 index map leads the True voxels of a mask (A, S, L): (N, 3)."""
    return mapped(np.argwhere(mask), matrix)


def _first(voxel: list[int]) -> np.ndarray:
    from .spatial.grid import shift

    return shift(*voxel)


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
