"""The template: the average head, its face region, and the shapes real faces take around it.

Template space is RAS+ in mm with the orientation and origin of MNI152 and the size of the average training
head. Arrays lie on the template grid: 2 mm, axes Anterior, Superior, Left. A face shape is a short code of
independent standard normal numbers, one for each mode of two shape models, each a principal component analysis
over the training heads and their mirror images: the displacements that carry the average head onto a head
(build, length and width of the face), and then the relief, how far the skin of the head lies in front of the
average skin so carried (eyelids, bridge of the nose, lips). Drawn at random, a code is the shape of nobody;
this is where the variety of the faces comes from, and not from the scan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..spatial.grid import finer, sample_at, solid

if TYPE_CHECKING:
    from torch import Tensor

Values = Callable[[np.ndarray], np.ndarray]
"""Tells the values (M,) of some image at points (M, 3) in voxels of the template grid."""

MODE_SPACING = 4
"""The modes lie on a grid this many times coarser than the template grid."""

RELIEF_DEPTH = 6.0
"""Voxels below the skin over which what lies there follows its relief."""
RELIEF_HEIGHT = (3.0, 4.0)
"""Voxels above the skin up to which the air follows its relief, and over which that fades beyond."""
RELIEF_POINTS = 4
"""Skin points that a voxel follows, the nearer the more."""

SKIN_LEVEL = -0.6
"""Skin: where a scan normalised to -1..1 falls below this on the way out."""
REACH, STEP = 5.0, 0.25
"""Voxels: skin is looked for this far from the average skin along its normal, in steps of."""

RIM = (3, 4)
"""Voxels inside and outside the border of the face region between which kept skin, if there is some, is the rim
that painted skin has to meet. Inside, as the border may run above the skin."""
HIDDEN, SCRAPED = 0.02, 0.8
"""Skin is kept where no more than the first part of what tells of it is emptied, or no more than so many voxels of
it: there the border of what is emptied runs along it, and a new face would lie on it like a patch."""
SHALLOW = 1.5
"""Voxels below the original skin at most, not to take for it what is kept of the bone under it."""
RIM_REACH = 10.0
"""Voxels: the skin of the rim is looked for this far from the average skin."""
RIM_SPREAD = 0.5
"""The further off a voxel is, by this times its distance, the wider the part of the rim that it follows."""
RIM_AROUND, RIM_STEP = 48, 1.5
"""Voxels by which it may be off the median of so many points of the rim around."""
MEETING_WIDE, MEETING_NARROW = (5.0, 15.0), (1.5, 6.0)
"""Voxels: over how much of the rim the skins on both sides are compared, and how far into the face what they
differ by is led on; first in the large, then what that leaves."""
RIM_POINTS, RIM_GRID = 64, 2
"""Points of the rim that a voxel follows, on a grid so many times coarser."""

CLEFT = 2
"""Voxels: half the width of the clefts in a head that count as its inside."""

COVER_MM = {2.0: 1.0, 4.0: 2.5}
"""Kept tissue that lay deeper than the first lies at least as deep as the second under the new face."""
EDGE_MM = 3.0
"""A new nose keeps this far from the end of the field of view."""
OUTERMOST_REACH = -10.0, 10.0
"""Voxels along the normal from the average skin between which tissue, and that end, are looked for."""
FITTING, FITTING_ROUNDS = 100.0, 4
"""mm^2 of lacking skin, summed over the skin points, that a code gives for a standard deviation; rounds."""
NEAREST = 300.0
"""mm^2 off a head's skin, summed over the skin points, that count as much as one standard deviation of the code
nearest to it."""
BORDER, BORDER_WEIGHT = 0.2, 0.7
"""What a mm^2 counts, against lacking skin, by which the skin near the border differs from the average; it is near
where `weight` is below the second number."""
COVER_SIGMA, COVER_MOST = 2.5, 10.0
"""Voxels over which the skin is raised around what it has to cover, and the most mm by which it is."""


@dataclass(frozen=True)
class Template:
    """All arrays (A, S, L) on the template grid unless said otherwise.

    affine: (4, 4) template-grid index -> RAS+ mm.  mean: average head, -1 (air) to 1.  head: bool, inside the
    average skin.  brain: 0..1, how often a voxel is brain.  face_region: bool, the voxels to empty and generate in
    the average head.  window: bool, where skin counts as face.  weight: 0..1, how far a random shape may move a
    voxel (0 at the border to kept tissue).
    modes: (K, 3, a, s, l) and mode_mean: (3, a, s, l) displacements in RAS mm: the face of code c at y shows
    the average head at y + weight * (mode_mean + sum c_k modes_k)(y).
    relief_points: (N, 3) index of points on the average skin, A, S, L.  relief_modes: (M, N) mm by which the skin
    lies in front of those points, along its normal; multiplied by `weight` likewise.
    """

    affine: np.ndarray
    mean: np.ndarray
    head: np.ndarray
    brain: np.ndarray
    face_region: np.ndarray
    window: np.ndarray
    weight: np.ndarray
    modes: np.ndarray
    mode_mean: np.ndarray
    relief_points: np.ndarray
    relief_modes: np.ndarray

    @classmethod
    def read(cls, path: Path | IO[bytes]) -> Template:
        with np.load(path, allow_pickle=False) as data:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})

    def write(self, path: Path) -> None:
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @property
    def modes_count(self) -> int:
        """The length K + M of a code: first the modes of the displacement, then those of the relief."""
        return len(self.modes) + len(self.relief_modes)

    def crop(self, spans: tuple[slice, slice, slice]) -> Template:
        """The part of the template grid a working grid covers; starts and stops are multiples of 4."""
        first = np.array([span.start for span in spans])
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ np.r_[first, 1.0])[:3]
        coarse = tuple(slice(s.start // MODE_SPACING, s.stop // MODE_SPACING) for s in spans)
        names = ("mean", "head", "brain", "face_region", "window", "weight")
        return Template(
            affine=affine,
            modes=self.modes[(slice(None), slice(None), *coarse)],
            mode_mean=self.mode_mean[(slice(None), *coarse)],
            relief_points=self.relief_points - first.astype(np.float32),
            relief_modes=self.relief_modes,
            **{name: getattr(self, name)[spans] for name in names},
        )

    def displacement(self, code: np.ndarray, with_mean: bool = True) -> Tensor:
        """The displacement of a face of shape `code` (K,): tensor (3, A, S, L) in voxels along A, S, L,
        already multiplied by `weight`, without the relief. Without the mean: how it differs from the average."""
        modes = self.modes.reshape(len(self.modes), -1).astype(np.float32)
        field = (np.asarray(code, np.float32) @ modes).reshape(self.mode_mean.shape)
        return self.weighted(field + self.mode_mean if with_mean else field)

    def weighted(self, field: np.ndarray, reach: float = 1.0) -> Tensor:
        """A displacement field (3, a, s, l) in RAS mm, on a coarser grid over the same space, as tensor
        (3, A, S, L) in voxels along A, S, L, multiplied by `weight`, or by 1 where that is above `reach`."""
        import torch
        from torch.nn import functional

        to_voxels = np.linalg.inv(self.affine[:3, :3]).astype(np.float32)
        coarse = torch.from_numpy(np.tensordot(to_voxels, field.astype(np.float32), 1))[None]
        full = functional.interpolate(coarse, size=self.mean.shape, mode="trilinear", align_corners=False)[0]
        return full * torch.from_numpy((self.weight.astype(np.float32) / reach).clip(0, 1))

    def field(self, code: np.ndarray, meeting: Meeting | None = None) -> Tensor:
        """The displacement (3, A, S, L) in voxels of a face of shape `code` (K + M,), which may have to meet a
        scan: voxel y of the head shows the average head at y + field(y)."""
        count = len(self.modes)
        displacement = self.displacement(code[:count])
        heights = np.asarray(code[count:], np.float32) @ self.relief_modes.astype(np.float32)
        raise_by = None
        if meeting is not None:
            bridge = self._bridge(code, meeting)
            raise_by = self._raise(self._lacking(code, meeting, self._raised_by(bridge)))
            displacement = displacement + meeting.shift + bridge
        return displacement + warp(self.raised(heights, raise_by), displacement)

    def prior(self, code: np.ndarray, meeting: Meeting | None = None) -> Tensor:
        """The average head with a face of shape `code` (K + M,), which may have to meet a scan: tensor (A, S, L),
        -1 to 1."""
        return self.shown(self.field(code, meeting))

    def shaped(self, displacement: Tensor, heights: np.ndarray, raise_by: np.ndarray | None = None) -> Tensor:
        """The average head whose skin is raised by `heights` (N,) mm at the skin points, times `weight`, and by
        `raise_by` (N,) mm in full, and then moved by a displacement (3, A, S, L) in voxels: tensor (A, S, L)."""
        return self.shown(displacement + warp(self.raised(heights, raise_by), displacement))

    def shown(self, field: Tensor) -> Tensor:
        """The average head under a displacement field (3, A, S, L) in voxels: tensor (A, S, L), -1 to 1."""
        return sample_at(self._finer_mean, 2.0 * moved(field) + 0.5)[0]

    def raised(self, heights: np.ndarray, raise_by: np.ndarray | None = None) -> Tensor:
        """The displacement (3, A, S, L) in voxels that raises the average skin by `heights` (N,) mm times
        `weight`, and by `raise_by` (N,) mm in full."""
        import torch

        voxels, points, shares, direction = self._relief
        amount = (heights[points] * shares).sum(axis=1) * self.weight.ravel()[voxels]
        if raise_by is not None:
            amount = amount + (raise_by[points] * shares).sum(axis=1)
        field = np.zeros((3, self.mean.size), np.float32)
        field[:, voxels] = -amount / self.spacing * direction
        return torch.from_numpy(field.reshape(3, *self.mean.shape))

    def outermost(self, mask: np.ndarray) -> np.ndarray:
        """How far (N,) mm in front of the average skin a mask (A, S, L; bool) ends: -inf where it is not met
        within `OUTERMOST_REACH`, inf where it goes on beyond that."""
        first, last = OUTERMOST_REACH
        steps = np.arange(first, last + 0.25, 0.5)
        along = self.relief_points[:, None] + steps[None, :, None] * self.relief_normals[:, None]
        there = trilinear(mask.astype(np.float32)[None], along.reshape(-1, 3)).reshape(len(along), -1) > 0.5
        at = there.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
        ends = np.where(at == len(steps) - 1, np.inf, steps[at] * self.spacing)
        return np.where(there.any(axis=1), ends, -np.inf)

    def fitting(self, code: np.ndarray, meeting: Meeting) -> np.ndarray:
        """The code nearest to `code` whose face covers what it has to on a scan and comes to the kept skin without
        a step. The whole face moves and grows with it, as faces do, where to bend its skin alone would show."""
        start = code = np.asarray(code, np.float32)
        profiles = self.profiles[1:]
        base = self._border + FITTING * np.eye(len(start))
        for _ in range(FITTING_ROUNDS):  # least squares over what is lacking, which changes as the face moves
            lacking = self._lacking(code, meeting)
            short = lacking != 0
            some = profiles[:, short]
            wanted = some @ (lacking[short] + code @ some) + FITTING * start
            code = np.linalg.solve(base + some @ some.T, wanted).astype(np.float32)
        return code

    def _drawn(self, code: np.ndarray) -> np.ndarray:
        """How far (N,) mm in front of the average skin that of a face of shape `code` (K + M,) lies."""
        return np.asarray(np.asarray(code, np.float32) @ self.profiles[1:])

    def _bridge(self, code: np.ndarray, meeting: Meeting) -> Tensor:
        """The displacement (3, A, S, L) in voxels that takes a face of shape `code` (K + M,) gently to where the
        average one meets the kept skin: without it a raised brow ends in a ledge."""
        drawn = self._drawn(code)[meeting.nearest] / self.spacing
        missed = np.where(np.isfinite(meeting.kept), -drawn, np.nan)
        return meeting.rim.led_on(missed, MEETING_WIDE, self.mean.shape)

    def _raised_by(self, displacement: Tensor) -> np.ndarray:
        """How much (N,) mm a displacement (3, A, S, L) in voxels raises the average skin."""
        moved = trilinear(displacement.numpy(), self.relief_points)
        return np.asarray(-(moved * self.relief_normals.T).sum(axis=0) * self.spacing)

    def _lacking(self, code: np.ndarray, meeting: Meeting, bridged: np.ndarray | float = 0.0) -> np.ndarray:
        """How much higher (N,) mm the skin of a face must be to cover what it has to; below 0 where it must be
        lower to stay in the field of view. bridged: (N,) mm by which `_bridge` raises it."""
        reached = self.profiles[0] + self._drawn(code) + meeting.raised + bridged
        higher = np.clip(meeting.least - reached, 0, COVER_MOST)
        lower = np.clip(meeting.most - reached, -COVER_MOST, 0)
        return np.asarray(np.where(higher > 0, higher, lower), np.float32)

    def _raise(self, lacking: np.ndarray) -> np.ndarray:
        """Heights (N,) mm that make up for what the skin is `lacking` (N,), smooth along it."""
        raise_by, sign = lacking, np.sign(lacking)
        for _ in range(2 if lacking.any() else 0):  # smoothing lowers what it smooths: the second round mends it
            raise_by = raise_by + sign * np.maximum(sign * (lacking - self._along_skin @ raise_by), 0)
        return np.asarray(self._along_skin @ raise_by)

    @cached_property
    def _finer_mean(self) -> Tensor:
        """`mean` on half the spacing, which blurs less where it is read between its voxels: (1, 2A, 2S, 2L)."""
        import torch

        return finer(torch.from_numpy(self.mean.astype(np.float32))[None]).clamp(-1, 1)

    @cached_property
    def _along_skin(self) -> Any:
        """The sparse matrix (N, N) that smooths heights along the skin."""
        from scipy.sparse import diags, identity
        from scipy.spatial import cKDTree

        tree = cKDTree(self.relief_points)
        near = tree.sparse_distance_matrix(tree, 2.5 * COVER_SIGMA, output_type="coo_matrix").tocsr()
        near.data = np.exp(-0.5 * (near.data / COVER_SIGMA) ** 2)
        near = (near + identity(len(self.relief_points))).tocsr()
        return (diags(1 / np.asarray(near.sum(axis=1)).ravel()) @ near).astype(np.float32)

    @cached_property
    def _relief(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """How the voxels near the skin follow it: their flat index (n,), the skin points each follows (n, 4) and
        how much (n, 4), and the outward normal there, faded away from the skin (3, n)."""
        from scipy.spatial import cKDTree

        average, _ = self.skin
        weight = self.weight.astype(np.float32)
        low, (above, fade) = -2 * RELIEF_DEPTH, RELIEF_HEIGHT
        voxels = np.flatnonzero((weight > 0) & (average > low) & (average < above + 2 * fade))
        index = np.stack(np.unravel_index(voxels, self.mean.shape), axis=1)
        points = self.relief_points.astype(np.float32)
        distance, nearest = cKDTree(points).query(index, min(RELIEF_POINTS, len(points)))
        shares = np.exp(-0.5 * distance**2) + 1e-9
        shares /= shares.sum(axis=1, keepdims=True)
        away, outside = distance[:, 0], average.ravel()[voxels] >= 0
        follows = np.where(
            outside,
            np.exp(-((np.maximum(away - above, 0) / fade) ** 2)),
            np.exp(-((away / RELIEF_DEPTH) ** 2)),
        )
        outward = self.relief_normals.T[:, nearest]
        direction = (outward * shares).sum(axis=-1) * follows
        return voxels, nearest, shares.astype(np.float32), direction.astype(np.float32)

    @cached_property
    def relief_normals(self) -> np.ndarray:
        """The outward normals (N, 3) of the average skin at the relief points."""
        return unit(self.skin[1][:, *np.rint(self.relief_points).astype(int).T].T)

    @cached_property
    def profiles(self) -> np.ndarray:
        """How far the mean displacement, then each mode of displacement and of relief, raises the skin at the
        relief points: (1 + K + M, N) mm."""
        fields = np.concatenate([self.mode_mean[None], self.modes]).astype(np.float32)
        at = (self.relief_points + 0.5) / MODE_SPACING - 0.5
        moved = trilinear(fields.reshape(-1, *fields.shape[2:]), at).reshape(len(fields), 3, -1)
        outward = self.affine[:3, :3] / self.spacing @ self.relief_normals.T
        raised = np.concatenate([-(moved * outward).sum(axis=1), self.relief_modes.astype(np.float32)])
        return (raised * self._relief_weight).astype(np.float32)

    @cached_property
    def _border(self) -> np.ndarray:
        """What a code costs for skin off the average near the border: a quadratic form (K + M, K + M)."""
        near = self.profiles[1:, self._relief_weight < BORDER_WEIGHT]
        return BORDER * near @ near.T

    @cached_property
    def _relief_weight(self) -> np.ndarray:
        return self.weight[*np.rint(self.relief_points).astype(int).T].astype(np.float32)

    def heights(self, image: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """How far the skin of a head (A, S, L), -1..1, lies in front of the average skin: (N,) mm, NaN where it
        is not seen or not `valid`."""
        return heights(image, valid, self.relief_points, self.relief_normals) * self.spacing

    def code_of(self, heights: np.ndarray) -> np.ndarray:
        """The code (K + M,) nearest to a head whose skin lies `heights` (N,) mm in front of the average skin (NaN:
        not seen). A real face is some of what random ones may be, and the code tells that."""
        seen = np.isfinite(heights)
        profiles = self.profiles[1:, seen]
        wanted = profiles @ (heights * self._relief_weight - self.profiles[0])[seen]
        return np.linalg.solve(profiles @ profiles.T + NEAREST * np.eye(len(profiles)), wanted).astype(np.float32)

    @property
    def spacing(self) -> float:
        """mm between voxels of the template grid."""
        return float(np.linalg.norm(self.affine[:3, 0]))

    @cached_property
    def skin(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the average skin (A, S, L) and its direction (3, A, S, L), in voxels."""
        from scipy import ndimage

        average = _distance(self.head)
        normal = np.stack(np.gradient(ndimage.gaussian_filter(average, 1.0)))
        normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
        return average, normal

    def meeting(
        self, region: np.ndarray, head: np.ndarray, seen: np.ndarray, values: Values, hidden: Values
    ) -> Meeting:
        """What a face has to meet on a defaced scan. region: bool (A, S, L), what is emptied.  head: bool, all
        that is within the original skin.  seen: bool, the field of view.  values, hidden: of the defaced scan,
        -1..1, and how much of it is emptied, 0..1, on a grid as fine as there is."""
        import torch
        from scipy.ndimage import distance_transform_edt
        from scipy.spatial import cKDTree

        depth = distance_transform_edt(head)
        rim, kept = Rim.of(self, region, depth, values, hidden)
        mean = torch.from_numpy(self.mean.astype(np.float32))[None]
        displacement = self.displacement(np.zeros(len(self.modes)))
        shift = torch.zeros(3, *self.mean.shape)
        for window in (MEETING_WIDE, MEETING_NARROW):
            missed = kept - rim.heights(warp(mean, displacement + shift)[0].numpy())
            shift = shift + rim.led_on(missed, window, self.mean.shape)
        nearest = cKDTree(self.relief_points).query(rim.points)[1]
        least = self._least(region, head, displacement + shift)
        most = self.outermost(seen) - EDGE_MM
        most[(self.relief_normals[:, 0] < 0.5) | (most < -COVER_MOST)] = np.inf  # a chin may be cut, as it was
        return Meeting(rim, kept, nearest, shift, self._raised_by(shift), least, most)

    def _least(self, region: np.ndarray, head: np.ndarray, field: Tensor) -> np.ndarray:
        """How high (N,) mm the skin must be to cover the kept tissue that is deep below the average face's skin,
        once that has met the kept skin.  field: (3, A, S, L) voxels, which takes it there."""
        import torch
        from scipy.ndimage import distance_transform_edt

        average = self.shown(field).numpy() > SKIN_LEVEL
        depth = distance_transform_edt(solid(torch.from_numpy(np.where(region, average, head)), CLEFT).numpy())
        deep = {mm: (depth * self.spacing > mm) & ~region for mm in COVER_MM}
        least: np.ndarray = np.max([self.outermost(deep[mm]) + cover for mm, cover in COVER_MM.items()], axis=0)
        return least

    def sample(self, array: np.ndarray, coordinates: Tensor) -> Tensor:
        """Trilinear values of an array (A, S, L) of the template grid at template points (..., 3) in RAS mm."""
        import torch

        inverse = torch.from_numpy(np.linalg.inv(self.affine).astype(np.float32))
        index = coordinates @ inverse[:3, :3].T + inverse[:3, 3]
        source = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
        return sample_at(source, index.reshape(1, -1, 1, 3).permute(3, 0, 1, 2))[0].reshape(index.shape[:-1])


