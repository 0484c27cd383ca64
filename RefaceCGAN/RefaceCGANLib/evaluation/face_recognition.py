"""Faces: what a face recogniser sees in pictures. ONNX Runtime detects, numpy decodes, scipy aligns.

The detector is YuNet, the embedders are networks of the ArcFace family (Molchanova et al. 2023, appendix D, chose
ArcFace); the user names their files, none is shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..volume.files import atomic_path

DETECTED = 0.3
"""YuNet's score from which on there is a face: low, so that a doubtful face still counts as one to recognise."""
STRIDES = 8, 16, 32  # pixels; YuNet looks for faces on one grid of each
EYES_NOSE_MOUTH = (
    (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041),
)  # fmt: skip
"""ArcFace's five points (x, y) in its picture of 112 pixels: eyes, tip of the nose, corners of the mouth."""
TEMPLATE_SIZE = 112
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of values in 0..1, RGB


@dataclass(frozen=True, eq=False)
class Look:
    """What a recogniser makes of one head, seen from V sides.

    scores: (V,) float32, the detector's, 0..1; 0 where it found no face.
    embeddings: (V, D) float32, each of length 1; NaN where there is no face.
    """

    scores: np.ndarray
    embeddings: np.ndarray

    def write(self, path: Path) -> None:
        """Write to an .npz file. Raises InputError where that is not possible."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, scores=self.scores, embeddings=self.embeddings)

    @classmethod
    def read(cls, path: Path) -> Look:
        """Read what `write` wrote. Raises InputError for anything else."""
        try:
            with np.load(path) as stored:
                return cls(stored["scores"], stored["embeddings"])
        except Exception as error:  # whatever numpy throws at a broken file
            raise InputError(f"{path} holds no look at a face; delete it and evaluate again.") from error


def distance(a: Look, b: Look) -> float:
    """Cosine distance, 0..2, mean over the views in which both have a face; NaN where there is none."""
    both = (a.scores > 0) & (b.scores > 0)
    if not both.any():
        return float("nan")
    apart = 1 - np.sum(a.embeddings[both] * b.embeddings[both], axis=1, dtype=np.float64)
    return max(0.0, float(np.mean(apart)))  # rounding may leave it just below


class FaceModels:
    """A face detector and embedders, loaded once; each process needs its own.

    detector: YuNet, of any input size (`yunet.onnx`; its own decoding is done here).
    embedders: name -> ONNX file, or a table with `path` and, where it differs from a network of 112x112 RGB
    pixels with ImageNet's mean and standard deviation, `size` (pixels), `mean` and `std` (one number or three, of
    values in 0..1) and `colour` ("rgb" or "bgr"). ArcFace as insightface hands it out: mean = 0.5, std = 0.5.

    Raises InputError for a file that is missing or no such network, and where ONNX Runtime is not installed.
    """

    def __init__(self, detector: Path, embedders: dict[str, Path | dict[str, Any]], threads: int = 1) -> None:
        self._detector = _session(Path(detector), threads)
        outputs = {output.name for output in self._detector.get_outputs()}
        if not outputs >= {f"{part}_{stride}" for part in ("cls", "obj", "bbox", "kps") for stride in STRIDES}:
            raise InputError(f"{detector} is no YuNet face detector; name its ONNX file.")
        self._embedders = {name: Embedder(spec, threads) for name, spec in embedders.items()}

    def look(self, images: Sequence[np.ndarray]) -> dict[str, Look]:
        """What each embedder makes of pictures (H, W, 3) uint8 RGB, one for each view."""
        found = [self.detect(image) for image in images]
        scores = np.array([score for score, _ in found], dtype=np.float32)
        looks = {}
        for name, embedder in self._embedders.items():
            rows = [
                embedder(image, points) if score else None
                for image, (score, points) in zip(images, found, strict=True)
            ]
            empty = np.full(embedder.length, np.nan, dtype=np.float32)
            looks[name] = Look(scores, np.array([empty if row is None else row for row in rows]))
        return looks

    def detect(self, image: np.ndarray) -> tuple[float, np.ndarray]:
        """The best face in a picture (H, W, 3) uint8 RGB: its score, 0 where that is below `DETECTED`, and its
        five points (5, 2) as x, y in pixels, in the order of `EYES_NOSE_MOUTH`.

        A picture shows one head, so the best candidate is the answer; to suppress its neighbours would not
        change it. Source: YuNet's post-processing in OpenCV's FaceDetectorYN.
        """
        height, width = (-(-side // STRIDES[-1]) * STRIDES[-1] for side in image.shape[:2])
        blob = np.zeros((1, 3, height, width), dtype=np.float32)
        blob[0, :, : image.shape[0], : image.shape[1]] = image[..., ::-1].transpose(2, 0, 1)  # BGR, 0..255
        names = [f"{part}_{stride}" for stride in STRIDES for part in ("cls", "obj", "kps")]
        outputs = iter(self._detector.run(names, {self._detector.get_inputs()[0].name: blob}))
        best, points = 0.0, np.empty((5, 2))
        for stride in STRIDES:
            face, there, offsets = (next(outputs)[0] for _ in range(3))
            scores = np.sqrt(np.clip(face[:, 0], 0, 1) * np.clip(there[:, 0], 0, 1))
            at = int(np.argmax(scores))
            if scores[at] >= max(best, DETECTED):
                row, column = divmod(at, width // stride)
                corner = np.array([column, row])
                best, points = float(scores[at]), (offsets[at].reshape(5, 2) + corner) * stride
        return best, points


class Embedder:
    """One network that turns a face into numbers, and how it wants the face."""

    def __init__(self, spec: Path | dict[str, Any], threads: int) -> None:
        table: dict[str, Any] = dict(spec) if isinstance(spec, dict) else {"path": spec}
        path = Path(table.pop("path", ""))
        self.size = int(table.pop("size", TEMPLATE_SIZE))
        self.mean, self.std = (np.asarray(table.pop(key, IMAGENET[key]), np.float32) for key in IMAGENET)
        colour = table.pop("colour", "rgb")
        if table or colour not in ("rgb", "bgr"):
            wrong = ", ".join(table) or f"colour {colour!r}"
            raise InputError(f"{path} cannot be set up with {wrong}; see the docstring of FaceModels.")
        self.step = 1 if colour == "rgb" else -1
        self.session = _session(path, threads)
        try:
            self.length = 2 * self._run(np.zeros((self.size, self.size, 3), np.float32)).size
        except Exception as error:  # whatever ONNX Runtime throws at a picture of another shape
            raise InputError(
                f"{path} takes no faces of 1x3x{self.size}x{self.size}; set its size or name another embedder."
            ) from error

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Numbers (D,) float32 of length 1: those of the aligned face and of its mirror image, joined."""
        face = align(image, points, self.size)
        numbers = np.concatenate([self._run(face), self._run(face[:, ::-1])])
        return numbers / np.linalg.norm(numbers)

    def _run(self, face: np.ndarray) -> np.ndarray:
        """(size, size, 3), 0..1 -> (D / 2,) float32."""
        blob = ((face - self.mean) / self.std)[..., :: self.step].transpose(2, 0, 1)[None]
        feed = {self.session.get_inputs()[0].name: np.ascontiguousarray(blob, dtype=np.float32)}
        numbers: np.ndarray = self.session.run(None, feed)[0].reshape(-1)
        return numbers


