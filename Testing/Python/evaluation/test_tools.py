"""The tools of a study: ours, and the exact command lines of other people's programs, recorded by stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from RefaceCGANLib import Refacer, Result, Volume
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.evaluation.tool_base import on_grid_of
from RefaceCGANLib.evaluation.tools import WITHOUT, loaded, tool_of

PYTHON = sys.executable
AFFINE = np.array([[0, 0, 2.0, -20], [2.0, 0, 0, -30], [0, -2.0, 0, 25], [0, 0, 0, 1]])

STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
with open({record!r}, "a") as file:
    print(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]), file=file)
{body}
"""
COPY = """
import shutil
arguments = sys.argv[1:]
scan = next(a for a in arguments if a.endswith(("scan.nii.gz", "scan.nii")))
shutil.copy(scan, {to})
"""


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small volume, 8 bit with a scale factor, in another orientation than RAS."""
    path = tmp_path / "head one.nii.gz"
    stored = np.random.default_rng(1).integers(0, 255, (20, 18, 16), dtype=np.uint8)
    Volume(stored, AFFINE, slope=2.5).write(path)
    return path


class Programs:
    """A folder on the PATH for stand-ins that record how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "calls.jsonl"
        folder.mkdir()

    def add(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(STAND_IN.format(python=PYTHON, record=str(self.record), body=body))
        path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))
    return found


def files(tmp_path: Path, *names: str) -> dict[str, str]:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for value, name in enumerate(names):
        stored = np.full((16, 16, 16), value, np.int16)
        stored[:4] = 1
        Volume.from_array(stored, affine).write(tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in names}


CALLS = [
    ({"kind": "pydeface"}, "pydeface", "arguments[2]", ["SCAN", "--outfile", "OUT", "--force"]),
    (
        {"kind": "afni", "mode": "reface_plus"}, "@afni_refacer_run", "arguments[-1]",
        ["-input", "SCAN", "-mode_reface_plus", "-no_images", "-prefix", "OUT"],
    ),
    (
        {"kind": "afni", "mode": "deface", "shell": "afni_refacer_shell_sym_2.0.nii.gz"}, "@afni_refacer_run",
        "arguments[5]",
        ["-input", "SCAN", "-mode_deface", "-no_images", "-prefix", "OUT", "-shell",
         "afni_refacer_shell_sym_2.0.nii.gz"],
    ),
    (
        {"kind": "afni2", "mode": "reface"}, "afni_refacer2", "arguments[-1][:-7] + '.reface.nii.gz'",
        ["-input", "SCAN", "-mode_reface", "-no_images", "-prefix", "OUT"],
    ),
    (
        {"kind": "mri_reface"}, "run_mri_reface.sh", "arguments[1] + '/scan_deFaced.nii'",
        ["SCAN", "OUT", "-imType", "T1", "-saveQCRenders", "0", "-threads", "1"],
    ),
    (
        {"kind": "mri_reface", "image_type": "FLAIR"}, "run_mri_reface_docker.sh",
        "arguments[1] + '/scan_deFaced.nii'",
        ["SCAN", "OUT", "-imType", "FLAIR", "-saveQCRenders", "0", "-threads", "1"],
    ),
    ({"kind": "mideface"}, "mideface", "arguments[3]", ["--i", "SCAN", "--o", "OUT", "--threads", "1"]),
]  # fmt: skip


@pytest.mark.parametrize(("config", "name", "to", "expected"), CALLS, ids=[call[1] for call in CALLS])
def test_a_program_is_called_as_its_manual_says(
    config: dict[str, Any], name: str, to: str, expected: list[str], programs: Programs, scan: Path, tmp_path: Path
) -> None:
    programs.add(name, COPY.format(to=to))
    output = tmp_path / "output.nii.gz"
    seconds = tool_of(config).run(scan, output)
    [[called, *arguments]] = programs.calls
    assert called == name and len(arguments) == len(expected)
    for argument, wanted in zip(arguments, expected, strict=True):
        if wanted == "SCAN":
            assert Path(argument).name in ("scan.nii.gz", "scan.nii")
        elif wanted == "OUT":
            assert not Path(argument).parent.exists(), "the program's folder is gone"
        else:
            assert argument == wanted
    assert seconds > 0
    np.testing.assert_allclose(Volume.read(output).array, Volume.read(scan).array)


