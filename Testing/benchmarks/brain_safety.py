"""Brain safety: does refacing change brain, or leave the original face, on scans unlike the training ones?

    python Testing/benchmarks/brain_safety.py SHARED_FOLDER [--families bias,cut] [--heads 2] [--table out.md]

Each family takes a whole head and makes of it what scanners and earlier processing do. The truth comes from before
that: the brain mask of the unspoilt head (labels, or the skull-stripping network mindgrab), eroded by 3 mm, and
the skin of its face. A scan may be refaced, or refused with one sentence (exit status 3); it is wrong where a
voxel of that brain mask changed, or where original skin of the face is left. The tool's own masks are not used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.errors import RefaceError
from scipy import ndimage

FACE_LEFT = 0.02
"""Share of the skin of the face that may be unchanged: a value may be the same by chance, above all in scans of 8
bit."""
FACE_VOXELS = 50
"""A face of which an earlier tool has left fewer voxels counts as removed."""
ERODED_MM = 3.0
"""The truth's brain mask is eroded by this, as two brain masks differ at their borders."""


@dataclass(frozen=True)
class Case:
    """One scan with its truth. brain: bool (I, J, K), on the grid of `volume`, or None where there is no brain to
    protect.  face: bool (I, J, K), skin of the original face that must not be left, or None.
    expected: "refaced", "refused" or "either"."""

    name: str
    volume: Volume
    brain: np.ndarray | None
    face: np.ndarray | None = None
    expected: str = "either"


@dataclass(frozen=True)
class Head:
    """A whole head at 2 mm, RAS. values: float32 (I, J, K), air near 0.  brain: bool, same shape."""

    name: str
    values: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @classmethod
    def read(cls, name: str, scan: Path, brain: Path) -> Head:
        import nibabel as nib
        from nibabel.processing import resample_to_output

        image = nib.as_closest_canonical(nib.load(scan))
        mask = nib.as_closest_canonical(nib.load(brain))
        image = nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)
        mask = nib.Nifti1Image((np.asarray(mask.dataobj) > 0).astype(np.float32), mask.affine)
        if min(image.header.get_zooms()) < 1.9:
            image = resample_to_output(image, (2, 2, 2), order=1)
        if mask.shape != image.shape:
            from nibabel.processing import resample_from_to

            mask = resample_from_to(mask, image, order=1)
        return cls(name, image.get_fdata(dtype=np.float32), np.asarray(mask.dataobj) > 0.5, image.affine)

    def volume(self, values: np.ndarray, affine: np.ndarray | None = None) -> Volume:
        top = float(np.percentile(self.values, 99.9))
        stored = np.round(values * (2000.0 / top)).clip(-32768, 32767).astype(np.int16)
        return Volume.from_array(stored, self.affine if affine is None else affine)

    @property
    def tissue(self) -> np.ndarray:
        """bool (I, J, K): the head, by one threshold."""
        smoothed = ndimage.gaussian_filter(self.values, 0.7)
        mask = smoothed > 0.12 * np.percentile(smoothed, 98)
        labels, _ = ndimage.label(mask)
        return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])

    @property
    def face(self) -> np.ndarray:
        """bool (I, J, K): the foremost skin between brow and chin, 4 mm deep."""
        tissue = self.tissue
        where = np.argwhere(self.brain)
        low, high = where.min(axis=0), where.max(axis=0)
        middle = (low[0] + high[0]) // 2
        first = tissue.shape[1] - 1 - tissue[:, ::-1].argmax(axis=1)  # foremost tissue voxel of each column
        face = np.zeros_like(tissue)
        for i in range(middle - 12, middle + 13):  # 25 voxels: eyes, nose and mouth
            for k in range(max(0, low[2] - 20), low[2] + 12):
                if tissue[i, :, k].any() and first[i, k] > (low[1] + high[1]) // 2:
                    face[i, first[i, k] - 1 : first[i, k] + 1, k] = True
        return face & tissue


