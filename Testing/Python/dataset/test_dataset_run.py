"""A whole data set of real heads: what comes out, resume, kill, and the same bytes wherever it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from data_sets import contents, describe, other_contrast, time_series, without_face, write
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.app import worker
from RefaceCGANLib.dataset import bids_app, plan
from RefaceCGANLib.dataset.session_work import Job
from RefaceCGANLib.dataset.verdicts import read_verdicts, write_verdicts
from RefaceCGANLib.evaluation import process_pool
from RefaceCGANLib.rendering.skin_surface import skin_surface, skin_threshold
from RefaceCGANLib.seeds import seed_of
from RefaceCGANLib.spatial.grid import mapped
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

pytestmark = [
    pytest.mark.heads, pytest.mark.timeout(900),  # a busy machine may need minutes for a run
    pytest.mark.usefixtures("located_once"),
]  # fmt: skip

FIRST, SECOND = "sub-01/ses-1", "sub-01/ses-2"
T1, T2 = f"{FIRST}/anat/sub-01_ses-1_T1w.nii.gz", f"{FIRST}/anat/sub-01_ses-1_T2w.nii.gz"
BOLD, SEGMENTATION = f"{FIRST}/func/sub-01_ses-1_task-rest_bold.nii.gz", f"{FIRST}/anat/sub-01_ses-1_dseg.nii.gz"
LATER, DEFACED = f"{SECOND}/anat/sub-01_ses-2_PDw.nii.gz", "sub-02/anat/sub-02_acq-defaced_T1w.nii.gz"
BROKEN = "sub-02/anat/sub-02_PDw.nii.gz"
OPTIONS = ("--device", "cpu", "--masks", "--also", "*_dseg.nii.gz", "--skip", "sourcedata/*")


@dataclass(frozen=True)
class Heads:
    """The data set, and the maps (4, 4) from the millimetres of each person's T1w to those of a series."""

    root: Path
    maps: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def data_set(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Heads:
    """Two people, one of them at two visits: T1w, T2w on a thick-sliced grid, BOLD and labels, then a visit
    without T1w; of the other a scan that came defaced and a broken file."""
    root = tmp_path_factory.mktemp("bids") / "in"
    describe(root)
    one, two = (Volume.read(heads / "val" / f"{name}.nii.gz") for name in ("ixi095", "ixi180"))
    weighted, to_t2 = other_contrast(one)
    frame, to_bold = other_contrast(one, (3.5, 3.5, 4.0), 2.0, (1, 2, 0))
    later, to_later = other_contrast(one, (2.0, 2.0, 2.0), 3.0, (2, 2, 2), bright=False)
    write(root / T1, one)
    write(root / T1.replace(".nii.gz", ".json"), {"MagneticFieldStrength": 3, "DeidentificationMethod": ["none"]})
    write(root / T2, weighted)
    labels = (one.stored > np.percentile(one.stored, 60)).astype(np.uint8)
    write(root / SEGMENTATION, Volume.from_array(labels, one.affine))
    time_series(frame, 3, root / BOLD)
    write(root / BOLD.replace(".nii.gz", ".json"), {"TaskName": "rest", "RepetitionTime": 2.0})
    write(root / LATER, later)
    write(root / DEFACED, without_face(two, Volume.read(heads / "val" / "ixi180_seg.nii.gz").stored > 0))
    write(root / BROKEN, (root / DEFACED).read_bytes()[:9000])
    write(root / BROKEN.replace(".nii.gz", ".json"), {"MagneticFieldStrength": 3})
    write(root / "sourcedata/head.png", b"x")
    return Heads(root, {T1: np.eye(4), T2: to_t2, BOLD: to_bold, LATER: to_later})


@dataclass(frozen=True)
class Finished:
    """A run that has ended: the call, where it wrote, and the key file."""

    call: Any
    output: Path
    key: Path

    def rows(self) -> dict[str, plan.Row]:
        return {row.path: row for row in plan.read(self.output / "qc/plan.tsv")}


@pytest.fixture(scope="module")
def finished(data_set: Heads, refacecgan: Callable, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    key = folder / "key"
    key.write_bytes(b"the same in every test")
    options = (*OPTIONS, "--jobs", 1, "--key-file", key, "--qc-originals", folder / "private")
    call = refacecgan("dataset", data_set.root, folder / "out", *options)
    return Finished(call, folder / "out", key)


def region_of(finished: Finished, path: str, suffix: str) -> np.ndarray:
    mask = path.replace(f"{suffix}.nii.gz", f"mod-{suffix}_defacemask.nii.gz")
    return Volume.read(finished.output / mask).stored > 0


def images(output: Path) -> dict[str, bytes]:
    """The output without what tells the time."""
    told = (".refacecgan/", "qc/", "CHANGES")
    return {path: data for path, data in contents(output).items() if not path.startswith(told)}


def test_the_run_follows_a_plan_that_names_every_file(finished: Finished, data_set: Heads):
    assert finished.call.status == 3, finished.call
    rows = finished.rows()
    assert set(rows) == set(contents(data_set.root))
    done = {path: (row.action, row.region_from) for path, row in rows.items() if path.endswith(".nii.gz")}
    assert done == {
        T1: ("reface", T1),
        T2: ("reface", T1),
        BOLD: ("deface", T1),
        SEGMENTATION: ("empty", T1),
        LATER: ("reface", LATER),
        DEFACED: ("reface", DEFACED),
        BROKEN: ("withhold", ""),
    }
    assert "already defaced" in rows[DEFACED].reason
    assert "face region from the session's T1w" in rows[T2].reason
    assert "cut short" in rows[BROKEN].reason and f"{BROKEN}: " in "\n".join(finished.call.out)
    assert rows[BROKEN.replace(".nii.gz", ".json")].action == "leave"
    assert not (finished.output / BROKEN).exists()
    assert not (finished.output / "sourcedata").exists()


@pytest.mark.parametrize(("path", "suffix"), [(T1, "T1w"), (T2, "T2w"), (LATER, "PDw"), (DEFACED, "T1w")])
def test_a_refaced_series_keeps_all_but_the_face_region(
    finished: Finished, data_set: Heads, path: str, suffix: str
):
    before, after = Volume.read(data_set.root / path), Volume.read(finished.output / path)
    region = region_of(finished, path, suffix)
    assert np.array_equal(before.stored[~region], after.stored[~region])
    assert np.array_equal(before.affine, after.affine) and before.stored.dtype == after.stored.dtype
    assert 0.02 < region.mean() < 0.4


def face_points(finished: Finished) -> np.ndarray:
    """Where the original face of the first person was, well within it: (N, 3), mm of the T1w."""
    region = region_of(finished, T1, "T1w")
    return mapped(np.argwhere(binary_erosion(region, iterations=2)), Volume.read(finished.output / T1).affine)


@pytest.mark.parametrize("path", [T1, T2])
def test_no_tissue_of_the_original_face_is_left_in_any_series(finished: Finished, data_set: Heads, path: str):
    """Where it lies in a series is known: the series were made from one head."""
    before, after = Volume.read(data_set.root / path), Volume.read(finished.output / path)
    at = mapped(mapped(face_points(finished), data_set.maps[path]), np.linalg.inv(before.affine))
    index = np.unique(np.rint(at).astype(int), axis=0)
    index = tuple(index[((index >= 0) & (index < before.shape)).all(axis=1)].T)
    tissue = before.array[index] > skin_threshold(before.array, before.spacing)
    assert np.count_nonzero(tissue) > 1000
    same = before.stored[index] == after.stored[index]
    assert same[tissue].mean() < 0.05  # by chance: the T1w has 8 bits


def test_every_volume_of_a_time_series_is_emptied(finished: Finished, data_set: Heads):
    before, after = (nib.load(folder / BOLD) for folder in (data_set.root, finished.output))
    assert before.header.binaryblock == after.header.binaryblock
    old, new = np.asarray(before.dataobj), np.asarray(after.dataobj)
    region = region_of(finished, BOLD, "bold")
    assert np.array_equal(old[~region], new[~region])
    assert len(np.unique(new[region])) == 1
    at = mapped(mapped(face_points(finished), data_set.maps[BOLD]), np.linalg.inv(before.affine))
    index = np.unique(np.rint(at).astype(int), axis=0)
    index = tuple(index[((index >= 0) & (index < old.shape[:3])).all(axis=1)].T)
    assert region[index].mean() > 0.98


def test_labels_are_emptied_alike(finished: Finished, data_set: Heads):
    before, after = (Volume.read(folder / SEGMENTATION).stored for folder in (data_set.root, finished.output))
    region = region_of(finished, T1, "T1w")
    assert before[region].any() and not after[region].any()
    assert np.array_equal(before[~region], after[~region])


def test_one_person_gets_one_new_face(finished: Finished, data_set: Heads):
    """Nine tenths of the skin in the face region lie within 2 mm, a voxel, at the other visit and in the other
    series of the person, and nearer than in the original."""

    def skin(path: Path, to_t1: np.ndarray) -> np.ndarray:
        scan = Volume.read(path)
        return mapped(skin_surface(scan.array, scan.affine).points, to_t1)

    region, t1 = region_of(finished, T1, "T1w"), Volume.read(finished.output / T1)
    face = skin(finished.output / T1, np.eye(4))
    index = np.rint(mapped(face, np.linalg.inv(t1.affine))).astype(int).clip(0, np.array(t1.shape) - 1)
    face = face[binary_erosion(region, iterations=2)[tuple(index.T)]]

    def apart(path: Path, to_t1: np.ndarray) -> float:
        return float(np.percentile(cKDTree(skin(path, to_t1)).query(face)[0], 90))

    original = apart(data_set.root / T1, np.eye(4))
    later = apart(finished.output / LATER, np.linalg.inv(data_set.maps[LATER]))
    weighted = apart(finished.output / T2, np.linalg.inv(data_set.maps[T2]))
    assert max(later, weighted) < 2.0, (later, weighted, original)
    assert max(later, weighted) < 0.7 * original, (later, weighted, original)


def test_sidecars_and_description_say_what_was_done(finished: Finished):
    sidecar = json.loads((finished.output / T1.replace(".nii.gz", ".json")).read_text())
    assert sidecar["MagneticFieldStrength"] == 3
    assert sidecar["DeidentificationMethod"][0] == "none"
    assert "replaced by a generated one" in sidecar["DeidentificationMethod"][1]
    assert sidecar["DeidentificationMethodCodeSequence"][0]["CodeValue"] == "113102"
    bold = json.loads((finished.output / BOLD.replace(".nii.gz", ".json")).read_text())
    assert bold["TaskName"] == "rest" and "emptied" in bold["DeidentificationMethod"][0]
    description = json.loads((finished.output / "dataset_description.json").read_text())
    assert description["GeneratedBy"][-1]["Name"] == "RefaceCGAN"


def test_the_log_and_the_page_know_every_series(finished: Finished, data_set: Heads):
    lines = [json.loads(line) for line in (finished.output / "qc/log.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == {T1, T2, BOLD, SEGMENTATION, LATER, DEFACED, BROKEN}
    assert next(line for line in lines if line["path"] == T2)["sharpness"] > 0.22
    page = (finished.output / "qc/index.html").read_text()
    assert page.count("data:image/jpeg") == 4 and BROKEN in page
    for text in (page, (finished.output / "qc/log.jsonl").read_text()):
        assert str(data_set.root.parent) not in text


def test_pictures_of_originals_are_in_their_private_folder_alone(finished: Finished):
    private = finished.output.parent / "private"
    assert private.stat().st_mode & 0o077 == 0 and (private / "PRIVATE.txt").is_file()
    pictures = [path.name for path in private.glob("*.jpg")]
    page = (private / "originals.html").read_text()
    assert len(pictures) == 4 and all(f'src="{name}"' in page for name in pictures)
    assert not list(finished.output.rglob("*.jpg"))


@pytest.mark.parametrize("layout", ["copy", "derivatives"])
def test_the_bids_validator_finds_no_new_error(
    finished: Finished, data_set: Heads, layout: str, request: pytest.FixtureRequest
):
    validator = shutil.which("bids-validator")
    if not validator:
        pytest.skip("bids-validator (npm) is not installed")

    def errors(root: Path) -> set[str]:
        done = subprocess.run([validator, str(root), "--json"], capture_output=True, text=True, check=False)
        return {issue["key"] for issue in json.loads(done.stdout)["issues"]["errors"]}

    output = finished.output if layout == "copy" else request.getfixturevalue("derivatives")
    assert errors(output) <= errors(data_set.root)


def test_a_second_run_does_nothing_again(finished: Finished, data_set: Heads, refacecgan: Callable):
    records = finished.output / ".refacecgan" / "records"
    before = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    bytes_before = images(finished.output)
    again = refacecgan(
        "dataset", data_set.root, finished.output, *OPTIONS, "--jobs", 1, "--key-file", finished.key
    )
    assert again.status == 3 and again.out == finished.call.out
    assert {path: path.stat().st_mtime_ns for path in records.rglob("*.json")} == before
    assert images(finished.output) == bytes_before


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    finished: Finished, data_set: Heads, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The BIDS App is killed with two processes at work: one has copied a series, the other is at a head."""
    root, output = tmp_path / "in", tmp_path / "out"
    describe(root)
    rest = root / "sub-03/func/sub-03_task-rest_bold.nii.gz"
    time_series(Volume.from_array(np.zeros((8, 8, 8), np.int16), np.eye(4)), 2, rest)
    write(root / LATER, (data_set.root / LATER).read_bytes())
    options = ("--device", "cpu", "--masks", "--timeseries", "keep", "--key-file", finished.key)
    call = [str(part) for part in (root, output, "participant", *options)]
    program = subprocess.Popen(
        [sys.executable, "-c", "from RefaceCGANLib.dataset.bids_app import main; main()", *call, "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(output.glob(".refacecgan/records/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    copied = rest.relative_to(root).as_posix()
    assert (output / copied).read_bytes() == rest.read_bytes()
    assert not (output / LATER).exists()
    assert bids_app.main([*call, "--jobs", "1", "--progress", "json"]) == 0
    assert (output / LATER).read_bytes() == (finished.output / LATER).read_bytes()
    assert not list(output.rglob(".refacecgan-*"))
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert shown[-1]["done"] == shown[-1]["of"] == 2 and {"per_hour", "seconds_left"} <= set(shown[-1])
    assert bids_app.main([str(root), str(output), "group"]) == 0
    assert (output / "qc/index.html").read_text().count("data:image/jpeg") == 1


@pytest.fixture(scope="module")
def derivatives(finished: Finished, data_set: Heads, refacecgan: Callable, tmp_path_factory) -> Path:
    """A derivatives folder of the second person, made on a Dask cluster."""
    distributed = pytest.importorskip("distributed")
    output = tmp_path_factory.mktemp("derivatives") / "out"
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        call = [data_set.root, output, "participant", "--participant-label", "02", "--layout", "derivatives"]
        call += [*OPTIONS, "--key-file", finished.key, "--dask", cluster.scheduler_address]
        assert bids_app.main([str(part) for part in call]) == 3  # one file is broken
    return output


def test_a_derivatives_folder_holds_what_was_changed_alone(derivatives: Path, finished: Finished):
    """And a Dask cluster makes the same bytes as a process here."""
    stem = "sub-02/anat/sub-02_acq-defaced"
    files = {path for path in contents(derivatives) if not path.startswith((".refacecgan/", "qc/"))}
    assert files == {
        *("dataset_description.json", "README", ".bidsignore"),
        *(f"{stem}_desc-refaced_T1w.nii.gz", f"{stem}_desc-refaced_T1w.json", f"{stem}_mod-T1w_defacemask.nii.gz"),
    }
    refaced = (derivatives / f"{stem}_desc-refaced_T1w.nii.gz").read_bytes()
    assert refaced == (finished.output / DEFACED).read_bytes()
    description = json.loads((derivatives / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][-1]["Name"] == "RefaceCGAN"
    rows = {row.path: row for row in plan.read(derivatives / "qc/plan.tsv")}
    assert rows["README"].action == "leave" and "--layout derivatives" in rows["README"].reason


def test_one_output_has_one_layout(derivatives: Path, data_set: Heads, refacecgan: Callable):
    done = refacecgan("dataset", data_set.root, derivatives, *OPTIONS)
    assert done.status == 2 and "was made with another --layout" in done.err[0]


# --- another face for one person --------------------------------------------------------------------------


@pytest.fixture
def again(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the output, with verdicts."""
    output = tmp_path / "out"
    shutil.copytree(finished.output, output)
    write_verdicts(output / "qc/qc.tsv", [(T1, "pass", "good"), (DEFACED, "fail", "strange nose")])
    return output


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def asked(tmp_path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """What the engine of the Slicer module answers last."""
    answers: list[dict[str, Any]] = []
    worker.Worker(tmp_path).handle({"id": 1, "command": command, **arguments}, answers.append)
    return answers[-1]


def test_another_face_for_one_person_is_the_one_that_key_and_number_give(
    again: Path, finished: Finished, data_set: Heads, refacer: Refacer, refacecgan: Callable, tmp_path: Path
):
    """Asked for by the panel. The first face, too, is that of a single scan refaced with the same key."""
    before, key = images(again), finished.key.read_bytes()
    arguments = {"originals": str(data_set.root), "subject": "02", "key_file": str(finished.key)}
    answer = asked(tmp_path, "another_person", output=str(again), **arguments)
    assert (answer["event"], answer["series"]) == ("done", 1), answer
    after = images(again)
    assert changed(before, after) == {DEFACED}
    torch.set_num_threads(1)
    prepared = refacer.prepare(Volume.read(data_set.root / DEFACED))
    for identity, content in (("02", before), ("02 face 2", after)):
        refacer.reface(prepared, seed=seed_of(identity, key)).volume.write(tmp_path / "alone.nii.gz")
        assert (tmp_path / "alone.nii.gz").read_bytes() == content[DEFACED], identity
    assert read_verdicts(again / "qc/qc.tsv")[T1] == ("pass", "good")
    assert read_verdicts(again / "qc/qc.tsv")[DEFACED] == ("", "")
    options = (*OPTIONS, "--jobs", 1, "--key-file", finished.key)
    done = refacecgan("dataset", data_set.root, again, *options)
    assert done.status == 3 and images(again) == after  # a run that goes on keeps the new face


def test_the_engine_reads_a_scan_of_a_run_and_its_original(finished: Finished, data_set: Heads, tmp_path: Path):
    arguments = {"output": str(finished.output), "path": T1}
    both = asked(tmp_path, "review_scan", **arguments, originals=str(data_set.root))
    for name, folder in (("scan", finished.output), ("original", data_set.root)):
        volume = Volume.read(folder / T1)
        assert np.array_equal(np.load(both[name]), volume.array)
        assert np.allclose(both[f"{name}_affine"], volume.affine)
    alone = asked(tmp_path, "review_scan", **arguments, originals=str(tmp_path))
    assert alone["original"] is None and "is not there" in alone["why"]
    nothing = asked(tmp_path, "review_scan", output=str(finished.output), path=BROKEN)
    assert nothing["kind"] == "input" and "holds no scan" in nothing["message"]


def fails(*_: object, **__: object) -> None:
    raise worker.Interrupted("Cancelled.")


def withholds(
    _work: object, tasks: list[Job], _workers: int, _say: object, finished: Callable, apart: bool
) -> None:
    """What the processes come to where a new face fails its checks."""
    for task in tasks:
        write(Path(task.output) / "half.nii.gz", b"x")
        rows = [
            plan.Row(one.path, one.subject, one.session, "withhold", "Its face is none.") for one in task.series
        ]
        finished(task, [plan.Outcome(row) for row in rows], None)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a lost key", "is not there; put it back"),
        ("other originals", "was made of other files"),
        ("no originals", "is not among the originals"),
        ("an unknown person", "holds no scan of 09"),
        ("a failed check", "Its face is none."),
        ("a cancelled request", "Cancelled."),
    ],
)
def test_where_another_face_cannot_be_had_nothing_changes(
    again: Path, finished: Finished, data_set: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, words: str,
):  # fmt: skip
    before = contents(again)
    originals, key, subject = data_set.root, finished.key, "09" if what == "an unknown person" else "02"
    if what == "a lost key":
        key = tmp_path / "nowhere"
    elif what == "other originals":
        originals = tmp_path / "others"
        shutil.copytree(data_set.root, originals)
        write(originals / DEFACED, Volume.read(data_set.root / T1))
    elif what == "no originals":
        originals = tmp_path / "others"
        shutil.copytree(data_set.root / FIRST, originals / FIRST)
        write(originals / "sub-02/anat/sub-02_FLAIR.nii.gz", b"x")
    elif what in ("a failed check", "a cancelled request"):
        monkeypatch.setattr(process_pool, "run", withholds if what == "a failed check" else fails)
    arguments = {"originals": str(originals), "subject": subject, "key_file": str(key)}
    answer = asked(tmp_path, "another_person", output=str(again), **arguments)
    assert answer["event"] == "error" and words in answer["message"], answer
    assert changed(before, contents(again)) <= {".refacecgan/lock"}