def test_quickshear_gets_the_brain_mask_of_the_scan(programs: Programs, scan: Path, tmp_path: Path) -> None:
    labels = np.zeros((20, 18, 16), np.uint8)
    labels[5:9] = 47
    Volume.from_array(labels, AFFINE).write(tmp_path / "head one_seg.nii.gz")
    programs.add(
        "quickshear",
        "import shutil; shutil.copy(sys.argv[1], sys.argv[3])\n"
        f"shutil.copy(sys.argv[2], {str(tmp_path / 'mask.nii.gz')!r})",
    )
    tool = tool_of({"kind": "quickshear", "brain_mask": "{scan}_seg.nii.gz", "buffer": 5}, tmp_path)
    tool.run(scan, tmp_path / "output.nii.gz")
    assert programs.calls[0][4:] == ["5"]
    np.testing.assert_array_equal(Volume.read(tmp_path / "mask.nii.gz").stored, labels > 0)
    assert tool.inputs(scan) == [tmp_path / "head one_seg.nii.gz"]


def test_niimath_gets_template_shell_and_weight(programs: Programs, scan: Path, tmp_path: Path) -> None:
    given = files(tmp_path, "template", "shell", "weight")
    programs.add("niimath", COPY.format(to="arguments[-1]"))
    tool_of({"kind": "niimath-reface", **given}).run(scan, tmp_path / "output.nii.gz")
    [[_, _, *arguments]] = programs.calls
    assert arguments[:-1] == ["-p", "1", "-reface", *given.values()]


def test_niimath_keeps_where_the_shell_is_zero(programs: Programs, scan: Path, tmp_path: Path) -> None:
    given = files(tmp_path, "shell", "template")  # the shell: 1 in front, 0 behind
    keep = tmp_path / "kept.nii.gz"
    body = COPY.format(to="arguments[-1]") + f"shutil.copy(arguments[-2], {str(keep)!r})"
    programs.add("niimath", body)
    tool_of({"kind": "niimath-deface", **given}).run(scan, tmp_path / "output.nii.gz")
    mask = Volume.read(keep).stored
    assert not mask[:4].any() and mask[4:].all()
    assert programs.calls[0][2:6] == ["-p", "1", "-deface", given["template"]]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pydeface", "pip install pydeface"),
        ("mri_reface", "nitrc.org/projects/mri_reface"),
        ("mideface", "FreeSurfer"),
    ],
)
def test_a_missing_program_is_named_with_how_to_get_it(kind: str, words: str, programs: Programs) -> None:
    with pytest.raises(InputError, match="is not on the PATH") as caught:
        tool_of({"kind": kind, "name": "mine"}).require()
    assert words in str(caught.value) and str(caught.value).startswith("Tool mine: ")


def test_a_program_that_fails_is_quoted(programs: Programs, scan: Path, tmp_path: Path) -> None:
    programs.add("pydeface", "print('flirt: command not found'); sys.exit(3)")
    with pytest.raises(InputError, match="pydeface failed with status 3: flirt: command not found"):
        tool_of({"kind": "pydeface"}).run(scan, tmp_path / "output.nii.gz")
    assert not (tmp_path / "output.nii.gz").exists()


def test_a_program_that_writes_nothing_is_a_failure(programs: Programs, scan: Path, tmp_path: Path) -> None:
    programs.add("mideface", "")
    with pytest.raises(InputError, match="mideface wrote no defaced"):
        tool_of({"kind": "mideface"}).run(scan, tmp_path / "output.nii.gz")


