"""The warm child process, spoken to as the Slicer module does: JSON lines, and arrays as files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from RefaceCGANLib import Volume, __version__
from RefaceCGANLib.app.service import explain
from RefaceCGANLib.app.worker import Worker
from RefaceCGANLib.errors import CheckError, InputError
from RefaceCGANLib.evaluation.reidentification import Recogniser
from RefaceCGANLib.progress import STAGES

PACKAGE = Path(__file__).resolve().parents[3] / "RefaceCGAN"


class Talk:
    """A worker process and its private folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "RefaceCGANLib.app.worker", str(folder)], cwd=PACKAGE, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.ready = self.hear()

    def hear(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def say(self, command: str, **arguments: object) -> None:
        self.asked += 1
        self.process.stdin.write(json.dumps({"id": self.asked, "command": command, **arguments}) + "\n")
        self.process.stdin.flush()

    def ask(self, command: str, **arguments: object) -> tuple[dict, list[tuple[str, float]]]:
        """The answer, and the progress that was told before."""
        self.say(command, **arguments)
        progress = []
        while (event := self.hear())["event"] == "progress":
            assert event["id"] == self.asked
            progress.append((event["stage"], event["fraction"]))
        assert event["id"] == self.asked
        return event, progress

    def begins(self, command: str, scan: Volume, **arguments: object) -> str:
        """The first stage of a request, which is then cancelled."""
        self.say(command, volume=self.write(scan.stored), affine=scan.affine.tolist(), **arguments)
        stage = self.hear()["stage"]
        self.process.stdin.write(json.dumps({"command": "cancel", "ids": [self.asked]}) + "\n")
        self.process.stdin.flush()
        while self.hear()["event"] == "progress":
            pass
        return stage

    def write(self, array: np.ndarray) -> str:
        path = self.folder / f"in-{self.asked}-{os.urandom(4).hex()}.npy"
        np.save(path, array)
        return str(path)

    def read(self, path: str) -> np.ndarray:
        array = np.load(path)
        os.unlink(path)
        return array


@pytest.fixture(scope="module")
def worker(tmp_path_factory, model_dir):
    talk = Talk(tmp_path_factory.mktemp("worker"))
    assert talk.ask("load", model=str(model_dir), device="cpu", threads=1)[0]["event"] == "done"
    yield talk
    talk.process.kill()
    talk.process.wait()


@pytest.fixture(scope="module")
def original(head):
    return Volume.read(head)


@pytest.fixture(scope="module")
def refaced(worker, original):
    """The head refaced with seed 7: the answer with its arrays, and the progress."""
    volume = worker.write(original.stored)
    done, progress = worker.ask("reface", volume=volume, affine=original.affine.tolist(), seed=7)
    assert done["event"] == "done", done
    assert not Path(volume).exists()  # read, and gone
    return with_arrays(worker, done), progress


def with_arrays(worker: Talk, done: dict) -> dict:
    names = ("refaced", "face_region", "air_mask", "brain_mask", "defaced")
    return {**done, **{name: worker.read(done[name]) for name in names if name in done}}


def unchanged_outside(original: Volume, done: dict) -> bool:
    outside = done["face_region"] == 0
    return np.array_equal(original.stored[outside], done["refaced"][outside])


def test_the_first_line_says_ready(worker):
    assert worker.ready["event"] == "ready"
    assert worker.ready["version"] == __version__


def test_load_says_what_the_engine_runs_on(worker, model_dir):
    done, progress = worker.ask("load", model=str(model_dir), device="cpu", threads=1)
    assert (done["device"], done["threads"]) == ("cpu", 1)
    assert done["card"]["id"] == done["model"]
    assert progress == []  # it is there already


def test_a_request_that_is_given_up_ends_soon_and_the_head_stays(worker, original):
    volume = worker.write(original.stored)
    worker.say("reface", volume=volume, affine=original.affine.tolist(), seed=8, defaced="no")
    first = worker.asked
    while worker.hear()["stage"] != "locate":
        pass
    worker.say("another", seed=9)  # waits behind
    line = {"command": "cancel", "ids": [first, worker.asked]}
    worker.process.stdin.write(json.dumps(line) + "\n")
    worker.process.stdin.flush()
    said = []
    while len(said) < 2:
        said += [event for event in [worker.hear()] if event["event"] != "progress"]
    assert [(event["id"], event["kind"]) for event in said] == [(first, "cancelled"), (worker.asked, "cancelled")]
    assert worker.ask("drop")[0]["event"] == "done"
    assert not [file for file in worker.folder.iterdir() if file.suffix == ".npy"]


def test_a_head_that_was_prepared_is_refaced_without_delay(worker, original):
    def ask(command: str, **arguments: object) -> tuple[dict, list[str]]:
        volume = worker.write(original.stored)
        done, progress = worker.ask(command, volume=volume, affine=original.affine.tolist(), **arguments)
        return done, list(dict.fromkeys(stage for stage, _ in progress))

    done, stages = ask("prepare")
    assert done["already_defaced"] is False
    assert stages == ["locate", "deface", "normalise"]
    done, stages = ask("reface", seed=7)
    assert stages == ["sample shape", "generate", "compose", "check"]
    assert unchanged_outside(original, with_arrays(worker, done))
    assert ask("prepare")[1] == []
    assert worker.begins("prepare", original, defaced="no") == "locate"  # another question
    worker.ask("drop")
    assert worker.begins("prepare", original) == "locate"
    worker.ask("drop")


def test_reface_answers_volume_masks_and_report(original, refaced):
    done, _ = refaced
    assert done["refaced"].dtype == original.stored.dtype
    assert done["refaced"].shape == original.shape
    assert unchanged_outside(original, done)
    for name in ("face_region", "air_mask", "brain_mask"):
        assert done[name].dtype == np.uint8
        assert done[name].any()
    assert not (done["face_region"] & done["brain_mask"]).any()
    assert (done["refaced"] != original.stored).any()
    assert (done["seed"], done["report"]["seed"]) == (7, 7)
    assert set(done["report"]["seconds"]) == set(STAGES)


def test_the_head_says_how_it_lies(refaced):
    upright = np.array(refaced[0]["upright"])
    assert np.allclose(upright @ upright.T, np.eye(3)) and np.linalg.det(upright) > 0
    assert np.trace(upright) > 2.9  # the sample head lies straight


def test_save_writes_the_scan_and_what_belongs_to_it(worker, original, refaced, tmp_path):
    done, _ = refaced
    path = tmp_path / "head.nii.gz"
    answer, _ = worker.ask(
        "save", path=str(path), volume=worker.write(done["refaced"]), affine=original.affine.tolist(),
        face_region=worker.write(done["face_region"]), report=done["report"], picture=True,
    )  # fmt: skip
    names = ["head.nii.gz", "head_face-region.nii.gz", "head_report.json", "head.json", "head.png"]
    assert answer["files"] == names and sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert np.array_equal(Volume.read(path).stored, done["refaced"])
    assert json.loads((tmp_path / "head_report.json").read_text())["seed"] == 7
    assert not [file for file in worker.folder.iterdir() if file.suffix == ".npy"]


@pytest.mark.parametrize(
    ("name", "protected", "words"),
    [("nowhere/head.nii.gz", [], "folder does not exist"), ("head.txt", [], "head.txt"),
     ("scan.nii.gz", ["scan.nii.gz"], "scan.nii.gz")],
)  # fmt: skip
def test_save_says_in_one_sentence_what_cannot_be_written(worker, original, tmp_path, name, protected, words):
    (tmp_path / "scan.nii.gz").write_bytes(b"the original")
    answer, _ = worker.ask(
        "save", path=str(tmp_path / name), volume=worker.write(original.stored), affine=original.affine.tolist(),
        protected=[str(tmp_path / each) for each in protected],
    )  # fmt: skip
    assert (answer["event"], answer["kind"]) == ("error", "input") and words in answer["message"]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the original"]
    assert not [file for file in worker.folder.iterdir() if file.suffix == ".npy"]


def test_the_skin_of_a_scan_is_made_quickly_or_finely(worker, sample_head):
    original = Volume.read(sample_head)

    def skin(**arguments: object) -> dict:
        volume = worker.write(original.stored)
        done, _ = worker.ask("skin", volume=volume, affine=original.affine.tolist(), **arguments)
        names = ("points", "triangles", "normals", "picture")
        return {**done, **{name: worker.read(done[name]) for name in names if done.get(name)}}

    quick = skin(quick=True, picture=64)
    assert quick["points"].shape == quick["normals"].shape and quick["triangles"].max() < len(quick["points"])
    assert quick["darkest"] < quick["threshold"] < quick["brightest"]
    assert quick["picture"].shape == (64, 64, 3) and quick["picture"].std() > 10
    fine = skin(threshold=quick["threshold"])
    assert len(fine["points"]) > 2 * len(quick["points"]) and fine["picture"] is None
    low, high = (array.min(axis=0) for array in (fine["points"], quick["points"]))
    assert np.abs(low - high).max() < 4
    around = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned = skin(threshold=quick["threshold"], quick=True, picture=64, upright=around.tolist())
    assert np.abs(turned["picture"].astype(float) - quick["picture"]).mean() > 5  # another side of the head
    error, _ = worker.ask("skin", volume=worker.write(np.zeros((20, 20, 20))), affine=original.affine.tolist())
    assert (error["event"], error["kind"]) == ("error", "input") and "shows no head" in error["message"]


def test_progress_names_the_stages_and_only_grows(refaced):
    _, progress = refaced
    stages = list(dict.fromkeys(stage for stage, _ in progress))
    assert stages == ["locate", "deface", "normalise", "sample shape", "generate", "compose", "check"]
    fractions = [fraction for _, fraction in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_another_draws_another_face_on_the_same_head(worker, original, refaced):
    first, _ = refaced
    done, progress = worker.ask("another", seed=8)
    done = with_arrays(worker, done)
    # the anatomy is not done again
    assert set(done["report"]["seconds"]) == {"sample shape", "generate", "compose", "check"}
    assert progress[0] == ("sample shape", 0.0)
    assert progress[-1][1] == 1.0
    assert np.array_equal(done["face_region"], first["face_region"])
    assert unchanged_outside(original, done)
    assert not np.array_equal(done["refaced"], first["refaced"])


def test_the_seed_draws_the_face_again(worker, refaced):
    done, _ = worker.ask("another", seed=7)
    assert np.array_equal(with_arrays(worker, done)["refaced"], refaced[0]["refaced"])


def test_without_a_seed_one_is_drawn_and_told(worker, refaced):
    seeds = {with_arrays(worker, worker.ask("another")[0])["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_a_face_is_drawn_within_the_region_edited_by_hand(worker, original, refaced):
    first, _ = refaced
    edited = first["face_region"].copy()
    edited[:, :, : edited.shape[2] // 4] = 0  # the chin stays
    brain = tuple(np.argwhere(first["brain_mask"])[0])
    edited[brain] = 1
    done, _ = worker.ask("another", seed=8, face_region=worker.write(edited))
    done = with_arrays(worker, done)
    edited[brain] = 0  # never in it
    assert np.array_equal(done["face_region"], edited)
    assert unchanged_outside(original, done)
    assert "1 brain voxels" in " ".join(done["report"]["warnings"])
    assert "keep the original" in " ".join(done["report"]["warnings"])
    done, _ = worker.ask("another", seed=8)  # it stays edited
    assert np.array_equal(with_arrays(worker, done)["face_region"], edited)
    done, _ = worker.ask("another", seed=7, face_region=worker.write(first["face_region"]))
    assert np.array_equal(with_arrays(worker, done)["refaced"], first["refaced"])  # and back


def recognise(worker: Talk, original: Volume, refaced: np.ndarray, **models: object) -> dict:
    arrays = {"original": worker.write(original.stored), "refaced": worker.write(refaced)}
    done, _ = worker.ask("recognise", **arrays, affine=original.affine.tolist(), limit=0.4, **models)
    assert not any(Path(path).exists() for path in arrays.values())
    return done


def test_a_face_recogniser_tells_how_far_the_new_face_is_from_the_original(worker, original, refaced, face_models):
    first, own = (
        recognise(worker, original, array, **face_models) for array in (refaced[0]["refaced"], original.stored)
    )
    assert set(first["check"]) == {"name", "value", "limit", "passed", "detected"}
    assert first["check"]["value"] > 0.1
    assert first["check"]["passed"] == (first["check"]["value"] >= 0.4)
    assert (own["check"]["value"], own["check"]["passed"]) == (0.0, False)
    assert min(first["check"]["detected"]) > 0.5
    done, _ = worker.ask("another", seed=7)  # the head is still there
    assert np.array_equal(with_arrays(worker, done)["refaced"], refaced[0]["refaced"])


def test_where_no_face_is_seen_there_is_no_distance_and_no_match(worker, original, refaced, face_models):
    flat = np.where(refaced[0]["face_region"], original.stored.min(), original.stored)
    check = recognise(worker, original, flat, **face_models)["check"]
    assert check["value"] is None or check["value"] > 0.4
    assert check["passed"]


def test_face_models_that_cannot_be_used_are_named(worker, original, refaced, face_models, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    for models, sentence in (
        (
            {**face_models, "recogniser": str(broken)},
            "broken.onnx is no ONNX network that can be run; get it again.",
        ),
        ({**face_models, "detector": str(tmp_path / "none.onnx")}, "none.onnx does not exist"),
        ({**face_models, "detector": face_models["recogniser"]}, "is no YuNet face detector"),
    ):
        error = recognise(worker, original, original.stored, **models)
        assert (error["event"], error["kind"]) == ("error", "input")
        assert sentence in error["message"]


def test_looking_at_faces_gives_way_to_the_next_request(worker, original, refaced, face_models):
    arrays = {"original": worker.write(original.stored + 1), "refaced": worker.write(original.stored)}
    worker.say("recognise", **arrays, affine=original.affine.tolist(), limit=0.4, **face_models)
    worker.say("another", seed=7)
    first = worker.hear()
    assert (first["id"], first["kind"]) == (worker.asked - 1, "cancelled")
    while (event := worker.hear())["event"] == "progress":
        pass
    assert np.array_equal(with_arrays(worker, event)["refaced"], refaced[0]["refaced"])


def test_without_onnx_runtime_a_sentence_says_what_to_install(tmp_path, original, face_models, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "private").mkdir()
    worker, answers = Worker(tmp_path / "private"), []
    arrays = {name: str(tmp_path / f"{name}.npy") for name in ("original", "refaced")}
    for path in arrays.values():
        np.save(path, original.stored)
    request = {"affine": original.affine.tolist(), "limit": 0.4, **arrays, **face_models}
    worker.handle({"id": 1, "command": "recognise", **request}, answers.append)
    assert answers[0]["message"] == "Faces need ONNX Runtime; install it with: pip install onnxruntime."


def test_the_original_is_looked_at_once(original, face_models, monkeypatch):
    from RefaceCGANLib.rendering import skin_surface as surface

    recogniser = Recogniser(Path(face_models["detector"]), Path(face_models["recogniser"]))
    drawn, render = [], surface.render
    monkeypatch.setattr(surface, "render", lambda *arguments: drawn.append(1) or render(*arguments))
    counts = []
    for scan in (original, original, original.with_stored(original.stored + 1)):
        recogniser.check(scan, original)
        counts.append(len(drawn))
    assert counts == [2, 3, 5]


def test_errors_are_one_sentence_and_the_process_lives_on(worker, refaced):
    small = worker.write(np.zeros((3, 3, 3), np.uint8))
    calls = [
        ("dance", {}, "There is no command 'dance'"),
        ("reface", {"seed": 1}, "cannot be called like this: missing a required argument: 'volume'"),
        ("another", {"seed": -1}, "Seed -1 is no whole number"),
        ("another", {"dropout": 2}, "Dropout is a probability"),
        ("another", {"face_region": small}, "has other voxels than the scan"),
        ("load", {"model": "nobody"}, "There is no model nobody"),
    ]
    for command, arguments, sentence in calls:
        error, _ = worker.ask(command, **arguments)
        assert (error["event"], error["kind"]) == ("error", "input")
        assert sentence in error["message"]
        assert "\n" not in error["message"]


def test_a_scan_that_shows_no_head_is_a_check_error_and_leaves_no_file(worker, model_dir):
    worker.ask("load", model=str(model_dir), device="cpu", threads=1)
    before = set(worker.folder.iterdir())
    noise = np.random.default_rng(0).integers(0, 100, (32, 32, 32)).astype(np.int16)
    error, _ = worker.ask("reface", volume=worker.write(noise), affine=np.diag([2.0, 2, 2, 1]).tolist())
    assert error["kind"] == "check"
    assert "head" in error["message"]
    assert set(worker.folder.iterdir()) == before


def test_there_must_be_a_head_to_draw_another_face_on(worker):
    assert worker.ask("drop")[0]["event"] == "done"
    error, _ = worker.ask("another", seed=1)
    assert error["kind"] == "input"
    assert "reface one first" in error["message"]


def test_a_line_that_is_no_request_is_refused_and_the_next_is_served(worker):
    for line in ("no JSON at all", "[1, 2]", '"text"', "7"):
        worker.process.stdin.write(line + "\n")
    worker.process.stdin.flush()
    for _ in range(4):
        assert worker.hear()["kind"] == "input"
    assert worker.ask("drop")[0]["event"] == "done"


def test_deface_empties_the_face_region(worker, original, model_dir):
    worker.ask("load", model=str(model_dir), device="cpu", threads=1)
    volume = worker.write(original.stored)
    done = with_arrays(worker, worker.ask("deface", volume=volume, affine=original.affine.tolist())[0])
    region = done["face_region"] > 0
    assert (done["defaced"][region] == original.stored.min()).all()
    assert np.array_equal(done["defaced"][~region], original.stored[~region])
    assert all(entry["passed"] for entry in done["report"]["checks"])


def test_it_ends_at_once_when_stdin_closes_and_leaves_nothing(worker, original):
    """The last test of this process: it is in the middle of a run."""
    volume = worker.write(original.stored + 1)  # a head that it does not have yet
    worker.say("reface", volume=volume, affine=original.affine.tolist())
    assert worker.hear()["stage"] == "locate"
    worker.process.stdin.close()
    rest = worker.process.stdout.read()
    assert worker.process.wait(10) == 0
    assert '"done"' not in rest
    assert not worker.folder.exists()


def test_quit_ends_it(tmp_path):
    talk = Talk(tmp_path / "private")
    talk.folder.mkdir()
    assert talk.ask("quit")[0]["event"] == "done"
    assert talk.process.wait(30) == 0
    assert not talk.folder.exists()


def test_what_libraries_print_goes_to_stderr_and_they_have_no_stdin():
    script = (
        "import os, sys; from RefaceCGANLib.app import worker; lines, answers = worker.private_streams();"
        "print('printed', flush=True); os.write(1, b'past Python\\n'); os.system('echo a child; cat');"
        "answers.write('answer ' + lines.readline()); answers.flush()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE, input="line\n", capture_output=True, text=True, check=True
    )
    assert done.stdout == "answer line\n"
    assert done.stderr.splitlines() == ["printed", "past Python", "a child"]


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (InputError("Mend it."), "input", "Mend it."),
        (CheckError("Too small."), "check", "Too small."),
        (MemoryError(), "memory", "memory does not suffice"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", "memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory", "memory does not suffice"),
        (ModuleNotFoundError("no", name="torch"), "input", f"torch is missing in {sys.executable}"),
        (OSError(28, "No space left on device"), "crash", "No space left on device"),
        (ValueError("two\nlines"), "crash", "This is a bug in RefaceCGAN (ValueError: two lines)"),
    ],
)
def test_each_error_has_its_kind_and_one_sentence(error, kind, part):
    failure = explain(error)
    assert failure.kind == kind
    assert part in failure.sentence
    assert "\n" not in failure.sentence


def test_an_out_of_memory_is_answered_and_not_the_end(tmp_path, monkeypatch):
    worker, answers = Worker(tmp_path), []

    def full(progress):
        raise MemoryError

    monkeypatch.setattr(worker, "drop", full)
    worker.handle({"id": 1, "command": "drop"}, answers.append)
    monkeypatch.undo()
    worker.handle({"id": 2, "command": "drop"}, answers.append)
    assert [answer.get("kind", answer["event"]) for answer in answers] == ["memory", "done"]


def test_preloading_stops_as_soon_as_a_request_comes(tmp_path, monkeypatch):
    steps = []
    worker = Worker(tmp_path, wanted=lambda: len(steps) == 2)
    monkeypatch.setattr(worker, "loading_steps", lambda: (steps.append(step) for step in range(5)))
    worker.preload()
    assert steps == [0, 1]


def test_it_warms_up_once_whenever_there_is_time(tmp_path, monkeypatch):
    steps, requests = [], ["a request"]
    worker = Worker(tmp_path, wanted=lambda: bool(requests))
    monkeypatch.setattr(worker, "loading_steps", lambda: iter(()))
    monkeypatch.setattr(worker, "warm_up_steps", lambda: (steps.append(step) for step in "ab"))
    worker.preload()
    requests.clear()
    worker.preload()
    worker.preload()
    assert steps == ["a", "a", "b"]


# --- a face region edited by hand (Refacer.with_region) ---------------------------------------------------


def test_the_region_that_was_found_gives_what_was_prepared(refacer, result):
    import torch

    same = refacer.with_region(result.prepared, result.face_region)
    assert same.expected_ml == result.prepared.expected_ml
    assert same.anatomy.warnings == result.prepared.anatomy.warnings
    for name in ("scan", "region"):
        assert torch.equal(getattr(same.network_input, name), getattr(result.prepared.network_input, name))
    assert torch.equal(same.network_input.meeting.shift, result.prepared.network_input.meeting.shift)


def test_an_edited_region_must_be_usable(refacer, result):
    region = result.face_region
    with pytest.raises(InputError, match="other voxels than the scan"):
        refacer.with_region(result.prepared, region[1:])
    with pytest.raises(InputError, match="is empty"):
        refacer.with_region(result.prepared, np.zeros_like(region))
    with pytest.raises(InputError, match="is empty"):
        refacer.with_region(result.prepared, result.brain_mask)
    with pytest.raises(InputError, match="reaches too far"):
        refacer.with_region(result.prepared, ~result.brain_mask)


def test_a_larger_region_is_drawn_in_full_and_passes_the_checks(refacer, result):
    from scipy import ndimage

    larger = ndimage.binary_dilation(result.face_region, iterations=3) & ~result.brain_mask
    prepared = refacer.with_region(result.prepared, larger)
    assert prepared.expected_ml > result.prepared.expected_ml
    again = refacer.reface(prepared, seed=7)
    assert np.array_equal(again.face_region, larger)
    assert {entry.name: entry.value for entry in again.checks}["original_voxels_left"] == 0
    assert np.array_equal(again.volume.stored[~larger], result.original.stored[~larger])
