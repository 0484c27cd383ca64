"""Other people's programs as tools: found on the PATH, run in a folder of their own within a time limit, timed.

Options and names of outputs as documented by (read in November 2025): AFNI's @afni_refacer_run 2.4 and
afni_refacer2 2.7, pydeface 2.0, mri_reface 0.3, FreeSurfer's mideface, quickshear 1.2, niimath 1.0.20261016.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.model import sha256
from ..volume.volume import Volume
from .external_process import run_program
from .tool_base import Tool, on_grid_of, scan_name

TIME_LIMIT = 3600.0
"""Seconds; mri_reface and mideface take minutes, the others less."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")


class Program(Tool):
    """A program that is called once for each scan. time_limit: seconds after which it is stopped."""

    names: tuple[str, ...]
    """What it may be called on the PATH."""
    get: str
    """How to get it, the end of a sentence."""
    suffix = ".nii.gz"
    """Of the file it reads."""

    def __init__(self, name: str, time_limit: float = TIME_LIMIT, settings: dict[str, Any] | None = None) -> None:
        self.time_limit = float(time_limit)
        super().__init__(name, {"kind": type(self).__name__} | (settings or {}))

    def require(self) -> None:
        self.program()

    def program(self) -> str:
        """The path of the program: on the PATH, or beside this Python, where pip puts programs."""
        beside = str(Path(sys.executable).parent)
        for name in self.names:
            if path := shutil.which(name) or shutil.which(name, path=beside):
                return path
        raise InputError(f"Tool {self.name}: {self.names[0]} is not on the PATH; {self.get}.")

    @abstractmethod
    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        """The program's arguments, and the file in `folder` that it will have written. scan: a copy of the
        original, in `folder`."""

    def run(self, original: Path, output: Path, seed: int | None = None) -> float:
        program = self.program()
        volume = Volume.read(original)
        with tempfile.TemporaryDirectory(prefix="refacecgan-") as temporary:
            folder = Path(temporary)
            scan = folder / f"scan{self.suffix}"
            volume.write(scan)
            arguments, result = self.command(scan, folder, original)
            began = time.perf_counter()
            run_program(
                [program, *arguments], folder, ONE_THREAD, self.time_limit, self.names[0],
                "raise the tool's time_limit",
            )  # fmt: skip
            seconds = time.perf_counter() - began
            if not result.is_file():
                raise InputError(f"{self.names[0]} wrote no {result.name}; run it by hand on {original.name}.")
            on_grid_of(volume, Volume.read(result)).write(output)
        return seconds


def _file(tool: str, path: str) -> Path:
    if not Path(path).is_file():
        raise InputError(f"Tool {tool}: {path} is no file; check the path.")
    return Path(path)


class NiimathReface(Program):
    """niimath -reface: AFNI's shell, registered and scaled. template, shell, weight: files in one space (shell:
    > 0 face to put in, 0 keep, < 0 empty)."""

    names = ("niimath",)
    get = "install it with pip install niimath"
    paths = ("template", "shell", "weight")

    def __init__(self, name: str, template: str, shell: str, weight: str, **options: Any) -> None:
        files = {"template": template, "shell": shell, "weight": weight}
        self.template, self.shell, self.weight = (_file(name, path) for path in files.values())
        digests = {role: sha256(Path(path)) for role, path in files.items()}
        super().__init__(name, **options, settings={"files": digests})

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        result = folder / "refaced.nii.gz"
        files = [str(path) for path in (self.template, self.shell, self.weight)]
        return [str(scan), "-p", "1", "-reface", *files, str(result)], result


class NiimathDeface(Program):
    """niimath -deface. template and mask in one space (mask: 1 keep, 0 empty), or in place of the mask a shell
    as for -reface, of which is kept where it is 0."""

    names = ("niimath",)
    get = NiimathReface.get
    paths = ("template", "shell", "mask")

    def __init__(self, name: str, template: str, mask: str = "", shell: str = "", **options: Any) -> None:
        if bool(mask) == bool(shell):
            raise InputError(f"Tool {name}: give either mask or shell.")
        self.template, self.mask, self.is_shell = _file(name, template), _file(name, mask or shell), bool(shell)
        files = {"template": sha256(self.template), "shell" if shell else "mask": sha256(self.mask)}
        super().__init__(name, **options, settings={"files": files})

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        result, mask = folder / "defaced.nii.gz", self.mask
        if self.is_shell:
            shell, mask = Volume.read(self.mask), folder / "keep.nii.gz"
            Volume.from_array(shell.stored == 0, shell.affine).write(mask)
        return [str(scan), "-p", "1", "-deface", str(self.template), str(mask), str(result)], result


