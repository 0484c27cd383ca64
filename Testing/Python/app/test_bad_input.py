"""What bad input gets: status and sentence as designed, no output, nothing left behind, no input touched."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import RefaceCGANLib
import SimpleITK as sitk
from RefaceCGANLib import Refacer, Result, Volume
from RefaceCGANLib.app import service
from scipy import ndimage

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def blob(shape: tuple[int, ...] = (40, 44, 48), dtype: str = "i2") -> np.ndarray:
    """Voxels that a file may hold: noise, but not a head."""
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


def nifti(path: Path, stored: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(stored, AFFINE), path)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file in the folder with its bytes, hidden ones too, and every subfolder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def refused(refacecgan: Callable, tmp_path: Path) -> Callable[..., str]:
    """Call the command line, see that it refuses as it should, and return the sentence it says."""

    def call(*arguments: object, status: int = 2, words: str = "") -> str:
        before = contents(tmp_path)
        done = refacecgan(*arguments)
        assert done.status == status, done
        assert done.out == []
        [line] = done.err
        assert line.startswith("refacecgan: ") and words in line
        assert "bug" not in line and "Traceback" not in line and ".refacecgan" not in line
        assert contents(tmp_path) == before
        return line

    return call


@pytest.fixture
def outputs(tmp_path: Path) -> list[object]:
    """An output of each kind, and an older file where one of them is to go."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "report.json").write_text("old report")
    return [
        folder / "head.nii.gz", "--mask", folder / "mask.nii.gz", "--report", folder / "report.json",
        "--render", folder / "head.png",
    ]  # fmt: skip


# --- files that hold no scan ------------------------------------------------------------------------------


def test_a_missing_file(refused: Callable, tmp_path: Path, outputs: list) -> None:
    refused("reface", tmp_path / "head.nii.gz", *outputs, words="does not exist; check the path.")


def test_an_unreadable_file(
    refused: Callable, tmp_path: Path, outputs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:  # tests may run as root, who reads everything
        raise PermissionError(errno.EACCES, "Permission denied")

    scan = nifti(tmp_path / "head.nii.gz", blob())
    monkeypatch.setattr(gzip, "open", forbidden)
    refused("reface", scan, *outputs, words="may not be read; ask its owner")


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz", "head.mgz", "head.nrrd"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(refused: Callable, tmp_path: Path, outputs: list, name: str, kept: float) -> None:
    whole = tmp_path / name
    Volume.from_array(blob(), AFFINE).write(whole)
    content = whole.read_bytes()
    whole.write_bytes(content[: int(kept * len(content))])
    refused("reface", whole, *outputs, words=str(whole))


def test_a_text_file(refused: Callable, tmp_path: Path, outputs: list) -> None:
    scan = tmp_path / "head.nii.gz"
    scan.write_text("Dear colleague, attached please find the scan.\n" * 20)
    refused("reface", scan, *outputs, words=str(scan))


def test_a_zipped_text_file(refused: Callable, tmp_path: Path, outputs: list) -> None:
    scan = tmp_path / "head.nii.gz"
    scan.write_bytes(gzip.compress(b"Dear colleague, attached please find the scan.\n" * 20))
    refused("reface", scan, *outputs, words="not a NIfTI file")


def test_a_file_of_another_kind(refused: Callable, tmp_path: Path, outputs: list) -> None:
    (tmp_path / "head.jpg").write_bytes(b"\xff\xd8\xff")
    refused("reface", tmp_path / "head.jpg", *outputs, words="no known suffix")


def test_a_folder_without_dicom(refused: Callable, tmp_path: Path, outputs: list) -> None:
    refused("reface", tmp_path / "out", *outputs, words="no DICOM series")


# --- scans that are no head -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (blob((40, 44)), "2D"),
        (blob((40, 44, 1)), "2D"),
        (blob((40, 44, 48, 2)), "several volumes"),
        (blob((40, 44, 3)), "too few"),
        (np.full((40, 44, 48), np.nan, "f4"), "nothing but NaN"),
        (np.where(blob(dtype="f4") == 7, np.inf, blob(dtype="f4")), "infinite"),
        (np.full((40, 44, 48), 100, "i2"), "the value 100 in every voxel"),
        (np.zeros((40, 44, 48), "i2"), "the value 0 in every voxel"),
        (blob(dtype="c8"), "complex"),
    ],
    ids=["2D", "one slice", "4D", "thin", "NaN", "infinite", "constant", "all zero", "complex"],
)
def test_voxels_that_are_no_head(
    refused: Callable, tmp_path: Path, outputs: list, stored: np.ndarray, words: str
) -> None:
    refused("reface", nifti(tmp_path / "head.nii.gz", stored), *outputs, words=words)


