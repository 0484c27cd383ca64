"""Re-identification: is the person still recognised? (Molchanova et al. 2023, section 2.4 and appendix D)

The skin of a scan is drawn from several sides, a face recogniser looks at the pictures (`faces.py`), and what it
sees is compared with what it sees of the originals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..rendering import skin_surface as surface
from ..volume.volume import Volume
from .face_recognition import FaceModels, Look, distance

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    *("MATCH", "VIEWS", "FaceModels", "Look", "Recogniser", "distance", "identification", "nearest", "portraits"),
    "rescan",
]

VIEWS = ("frontal", "left three-quarter", "right three-quarter", "from above")
"""Of seven views of 40 heads these separated people best: AUC of simulated re-scans 1.00, 1.00, 1.00 and 0.99
(from below 0.95, profiles 0.66 and 0.88). Four views together: at most 0.35 from the own re-scan, 1 % of the
distances to other people below 0.45."""
MATCH = 0.4
"""Two looks nearer to each other than this are taken for one person (Molchanova et al. 2023, appendix D)."""
SIZE = 384  # pixels; of 512 the recogniser confuses more people, of 256 it takes bare skulls for faces

TURN, SHIFT = 4.0, 4.0  # pose: degrees about each axis and mm along it, standard deviation
GAIN, BIAS, NOISE = 0.1, 0.15, 0.02  # of the signal: standard deviation, edge against centre, of its brightest
VOXEL = 0.9, 1.15  # voxel size, least and most, against the original's or `surface.FINEST_MM`
MARGIN = 12.0  # mm of air around the field of view, into which the head may move


def portraits(
    volume: Volume, reference: Volume, views: Sequence[str] = VIEWS, size: int = SIZE
) -> list[np.ndarray]:
    """Pictures (size, size, 3) uint8 of a head, one for each view, drawn as `reference`, its original, would be:
    with the skin threshold and the frame of that scan, so that what differs are the faces.

    Raises InputError where nothing is brighter than the threshold, for an unknown view and without OpenGL.
    """
    threshold = surface.skin_threshold(reference.array, reference.spacing)
    own = surface.skin_surface(reference.array, reference.affine, threshold)
    skin = own if volume is reference else surface.skin_surface(volume.array, volume.affine, threshold)
    return surface.render(skin, views, (size, size), surface.frame_of(own))


class Recogniser:
    """A face detector and one recogniser, at hand to compare refaced scans with their original. How the last
    original looks is kept, so that a further face of it costs one head's pictures.

    detector, recogniser: ONNX files, or for the recogniser a table; see `FaceModels`, whose errors are raised.
    """

    def __init__(self, detector: Path, recogniser: Path | dict[str, Any], threads: int = 1) -> None:
        self._models = FaceModels(detector, {"": recogniser}, threads)
        self._original: tuple[bytes, float, surface.Frame, Look] | None = None

    def check(
        self, original: Volume, refaced: Volume, limit: float = MATCH, pause: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Whether a refaced scan still looks like its original, as an entry for a report's checks.

        limit: the least distance, 0..2, at which two faces do not match.  pause: called between two pieces of
        work, of a second at most; what it raises goes through. The entry's value is the distance, None where no
        view shows both faces; detected: the detector's best score (0..1, 0 for no face) of original and refaced.
        Raises InputError as `portraits` does.
        """
        _, level, frame, own = self._look_at_original(original, pause)
        other = self._look(surface.skin_surface(refaced.array, refaced.affine, level), frame, pause)
        apart = distance(own, other)
        return {
            "name": "face_distance",
            "value": None if math.isnan(apart) else round(apart, 3),
            "limit": [limit, 2.0],
            "passed": not apart < limit,  # nobody is recognised where there is no face
            "detected": [round(float(look.scores.max()), 3) for look in (own, other)],
        }

    def _look_at_original(
        self, original: Volume, pause: Callable[[], None]
    ) -> tuple[bytes, float, surface.Frame, Look]:
        digest = hashlib.sha256(original.stored.tobytes("A") + original.affine.tobytes()).digest()
        if self._original is None or self._original[0] != digest:
            level = surface.skin_threshold(original.array, original.spacing)
            pause()
            skin = surface.skin_surface(original.array, original.affine, level)
            frame = surface.frame_of(skin)
            self._original = digest, level, frame, self._look(skin, frame, pause)
            pause()
        return self._original

    def _look(self, skin: surface.Surface, frame: surface.Frame, pause: Callable[[], None]) -> Look:
        pause()
        pictures = surface.render(skin, VIEWS, (SIZE, SIZE), frame)
        pause()
        return self._models.look(pictures)[""]