class Pydeface(Program):
    """pydeface; it needs FSL's flirt."""

    names = ("pydeface",)
    get = "install FSL (fsl.fmrib.ox.ac.uk) and pip install pydeface"

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        result = folder / "defaced.nii.gz"
        return [str(scan), "--outfile", str(result), "--force"], result


class Afni(Program):
    """@afni_refacer_run; mode: deface, reface or reface_plus. shell: the name of one of AFNI's shells."""

    names = ("@afni_refacer_run",)
    get = "install AFNI (afni.nimh.nih.gov)"
    shell_option = "-shell"
    modes = ("deface", "reface", "reface_plus")

    def __init__(self, name: str, mode: str, shell: str = "", **options: Any) -> None:
        if mode not in self.modes:
            raise InputError(f"Tool {name}: mode must be one of {', '.join(self.modes)}.")
        super().__init__(name, **options, settings={"mode": mode, "shell": shell})

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        mode, shell = self.settings["mode"], self.settings["shell"]
        options = ["-input", str(scan), f"-mode_{mode}", "-no_images", "-prefix", str(folder / "out.nii.gz")]
        return options + ([self.shell_option, shell] if shell else []), self.result(folder)

    def result(self, folder: Path) -> Path:
        return folder / "out.nii.gz"


class Afni2(Afni):
    """afni_refacer2, which adds the mode to the name of its output."""

    names = ("afni_refacer2",)
    shell_option = "-ref_shell"

    def result(self, folder: Path) -> Path:
        return folder / f"out.{self.settings['mode']}.nii.gz"


class MriReface(Program):
    """mri_reface; image_type: T1, T2, FLAIR, ..."""

    names = ("run_mri_reface.sh", "run_mri_reface_docker.sh")
    get = "get it from nitrc.org/projects/mri_reface and put its folder on the PATH"
    suffix = ".nii"  # it reads no .nii.gz

    def __init__(self, name: str, image_type: str = "T1", **options: Any) -> None:
        super().__init__(name, **options, settings={"image_type": image_type})

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        out = folder / "out"
        out.mkdir()
        options = ["-imType", self.settings["image_type"], "-saveQCRenders", "0", "-threads", "1"]
        return [str(scan), str(out), *options], out / "scan_deFaced.nii"


class Mideface(Program):
    """FreeSurfer's mideface."""

    names = ("mideface",)
    get = "install FreeSurfer 7.3 or later (surfer.nmr.mgh.harvard.edu) and source its SetUpFreeSurfer.sh"

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        result = folder / "defaced.nii.gz"
        return ["--i", str(scan), "--o", str(result), "--threads", "1"], result


class Quickshear(Program):
    """quickshear. brain_mask: the path of each scan's brain mask (> 0), with {scan} for the scan's name; buffer:
    voxels between the brain and the cut."""

    names = ("quickshear", "quickshear.py")
    get = "install it with pip install quickshear"
    paths = ("brain_mask",)

    def __init__(self, name: str, brain_mask: str, buffer: int = 10, **options: Any) -> None:
        super().__init__(name, **options, settings={"brain_mask": brain_mask, "buffer": buffer})

    def inputs(self, original: Path) -> list[Path]:
        return [Path(self.settings["brain_mask"].replace("{scan}", scan_name(original)))]

    def command(self, scan: Path, folder: Path, original: Path) -> tuple[list[str], Path]:
        [path] = self.inputs(original)
        labels, mask, result = Volume.read(path), folder / "mask.nii.gz", folder / "defaced.nii.gz"
        Volume.from_array(labels.array > 0, labels.affine).write(mask)
        return [str(scan), str(mask), str(result), str(self.settings["buffer"])], result


PROGRAMS: dict[str, type[Tool]] = {
    "niimath-deface": NiimathDeface, "niimath-reface": NiimathReface, "pydeface": Pydeface, "afni": Afni,
    "afni2": Afni2, "mri_reface": MriReface, "mideface": Mideface, "quickshear": Quickshear,
}  # fmt: skip