@dataclass(frozen=True)
class Meeting:
    """What a face drawn on one scan has to meet.

    rim: the points where it meets the kept skin.  kept: (R,) voxels, where that lies: `Rim.heights`.  nearest:
    (R,) the skin point nearest to each.
    shift: (3, A, S, L) voxels, the displacement that lets the average face meet it.  raised: (N,) mm by which that
    raises its skin.  least: (N,) mm, how high the skin must be to cover the kept tissue under it.  most: (N,) mm,
    how high it may be to stay in view."""

    rim: Rim
    kept: np.ndarray
    nearest: np.ndarray
    shift: Tensor
    raised: np.ndarray
    least: np.ndarray
    most: np.ndarray


@dataclass(frozen=True)
class Rim:
    """The skin of the average head where the skin of one scan is kept, close to what is emptied.

    points, normals: (R, 3) in voxels.  around: (R, `RIM_AROUND`) the points nearest to each.  between: (R, R)
    distances up to what `MEETING_WIDE` needs (sparse).
    voxels: flat index (n,) of those that may follow, on the grid `RIM_GRID` times coarser; nearest, shares:
    (n, `RIM_POINTS`) the points each follows and how much; away: (n,) voxels to the rim; outward: (3, n)."""

    points: np.ndarray
    normals: np.ndarray
    around: np.ndarray
    between: Any
    voxels: np.ndarray
    nearest: np.ndarray
    shares: np.ndarray
    away: np.ndarray
    outward: np.ndarray

    @classmethod
    def of(
        cls, template: Template, region: np.ndarray, depth: np.ndarray, values: Values, hidden: Values
    ) -> tuple[Rim, np.ndarray]:
        """The rim of a defaced scan, and where the kept skin lies there: `heights`. region: bool (A, S, L), what
        is emptied.  depth: (A, S, L) voxels below the original skin.  values, hidden: as for `meeting`."""
        import torch
        from scipy.ndimage import binary_dilation, binary_erosion
        from scipy.spatial import cKDTree

        average, normal = template.skin
        outer = binary_dilation(region, iterations=RIM[1])
        inner = binary_erosion(region, iterations=RIM[0])
        points = np.argwhere(outer & ~inner & (average < 0) & (average > -1.01))
        normals = unit(normal[:, *points.T].T)
        found = _crossings(values, SKIN_LEVEL, points, normals, RIM_REACH, outermost=True)
        at = points + np.nan_to_num(found)[:, None] * normals
        cut = np.maximum(*(hidden(at + side * STEP * normals) for side in (-1, 1))) > HIDDEN
        below = trilinear(depth[None], at)[0]
        skin = np.isfinite(found) & (below < np.where(cut, SCRAPED, SHALLOW))
        points, normals, found = points[skin], normals[skin], found[skin]
        tree = cKDTree(points)
        widest, reach = MEETING_WIDE
        near = (average > -reach) & (average < RIM_REACH + 2) & binary_dilation(outer, iterations=2)
        near = near[(slice(None, None, RIM_GRID),) * 3]
        near[near] = tree.query(RIM_GRID * np.argwhere(near), distance_upper_bound=reach)[0] < reach
        at, threads = RIM_GRID * np.argwhere(near), torch.get_num_threads()
        distance, nearest = tree.query(at, _nearest(RIM_POINTS, len(points)), workers=threads)
        away = distance[:, :1]
        shares = np.exp(-0.5 * (distance**2 - away**2) / np.maximum(1.0, RIM_SPREAD * away) ** 2)
        rim = cls(
            points=points.astype(np.float64),
            normals=normals,
            around=tree.query(points, _nearest(RIM_AROUND, len(points)))[1],
            between=tree.sparse_distance_matrix(tree, 2.5 * widest, output_type="coo_matrix").tocsr(),
            voxels=np.flatnonzero(near),
            nearest=nearest,
            shares=(shares / shares.sum(axis=1, keepdims=True)).astype(np.float32),
            away=away[:, 0].astype(np.float32),
            outward=unit(normal[:, *at.T].T).T.astype(np.float32),
        )
        return rim, rim._agreed(found)

    def heights(self, image: np.ndarray) -> np.ndarray:
        """How far the skin of an image (A, S, L), -1..1, lies in front of the average skin at the points, in
        voxels (R,): NaN where there is none, and where it is not the skin, being off what is found around it."""
        return self._agreed(
            _crossings(reader(image), SKIN_LEVEL, self.points, self.normals, RIM_REACH, outermost=True)
        )

    def _agreed(self, found: np.ndarray) -> np.ndarray:
        """Heights (R,) without those that are off what is found around them: NaN."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nothing was found around
            off = np.abs(found - np.nanmedian(found[self.around], axis=1))
        return np.where(off < RIM_STEP, found, np.nan)

    def led_on(self, missed: np.ndarray, window: tuple[float, float], shape: tuple[int, ...]) -> Tensor:
        """The displacement (3, A, S, L) that raises the skin by what is `missed` (R,) voxels at the rim, averaged
        and led on as `window` says."""
        import torch
        from torch.nn import functional

        sigma, reach = window
        known = np.isfinite(missed).astype(np.float64)
        share = self.between.copy()
        share.data = np.exp(-0.5 * (share.data / sigma) ** 2)
        total = share @ np.nan_to_num(missed) + np.nan_to_num(missed)  # the matrix leaves out distance 0
        mean = (total / np.maximum(share @ known + known, 1e-6)).astype(np.float32)
        ratio = np.clip(self.away / reach, 0, 1)
        amount = (mean[self.nearest] * self.shares).sum(axis=1) * (1 - ratio**2 * (3 - 2 * ratio))
        coarse = tuple(-(-length // RIM_GRID) for length in shape)
        field = np.zeros((3, *coarse), np.float32)
        field.reshape(3, -1)[:, self.voxels] = -amount * self.outward
        at = [RIM_GRID * (length - 1) + 1 for length in coarse]  # where the outermost voxels of both grids meet
        full = functional.interpolate(torch.from_numpy(field)[None], at, mode="trilinear", align_corners=True)
        beyond = [n for length, end in zip(shape[::-1], at[::-1], strict=True) for n in (0, length - end)]
        return functional.pad(full, beyond, mode="replicate")[0]


def _nearest(wanted: int, there: int) -> np.ndarray:
    """Which neighbours a k-d tree of so many points is asked for; one at least, which an empty one takes."""
    return np.arange(1, 1 + max(1, min(wanted, there)))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 3) at length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-3))


def _distance(inside: np.ndarray) -> np.ndarray:
    """Distance to the border of a bool mask in voxels, negative inside."""
    from scipy.ndimage import distance_transform_edt

    result: np.ndarray = distance_transform_edt(~inside) - distance_transform_edt(inside)
    return result.astype(np.float32)


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """Images (C, A, S, L) read at each voxel plus its displacement (3, A, S, L) in voxels, trilinear."""
    return sample_at(images, moved(displacement))


def moved(displacement: Tensor) -> Tensor:
    """The index of each voxel plus its displacement (3, A, S, L), in voxels."""
    import torch

    axes = [torch.arange(n, dtype=torch.float32) for n in displacement.shape[1:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement


def trilinear(images: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Trilinear values of images (C, A, S, L) at points (N, 3) in voxels: (C, N)."""
    from scipy.ndimage import map_coordinates

    images = images.astype(np.float32, copy=False)
    return np.stack([map_coordinates(image, at.T, order=1, mode="nearest") for image in images])