def bottom_cuts(head: Head) -> Iterator[Case]:
    """The field of view ends at a height above the lowest brain voxel (below it where negative)."""
    low = np.argwhere(head.brain)[:, 2].min()
    for mm in (-40, -20, 0, 8, 16, 24, 32, 40, 60):
        k = max(0, low + mm // 2)
        affine = head.affine.copy()
        affine[:3, 3] += affine[:3, 2] * k
        yield Case(f"bottom {mm} mm", head.volume(head.values[:, :, k:], affine), head.brain[:, :, k:])


def other_cuts(head: Head) -> Iterator[Case]:
    """The field of view ends within the head on another side, or is a slab of 100 to 120 mm."""
    where = np.argwhere(head.tissue)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    for name, axis, share, front in (
        ("top 25 %", 2, 0.25, False), ("back 25 %", 1, 0.25, True), ("left 20 %", 0, 0.2, True),
        ("front 10 %", 1, 0.1, False),
    ):  # fmt: skip
        span = [slice(None)] * 3
        depth = int(share * (high[axis] - low[axis]))
        span[axis] = slice(low[axis] + depth, None) if front else slice(0, high[axis] - depth)
        affine = head.affine.copy()
        affine[:3, 3] += affine[:3, axis] * (span[axis].start or 0)
        yield Case(name, head.volume(head.values[tuple(span)], affine), head.brain[tuple(span)])
    top = np.argwhere(head.brain)[:, 2].max()
    for mm in (100, 120):
        k = max(0, top + 3 - mm // 2)
        affine = head.affine.copy()
        affine[:3, 3] += affine[:3, 2] * k
        cut = slice(k, k + mm // 2)
        yield Case(f"slab {mm} mm", head.volume(head.values[:, :, cut], affine), head.brain[:, :, cut])


DIRECTIONS = {
    "back": (0, -1, 0), "front": (0, 1, 0), "top": (0, 0, 1), "bottom": (0, 0, -1), "left": (-1, 0, 0),
    "right": (1, 0, 0), "back top": (0, -1, 1), "front left": (-1, 1, 0),
}  # fmt: skip


def biased(head: Head, direction: tuple[int, int, int], factor: float) -> np.ndarray:
    """The head under a receive sensitivity that falls exponentially by `factor` across it."""
    where = np.argwhere(head.tissue)
    low, high = where.min(axis=0), where.max(axis=0)
    unit = np.array(direction) / np.linalg.norm(direction)
    axes = [(np.arange(n) - a) / (b - a) - 0.5 for n, a, b in zip(head.values.shape, low, high, strict=True)]
    along = sum(
        u * axis.reshape([-1 if i == d else 1 for i in range(3)])
        for d, (u, axis) in enumerate(zip(unit, axes, strict=True))
    )
    field = np.exp(np.log(factor) * along)
    spoilt = head.values * field
    return spoilt * (np.percentile(head.values, 99.9) / np.percentile(spoilt, 99.9))


def bias(head: Head) -> Iterator[Case]:
    """Receive bias of eight directions."""
    for name, direction in DIRECTIONS.items():
        for factor in (6, 12, 20):
            yield Case(
                f"bright at the {name} {factor}x",
                head.volume(biased(head, direction, factor)),
                head.brain,
                head.face,
            )


def air_levels(head: Head) -> Iterator[Case]:
    """Air that is not 0, and ranges that are not a scanner's."""
    values = head.values / np.percentile(head.values, 99.9) * 1000
    for name, changed in (
        ("air at 500", values + 500), ("air at -200", values - 200), ("air at -1024, as in CT", 2 * values - 1024),
    ):  # fmt: skip
        yield Case(
            name,
            Volume.from_array(np.round(changed).astype(np.int16), head.affine),
            head.brain,
            head.face,
            "refaced",
        )
    z = (values - values.mean()) / values.std()
    yield Case("z-score", Volume.from_array(z.astype(np.float32), head.affine), head.brain, head.face, "refaced")
    unit = values / values.max() * 2 - 1
    yield Case(
        "-1 to 1", Volume.from_array(unit.astype(np.float32), head.affine), head.brain, head.face, "refaced"
    )


def noise(head: Head) -> Iterator[Case]:
    """Noise where there is no signal, as in MP2RAGE, and Rician noise everywhere."""
    random = np.random.default_rng(1)
    top = float(np.percentile(head.values, 99.5))
    air = ndimage.gaussian_filter(head.values, 1) < 0.06 * top
    for level in (0.5, 1.0):
        mp2rage = np.where(air, level * top * random.random(air.shape), head.values)
        yield Case(f"MP2RAGE, noise to {level:g}", head.volume(mp2rage), head.brain, head.face, "refaced")
    for sigma in (0.05, 0.1):
        real, imaginary = random.standard_normal((2, *air.shape)) * sigma * top
        yield Case(
            f"Rician noise {sigma:g}", head.volume(np.hypot(head.values + real, imaginary)), head.brain, head.face
        )


def wraps(head: Head) -> Iterator[Case]:
    """The face wrapped around to the back of the field of view."""
    front = np.argwhere(head.tissue)[:, 1].max() + 1
    for mm in (10, 20, 30, 40):
        n = front - mm // 2  # the field of view ends here, and what lies before it comes back behind
        kept = head.values[:, :n].copy()
        over = head.values[:, n : n + min(head.values.shape[1] - n, n)]
        kept[:, : over.shape[1]] += over
        face, wrapped = head.face[:, :n].copy(), head.face[:, n : n + over.shape[1]]
        face[:, : over.shape[1]] |= wrapped
        yield Case(f"wrapped by {mm} mm", head.volume(kept), head.brain[:, :n], face)


def defacings(head: Head) -> Iterator[Case]:
    """Faces removed in part by another tool, in six ways, and what was removed filled with 0, noise or a value."""
    random = np.random.default_rng(2)
    where = np.argwhere(head.brain)
    low, high = where.min(axis=0), where.max(axis=0)
    x, y, z = np.meshgrid(*[np.arange(n) for n in head.values.shape], indexing="ij")
    middle = (low[0] + high[0]) // 2
    before = (y > high[1] - 12) & (z < low[2] + 14)
    off_brain = ~ndimage.binary_dilation(head.brain, iterations=3)
    top = float(np.percentile(head.values, 99.5))
    removals = {
        "half of the face": before & (x > middle),
        "all but mouth and chin": before & (z > low[2] - 14),
        "all but the brow": before & (z < low[2] + 2),
        "nose only": before & (abs(x - middle) < 10) & (y > high[1] + 4) & (z < low[2] + 8),
        "a plane": (y - (high[1] - 8) > 0.6 * (z - low[2])) & off_brain,
        "all of the face": (y > high[1] - 22) & (z < low[2] + 12),
    }
    for name, removed in removals.items():
        spoilt = np.where(removed & off_brain, 0, head.values)
        yield Case(f"defaced: {name}", head.volume(spoilt), head.brain, head.face & ~(removed & off_brain))
    removed = removals["all of the face"] & off_brain
    for name, filling in (("noise", top * 0.3 * random.random(x.shape)), ("a value", np.full(x.shape, 0.3 * top))):
        yield Case(
            f"defaced, filled with {name}", head.volume(np.where(removed, filling, head.values)), head.brain,
            head.face & ~removed,
        )  # fmt: skip
    offset = np.where(removed, 0, head.values - 0.4 * top)
    yield Case("defaced, 0 among negative values", head.volume(offset), head.brain, head.face & ~removed)
    zero = np.where(ndimage.gaussian_filter(head.values, 0.5) < 0.1 * top, 0, head.values)
    yield Case("air and bone 0", head.volume(zero), head.brain, head.face)


def no_heads(head: Head) -> Iterator[Case]:
    """What is no head: brains without one, a sphere, layered fruit."""
    for name, mask in (
        ("brain alone", head.brain),
        ("brain with its fluid", ndimage.binary_fill_holes(ndimage.binary_closing(head.brain, iterations=2))),
        ("brain, mask too wide", ndimage.binary_dilation(head.brain, iterations=2)),
    ):
        yield Case(name, head.volume(np.where(mask, head.values, 0)), None, None, "refused")
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in head.values.shape], indexing="ij")
    random = np.random.default_rng(3)
    top = float(np.percentile(head.values, 99.5))
    for name, radius, layers in (("sphere", 0.7, 0), ("large sphere", 0.95, 0), ("fruit", 0.8, 1)):
        r = np.sqrt(i**2 + j**2 + k**2) / radius
        body = np.where(
            r < 1, 0.6 * (1 + 0.3 * layers * np.sign(np.sin(20 * r)) * np.cos(6 * np.arctan2(i, j))), 0
        )
        body += 0.01 * random.random(r.shape)
        yield Case(name, head.volume(top * body), None, None, "refused")


def orientations(head: Head) -> Iterator[Case]:
    """Some of the 48 orders of the axes, and turned heads."""
    import nibabel as nib
    from nibabel import orientations as orient

    for codes in ("LPS", "PIR", "ASL", "SRA", "IPL", "LAS"):
        image = nib.Nifti1Image(
            np.stack([head.values, head.brain.astype(np.float32), head.face.astype(np.float32)], -1), head.affine
        )
        turned = image.as_reoriented(
            orient.ornt_transform(orient.io_orientation(head.affine), orient.axcodes2ornt(codes))
        )
        values, brain, face = np.moveaxis(np.asarray(turned.dataobj), -1, 0)
        yield Case(f"orientation {codes}", head.volume(values, turned.affine), brain > 0.5, face > 0.5, "refaced")
    for angle, axes in ((25, (1, 2)), (-25, (1, 2)), (30, (0, 1)), (25, (0, 2))):
        turned_values, brain, face = (
            ndimage.rotate(a.astype(np.float32), angle, axes, reshape=False, order=1)
            for a in (head.values, head.brain, head.face)
        )
        yield Case(f"turned by {angle} degrees in {axes}", head.volume(turned_values), brain > 0.5, face > 0.9)


def sizes(head: Head) -> Iterator[Case]:
    """Voxels from 0.8 to 6.5 mm, and heads from 0.6 to 1.2 of their size."""
    for zoom in ((1, 1, 2 / 6.5), (2 / 5.5, 1, 1), (1, 2 / 5, 1), (2.5, 2.5, 2.5), (2, 2, 0.5)):
        values = ndimage.zoom(head.values, zoom, order=1, grid_mode=True, mode="nearest")
        brain = ndimage.zoom(head.brain.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest") > 0.5
        step = np.array(head.values.shape) / values.shape
        affine = head.affine.copy()
        affine[:3, :3] = affine[:3, :3] * step
        affine[:3, 3] = (head.affine @ np.r_[0.5 * step - 0.5, 1])[:3]
        size = " x ".join(f"{2 * s:.1f}" for s in step)
        yield Case(f"voxels of {size} mm", head.volume(values, affine), brain)
    for scale in (0.6, 0.8, 1.2):
        affine = head.affine.copy()
        affine[:3, :3] *= scale
        yield Case(f"head of {scale:g} of its size", head.volume(head.values, affine), head.brain, head.face)


def contrasts(head: Head) -> Iterator[Case]:
    """Other contrasts, simulated by curves of the intensity, and enhancing or dark lesions."""
    top = float(np.percentile(head.values, 99.5))
    share = (head.values / top).clip(0, 1)
    curves = {
        "T2w": ([0, 0.08, 0.2, 0.45, 0.6, 1], [0, 0.5, 0.95, 0.6, 0.4, 0.5]),
        "FLAIR": ([0, 0.08, 0.2, 0.45, 0.6, 1], [0, 0.05, 0.2, 0.8, 0.6, 0.6]),
        "PD": ([0, 0.08, 0.2, 0.45, 0.6, 1], [0, 0.4, 0.9, 0.85, 0.75, 0.8]),
        "T1w with contrast": ([0, 0.1, 0.5, 0.8, 1], [0, 0.08, 0.4, 0.9, 1]),
    }
    for name, (at, to) in curves.items():
        yield Case(f"simulated {name}", head.volume(top * np.interp(share, at, to)), head.brain, head.face)
    where = np.argwhere(head.brain)
    random = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in head.values.shape], indexing="ij"), -1)
    for name, level, radius in (
        ("dark cavity", 0.05, 14),
        ("bright tumour", 1.0, 12),
        ("large dark cavity", 0.1, 20),
    ):
        centre = where[random.integers(len(where))]
        hit = (np.linalg.norm(grid - centre, axis=-1) < radius) & head.brain
        yield Case(name, head.volume(np.where(hit, level * top, head.values)), head.brain, head.face)