def test_a_program_is_stopped_at_its_time_limit_with_its_children(
    programs: Programs, scan: Path, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    programs.add(
        "pydeface",
        "import subprocess\n"
        f"process = subprocess.Popen([{shutil.which('sleep', path='/bin:/usr/bin')!r}, '60'])\n"
        f"Path({str(child)!r}).write_text(str(process.pid))\nprocess.wait()",
    )
    with pytest.raises(InputError, match="pydeface took longer than 2 s"):
        tool_of({"kind": "pydeface", "time_limit": 2}).run(scan, tmp_path / "output.nii.gz")
    state = Path(f"/proc/{child.read_text()}/status")
    until = time.monotonic() + 10  # a busy machine takes a moment to end a process that was killed
    while state.exists() and "zombie" not in state.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not state.exists() or "zombie" in state.read_text()


# --- outputs ----------------------------------------------------------------------------------------------


def test_an_output_in_another_orientation_is_turned_back(scan: Path) -> None:
    original = Volume.read(scan)
    turned = original.stored.transpose(2, 0, 1)[::-1]
    affine = original.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (original.shape[2] - 1)
    affine[:3, 0] *= -1
    back = on_grid_of(original, Volume.from_array(turned, affine))
    np.testing.assert_array_equal(back.stored, original.stored)


@pytest.mark.parametrize("what", ["shape", "place"])
def test_an_output_on_another_grid_is_refused(what: str, scan: Path) -> None:
    original = Volume.read(scan)
    affine = original.affine.copy()
    affine[:3, 3] += 1.0 if what == "place" else 0.0
    stored = original.stored if what == "place" else original.stored[:-1]
    with pytest.raises(InputError, match="another grid than its original"):
        on_grid_of(original, Volume.from_array(stored, affine))


def test_outputs_made_elsewhere_are_found_by_the_name_of_the_scan(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    made = tmp_path / "done" / "head one_anon.nii.gz"
    tool = tool_of({"kind": "files", "pattern": "done/{scan}_anon.nii.gz", "seconds": 12}, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        tool.run(scan, tmp_path / "output.nii.gz")
    shutil.copy(scan, made)
    assert tool.run(scan, tmp_path / "output.nii.gz") == 12
    assert tool.inputs(scan) == [made]


# --- the configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "magic", "name": "x"}, "Tool x: kind must be one of reface, deface"),
        ({"name": "x"}, "kind must be one of"),
        ({"kind": "deface", "sead": 1}, "sead"),
        ({"kind": "deface", "model": "nowhere"}, "There is no model nowhere"),
        ({"kind": "reface", "device": "auto"}, "name its device"),
        ({"kind": "afni", "mode": "erase"}, "mode must be one of deface"),
        ({"kind": "afni"}, "'mode'"),
        ({"kind": "niimath-deface", "template": "t.nii", "mask": "m.nii"}, "t.nii is no file"),
        ({"kind": "niimath-deface", "template": "t.nii"}, "either mask or shell"),
        ({"kind": "files", "pattern": "out/*.nii"}, "{scan}"),
    ],
)
def test_a_wrong_tool_is_refused_in_one_sentence(config: dict[str, Any], words: str, model_dir: Path) -> None:
    with pytest.raises(InputError) as caught:
        tool_of(config)
    assert words in str(caught.value) and str(caught.value).endswith(".")


# --- ours -------------------------------------------------------------------------------------------------


@pytest.fixture
def warm(result: Result, monkeypatch: pytest.MonkeyPatch) -> Iterator[Result]:
    """Model and anatomy of the sample head are known: what is left is each tool's own work."""
    loaded.cache_clear()
    monkeypatch.setattr(Refacer, "prepare", lambda *_, **__: result.prepared)
    yield result
    loaded.cache_clear()


def test_reface_draws_the_face_of_its_seed(warm: Result, model_dir: Path, head: Path, tmp_path: Path) -> None:
    tool = tool_of({"kind": "reface", "seeds": [7, 8], "model": str(model_dir)})
    assert tool.seeds == (7, 8)
    assert tool.run(head, tmp_path / "output.nii.gz", 7) > 0
    np.testing.assert_array_equal(Volume.read(tmp_path / "output.nii.gz").stored, warm.volume.stored)


def test_the_references_change_the_face_region_alone(
    warm: Result, model_dir: Path, head: Path, tmp_path: Path
) -> None:
    original, region = Volume.read(head), warm.face_region
    outputs = {}
    for kind in ("average", "blur", "deface"):
        tool_of({"kind": kind, "model": str(model_dir)}).run(head, tmp_path / f"{kind}.nii.gz")
        outputs[kind] = Volume.read(tmp_path / f"{kind}.nii.gz").stored
        different = outputs[kind] != original.stored
        assert not different[~region].any() and different[region].mean() > 0.2
    tissue = region & (original.array > warm.prepared.anatomy.skin)
    assert np.ptp(outputs["deface"][region]) == 0
    means = {kind: stored[tissue].mean() / original.stored[tissue].mean() for kind, stored in outputs.items()}
    assert means["average"] == pytest.approx(1, abs=0.2) and means["blur"] == pytest.approx(1, abs=0.3)
    edges = {kind: np.abs(np.diff(stored.astype(float), axis=1)).mean() for kind, stored in outputs.items()}
    assert edges["blur"] < edges["average"]


def test_the_same_settings_are_the_same_tool_whatever_its_name(model_dir: Path) -> None:
    tables = [{"kind": "reface", "name": name, "seeds": [1]} for name in "ab"]
    assert tool_of(tables[0]).settings == tool_of(tables[1]).settings
    assert tool_of(tables[0]).settings != tool_of({"kind": "reface", "dropout": 0.5}).settings
    assert json.dumps(tool_of(tables[0]).settings)


@pytest.mark.heads
@pytest.mark.slow
def test_niimath_runs_for_real(heads: Path, tmp_path: Path) -> None:
    if not (shutil.which("niimath") or shutil.which("niimath", path=os.path.dirname(PYTHON))):
        pytest.skip("niimath is not installed")
    afni = heads.parent / "templates" / "afni"
    template, shell = "MNI152_2009_SSW.nii.gz", "refacer_shell_sym212.nii.gz"
    tool = tool_of({"kind": "niimath-deface", "template": template, "shell": shell}, afni)
    scan = heads / "val" / "ixi094.nii.gz"
    assert tool.run(scan, tmp_path / "output.nii.gz") > 0
    original, output = Volume.read(scan), Volume.read(tmp_path / "output.nii.gz")
    emptied = (output.array == 0) & (original.array > 500)
    assert 0.02 < emptied.mean() < 0.2
    np.testing.assert_allclose(output.array[~emptied & (output.array > 0)].mean(), 1000, rtol=0.5)


# --- ablations and the floor ------------------------------------------------------------------------------


def test_an_ablation_leaves_out_one_part() -> None:
    whole = loaded("default", "cpu")
    without = {what: loaded("default", "cpu", without=what) for what in WITHOUT[::2]}
    assert without["generator"].model.card["shape_spread"] == whole.model.card["shape_spread"]
    assert without["generator"].model.generator is not whole.model.generator
    assert without["shape"].model.card["shape_spread"] < 0.01 < whole.model.card["shape_spread"]
    assert tool_of({"kind": "reface", "without": "dropout"}).settings["dropout"] == 0
    kinds = [tool_of({"kind": "reface"} | ({"without": what} if what else {})) for what in ("", *WITHOUT)]
    assert len({json.dumps(tool.settings) for tool in kinds}) == 4
    with pytest.raises(InputError, match="without must be one of generator, dropout, shape"):
        tool_of({"kind": "reface", "without": "brain"})


@pytest.mark.heads
def test_the_floor_carries_another_persons_real_face(heads: Path, tmp_path: Path) -> None:
    names = "ixi094", "ixi095"
    donors = [f"val/{name}.nii.gz" for name in names]
    tool = tool_of({"kind": "other-face", "donors": donors}, heads)
    original = Volume.read(heads / donors[0])
    tool.run(heads / donors[0], tmp_path / "out.nii.gz")  # of two donors, only the other one may be taken
    output = Volume.read(tmp_path / "out.nii.gz")
    anatomy = loaded("default", "cpu").prepare(original).anatomy
    region = anatomy.view.to_native(anatomy.face_region)
    different = output.array != original.array
    assert not different[~region].any() and different[region].mean() > 0.5
    before, after = original.array[region], output.array[region]
    assert after.mean() == pytest.approx(before.mean(), rel=0.4)
    with pytest.raises(InputError, match="at least two scans"):
        tool_of({"kind": "other-face", "donors": donors[:1]}, heads)