def rescan(volume: Volume, rng: np.random.Generator) -> Volume:
    """The same head scanned once more, simulated: another pose (`TURN`, `SHIFT`), gain (`GAIN`), bias field
    (`BIAS`: linear and quadratic), Rician noise (`NOISE`) and voxel size (`VOXEL`; linear interpolation).

    Drawn with the original as reference (see `portraits`), the gain changes where the skin begins. Where there
    is one scan a person, correct matches come from here. They are simulated: expression, weight, hair and
    another scanner are not in them, so two real scans of a person lie further apart than these, and a threshold
    that fits these calls fewer faces identified than one from real repeats would.
    """
    from scipy.ndimage import affine_transform
    from scipy.spatial.transform import Rotation

    values = volume.array
    low, high = float(values.min()), float(np.percentile(values[::2, ::2, ::2], 99))
    extent = np.array(volume.shape) * volume.spacing + 2 * MARGIN
    spacing = np.maximum(volume.spacing, surface.FINEST_MM) * rng.uniform(*VOXEL, size=3)
    shape = np.ceil(extent / spacing).astype(int)
    affine = volume.affine @ np.diag([*(spacing / volume.spacing), 1])
    centre = volume.affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, TURN, 3), degrees=True).as_matrix()
    move[:3, 3] = centre - move[:3, :3] @ (centre + rng.normal(0, SHIFT, 3))
    matrix = np.linalg.inv(volume.affine) @ move @ affine
    signal = affine_transform(values - low, matrix[:3, :3], matrix[:3, 3], tuple(shape), order=1)
    signal *= np.exp(rng.normal(0, GAIN))
    for axis, length in enumerate(shape):
        edge = np.linspace(-1, 1, length)
        field = 1 + rng.uniform(-BIAS, BIAS) * edge + rng.uniform(-BIAS, BIAS) * edge**2
        signal *= np.expand_dims(field, [other for other in range(3) if other != axis]).astype(np.float32)
    real, imaginary = rng.normal(0, NOISE * (high - low), (2, *shape)).astype(np.float32)
    return replace(volume, stored=volume.to_stored(np.hypot(signal + real, imaginary) + low), affine=affine)


def identification(probes: Mapping[str, Look], gallery: Mapping[str, Look]) -> pd.DataFrame:
    """How well the scans' own originals are found among all originals.

    probes, gallery: scan -> look at its output, at its original; the gallery knows every scan of the probes.
    Columns: scan; rank of the own original (1 = nearest); auc, the share of the other originals that are
    further away than the own one, ties half; own_distance. A face that was not detected is not identified: its
    three values are NaN, and so is auc in a gallery of one. An original without a face is out of the running.

    Raises InputError for a probe without an original.
    """
    import pandas as pd

    rows = []
    for scan, probe in probes.items():
        if scan not in gallery:
            raise InputError(f"{scan} has no original in the gallery; evaluate its original too.")
        own = distance(probe, gallery[scan])
        others = np.array([distance(probe, look) for name, look in gallery.items() if name != scan])
        others = others[~np.isnan(others)]
        seen = not np.isnan(own)
        auc = np.mean((others > own) + 0.5 * (others == own)) if seen and others.size else np.nan
        rank = 1.0 + np.count_nonzero(others < own) if seen else np.nan
        rows.append((scan, rank, float(auc), own))
    return pd.DataFrame(rows, columns=["scan", "rank", "auc", "own_distance"])


def nearest(look: Look, gallery: Mapping[str, Look]) -> tuple[str, float]:
    """Name and distance of the look in a gallery, e.g. of the training faces, that comes nearest; "" and NaN
    where no two views can be compared."""
    distances = {name: distance(look, other) for name, other in gallery.items()}
    comparable = {name: value for name, value in distances.items() if not np.isnan(value)}
    name = min(comparable, key=comparable.__getitem__, default="")
    return name, comparable.get(name, float("nan"))