@pytest.mark.parametrize("name", ["head.nii.gz", "head.nrrd"])
def test_colours(refused: Callable, tmp_path: Path, outputs: list, name: str) -> None:
    colours = sitk.GetImageFromArray(blob((40, 44, 48, 3), "u1"), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / name))
    refused("reface", tmp_path / name, *outputs, words="colours")


def skull_stripped(head: Path, labels: Path) -> Volume:
    """The brain alone, as skull stripping leaves it."""
    volume = Volume.read(head)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(Volume.read(labels).stored > 0, iterations=3))
    return volume.with_stored(np.where(brain, volume.stored, 0).astype(volume.stored.dtype))


def turned(head: Path, labels: Path, degrees: float) -> Volume:
    """A head that looks aside by so many degrees; the field of view ends 2 cm behind the brain's front."""

    def aside(path: Path) -> np.ndarray:
        volume = Volume.read(path)
        order = nib.orientations.io_orientation(volume.affine)
        to_ras = nib.orientations.ornt_transform(order, nib.orientations.axcodes2ornt("RAS"))
        values = nib.orientations.apply_orientation(volume.array, to_ras)
        return ndimage.rotate(values, -degrees, axes=(0, 1), order=0)

    right, front, _ = (part.max() - 10 for part in np.nonzero(aside(labels)))
    cut = aside(head)[:right] if degrees == 90 else aside(head)[:right, :front]
    return Volume.from_array(cut.astype(np.int16), AFFINE)


def knee() -> Volume:
    """Femur, tibia and kneecap in muscle, within a ring of fat, in a T1-weighted scan with 1.5 mm voxels."""
    a, s, left = np.indices((112, 128, 112)) * 1.5 - np.array([84.0, 96.0, 84.0])[:, None, None, None]
    values = np.zeros(a.shape, np.float32)
    width = 62 + 0.06 * np.abs(s)

    def rod(a0: float, l0: float, radius: np.ndarray | float, where: np.ndarray) -> None:
        away = np.hypot(a - a0, left - l0)
        values[(away < radius + 3) & where] = 60  # cortical bone is dark
        values[(away < radius) & where] = 800  # its marrow is fat

    away = np.hypot(a, left)
    values[away < width] = 850  # fat
    values[away < width - 9] = 380  # muscle
    rod(5, 0, 14 + 16 * np.exp(-np.abs(s - 4) / 25), s > 4)  # femur
    rod(2, 0, 13 + 16 * np.exp(-np.abs(s + 4) / 20), s < -4)  # tibia
    rod(-12, 30, 7, s < -25)  # fibula
    rod(46, 0, 15 * np.sqrt(np.clip(1 - ((s - 8) / 20) ** 2, 0, 1)), np.abs(s - 8) < 20)  # kneecap
    values = ndimage.gaussian_filter(values, 0.7)
    noise = np.random.default_rng(1).normal(0, 12, (2, *values.shape))
    affine = np.zeros((4, 4))
    affine[[1, 2, 0], [0, 1, 2]] = 1.5  # axes anterior, superior, and to the right
    affine[:3, 3], affine[3, 3] = -90, 1
    return Volume.from_array(np.hypot(values + noise[0], noise[1]).astype(np.int16), affine)


def no_head(sentence: str) -> None:
    """It is refused for what it is, and not for a drawn face that happened to fail a check."""
    assert "another seed" not in sentence


@pytest.mark.heads
def test_a_skull_stripped_brain(
    refused: Callable, heads: Path, model_dir: Path, tmp_path: Path, outputs: list
) -> None:
    scan = tmp_path / "brain.nii.gz"
    skull_stripped(heads / "val" / "ixi095.nii.gz", heads / "val" / "ixi095_seg.nii.gz").write(scan)
    no_head(refused("reface", scan, *outputs, "--model", model_dir, status=3))


@pytest.mark.heads
@pytest.mark.parametrize("degrees", [30, 90])
def test_a_head_turned_so_that_its_face_is_outside(
    refused: Callable, heads: Path, model_dir: Path, tmp_path: Path, outputs: list, degrees: float
) -> None:
    scan = tmp_path / "aside.nii.gz"
    turned(heads / "val" / "ixi095.nii.gz", heads / "val" / "ixi095_seg.nii.gz", degrees).write(scan)
    no_head(refused("reface", scan, *outputs, "--model", model_dir, status=3))


