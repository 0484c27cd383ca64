"""The command line: what each command writes, what it says, and that it writes all or nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import RefaceCGANLib
from RefaceCGANLib import Refacer, Result, Volume, __version__
from RefaceCGANLib.app import command_line as cli
from RefaceCGANLib.app import service
from RefaceCGANLib.errors import CheckError
from RefaceCGANLib.models import model as models

PACKAGE = Path(RefaceCGANLib.__file__).parents[1]
HEAVY = {"numpy", "torch", "vtkmodules", "nibabel", "SimpleITK", "scipy"}


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that finds the package."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def ball(path: Path, radius: float = 40.0) -> Path:
    """A scan of a ball of `radius` mm, 2 mm voxels: enough of a head to draw it."""
    index = np.indices((60, 60, 60)) * 2.0 - 60.0
    away = np.sqrt((index**2).sum(axis=0))
    values = 1000 * np.clip(0.5 + (radius - away) / 4, 0, 1)
    values += np.random.default_rng(1).normal(10, 3, values.shape)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -60
    Volume.from_array(values.astype(np.int16), affine).write(path)
    return path


def picture_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


# --- the call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["reface", "--help"], ["reface", "a"]])
def test_help_version_and_a_wrong_call_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from RefaceCGANLib.app.command_line import main; main({arguments}); print(*sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0 and not HEAVY & set(done.stdout.splitlines()[-1].split())


def test_help_names_all_commands_and_the_exit_statuses(refacecgan: Callable) -> None:
    call = refacecgan("--help")
    text = "\n".join(call.out)
    assert call.status == 0 and call.err == []
    for word in ("reface", "deface", "render", "compare", "demo", "train", "models", "130 cancelled"):
        assert word in text


def test_the_version_is_that_of_the_package(refacecgan: Callable) -> None:
    assert refacecgan("--version").out == [f"RefaceCGAN {__version__}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["repair"], "'repair'"),
        (["reface"], "required: INPUT, OUTPUT"),
        (["reface", "a.nii", "b.nii", "--sed", "1"], "--sed"),
        (["reface", "a.nii", "b.nii", "--seed", "-1"], "'-1' is no whole number"),
        (["reface", "a.nii", "b.nii", "--seed", "x"], "'x' is no whole number"),
        (["reface", "a.nii", "b.nii", "--seed", str(2**63)], "below 2**63"),
        (["reface", "a.nii", "b.nii", "--seed", str(2**63 - 1), "--candidates", "2"], "too large"),
        (["reface", "a.nii", "b.nii", "--candidates", "0"], "from 1"),
        (["reface", "a.nii", "b.nii", "--threads", "none"], "from 1"),
        (["reface", "a.nii", "b.nii", "--dropout", "1"], "below 1"),
        (["reface", "a.nii", "b.nii", "--dropout", "nan"], "below 1"),
        (["reface", "a.nii", "b.nii", "--device", "tpu"], "auto"),
        (["reface", "a.nii", "b.nii", "--defaced", "perhaps"], "auto"),
        (["render", "a.nii", "b.png", "--view", "inside"], "three-quarter"),
        (["render", "a.nii", "b.png", "--size", "0x9"], "512x512"),
        (["render", "a.nii", "b.png", "--threshold", "much"], "--threshold"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(refacecgan: Callable, arguments: list[str], words: str) -> None:
    call = refacecgan(*arguments)
    assert call.status == 2 and call.out == []
    [line] = call.err
    assert line.startswith("refacecgan: ") and words in line and line.endswith(".")


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = python("-m", "RefaceCGANLib", "reface", tmp_path / "a.nii", tmp_path / "b.nii")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"refacecgan: {tmp_path / 'a.nii'} does not exist; check the path.\n"


# --- outputs are checked before any work ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reface", "in.nii", "in.nii"], "the input itself"),
        (["reface", "in.nii", "out.tiff"], ".nii.gz"),
        (["reface", "in.nii", "nowhere/out.nii"], "folder does not exist"),
        (["reface", "in.nii", "."], "is not a file"),
        (["reface", "in.nii", "out.nii", "--mask", "in.nii"], "the input itself"),
        (["reface", "in.nii", "out.nii", "--mask", "out.nii"], "two outputs"),
        (["reface", "in.nii", "out.nii", "--mask", "sub/../out.nii"], "two outputs"),
        (["reface", "in.nii", "out.nii", "--mask", "out_1.nii", "--candidates", "2"], "two outputs"),
        (["reface", "in.nii", "out.nii", "--report", "out.txt"], ".json"),
        (["reface", "in.nii", "out.nii", "--render", "out.jpg"], ".png"),
        (["reface", "in.nii", "out.nii", "--render", "nowhere/out.png"], "folder does not exist"),
        (["deface", "in.nii", "in.nii"], "the input itself"),
        (["deface", "in.nii", "out.nii", "--mask", "out.nii"], "two outputs"),
        (["deface", "in.nii", "out.nii", "--report", "out.nii"], ".json"),
        (["render", "in.nii", "out.jpg"], ".png"),
        (["render", "in.nii", "out.png", "--mesh", "out.obj"], ".gii"),
        (["compare", "in.nii", "in.nii", "out.gif"], ".png"),
    ],
)
def test_an_impossible_output_is_refused_before_any_work(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Volume, "read", lambda _: pytest.fail("work was begun"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "in.nii").write_bytes(b"head")
    call = refacecgan(*arguments)
    assert call.status == 2 and call.out == [] and len(call.err) == 1 and words in call.err[0]
    assert sorted(os.listdir(tmp_path)) == ["in.nii", "sub"]
    assert (tmp_path / "in.nii").read_bytes() == b"head"


# --- reface -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Written:
    folder: Path
    call: types.SimpleNamespace


@pytest.fixture(scope="module")
def written(
    refacecgan: Callable, head: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """One call that writes all that `reface` can write."""
    folder = tmp_path_factory.mktemp("written")
    call = refacecgan(
        "reface", head, folder / "head.nii.gz", "--seed", 7, "--model", model_dir, "--device", "cpu",
        "--mask", folder / "mask.nii.gz", "--report", folder / "report.json",
        "--render", folder / "head.png", "--progress", "json",
    )  # fmt: skip
    assert call.status == 0, call.err
    return Written(folder, call)


def test_reface_writes_what_was_asked_for_and_nothing_else(written: Written) -> None:
    assert sorted(os.listdir(written.folder)) == ["head.nii.gz", "head.png", "mask.nii.gz", "report.json"]


def test_stdout_says_what_was_written_and_where(written: Written) -> None:
    names = ["head.nii.gz", "head.png", "report.json", "mask.nii.gz"]
    lines = written.call.out
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"Wrote {written.folder / name}: ")
    assert "(seed 7)" in lines[0]


def test_the_head_changes_inside_the_mask_alone(written: Written, head: Path) -> None:
    original, refaced = Volume.read(head), Volume.read(written.folder / "head.nii.gz")
    mask = Volume.read(written.folder / "mask.nii.gz")
    assert mask.stored.dtype == np.uint8 and set(np.unique(mask.stored)) == {0, 1}
    np.testing.assert_allclose(mask.affine, original.affine, atol=1e-3)
    changed = original.stored != refaced.stored
    assert changed.any() and not changed[mask.stored == 0].any()


def test_the_command_gives_the_same_bytes_as_python(written: Written, result: Result) -> None:
    np.testing.assert_array_equal(Volume.read(written.folder / "head.nii.gz").stored, result.volume.stored)


def test_the_report_says_how_long_each_stage_took(written: Written) -> None:
    report = json.loads((written.folder / "report.json").read_text())
    assert " ".join(report["seconds"]) == (
        "read load locate deface normalise sample shape generate compose check write render"
    )


def test_the_picture_shows_the_refaced_head_in_two_views(written: Written) -> None:
    assert picture_size(written.folder / "head.png") == (1024, 512)


def test_progress_comes_as_json_lines_that_rise_to_one(written: Written) -> None:
    lines = [json.loads(line) for line in written.call.err]
    fractions = [line["fraction"] for line in lines]
    assert fractions == sorted(fractions) and (fractions[0], fractions[-1]) == (0, 1)
    stages = [line["stage"] for line in lines]
    assert stages[0] == "read" and stages[-1] == "done"
    assert {"load", "locate", "generate", "write"} <= set(stages)


class Canned:
    """A refacer that has a result up its sleeve."""

    def __init__(self, result: Result) -> None:
        self.result, self.calls = result, []

    def reface(self, scan: object, seed: int, *options: object, **named: object) -> Result:
        self.calls.append((scan, seed))
        return dataclasses.replace(self.result, seed=seed, report={**self.result.report, "seed": seed})


@pytest.fixture
def canned(result: Result, monkeypatch: pytest.MonkeyPatch) -> Canned:
    """Where only what happens around the engine matters: a result without the work."""
    refacer = Canned(result)
    monkeypatch.setattr(service, "load", lambda *_: refacer)
    return refacer


def test_without_a_seed_one_is_drawn_and_told(
    refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path
) -> None:
    told = []
    for name in ("a", "b"):
        call = refacecgan("reface", head, tmp_path / f"{name}.nii", "--report", tmp_path / f"{name}.json")
        assert call.status == 0 and call.err == []
        told.append(json.loads((tmp_path / f"{name}.json").read_text())["seed"])
        assert f"(seed {told[-1]})" in call.out[0]
    assert told == [seed for _, seed in canned.calls] and told[0] != told[1]


def test_candidates_are_numbered_and_have_consecutive_seeds(
    refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path
) -> None:
    call = refacecgan(
        "reface", head, tmp_path / "head.nii.gz", "--seed", 7, "--candidates", 3,
        "--report", tmp_path / "r.json", "--render", tmp_path / "p.png", "--mask", tmp_path / "m.nii",
    )  # fmt: skip
    assert call.status == 0 and call.err == []
    names = [name for n in (1, 2, 3) for name in (f"head_{n}.nii.gz", f"r_{n}.json", f"p_{n}.png")]
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "m.nii"])
    reports = [json.loads((tmp_path / f"r_{n}.json").read_text()) for n in (1, 2, 3)]
    assert [(report["seed"], report["output"]) for report in reports] == [
        (7, "head_1.nii.gz"), (8, "head_2.nii.gz"), (9, "head_3.nii.gz"),
    ]  # fmt: skip
    scans = [scan for scan, _ in canned.calls]
    assert isinstance(scans[0], Volume) and all(isinstance(scan, Result) for scan in scans[1:])
    assert "load" in reports[0]["seconds"] and "load" not in reports[1]["seconds"]


def test_when_one_candidate_fails_none_is_written(
    refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reface(scan: object, seed: int, *options: object, **named: object) -> Result:
        if seed == 8:
            raise CheckError("The generated face is too small.")
        return canned.result

    monkeypatch.setattr(canned, "reface", reface)
    (tmp_path / "head_1.nii.gz").write_bytes(b"old")
    call = refacecgan("reface", head, tmp_path / "head.nii.gz", "--seed", 7, "--candidates", 2)
    assert (call.status, call.out) == (3, [])
    assert call.err == ["refacecgan: Seed 8: The generated face is too small."]
    assert os.listdir(tmp_path) == ["head_1.nii.gz"] and (tmp_path / "head_1.nii.gz").read_bytes() == b"old"


def test_a_forced_result_comes_with_a_warning(
    refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path
) -> None:
    failed = [dataclasses.replace(check, value=99.0, limit=(0, 1)) for check in canned.result.checks[:1]]
    canned.result = dataclasses.replace(canned.result, checks=failed)
    call = refacecgan("reface", head, tmp_path / "a.nii", "--force")
    assert call.status == 0 and (tmp_path / "a.nii").exists()
    [line] = call.err
    assert line.startswith("refacecgan: warning: ") and "same_geometry is 99" in line


def test_outputs_replace_what_was_there(refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"old")
    assert refacecgan("reface", head, tmp_path / "a.nii").status == 0
    assert os.listdir(tmp_path) == ["a.nii"]
    np.testing.assert_array_equal(Volume.read(tmp_path / "a.nii").stored, canned.result.volume.stored)


def test_relative_names_work(
    refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refacecgan("reface", head, "a.nii", "--report", "a.json").status == 0
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.nii"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_wipes_it(
    canned: Canned, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(["reface", str(head), str(tmp_path / "a.nii")]) == 0
    text = terminal.getvalue()
    assert "\n" not in text and "load" in text and text.endswith("\r\033[K")


# --- deface -----------------------------------------------------------------------------------------------


def test_deface_empties_the_face_region_and_tells_that_it_was_empty_before(
    refacecgan: Callable, head: Path, model_dir: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.nii.gz", tmp_path / "second.nii.gz"
    options = ["--model", model_dir, "--mask", tmp_path / "m.nii", "--report", tmp_path / "r.json"]
    call = refacecgan("deface", head, first, *options)
    assert call.status == 0 and call.err == [] and len(call.out) == 3
    original, defaced = Volume.read(head), Volume.read(first)
    region = Volume.read(tmp_path / "m.nii").stored > 0
    assert (defaced.stored[region] == original.stored.min()).all()
    np.testing.assert_array_equal(defaced.stored[~region], original.stored[~region])
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["brain_voxels_changed"] == 0 and not report["already_defaced"]
    assert report["voxels_changed"] == np.count_nonzero(original.stored != defaced.stored)
    assert all(check["passed"] for check in report["checks"]) and "seed" not in report

    call = refacecgan("deface", first, second, *options)
    assert call.status == 0 and "had been removed before" in call.out[0]
    region = Volume.read(tmp_path / "m.nii").stored > 0
    np.testing.assert_array_equal(Volume.read(second).stored[~region], defaced.stored[~region])
    assert json.loads((tmp_path / "r.json").read_text())["already_defaced"]


# --- render and compare -----------------------------------------------------------------------------------


def test_render_draws_views_side_by_side_and_writes_the_skin(refacecgan: Callable, tmp_path: Path) -> None:
    scan = ball(tmp_path / "a.nii.gz")
    call = refacecgan(
        "render", scan, tmp_path / "a.png", "--mesh", tmp_path / "a.stl",
        "--view", "frontal", "--view", "left profile", "--view", "from_below", "--size", "64x80",
    )  # fmt: skip
    assert call.status == 0 and call.err == []
    assert picture_size(tmp_path / "a.png") == (3 * 64, 80)
    assert sorted(os.listdir(tmp_path)) == ["a.nii.gz", "a.png", "a.stl"]


def test_render_takes_a_threshold(refacecgan: Callable, tmp_path: Path) -> None:
    scan = ball(tmp_path / "a.nii.gz")
    call = refacecgan("render", scan, tmp_path / "a.png", "--threshold", 5000)
    assert call.status == 2 and "threshold 5000" in call.err[0]
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_compare_draws_both_with_the_frame_of_the_original(refacecgan: Callable, tmp_path: Path) -> None:
    vtk_image = pytest.importorskip("vtkmodules.vtkIOImage")
    from vtkmodules.util.numpy_support import vtk_to_numpy

    large, small = ball(tmp_path / "large.nii"), ball(tmp_path / "small.nii", 30.0)
    call = refacecgan("compare", large, small, tmp_path / "c.png", "--view", "frontal")
    assert call.status == 0 and call.err == []
    reader = vtk_image.vtkPNGReader()
    reader.SetFileName(str(tmp_path / "c.png"))
    reader.Update()
    width, height, _ = reader.GetOutput().GetDimensions()
    pixels = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars()).reshape(height, width, 3)[:512]
    assert width == 1024
    bright = (pixels[..., 0] > 120).any(axis=0)
    spans = [np.ptp(np.flatnonzero(half)) for half in (bright[:512], bright[512:])]
    assert spans[1] / spans[0] == pytest.approx(30 / 40, abs=0.04)


@pytest.mark.heads
def test_a_warning_of_the_library_is_said_once(heads: Path, tmp_path: Path) -> None:
    done = python("-m", "RefaceCGANLib", "render", heads / "native" / "adi_dicom", tmp_path / "a.png")
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert line.startswith("refacecgan: warning: After slice 114 of 175")


# --- demo, train, models ----------------------------------------------------------------------------------


def test_demo_leaves_head_mask_report_and_picture(
    refacecgan: Callable, canned: Canned, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "sample_head", lambda: head)
    folder = tmp_path / "new" / "demo"
    call = refacecgan("demo", folder)
    assert call.status == 0 and call.err == []
    names = ["refaced.nii.gz", "side-by-side.png", "report.json", "face_region.nii.gz"]
    assert sorted(os.listdir(folder)) == sorted(names)
    for name in names:
        assert any(line.startswith(f"Wrote {folder / name}: ") for line in call.out)
    assert picture_size(folder / "side-by-side.png") == (1024, 2 * 540)
    table = dict(line.rsplit(maxsplit=1) for line in call.out[call.out.index("") + 1 :])
    assert table.pop("stage") == "seconds"
    assert {"read", "load", "locate", "generate", "compose", "write", "render", "all"} <= set(table)


def test_demo_without_its_head_says_so_and_makes_no_folder(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "SAMPLE_HEAD", "missing.nii.gz")
    call = refacecgan("demo", tmp_path / "demo")
    assert call.status == 2 and "sample head is missing" in call.err[0] and os.listdir(tmp_path) == []


def test_a_failed_demo_makes_no_folder(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "sample_head", lambda: tmp_path / "missing.nii.gz")
    call = refacecgan("demo", tmp_path / "new" / "demo")
    assert call.status == 2 and len(call.err) == 1 and os.listdir(tmp_path) == []


def test_train_runs_the_configuration(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    fake = types.ModuleType("config")
    fake.run = ran.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "RefaceCGANLib.training.training_config", fake)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    assert refacecgan("train", tmp_path / "paper.toml").status == 0
    assert ran == [tmp_path / "paper.toml"]


def test_models_lists_id_size_and_working_grid(
    refacecgan: Callable, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "folder", lambda: model_dir.parent)
    call = refacecgan("models")
    assert call.status == 0
    assert call.out[0].split() == ["id", "description", "licence", "size", "working", "grid"]
    model = models.Model.load(model_dir)
    size = sum((model_dir / entry["file"]).stat().st_size for entry in model.card["files"].values()) / 1e6
    [line] = [line for line in call.out[1:] if line.startswith(f"{model.id} ")]
    assert f"{size:.1f} MB" in line
    assert line.endswith(" mm, " + "x".join(map(str, model.card["working_grid"]["shape"])))


# --- when things go wrong ---------------------------------------------------------------------------------


def test_an_unexpected_error_is_called_a_bug_and_shows_where_on_request(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> Volume:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(Volume, "read", broken)
    monkeypatch.delenv(cli.DEBUG, raising=False)
    call = refacecgan("render", tmp_path / "a.nii", tmp_path / "a.png")
    assert call.status == 2 and len(call.err) == 1
    assert "bug" in call.err[0] and "first line second line" in call.err[0] and cli.DEBUG in call.err[0]
    monkeypatch.setenv(cli.DEBUG, "1")
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    assert "Traceback" in refacecgan("render", tmp_path / "a.nii", tmp_path / "a.png").err[0]


def test_a_missing_library_is_named(refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = ball(tmp_path / "a.nii")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(models.Model, "load", lambda _: None)
    call = refacecgan("reface", scan, tmp_path / "b.nii")
    assert call.status == 2 and call.err == [
        f"refacecgan: torch is missing in {sys.executable}; install it there, or use another Python."
    ]


@pytest.mark.parametrize("failure", [OSError(13, "Permission denied"), KeyboardInterrupt()])
def test_when_one_output_cannot_be_put_in_place_all_are_as_before(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    scan = ball(tmp_path / "a.nii")
    (tmp_path / "a.png").write_bytes(b"old picture")
    replace = os.replace

    def stubborn(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "a.stl":
            raise failure
        replace(source, target)

    monkeypatch.setattr(os, "replace", stubborn)
    call = refacecgan("render", scan, tmp_path / "a.png", "--mesh", tmp_path / "a.stl")
    assert call.status == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert call.out == [] and len(call.err) == 1
    assert (tmp_path / "a.png").read_bytes() == b"old picture"
    assert sorted(os.listdir(tmp_path)) == ["a.nii", "a.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_reader_that_went_away_is_no_failure(tmp_path: Path) -> None:
    scan = ball(tmp_path / "a.nii")
    command = f"{sys.executable} -m RefaceCGANLib render {scan} {tmp_path / 'a.png'} >/dev/full"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "a.png").exists()


def test_the_device_and_the_threads_reach_the_engine(
    refacecgan: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def from_pretrained(*arguments: object) -> Refacer:
        seen.extend(arguments)
        raise CheckError("Enough.")

    monkeypatch.setattr(models.Model, "load", lambda name: name)
    monkeypatch.setattr(Refacer, "from_pretrained", from_pretrained)
    options = ["--model", "mine", "--device", "cuda", "--threads", 3]
    assert refacecgan("reface", ball(tmp_path / "a.nii"), tmp_path / "b.nii", *options).status == 3
    assert seen == ["mine", "cuda", 3]