FAMILIES: dict[str, Callable[[Head], Iterator[Case]]] = {
    "cut below": bottom_cuts, "cut elsewhere": other_cuts, "bias": bias, "air level": air_levels, "noise": noise,
    "wrap-around": wraps, "defaced before": defacings, "no head": no_heads, "orientation": orientations,
    "size": sizes, "contrast": contrasts,
}  # fmt: skip


def brain_changed_ml(case: Case, refaced: Volume) -> float:
    """How much of the truth's brain mask, eroded by `ERODED_MM`, differs from the original, in ml."""
    if case.brain is None:
        return 0.0
    spacing = case.volume.spacing
    distance = ndimage.distance_transform_edt(np.pad(case.brain, 1, mode="edge"), spacing)[1:-1, 1:-1, 1:-1]
    changed = case.volume.stored != refaced.stored
    return float(np.count_nonzero(changed & (distance > ERODED_MM))) * float(np.prod(spacing)) / 1000


def face_left(case: Case, refaced: Volume) -> float:
    """The share of the original face's skin whose voxels are unchanged."""
    if case.face is None or np.count_nonzero(case.face) < FACE_VOXELS:
        return 0.0
    same = case.volume.stored == refaced.stored
    return float(np.count_nonzero(same & case.face)) / float(np.count_nonzero(case.face))


