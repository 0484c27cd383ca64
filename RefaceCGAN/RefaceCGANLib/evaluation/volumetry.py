"""Volumetry: how large the parts of the brain are, before and after the face was changed.

A backend segments a scan; two segmentations of one scan, original and output, are compared by their volumes and
by Dice. Two backends of different kinds are built in, as the answer of one does not hold for another (the paper's
lesson, section 5): `MeshNet`, a network that sees the whole head, and `TissueClasses`, which knows nothing but the
intensities inside a brain mask, as FSL's FAST does. Other programs: `volumetry_external`; volumes from anywhere
else, such as MorphoBox: `read_volumes_csv`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from ..errors import CheckError, InputError
from ..spatial.grid import bounding_box, largest, sample
from ..volume.volume import Volume
from .meshnet import Network, conform, threads_of_torch

if TYPE_CHECKING:
    import pandas as pd
from .segmentation import Segmentation
from .volumetry_external import FastSurfer, FslAnat, SynthSeg

REGIONS = (
    *("TIV", "CSF", "GM", "WM"),
    *("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala"),
)
"""The paper's regions (section 2.3.4), left and right together."""
COLUMNS = ("scan", "tool", "region", "ml")
HEAD = 51
"""A fifth of the conformed range: the networks see the box of all that is brighter, as in brainchop."""
MARGIN = 8
"""Margin around that box, voxels."""
QUANTILES = (0.02, 0.98)
"""Of the conformed image: 0 and 1 for `mindgrab`."""


class Backend(Protocol):
    """What segments a scan. Two scans of one geometry come out on one grid."""

    name: str

    def segment(self, volume: Volume) -> Segmentation: ...


class MeshNet:
    """brainchop's `model18cls`: 18 classes in a T1w head, on the conformed grid (1 mm, 256 per axis).

    The regions, of its classes: CSF, the ventricles (it has no class for the CSF around the brain); GM, cortex of
    cerebrum and cerebellum and all deep nuclei; WM, white matter of both, brain stem and ventral diencephalon;
    TIV, everything together, so brain and ventricles.
    """

    name = "meshnet"
    CLASSES = 18
    REGIONS: ClassVar[dict[str, tuple[int, ...]]] = {
        "TIV": tuple(range(1, 18)),
        "CSF": (3, 4, 11, 12),  # lateral, inferior lateral, third, fourth ventricle
        "GM": (2, 6, 7, 8, 9, 10, 14, 15, 16),  # 2, 6: cortices; 16: accumbens
        "WM": (1, 5, 13, 17),  # cerebrum, cerebellum, brain stem, ventral diencephalon
        **{"thalamus": (7,), "caudate": (8,), "putamen": (9,), "pallidum": (10,)},
        **{"hippocampus": (14,), "amygdala": (15,)},
    }

    def __init__(self, weights: Path, threads: int | None = None) -> None:
        """weights: the folder with model.json and model.bin.  threads: None, as many as torch uses.
        Raises InputError unless it holds a network of 18 classes."""
        self._network = _network(weights, self.CLASSES, "model18cls")
        self._threads = threads

    def segment(self, volume: Volume) -> Segmentation:
        """Segment a T1w head; the largest connected part of all labels is kept, as in brainchop.

        Raises CheckError where no brain is found."""
        image, affine = conform(volume)
        box = _head(image)
        labels = np.zeros_like(image)
        with threads_of_torch(self._threads):
            labels[box] = self._network.label(image[box].astype(np.float32) / 255)
        labels[~_main_part(labels > 0, volume)] = 0
        return Segmentation(labels, affine, self.REGIONS)


class TissueClasses:
    """Three classes of intensity inside the brain, on the scan's own grid: dipy's hidden Markov random field
    (Zhang et al. 2001, the method of FSL's FAST), after N4 has taken off the bias field.

    The brain mask comes from the scan itself, so a changed face can change it: brainchop's `mindgrab`. CSF holds
    what the mask holds of it, TIV is the mask.
    """

    name = "hmrf"
    REGIONS: ClassVar[dict[str, tuple[int, ...]]] = {"TIV": (1, 2, 3), "CSF": (1,), "GM": (2,), "WM": (3,)}
    BETA = 0.1
    """Weight of the neighbours, dipy's example."""

    def __init__(self, weights: Path, threads: int | None = None) -> None:
        """weights: the folder of `mindgrab`.  threads: None, as many as torch uses.
        Raises InputError unless it holds a network of 2 classes."""
        self._network = _network(weights, 2, "mindgrab")
        self._threads = threads

    def segment(self, volume: Volume) -> Segmentation:
        """Segment a T1w head (CSF dark, white matter bright). Raises CheckError where no brain is found."""
        mask = self._brain_mask(volume)
        box = _widened(bounding_box(mask), 1)
        labels = np.zeros(volume.shape, dtype=np.uint8)
        labels[box] = _tissue(_unbiased(volume.array[box], mask[box], volume.spacing), mask[box], self.BETA)
        return Segmentation(labels, volume.affine, self.REGIONS)

    def _brain_mask(self, volume: Volume) -> np.ndarray:
        """bool (I, J, K)."""
        import torch

        image, affine = conform(volume)
        box = _head(image)
        low, high = np.quantile(image, QUANTILES).astype(np.float32)
        brain = np.zeros(image.shape, dtype=np.float32)
        with threads_of_torch(self._threads):
            brain[box] = self._network.label(np.clip((image[box] - low) / (high - low), 0, 1))
        brain *= _main_part(brain > 0, volume)
        native = sample(torch.from_numpy(brain)[None], np.linalg.inv(affine) @ volume.affine, volume.shape)
        mask: np.ndarray = native[0].numpy() > 0.5
        return mask


