"""The study: measured once, gone on with in a moment, and no failure stops or hides."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from RefaceCGANLib import Refacer, Result, Volume
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.evaluation import figures, stages
from RefaceCGANLib.evaluation import measurements as tidy
from RefaceCGANLib.evaluation import process_pool as pool
from RefaceCGANLib.evaluation import study_config as config
from RefaceCGANLib.evaluation.exclusion import Reference, changed
from RefaceCGANLib.evaluation.face_recognition import Look
from RefaceCGANLib.evaluation.reidentification import VIEWS
from RefaceCGANLib.evaluation.segmentation import Segmentation
from RefaceCGANLib.evaluation.skin_shape import CENTRE
from RefaceCGANLib.evaluation.store import Store
from RefaceCGANLib.evaluation.study import evaluate, markdown

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (16, 16, 16)
BRAIN = (slice(4, 9),) * 3
FACE = (slice(10, 14),) * 3
DRAW_ALL = figures.draw_all
PEOPLE = ("ann", "bob", "eve")


def person(number: int) -> np.ndarray:
    """A head of noise around a brain, and a face that is a number."""
    values = np.random.default_rng(number).integers(0, 100, SHAPE)
    values[BRAIN] += 400
    values[FACE] = 500 + 100 * number
    return values.astype(np.int16)


class Stand:
    """What stands in for everything slow; counts what was done. A face is its mean, seen at an angle; every second
    tool of a wrong kind fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: Counter[str] = Counter()
        monkeypatch.setattr(stages, "loaded", lambda *_, **__: None)
        monkeypatch.setattr(Reference, "of", self.reference)
        monkeypatch.setattr(stages, "portraits", self.portraits)
        monkeypatch.setattr(stages, "models_of", lambda _: self)
        monkeypatch.setattr(stages, "rescan", self.rescan)
        monkeypatch.setattr(stages, "place_in_template", self.place)
        monkeypatch.setattr(stages, "backend_of_table", lambda table: self)
        monkeypatch.setattr(figures, "draw_all", lambda *_: [])
        monkeypatch.setattr(tidy, "RESAMPLES", 99)

    def reference(self, volume: Volume, refacer: object, mask: Path | None) -> Reference:
        self.done["reference"] += 1
        brain, face = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
        brain[BRAIN] = face[FACE] = True
        assert mask and (Volume.read(mask).array > 0).sum() == brain.sum()
        return Reference(brain, face)

    def portraits(self, volume: Volume, reference: Volume) -> list[np.ndarray]:
        self.done["look"] += 1
        level = float(volume.array[FACE].mean())
        return [np.full((8, 8, 3), int(level // 10), np.uint8) for _ in VIEWS]

    def look(self, pictures: list[np.ndarray]) -> dict[str, Look]:
        angles = np.array([picture.mean() / 100 for picture in pictures])
        there = angles > 0.1
        rows = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
        rows[~there] = np.nan
        return {"net": Look(there.astype(np.float32), rows.astype(np.float32))}

    def rescan(self, volume: Volume, rng: np.random.Generator) -> Volume:
        return volume.with_stored(volume.stored + np.int16(rng.integers(1, 9)))

    def place(self, volume: Volume) -> np.ndarray:
        """The head's middle is the one of the template."""
        matrix = volume.affine.copy()
        matrix[:3, 3] = np.array(CENTRE) - 2 * 8
        return matrix

    def segment(self, volume: Volume) -> Segmentation:
        self.done["segment"] += 1
        labels = np.zeros(SHAPE, np.uint8)
        labels[BRAIN] = 1 + (volume.array[BRAIN] > 450)
        return Segmentation(labels, volume.affine, {"GM": (1,), "WM": (2,)})


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(monkeypatch)


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Volume.from_array(values, AFFINE).write(path)
    return path


CONFIG = """
originals = ["in/*.nii.gz"]
brain_masks = "{{scan}}_seg.nii.gz"
output = "out"
workers = 1
false_match_rate = 0.2
{more}
[[tool]]
name = "copy"
kind = "files"
pattern = "copy/{{scan}}.nii.gz"
[[tool]]
name = "twin"
kind = "files"
pattern = "twin/{{scan}}.nii.gz"
seconds = {seconds}
[faces]
detector = "yunet.onnx"
gallery = ["more/*.nii.gz"]
training = ["more/zoe.nii.gz"]
[faces.embedders]
net = "net.onnx"
[volumetry]
scans = ["ann", "bob"]
backends = [{{ name = "thirds", depth = {depth} }}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people, two more in the gallery, a tool that does nothing and one that gives all the same face."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[BRAIN] = 3
    for number, name in enumerate(PEOPLE):
        values = person(number)
        write(tmp_path / "in" / f"{name}.nii.gz", values)
        write(tmp_path / "in" / f"{name}_seg.nii.gz", mask)
        write(tmp_path / "copy" / f"{name}.nii.gz", values)
        values[FACE] = 650
        values[4, 4, 4] = 420
        write(tmp_path / "twin" / f"{name}.nii.gz", values)
    for number, name in ((5, "zoe"), (7, "max")):
        write(tmp_path / "more" / f"{name}.nii.gz", person(number))
    return tmp_path


def study_file(folder: Path, seconds: str = "4", depth: int = 1, more: str = "") -> Path:
    path = folder / "study.toml"
    path.write_text(CONFIG.format(seconds=seconds, depth=depth, more=more))
    return path


def values_of(table: pd.DataFrame, tool: str, measure: str, part: str = "") -> dict[str, float]:
    rows = table[(table["tool"] == tool) & (table["measure"] == measure) & (table["part"].fillna("") == part)]
    return dict(zip(rows["scan"].fillna(""), rows["value"], strict=True))


# --- what it measures -------------------------------------------------------------------------------------


def test_a_copy_of_the_originals_is_the_fixed_point(folder: Path, stand: Stand) -> None:
    evaluate(study_file(folder))
    table = pd.read_csv(folder / "out" / "table.csv")
    everyone = dict.fromkeys(PEOPLE, 0.0)
    assert values_of(table, "copy", "brain_voxels_changed") == everyone
    assert values_of(table, "copy", "tissue_left_percent") == dict.fromkeys(PEOPLE, 100.0)
    assert values_of(table, "copy", "own_distance", "net") == pytest.approx(everyone, abs=1e-6)
    assert values_of(table, "copy", "auc", "net") == dict.fromkeys(PEOPLE, 1.0)
    assert values_of(table, "copy", "rank", "net") == dict.fromkeys(PEOPLE, 1.0)
    for region in ("GM", "WM"):
        assert values_of(table, "copy", "dice", f"thirds/{region}") == {"ann": 1.0, "bob": 1.0}
        volumes = [values_of(table, tool, "volume_ml", f"thirds/{region}") for tool in ("original", "copy")]
        assert volumes[0] == volumes[1] and set(volumes[0]) == {"ann", "bob"}


def test_a_tool_that_gives_all_one_face_shows(folder: Path, stand: Stand) -> None:
    evaluate(study_file(folder))
    table = pd.read_csv(folder / "out" / "table.csv")
    assert values_of(table, "twin", "brain_voxels_changed") == dict.fromkeys(PEOPLE, 1.0)
    assert values_of(table, "twin", "tissue_left_percent") == dict.fromkeys(PEOPLE, 0.0)
    assert values_of(table, "twin", "time_s", "cpu") == dict.fromkeys(PEOPLE, 4.0)
    assert values_of(table, "copy", "time_s", "cpu") == {}
    assert values_of(table, "twin", "pair_distance", "net/bob") == pytest.approx({"ann": 0.0}, abs=1e-6)
    own = values_of(table, "twin", "own_distance", "net")
    angle = {name: (650 // 10 - (500 + 100 * n) // 10) / 100 for n, name in enumerate(PEOPLE)}
    assert own == pytest.approx({name: 1 - np.cos(a) for name, a in angle.items()}, abs=1e-5)


def test_volumes_from_elsewhere_join_the_table(folder: Path, stand: Stand) -> None:
    lines = ["scan,tool,region,ml", "ann,original,GM,600", "ann,twin,GM,606", "ann,unknown,GM,1", "amy,twin,GM,2"]
    (folder / "volumes.csv").write_text("\n".join(lines))
    path = study_file(folder)
    path.write_text(path.read_text() + 'csv = { morphobox = "volumes.csv" }\n')
    evaluate(path)
    table = pd.read_csv(folder / "out" / "table.csv")
    found = table[table["part"] == "morphobox/GM"]
    assert dict(zip(found["tool"], found["value"], strict=True)) == {"original": 600.0, "twin": 606.0}


def test_originals_are_told_from_everybody_in_the_gallery(folder: Path, stand: Stand) -> None:
    evaluate(study_file(folder))
    table = pd.read_csv(folder / "out" / "table.csv")
    pairs = table[(table["tool"] == "original") & (table["measure"] == "pair_distance")]
    assert len(pairs) == 5 * 4 / 2
    assert set(values_of(table, "original", "rescan_distance", "net")) == set(PEOPLE)
    assert values_of(table, "original", "rank", "net") == dict.fromkeys(PEOPLE, 1.0)
    nearest = values_of(table, "copy", "training_distance", "net")
    expected = {name: 1 - np.cos((100 - (50 + 10 * n)) / 100) for n, name in enumerate(PEOPLE)}
    assert nearest == pytest.approx(expected, abs=1e-5)


def test_it_writes_tables_figures_and_a_page(folder: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw_all", DRAW_ALL)
    heard: list[float] = []
    outcome = evaluate(study_file(folder), lambda _, fraction: heard.append(fraction))
    out = folder / "out"
    assert outcome.page == out / "index.html" and (outcome.scans, outcome.tools, outcome.warnings) == (3, 2, [])
    assert heard == sorted(heard) and (heard[0], heard[-1]) == (0, 1)
    assert list(csv.reader((out / "failures.csv").open())) == [["scan", "tool", "stage", "reason"]]
    names = {path.stem for path in (out / "tables").iterdir()}
    wanted = "2_exclusions 3_volume_differences 4_repeatability 5_identifiability 6_processing_time 7_dice realism"
    assert {f"table_{name}" for name in wanted.split()} <= names
    markdowns = (out / "tables" / "table_2_exclusions.md").read_text(encoding="utf-8").splitlines()
    assert markdowns[0].startswith("| tool | scans |") and markdowns[2].startswith("| copy | 3 |")
    drawn = {path.suffix for path in (out / "figures").iterdir()}
    assert drawn == {".png", ".pdf"}
    page = (out / "index.html").read_text(encoding="utf-8")
    slices = page.count('class="voxels"')
    assert page.count("data:image/png;base64,") == len(list((out / "figures").glob("*.png"))) + slices
    assert slices == 3 * 3  # the copies changed nothing


def test_brain_voxels_are_counted_in_masks_of_others(folder: Path, stand: Stand) -> None:
    evaluate(study_file(folder))
    table = pd.read_csv(folder / "out" / "table.csv")
    one_voxel = 2**3 / 1000
    by_labels = values_of(table, "twin", "brain_changed_ml", "labels")
    assert by_labels == pytest.approx(dict.fromkeys(PEOPLE, one_voxel))
    assert values_of(table, "copy", "brain_changed_ml", "labels") == dict.fromkeys(PEOPLE, 0.0)
    by_backend = values_of(table, "twin", "brain_changed_ml", "thirds")  # 3 mm smaller: without the corner
    assert by_backend == {"ann": 0.0, "bob": 0.0}
    left = values_of(table, "copy", "skin_left_percent"), values_of(table, "twin", "skin_left_percent")
    assert set(left[0].values()) <= {100.0} and set(left[0]) == set(left[1])


def test_attackers_learn_from_further_people(folder: Path, stand: Stand) -> None:
    for number in range(10, 22):
        values = person(number)
        values[FACE] = 505 + 20 * number
        write(folder / "pairs" / f"pair{number}.nii.gz", values)
        write(folder / "copy" / f"pair{number}.nii.gz", values)
        write(folder / "twin" / f"pair{number}.nii.gz", np.where(values > 600, np.int16(650), values))
    path = study_file(folder, more='[attackers]\npairs = ["pairs/*.nii.gz"]\n')
    evaluate(path)
    before = stand.done.copy()
    attackers = pd.read_csv(folder / "out" / "tables" / "table_attackers.csv")
    mine = attackers[(attackers["tool"] == "copy") & (attackers["judged"] == "all")].set_index("attacker")
    assert mine.loc["standard, recogniser", "people"] == 15 and mine.loc["standard, recogniser", "found"] > 0.99
    assert set(attackers["judged"]) == {"all", "originals of the study"}
    head = pd.read_csv(folder / "out" / "tables" / "table_headline.csv").set_index("tool")
    assert head.loc["copy", "auc"] >= head.loc["twin", "auc"] and head.loc["twin", "by_mask"] == "labels"
    assert not list((folder / "out" / "work" / "pair10").glob("files*"))  # their outputs are not kept
    (folder / "out" / "index.html").unlink()
    evaluate(path)
    assert stand.done == before


# --- going on ---------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_again(folder: Path, stand: Stand) -> None:
    evaluate(study_file(folder))
    before, first = stand.done.copy(), (folder / "out" / "table.csv").read_bytes()
    assert before["segment"] == 2 * 3 and before["look"] == 3 * 4 + 2
    evaluate(study_file(folder))
    assert stand.done == before and (folder / "out" / "table.csv").read_bytes() == first


def test_a_changed_setting_does_again_what_depends_on_it(folder: Path, stand: Stand) -> None:
    evaluate(study_file(folder))
    before = stand.done.copy()
    evaluate(study_file(folder, depth=2))
    assert stand.done - before == Counter(segment=6)
    before = stand.done.copy()
    time.sleep(0.01)
    write(folder / "twin" / "bob.nii.gz", person(1) + np.int16(1))
    evaluate(study_file(folder, depth=2))
    assert stand.done - before == Counter(segment=1, look=1)
    table = pd.read_csv(folder / "out" / "table.csv")
    assert values_of(table, "twin", "brain_voxels_changed")["bob"] == 5**3


def test_a_renamed_tool_is_not_run_again(folder: Path, stand: Stand) -> None:
    path = study_file(folder)
    evaluate(path)
    before = stand.done.copy()
    path.write_text(path.read_text().replace('name = "twin"', 'name = "one for all"'))
    evaluate(path)
    assert stand.done == before
    assert values_of(pd.read_csv(folder / "out" / "table.csv"), "one for all", "time_s", "cpu")["ann"] == 4


def test_what_was_stopped_goes_on(folder: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: str, _: float) -> None:
        if stage == "bob: copy, look":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(study_file(folder), stop)
    assert not (folder / "out" / "index.html").exists()
    half = stand.done.copy()
    evaluate(study_file(folder))
    assert stand.done["look"] == 3 * 4 + 2 and 0 < half["look"] < stand.done["look"]
    assert stand.done["segment"] == 6


# --- failures ---------------------------------------------------------------------------------------------


def test_a_scan_that_fails_is_listed_with_its_reason_and_the_rest_goes_on(folder: Path, stand: Stand) -> None:
    (folder / "twin" / "bob.nii.gz").write_bytes(b"nonsense")
    outcome = evaluate(study_file(folder))
    assert outcome.warnings == ["Of 1 pairs of scan and tool a step failed; failures.csv says which and why."]
    _, row = csv.reader((folder / "out" / "failures.csv").open())
    assert row[:3] == ["bob", "twin", "output"] and "is not a NIfTI file" in row[3]
    assert "is not a NIfTI file" in (folder / "out" / "index.html").read_text(encoding="utf-8")
    table = pd.read_csv(folder / "out" / "table.csv")
    assert set(values_of(table, "twin", "brain_voxels_changed")) == {"ann", "eve"}
    assert set(values_of(table, "copy", "brain_voxels_changed")) == set(PEOPLE)
    write(folder / "twin" / "bob.nii.gz", person(1))
    assert evaluate(study_file(folder)).warnings == []


def test_without_its_reference_a_scan_is_measured_all_the_same(
    folder: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InputError("There is no head.")

    monkeypatch.setattr(Reference, "of", fail)
    evaluate(study_file(folder))
    table = pd.read_csv(folder / "out" / "table.csv")
    assert values_of(table, "twin", "time_s", "cpu") == dict.fromkeys(PEOPLE, 4.0)
    assert values_of(table, "copy", "brain_voxels_changed") == {} and values_of(table, "copy", "auc", "net")
    rows = list(csv.reader((folder / "out" / "failures.csv").open()))[1:]
    assert sorted(rows) == [[name, "original", "reference", "There is no head."] for name in PEOPLE]


def test_a_missing_program_is_said_before_any_work(
    folder: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    path = study_file(folder, more='[[tool]]\nkind = "mideface"')
    with pytest.raises(InputError, match="mideface is not on the PATH; install FreeSurfer"):
        evaluate(path)
    assert not stand.done


def test_nothing_at_all_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "study.toml"
    path.write_text(
        'originals = ["in/ann.nii.gz"]\noutput = "out"\nworkers = 1\n'
        '[[tool]]\nkind = "files"\npattern = "no/{scan}.nii"'
    )
    monkeypatch.setattr(stages, "loaded", lambda *_, **__: None)
    with pytest.raises(InputError, match="nothing could be measured; the first reason: "):
        evaluate(path)


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_measures_in_several_processes(refacecgan: Callable, folder: Path) -> None:
    path = folder / "study.toml"
    path.write_text(
        'originals = ["in/???.nii.gz"]\noutput = "out"\nworkers = 2\n'
        '[[tool]]\nkind = "files"\nname = "twin"\npattern = "twin/{scan}.nii.gz"\nseconds = 2'
    )
    call = refacecgan("evaluate", path, "--output", folder / "there", "--progress", "json")
    assert call.status == 0, call.err
    assert call.out == [f"Wrote {folder / 'there' / 'index.html'}: 1 tools on 3 scans, tables beside it"]
    lines = [json.loads(line) for line in call.err if line.startswith("{")]
    assert any(line["stage"] == "bob: twin, output" for line in lines) and lines[-1]["fraction"] == 1
    assert any("failures.csv" in line for line in call.err if not line.startswith("{"))
    assert not (folder / "out").exists()
    table = pd.read_csv(folder / "there" / "table.csv")
    assert values_of(table, "twin", "time_s", "cpu") == dict.fromkeys(PEOPLE, 2.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"in/*.nii.gz"', '"nowhere/*.nii.gz"'), "originals names"),
        (('output = "out"', ""), "output is missing"),
        (("workers = 1", 'workers = "all"'), "workers must be a whole number"),
        (("workers = 1", "workers = 1\nworker = 2"), "worker is no known key"),
        (('name = "twin"', 'name = "copy"'), "copy cannot be the name of a tool"),
        (('name = "twin"', 'name = "original"'), "original cannot be the name of a tool"),
        (('scans = ["ann"', 'scans = ["amy"'), "volumetry.scans names amy"),
        (('{ name = "thirds", ', "{ "), "needs its own name"),
        (("{scan}_seg", "{scan}_brain"), "brain_masks leads to"),
        (('net = "net.onnx"', ""), "faces.embedders names none"),
        (("false_match_rate = 0.2", "false_match_rate = 20"), "between 0 and 1"),
        (('kind = "files"\npattern = "copy', 'kind = "fils"\npattern = "copy'), "kind must be one of"),
        (("[volumetry]", "[volumetry"), "no valid TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_sentence(
    change: tuple[str, str], words: str, folder: Path
) -> None:
    path = study_file(folder)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(InputError) as caught:
        config.read(path)
    assert words in str(caught.value)


def test_two_scans_of_one_name_are_refused(folder: Path) -> None:
    write(folder / "more" / "ann.nii.gz", person(9))
    with pytest.raises(InputError, match="have the same name"):
        config.read(study_file(folder))


# --- the exclusion criteria -------------------------------------------------------------------------------


def test_rounding_is_no_change_and_one_step_of_16_bits_is() -> None:
    values = np.random.default_rng(1).integers(0, 65535, SHAPE).astype(np.uint16)
    original = Volume(values, AFFINE, slope=0.37)
    as_float = Volume.from_array(original.array.astype(np.float64) * (1 + 1e-7), AFFINE)
    assert not changed(original, as_float).any()
    one_step = values.copy()
    one_step[3, 4, 5] ^= 1
    assert np.argwhere(changed(original, Volume(one_step, AFFINE, slope=0.37))).tolist() == [[3, 4, 5]]


def test_the_visible_face_is_found_and_measured(
    refacer: Refacer, result: Result, head: Path, tmp_path: Path
) -> None:
    original = Volume.read(head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refacer, "prepare", lambda *_: result.prepared)
        reference = Reference.of(original, refacer)
    reference.write(tmp_path / "reference.npz")
    reference = Reference.read(tmp_path / "reference.npz")
    np.testing.assert_array_equal(reference.brain, result.brain_mask)
    size = np.count_nonzero(reference.face) * np.prod(original.spacing) / 1000
    assert 40 < size < 200 and (result.face_region[reference.face]).mean() > 0.95
    for volume, left in ((original, 100.0), (result.defaced, 0.0), (result.volume, 0.0)):
        different = changed(original, volume)
        assert reference.tissue_left_percent(different) == pytest.approx(left, abs=5)
        assert reference.brain_voxels_changed(different) == 0
    assert reference.brain_voxels_changed(np.ones(original.shape, bool)) == reference.brain.sum()


# --- the pool and the store -------------------------------------------------------------------------------


def errand(task: Any, say: pool.Say) -> tuple[Any, int]:
    """What the processes of these tests do."""
    if task == "raise":
        raise InputError("It cannot be done.")
    if task == "die":
        os._exit(7)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    say(f"did {task}", 1.0)
    if task == "long":
        time.sleep(60)
    return task, os.getpid()


def test_processes_go_on_when_one_raises_or_dies() -> None:
    said: list[str] = []
    found: dict[Any, tuple[Any, str | None]] = {}
    tasks = [1, "raise", "die", 2, "kill", 3, 4]
    pool.run(errand, tasks, 2, lambda what, _: said.append(what), lambda task, *rest: found.update({task: rest}))
    assert {task: result[0] for task, (result, _) in found.items() if result} == {n: n for n in (1, 2, 3, 4)}
    assert os.getpid() not in {result[1] for result, _ in found.values() if result}
    assert found["raise"] == (None, "It cannot be done.")
    assert found["die"] == (None, "Its process ended with status 7.")
    assert found["kill"] == (None, "Its process ended with status -9.")
    assert sorted(said) == [f"did {n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("apart", [False, True])
def test_a_single_task_is_done_here_or_on_request_apart(apart: bool) -> None:
    found: list[tuple[Any, str | None]] = []
    pool.run(errand, [1], 1, lambda *_: None, lambda task, *rest: found.append(rest), apart)
    [(result, reason)] = found
    assert reason is None and result[0] == 1 and (result[1] != os.getpid()) is apart


def test_when_it_is_interrupted_no_process_is_left() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run(errand, ["long", "long"], 2, interrupt, lambda *_: None)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()]
        assert not any("spawn_main" in command for command in commands)


def test_a_result_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def half(folder: Path) -> None:
        (folder / "first").touch()
        raise InputError("The second cannot be written.")

    with pytest.raises(InputError):
        store.get("a scan", "output", ["key", 1], half)
    assert not list(tmp_path.rglob("first"))
    place = store.get("a scan", "output", ["key", 1], lambda folder: (folder / "whole").touch())
    assert (place / "whole").exists() and store.get("a scan", "output", ["key", 1], half) == place
    assert store.path("a scan", "output", ["key", 2]) != place


def test_a_table_becomes_markdown() -> None:
    table = pd.DataFrame({"tool": ["a|b", "c"], "value": ["1", "–"]})
    assert markdown(table) == "| tool | value |\n| --- | --- |\n| a/b | 1 |\n| c | – |\n"