def heights(
    image: np.ndarray, valid: np.ndarray, at: np.ndarray, outward: np.ndarray, reach: float = REACH
) -> np.ndarray:
    """How far along `outward` (N, 3) from the points `at` (N, 3) the image (A, S, L), -1..1, falls below
    `SKIN_LEVEL`, in voxels (N,): the crossing nearest to the point, NaN where there is none within `reach` or
    where it is not valid (bool, A, S, L)."""
    height = _crossings(reader(image), SKIN_LEVEL, at, outward, reach)
    seen = trilinear(valid.astype(np.float32)[None], at + np.nan_to_num(height)[:, None] * outward)[0] > 0.99
    return np.where(seen, height, np.nan)


def reader(image: np.ndarray) -> Values:
    """What tells the values (M,) of an image (A, S, L) at points (M, 3) in voxels."""
    return lambda points: trilinear(image[None], points)[0]


def _crossings(
    values: Values,
    level: float,
    at: np.ndarray,
    outward: np.ndarray,
    reach: float,
    outermost: bool = False,
) -> np.ndarray:
    """How far along `outward` (N, 3) from the points `at` (N, 3), in voxels, what has `values` (M,) at points
    (M, 3) falls below `level`: (N,), the crossing nearest to the point or the outermost, NaN where there is none
    within `reach`."""
    steps = np.arange(-reach, reach + STEP / 2, STEP)
    along = at[:, None] + steps[None, :, None] * outward[:, None]
    profile = values(along.reshape(-1, 3)).reshape(along.shape[:2])
    inner, outer = profile[:, :-1], profile[:, 1:]
    crossing = steps[:-1] + (inner - level) / np.maximum(inner - outer, 1e-6) * STEP
    away = np.where((inner > level) & (outer <= level), np.abs(crossing), np.inf)
    if outermost:
        away = np.where(np.isfinite(away), -steps[:-1], np.inf)
    found, rows = away.argmin(axis=1), np.arange(len(at))
    return np.where(np.isfinite(away[rows, found]), crossing[rows, found], np.nan)