def heads(shared: Path, count: int, masks: Path | None) -> Iterator[Head]:
    """`count` heads of val/, then native/adi where its brain mask is at hand."""
    for scan in [p for p in sorted((shared / "heads" / "val").glob("*.nii.gz")) if "_seg" not in p.name][:count]:
        yield Head.read(scan.name[:-7], scan, scan.with_name(scan.name.replace(".nii.gz", "_seg.nii.gz")))
    truth = shared / "faults" / "TRUTH_brain_adi.nii.gz"
    if truth.is_file():
        yield Head.read("adi", shared / "heads" / "native" / "adi.nii.gz", truth)
    if masks is not None and (masks / "uih1.nii.gz").is_file():
        yield Head.read("uih1", shared / "heads" / "native" / "uih1.nii.gz", masks / "uih1.nii.gz")


@dataclass(frozen=True)
class Outcome:
    """What became of a case. refused: the sentence, or "".  brain_ml: brain changed.  left: share of face left."""

    head: str
    family: str
    case: Case
    refused: str
    brain_ml: float
    left: float
    seconds: float

    @property
    def wrong(self) -> str:
        """What is wrong with it, or ""."""
        if self.brain_ml > 0:
            return f"{self.brain_ml:.2f} ml of brain changed"
        if self.left > FACE_LEFT:
            return f"{self.left:.1%} of the face's skin left"
        if self.case.expected == "refused" and not self.refused:
            return "refaced, and is no head"
        if self.case.expected == "refaced" and self.refused:
            return f"refused: {self.refused}"
        return ""