def test_a_knee(refused: Callable, model_dir: Path, tmp_path: Path, outputs: list) -> None:
    scan = tmp_path / "knee.nii.gz"
    knee().write(scan)
    no_head(refused("reface", scan, *outputs, "--model", model_dir, status=3))
    no_head(refused("deface", scan, tmp_path / "out" / "knee.nii.gz", "--model", model_dir, status=3))


def test_noise_even_if_forced(refused: Callable, model_dir: Path, tmp_path: Path, outputs: list) -> None:
    """There is nothing to force where no head is found."""
    scan = nifti(tmp_path / "noise.nii.gz", blob((80, 80, 80)))
    no_head(refused("reface", scan, *outputs, "--force", "--model", model_dir, status=3))


# --- weights ----------------------------------------------------------------------------------------------


@pytest.fixture
def model_copy(model_dir: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in model_dir.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


@pytest.mark.parametrize("role", ["generator", "anatomy", "template"])
@pytest.mark.parametrize("harm", ["missing", "tampered", "truncated"])
def test_missing_or_tampered_weights(
    refused: Callable, model_copy: Path, tmp_path: Path, outputs: list, role: str, harm: str
) -> None:
    card = json.loads((model_copy / "card.json").read_text())
    weights = model_copy / card["files"][role]["file"]
    content = bytearray(weights.read_bytes())
    weights.unlink()
    content[len(content) // 2] ^= 1
    if harm != "missing":
        weights.write_bytes(content if harm == "tampered" else content[:-1])
    words = "is missing" if harm == "missing" else "SHA-256 differs"
    scan = nifti(tmp_path / "head.nii", blob())
    assert str(weights) in refused("reface", scan, *outputs, "--model", model_copy, words=words)


@pytest.mark.parametrize(
    ("card", "words"),
    [(None, "no model"), ("not JSON", "not a readable model card"), ("[]", "card"), ("{}", "lacks")],
)
def test_a_missing_or_broken_model_card(
    refused: Callable, tmp_path: Path, outputs: list, card: str | None, words: str
) -> None:
    scan = nifti(tmp_path / "head.nii", blob())
    model = tmp_path / "model"
    model.mkdir()
    if card is not None:
        (model / "card.json").write_text(card)
    refused("reface", scan, *outputs, "--model", model, words=words)


def test_an_unknown_model(refused: Callable, tmp_path: Path, outputs: list) -> None:
    scan = nifti(tmp_path / "head.nii", blob())
    refused("reface", scan, *outputs, "--model", "better", words="There is no model better")


# --- where the output is to go ----------------------------------------------------------------------------


def test_an_output_folder_that_does_not_exist(refused: Callable, tmp_path: Path) -> None:
    scan = nifti(tmp_path / "head.nii", blob())
    refused("reface", scan, tmp_path / "nowhere" / "a.nii", words="its folder does not exist; make the")


def test_a_read_only_output_folder(
    refused: Callable, tmp_path: Path, outputs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = nifti(tmp_path / "head.nii", blob())
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, whom nothing stops
    refused("reface", scan, *outputs, words="its folder is read-only; choose another folder.")


class Canned:
    """A refacer that has a result up its sleeve: what happens around the engine is quickly tried."""

    def __init__(self, result: Result, failure: BaseException | None = None) -> None:
        self.result, self.failure = result, failure

    def reface(self, *_: object, **__: object) -> Result:
        if self.failure:
            raise self.failure
        return self.result


@pytest.mark.parametrize("what", ["folder", "volume", "picture", "report", "mask", "move"])
def test_a_full_disk(
    refused: Callable, result: Result, head: Path, outputs: list, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whatever the last byte of the disk was spent on."""
    calls = 0

    def full(*_: object, **__: object) -> int:
        nonlocal calls
        calls += 1
        if what == "mask" and calls <= whole:  # the head has still found room
            return write(*_, **__)
        raise OSError(errno.ENOSPC, "No space left on device")

    write, whole = gzip.GzipFile.write, 2 + result.volume.stored.nbytes // (1 << 24)
    places = {
        "folder": (Path, "mkdir"),
        "volume": (gzip.GzipFile, "write"),
        "picture": (Path, "write_bytes"),
        "report": (Path, "write_text"),
        "mask": (gzip.GzipFile, "write"),
        "move": (os, "replace"),
    }
    monkeypatch.setattr(service, "load", lambda *_: Canned(result))
    monkeypatch.setattr(*places[what], full)
    line = refused("reface", head, *outputs)
    assert calls and ("no space is left" in line or "No space left" in line)


# --- the machine ------------------------------------------------------------------------------------------


def test_no_gpu_though_asked_for(
    refused: Callable, model_dir: Path, tmp_path: Path, outputs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    scan = nifti(tmp_path / "head.nii", blob())
    for device in ("cuda", "mps"):
        words = f"There is no {device} device here; use --device cpu or --device auto."
        refused("reface", scan, *outputs, "--model", model_dir, "--device", device, words=words)


def test_out_of_memory_on_the_gpu_falls_back_to_the_processor(
    refacecgan: Callable, refacer: Refacer, result: Result, head: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import torch

    generator, devices = refacer.model.generator, []
    draw = type(generator).forward

    def small(self: object, block: torch.Tensor) -> torch.Tensor:
        devices.append(str(block.device))
        if len(devices) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return draw(self, block)

    class Prepared(Refacer):  # anatomy and defacing have been done
        def reface(self, scan: object, *options: object, **more: object) -> Result:
            return super().reface(result, *options, **more)

    gpu = Prepared(refacer.model, torch.device("cpu:0"))  # passes for another device than cpu
    monkeypatch.setattr(type(generator), "forward", small)
    monkeypatch.setattr(service, "load", lambda *_: gpu)
    call = refacecgan("reface", head, tmp_path / "a.nii.gz", "--report", tmp_path / "a.json", "--seed", 7)
    assert call.status == 0 and len(devices) == 2
    [line] = call.err
    assert line.startswith("refacecgan: warning: The memory of cpu:0 did not suffice")
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["device"] == "cpu" and len(report["warnings"]) == 1
    np.testing.assert_array_equal(Volume.read(tmp_path / "a.nii.gz").stored, result.volume.stored)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_on_the_processor(
    refused: Callable, result: Result, head: Path, outputs: list, monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "load", lambda *_: Canned(result, failure))
    refused("reface", head, *outputs, words="The memory does not suffice")


def test_out_of_memory_everywhere(
    refused: Callable, refacer: Refacer, result: Result, head: Path, outputs: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import torch

    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    class Prepared(Refacer):
        def reface(self, scan: object, *options: object, **more: object) -> Result:
            return super().reface(result, *options, **more)

    monkeypatch.setattr(type(refacer.model.generator), "forward", never)
    monkeypatch.setattr(service, "load", lambda *_: Prepared(refacer.model, torch.device("cpu:0")))
    refused("reface", head, *outputs, words="memory did not suffice")


# --- a change of mind -------------------------------------------------------------------------------------


def test_ctrl_c_from_within_python(
    refused: Callable, result: Result, head: Path, outputs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "load", lambda *_: Canned(result, KeyboardInterrupt()))
    refused("reface", head, *outputs, status=130, words="cancelled")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.parametrize(
    ("stage", "delay", "number"),
    [
        ("read", 0.0, signal.SIGINT),
        ("load", 0.4, signal.SIGINT),  # in the middle of `import torch`
        ("locate", 0.1, signal.SIGTERM),
        ("generate", 0.1, signal.SIGINT),
        # the head has been written to its hidden folder
        pytest.param("render", 0.3, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_at_any_moment(
    head: Path, model_dir: Path, tmp_path: Path, outputs: list, stage: str, delay: float, number: int
) -> None:
    before = contents(tmp_path)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "RefaceCGANLib", "reface", head, *outputs, "--model", model_dir, "--force",
            "--progress", "json",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(RefaceCGANLib.__file__).parents[1])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = iter(process.stderr.readline, "")
        assert any(json.loads(line)["stage"] == stage for line in lines)
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    *progress, last = err.splitlines()
    assert last == "refacecgan: cancelled; nothing was written."
    assert all("fraction" in json.loads(line) for line in progress)
    assert contents(tmp_path) == before


def test_the_input_is_never_touched(
    refacecgan: Callable, result: Result, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by success either."""
    scan = tmp_path / "head.nii.gz"
    scan.write_bytes(head.read_bytes())
    before = (scan.read_bytes(), scan.stat().st_mtime_ns, scan.stat().st_ino)
    monkeypatch.setattr(service, "load", lambda *_: Canned(dataclasses.replace(result)))
    assert refacecgan("reface", scan, tmp_path / "refaced.nii.gz").status == 0
    assert (scan.read_bytes(), scan.stat().st_mtime_ns, scan.stat().st_ino) == before