def _network(folder: Path, classes: int, name: str) -> Network:
    network = Network(Path(folder))
    if network.classes != classes:
        raise InputError(f"{folder} holds a network of {network.classes} classes; give brainchop's {name}.")
    return network


def _head(image: np.ndarray) -> tuple[slice, slice, slice]:
    """The box of the conformed head, with some air around it."""
    return _widened(bounding_box(image > HEAD), MARGIN)


def _widened(box: tuple[slice, slice, slice], voxels: int) -> tuple[slice, slice, slice]:
    i, j, k = (slice(max(0, span.start - voxels), span.stop + voxels) for span in box)
    return i, j, k


def _main_part(mask: np.ndarray, volume: Volume) -> np.ndarray:
    """The largest part of a bool mask (X, Y, Z) that hangs together; corners count.
    Raises CheckError where it is empty."""
    from scipy import ndimage

    parts, count = ndimage.label(mask, np.ones((3, 3, 3), dtype=bool))
    if not count:
        raise CheckError(f"No brain was found in {volume.source or 'the scan'}; give a T1w scan of a head.")
    main: np.ndarray = parts == largest(parts)
    return main


def _unbiased(values: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Values (I, J, K) without their bias field, which N4 estimates inside the mask on a grid of about 4 mm."""
    import SimpleITK as sitk

    def image_of(array: np.ndarray) -> sitk.Image:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing(spacing)
        return image

    image = image_of(values)
    factors = [max(1, round(4 / mm)) for mm in spacing]
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetNumberOfThreads(1)  # the same field each time
    correction.Execute(sitk.Shrink(image, factors), sitk.Shrink(image_of(mask.astype(np.uint8)), factors))
    field: np.ndarray = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)).T
    return values / np.exp(field)


def _tissue(values: np.ndarray, mask: np.ndarray, beta: float) -> np.ndarray:
    """1 CSF, 2 GM, 3 WM inside the mask, else 0: uint8 (I, J, K)."""
    from dipy.segment.tissue import TissueClassifierHMRF

    low, high = np.quantile(values[mask], (0.001, 0.999))
    scaled = np.clip((values - low) / (high - low), 0.01, 1)
    # dipy would draw this noise for the background itself, another each time
    noise = 0.001 + 1e-7 * np.random.default_rng(0).standard_normal(mask.shape)
    _, classes, _ = TissueClassifierHMRF(verbose=False).classify(np.where(mask, scaled, noise), 3, beta)
    return np.where(mask, np.maximum(classes, 1), 0).astype(np.uint8)


def backend_of(config: dict[str, Any]) -> Backend:
    """Make a backend of its table: its name, and what its class takes.

    {"name": "meshnet", "weights": FOLDER}, {"name": "hmrf", "weights": FOLDER}, {"name": "fsl_anat"},
    {"name": "mri_synthseg"}, {"name": "fastsurfer"}; "threads" for all, "time_limit" (seconds) for the last three.
    Raises InputError for another name or key, and for what the classes raise it for.
    """
    classes: dict[str, Any] = {kind.name: kind for kind in (MeshNet, TissueClasses, FslAnat, SynthSeg, FastSurfer)}
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in classes:
        raise InputError(f"There is no volumetry {name}; choose from {', '.join(classes)}.")
    kind = classes[name]
    takes = inspect.signature(kind).parameters
    if unknown := sorted(settings.keys() - takes.keys()):
        raise InputError(f"Volumetry {name} takes no {unknown[0]}; it takes {', '.join(takes)}.")
    if "weights" in takes and "weights" not in settings:
        raise InputError(f"Volumetry {name} needs weights, the folder of its brainchop model; name it.")
    backend: Backend = kind(**settings)
    return backend


def read_volumes_csv(path: Path) -> pd.DataFrame:
    """Volumes that another program measured: a table with the columns scan, tool, region, ml.

    tool is "original" or a tool's name, region one of `REGIONS`. Raises InputError for whatever else it holds.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"scan": str, "tool": str, "region": str})
    except (OSError, ValueError):
        raise InputError(f"{path} is no readable CSV file; export it again.") from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise InputError(f"{path} has no column {missing[0]}; its columns must be {', '.join(COLUMNS)}.")
    table = table[list(COLUMNS)]
    if unknown := sorted(set(table["region"].dropna()) - set(REGIONS)):
        raise InputError(f"{path} names the region {unknown[0]}; known are {', '.join(REGIONS)}.")
    table["ml"] = pd.to_numeric(table["ml"], errors="coerce")
    if table.isna().any(axis=None) or not (table["ml"] >= 0).all() or np.isinf(table["ml"]).any():
        raise InputError(f"{path} has an empty cell or a volume that is no number of ml; mend that row.")
    if table.duplicated(["scan", "tool", "region"]).any():
        raise InputError(f"{path} gives a volume twice; keep one row for each scan, tool and region.")
    return table