def tried(refacer: Refacer, head: str, family: str, case: Case, paint: bool = True) -> Outcome:
    """Reface one case, or only deface it, which empties the same voxels, and compare it with its truth."""
    began = time.perf_counter()
    try:
        refaced = refacer.reface(case.volume, seed=7).volume if paint else refacer.deface(case.volume)
    except RefaceError as error:
        return Outcome(head, family, case, str(error), 0.0, 0.0, time.perf_counter() - began)
    brain_ml, left = brain_changed_ml(case, refaced), face_left(case, refaced)
    return Outcome(head, family, case, "", brain_ml, left, time.perf_counter() - began)


def table(outcomes: list[Outcome]) -> str:
    """Markdown: a row for each family, and the wrong ones below."""
    lines = ["| family | scans | refaced | refused | wrong |", "|---|---|---|---|---|"]
    families = {outcome.family: [o for o in outcomes if o.family == outcome.family] for outcome in outcomes}
    for family, of_it in [*families.items(), ("all", outcomes)]:
        refused = sum(bool(o.refused) for o in of_it)
        wrong = sum(bool(o.wrong) for o in of_it)
        lines.append(f"| {family} | {len(of_it)} | {len(of_it) - refused} | {refused} | {wrong} |")
    return "\n".join([*lines, "", *(f"- {o.head}, {o.case.name}: {o.wrong}" for o in outcomes if o.wrong)])


def main() -> int:
    """The sweep; exits with 1 where a case is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with heads/ and faults/")
    parser.add_argument("--families", default=",".join(FAMILIES), help="names or beginnings of names")
    parser.add_argument("--heads", type=int, default=5, help="heads of val/ (native/adi always)")
    parser.add_argument(
        "--masks", type=Path, help="folder with a brain mask uih1.nii.gz of native/uih1, made elsewhere"
    )
    parser.add_argument(
        "--deface", action="store_true", help="empty the face region and paint nothing, which is faster"
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--table", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    wanted = tuple(args.families.split(","))
    refacer, outcomes = Refacer.from_pretrained(args.model, device="cpu"), []
    for head in heads(args.shared, args.heads, args.masks):
        for family, cases in FAMILIES.items():
            for case in cases(head) if family.startswith(wanted) else ():
                outcome = tried(refacer, head.name, family, case, not args.deface)
                outcomes.append(outcome)
                result = f"WRONG: {outcome.wrong}" if outcome.wrong else outcome.refused or "refaced"
                print(f"{head.name}  {family}  {case.name}: {result}  ({outcome.seconds:.1f} s)", flush=True)
                if args.table:
                    args.table.write_text(table(outcomes) + "\n", encoding="utf-8")
    print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
