"""Other people's volumetry: FSL's fsl_anat, FreeSurfer's mri_synthseg and FastSurfer, found on the PATH.

Each runs in a folder of its own within a time limit. Options and names of outputs as documented by (read in
November 2025): FSL 6.0, FreeSurfer 7.4, FastSurfer 2.4.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from ..volume.volume import Volume
from .external_process import run_program
from .segmentation import Segmentation

TIME_LIMIT = 4 * 3600.0
"""Seconds for one scan; fsl_anat takes half an hour to one and a half."""
ASEG: dict[str, tuple[int, ...]] = {
    "CSF": (4, 5, 14, 15, 24, 43, 44),  # ventricles and CSF
    "GM": (3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58),
    "WM": (2, 7, 16, 28, 41, 46, 60, 77),  # 16: brain stem; 28, 60: ventral diencephalon; 77: hypointensities
    **{"thalamus": (10, 49), "caudate": (11, 50), "putamen": (12, 51), "pallidum": (13, 52)},
    **{"hippocampus": (17, 53), "amygdala": (18, 54)},
}
"""Region -> labels of FreeSurfer's aseg. TIV is whatever is labelled (`_aseg_regions`)."""


class _Program(ABC):
    """A program that segments one scan. threads: it may use.  time_limit: seconds, then it is stopped."""

    name: str
    command: str
    get: str
    """How to get it, the end of a sentence."""

    def __init__(self, threads: int = 1, time_limit: float = TIME_LIMIT) -> None:
        """Raises InputError, which says how to get it, unless the program is on the PATH."""
        self.threads, self.time_limit = threads, time_limit
        if shutil.which(self.command) is None:
            raise InputError(f"{self.command} is not on the PATH; {self.get}.")

    def segment(self, volume: Volume) -> Segmentation:
        """Segment a T1w head. Raises InputError where the program fails, takes too long or writes nothing."""
        with tempfile.TemporaryDirectory(prefix="refacecgan-") as folder:
            scan = Path(folder) / "scan.nii.gz"
            _canonical(volume).write(scan)
            command, variables = [self.command, *self.arguments(scan)], {"OMP_NUM_THREADS": str(self.threads)}
            run_program(command, Path(folder), variables, self.time_limit, self.command, "raise time_limit")
            try:
                return self.result(scan)
            except FileNotFoundError as error:
                missing = Path(str(error.filename or error)).name
                raise InputError(f"{self.command} wrote no {missing}; run it by hand on this scan.") from None

    @abstractmethod
    def arguments(self, scan: Path) -> list[str]:
        """What the program is called with. scan: NIfTI, in a folder of its own."""

    @abstractmethod
    def result(self, scan: Path) -> Segmentation:
        """Read what the program wrote. Raises FileNotFoundError."""


class FslAnat(_Program):
    """fsl_anat: tissue classes by FAST, deep structures by FIRST. Not cropped, so that original and output stay
    on one grid. A voxel has a class and may have a structure; labels are class + 4 * number of the structure."""

    name = "fsl_anat"
    command = "fsl_anat"
    get = "install FSL from https://fsl.fmrib.ox.ac.uk and source its setup"
    STRUCTURES: ClassVar[dict[str, tuple[int, int]]] = {
        **{"thalamus": (10, 49), "caudate": (11, 50), "putamen": (12, 51), "pallidum": (13, 52)},
        **{"hippocampus": (17, 53), "amygdala": (18, 54)},
    }
    """FIRST's labels."""

    def arguments(self, scan: Path) -> list[str]:
        return ["-i", str(scan), "-o", str(scan.with_name("result")), "--nocrop"]

    def result(self, scan: Path) -> Segmentation:
        folder = scan.with_name("result.anat")
        tissue, affine = _read(folder / "T1_fast_seg.nii.gz")
        deep, _ = _read(folder / "T1_subcort_seg.nii.gz")
        labels = tissue.copy()
        for number, ids in enumerate(self.STRUCTURES.values(), start=1):
            labels[np.isin(deep, ids)] += np.uint8(4 * number)
        classes = {name: tuple(range(first, 28, 4)) for first, name in enumerate(("CSF", "GM", "WM"), start=1)}
        regions = {"TIV": tuple(label for label in range(28) if label % 4), **classes}
        for number, name in enumerate(self.STRUCTURES, start=1):
            regions[name] = tuple(range(4 * number, 4 * number + 4))
        return Segmentation(labels, affine, regions)


class SynthSeg(_Program):
    """FreeSurfer's mri_synthseg, on a grid of 1 mm. Its CSF includes that around the brain."""

    name = "mri_synthseg"
    command = "mri_synthseg"
    get = "install FreeSurfer 7.3 or newer from https://surfer.nmr.mgh.harvard.edu and source its setup"

    def arguments(self, scan: Path) -> list[str]:
        result = scan.with_name("result.nii.gz")
        return ["--i", str(scan), "--o", str(result), "--threads", str(self.threads), "--cpu"]

    def result(self, scan: Path) -> Segmentation:
        return _aseg(scan.with_name("result.nii.gz"))


class FastSurfer(_Program):
    """FastSurfer's segmentation alone, on the conformed grid (1 mm). Its CSF is mostly the ventricles."""

    name = "fastsurfer"
    command = "run_fastsurfer.sh"
    get = "install FastSurfer from https://deep-mi.org/research/fastsurfer and put its folder on the PATH"

    def arguments(self, scan: Path) -> list[str]:
        where = ["--t1", str(scan), "--sd", str(scan.parent), "--sid", "result"]
        alone = ["--seg_only", "--no_cereb", "--no_hypothal", "--no_biasfield", "--vox_size", "1"]
        return [*where, *alone, "--threads", str(self.threads), "--device", "cpu"]

    def result(self, scan: Path) -> Segmentation:
        return _aseg(scan.with_name("result") / "mri" / "aseg.auto_noCCseg.mgz")


def _canonical(volume: Volume) -> Volume:
    """The same scan with its axes along right, anterior, superior, as no program then turns it."""
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine))
    return Volume.from_array(np.asarray(image.dataobj), image.affine)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels, uint8 (I, J, K), and affine (4, 4). Raises FileNotFoundError."""
    import nibabel as nib

    if not path.is_file():
        raise FileNotFoundError(path)
    image: Any = nib.load(path)
    return np.asarray(image.dataobj).astype(np.uint8), image.affine


def _aseg(path: Path) -> Segmentation:
    labels, affine = _read(path)
    return Segmentation(labels, affine, {"TIV": tuple(range(1, 256)), **ASEG})