def align(image: np.ndarray, points: np.ndarray, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """The face of a picture (H, W, 3) uint8, turned, scaled and shifted so that its five points (5, 2), x and y
    in pixels, lie on `EYES_NOSE_MOUTH` as nearly as they can (least squares): (size, size, 3) float32, 0..1.
    Bilinear, black beyond the picture."""
    from scipy.ndimage import map_coordinates

    # in complex numbers a similarity is w = turn * z + shift
    z, w = (xy @ (1, 1j) for xy in (np.asarray(points), np.array(EYES_NOSE_MOUTH) * size / TEMPLATE_SIZE))
    turn = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean())
    target = np.arange(size) + 1j * np.arange(size)[:, None]
    source = (target - w.mean()) / turn + z.mean()
    at = np.stack([source.imag, source.real])
    channels = [map_coordinates(image[..., c].astype(np.float32), at, order=1) for c in range(3)]
    return np.stack(channels, axis=-1) / np.float32(255)


def _session(path: Path, threads: int) -> Any:
    """The network of an ONNX file, on the processor."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("Faces need ONNX Runtime; install it with: pip install onnxruntime.") from error
    if not path.is_file():
        raise InputError(f"{path} does not exist; name the ONNX file of the network.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{path} is no ONNX network that can be run; get it again.") from error
