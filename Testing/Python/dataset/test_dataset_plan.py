"""What a data set holds and what is planned for it, from names and headers; and what bad input gets."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import contents, describe, time_series, write
from filelock import FileLock
from RefaceCGANLib import Volume
from RefaceCGANLib.dataset import another_face, bids, bids_app, plan, runner, sessions
from RefaceCGANLib.dataset.discovery import Found, Series, Wanted, discover, fits, guessed
from RefaceCGANLib.dataset.plan import Outcome, Row
from RefaceCGANLib.errors import InputError

NOISE = np.random.default_rng(3).integers(0, 200, (40, 44, 48)).astype(np.int16)


def noise() -> Volume:
    """A readable scan that shows no head."""
    return Volume.from_array(NOISE, np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def bids_root(tmp_path: Path) -> Path:
    """A BIDS data set in which no image can be read: what is decided from names does not look at them."""
    root = tmp_path / "bids"
    describe(root)
    write(root / "participants.tsv", "participant_id\nsub-01\n")
    write(root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", b"x")
    write(root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json", {})
    write(root / "sub-01/ses-1/anat/sub-01_ses-1_desc-lesion_mask.nii.gz", b"x")
    write(root / "sub-01/ses-1/fmap/sub-01_ses-1_phasediff.nii.gz", b"x")
    write(root / "sub-01/ses-1/fmap/sub-01_ses-1_magnitude1.nii.gz", b"x")
    write(root / "sub-01/ses-1/anat/sub-01_ses-1_photo.jpg", b"x")
    write(root / "sub-02/anat/sub-02_T1w.nii.gz", b"x")
    write(root / "derivatives/tool/sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz", b"x")
    write(root / "derivatives/tool/sub-01.html", "<img>")
    write(root / ".git/config", "x")
    return root


def rows_of(found: Found) -> dict[str, tuple[str, str]]:
    return {row.path: (row.action, row.reason) for row in found.rows}


# --- discovery --------------------------------------------------------------------------------------------


def test_scans_of_a_bids_data_set_are_series_of_sessions(bids_root: Path):
    found = discover(bids_root)
    assert found.layout == "bids"
    assert [(one.subject, one.session, one.suffix) for one in found.series] == [
        ("01", "1", "T1w"), ("01", "1", "magnitude1"), ("01", "1", "phasediff"), ("02", "", "T1w"),
    ]  # fmt: skip


def test_every_other_file_gets_an_action_and_a_reason(bids_root: Path):
    rows = rows_of(discover(bids_root))
    assert rows["participants.tsv"] == ("copy", "Holds no image.")
    assert rows[".git"] == ("leave", "Is a hidden folder.")
    mask = "sub-01/ses-1/anat/sub-01_ses-1_desc-lesion_mask.nii.gz"
    preprocessed = "derivatives/tool/sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz"
    for path in (mask, preprocessed):
        assert rows[path][0] == "withhold" and "--also" in rows[path][1]
    for path in ("sub-01/ses-1/anat/sub-01_ses-1_photo.jpg", "derivatives/tool/sub-01.html"):
        assert rows[path][0] == "withhold" and "may show a face" in rows[path][1]


def test_files_are_decided_once(bids_root: Path):
    found = discover(bids_root, Wanted(also=("*_mask.nii.gz",), keep=("*.jpg",), skip=("derivatives/*",)))
    paths = [row.path for row in found.rows] + [one.path for one in (*found.series, *found.also)]
    files = [path for path in contents(bids_root) if not path.startswith(".git/")]
    assert sorted(paths) == sorted([*files, ".git"])
    rows = rows_of(found)
    assert [one.path for one in found.also] == ["sub-01/ses-1/anat/sub-01_ses-1_desc-lesion_mask.nii.gz"]
    assert rows["sub-01/ses-1/anat/sub-01_ses-1_photo.jpg"][0] == "copy"
    assert rows["derivatives/tool/sub-01.html"][0] == "leave"


def test_people_and_sessions_can_be_chosen(bids_root: Path):
    found = discover(bids_root, Wanted(subjects=("02",)))
    assert {one.subject for one in found.series} == {"02"}
    assert {row.subject for row in found.rows} <= {"", "02"}
    with pytest.raises(InputError, match="no image of what was asked for"):
        discover(bids_root, Wanted(subjects=("03",)))


def test_links_are_followed_to_files_that_are_there(bids_root: Path):
    anat = bids_root / "sub-02/anat"
    os.symlink(anat / "sub-02_T1w.nii.gz", anat / "sub-02_T2w.nii.gz")
    os.symlink("nowhere", anat / "sub-02_FLAIR.nii.gz")
    os.symlink(anat, bids_root / "sub-03")
    found = discover(bids_root)
    assert "sub-02/anat/sub-02_T2w.nii.gz" in {one.path for one in found.series}
    rows = rows_of(found)
    assert (
        rows["sub-02/anat/sub-02_FLAIR.nii.gz"][0] == "withhold"
        and "not here" in rows["sub-02/anat/sub-02_FLAIR.nii.gz"][1]
    )
    assert rows["sub-03"][0] == "withhold" and "link to a folder" in rows["sub-03"][1]


def test_in_a_plain_folder_the_first_folder_is_the_person(tmp_path: Path):
    for path in (
        "anna/2024/t1_mprage.nii.gz",
        "anna/2025/t2_tse.nrrd",
        "bob.mgz",
        "anna/2024/lesion_mask.nii.gz",
        "carl/2024/mr/1/flair.nii",
    ):
        write(tmp_path / path, b"x")
    found = discover(tmp_path)
    assert found.layout == "folder"
    assert [(one.subject, one.session, one.suffix) for one in found.series] == [
        ("bob", "", ""), ("anna", "2024", "T1w"), ("anna", "2025", "T2w"), ("carl", "2024/mr/1", "FLAIR"),
    ]  # fmt: skip
    assert rows_of(found)["anna/2024/lesion_mask.nii.gz"][0] == "withhold"


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("t1_mprage_sag", "T1w"), ("AX T2 FLAIR", "FLAIR"), ("ep2d_bold_rest", "bold"), ("DTI 64 dir", "dwi"),
        ("T2 TSE", "T2w"), ("localizer", ""), ("protocol", ""), ("CT head", "CT"),
    ],
)  # fmt: skip
def test_a_free_name_tells_the_contrast(text: str, suffix: str):
    assert guessed(text) == suffix


def test_images_of_one_acquisition_are_known_by_their_names():
    def series(name: str, suffix: str, *entities: tuple[str, str]) -> Series:
        return Series(f"sub-1/{name}", "nifti", (), "1", "", suffix, entities)

    phase, magnitude = series("fmap/a", "phasediff"), series("fmap/b", "magnitude1")
    inversions = [series("anat/a", "MP2RAGE", ("inv", number)) for number in "12"]
    assert phase.acquisition == magnitude.acquisition and phase.phase and not magnitude.phase
    assert inversions[0].acquisition == inversions[1].acquisition == series("anat/c", "UNIT1").acquisition
    assert series("anat/a", "T1w").acquisition != series("anat/b", "T2w").acquisition
    assert series("anat/a", "T1w", ("run", "1")).acquisition != series("anat/a", "T1w", ("run", "2")).acquisition


@pytest.mark.parametrize(
    ("entry", "does"),
    [
        ({"suffix": "T1w"}, True),
        ({"suffix": ["T2w", "T1w"], "session": "1"}, True),
        ({"acquisition": "hi"}, True),
        ({"acquisition": None}, False),
        ({"ceagent": None}, True),
        ({"datatype": "func"}, False),
    ],
)
def test_a_bids_filter_chooses_scans(entry: dict, does: bool):
    one = Series("sub-1/ses-1/anat/x_T1w.nii.gz", "nifti", (), "1", "1", "T1w", (("acq", "hi"),))
    assert fits(one, entry) is does


# --- the plan and the BIDS files around the images ---------------------------------------------------------


def test_a_plan_reads_back_as_it_was_written(tmp_path: Path):
    rows = [
        Row("b.nii.gz", "1", "", "reface", "T1w; face region of its own.", "b.nii.gz", ("Look here.",)),
        Row("a\twith tab", "", "", "copy", "Holds no image."),
    ]
    plan.write(rows, tmp_path / "plan.tsv")
    assert plan.read(tmp_path / "plan.tsv") == sorted(rows, key=lambda row: row.path)
    assert plan.read(tmp_path / "nothing.tsv") == []


def test_a_derivative_has_a_name_of_its_own_and_inherits_its_sidecar(tmp_path: Path):
    assert bids.target_name("sub-1/anat/sub-1_T1w.nii.gz", "reface") == "sub-1/anat/sub-1_desc-refaced_T1w.nii.gz"
    name = "sub-1/func/sub-1_task-rest_desc-raw_bold.nii.gz"
    assert bids.target_name(name, "deface") == "sub-1/func/sub-1_task-rest_desc-defaced_bold.nii.gz"
    image = "sub-1/func/sub-1_task-rest_run-1_bold.nii.gz"
    names = ("bold.json", "task-rest_bold.json", "sub-1/func/sub-1_task-rest_run-1_bold.json")
    for path in (*names, "task-other_bold.json", "T1w.json", "sub-1/sub-1_task-rest_run-2_bold.json"):
        write(tmp_path / path, {})
    assert bids.sidecars_of(tmp_path, image) == list(names)


def test_sidecars_of_a_withheld_scan_are_left_out():
    rows = [
        Row("sub-1/dwi/a_dwi.nii.gz", "1", "", "withhold", "Is broken."),
        *(Row(f"sub-1/dwi/a_dwi{end}", "1", "", "copy", "Holds no image.") for end in (".json", ".bval", ".bvec")),
        Row("sub-1/dwi/b_dwi.bval", "1", "", "copy", "Holds no image."),
    ]
    assert [row.action for row in bids.without_orphans(rows)] == ["withhold", "leave", "leave", "leave", "copy"]


def test_the_list_of_scans_names_no_scan_that_is_withheld(tmp_path: Path):
    source, output = tmp_path / "in", tmp_path / "out"
    describe(source)
    table = "filename\tage\nanat/a_T1w.nii.gz\t3\nanat/b_T1w.nii.gz\t4\n"
    write(source / "sub-1/sub-1_scans.tsv", table)
    write(output / "sub-1/sub-1_scans.tsv", table)
    rows = [
        Row("sub-1/anat/a_T1w.nii.gz", "1", "", "withhold", "Is broken."),
        Row("sub-1/sub-1_scans.tsv", "1", "", "copy", "Holds no image."),
    ]
    bids.finish(source, output, rows)
    assert (output / "sub-1/sub-1_scans.tsv").read_text() == "filename\tage\nanat/b_T1w.nii.gz\t4\n"
    [made] = json.loads((output / "dataset_description.json").read_text())["GeneratedBy"]
    assert made["Name"] == "RefaceCGAN"
    assert (output / "README").read_text().startswith((source / "README").read_text())
    assert (output / ".bidsignore").read_text() == "qc/\n"


# --- what bad input gets -----------------------------------------------------------------------------------


@pytest.fixture
def refused(refacecgan: Callable, tmp_path: Path) -> Callable[..., str]:
    """Run a data set, see that it is refused and that its input is as it was, and return the sentence."""

    def call(source: Path, output: Path, *options: object, status: int = 2) -> str:
        before = contents(source) if source.is_dir() else {}
        done = refacecgan("dataset", source, output, "--device", "cpu", *options)
        assert done.status == status, done
        [line] = done.err
        assert line.startswith("refacecgan: ") and "bug" not in line and "Traceback" not in line
        after = {path: data for path, data in contents(source).items() if path in before} if before else {}
        assert after == before
        return line

    return call


def test_an_empty_folder(refused, tmp_path: Path):
    (tmp_path / "in").mkdir()
    assert "holds no image; give a BIDS data set" in refused(tmp_path / "in", tmp_path / "out")


def test_no_folder_at_all(refused, tmp_path: Path):
    assert "does not exist" in refused(tmp_path / "nothing", tmp_path / "out")
    assert "is a file; give the folder" in refused(write(tmp_path / "file", "x"), tmp_path / "out")


@pytest.mark.parametrize(
    ("output", "words"),
    [("in", "is the input itself"), ("in/out", "lies in the input"), (".", "does not hold it")],
)
def test_an_output_that_overlaps_the_input(refused, bids_root: Path, output: str, words: str):
    assert words in refused(bids_root.rename(bids_root.with_name("in")), bids_root.parent / output)


def test_an_output_that_is_a_file_or_holds_other_files(refused, bids_root: Path, tmp_path: Path):
    assert "is a file" in refused(bids_root, write(tmp_path / "out", "x"))
    write(tmp_path / "full/thesis.txt", "x")
    assert "no run of this program made" in refused(bids_root, tmp_path / "full")
    assert (tmp_path / "full/thesis.txt").read_text() == "x"


def test_an_output_that_cannot_be_made(refused, bids_root: Path, tmp_path: Path):
    write(tmp_path / "file", "x")
    assert "cannot be written" in refused(bids_root, tmp_path / "file" / "out")


def test_an_output_on_a_read_only_disk(refused, bids_root: Path, tmp_path: Path, monkeypatch):
    make = Path.mkdir

    def read_only(self: Path, *arguments: object, **options: object) -> None:
        if tmp_path / "out" in (self, *self.parents):
            raise OSError(errno.EROFS, "Read-only file system")
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    line = refused(bids_root, tmp_path / "out")
    assert "cannot be written (Read-only file system); choose another output" in line


def test_two_runs_on_one_output(refused, bids_root: Path, tmp_path: Path):
    (tmp_path / "out/.refacecgan").mkdir(parents=True)
    with FileLock(tmp_path / "out/.refacecgan/lock"):
        assert "Another run is writing" in refused(bids_root, tmp_path / "out")


def test_a_key_that_is_lost_or_another(tmp_path: Path):
    output, file = tmp_path / "out", tmp_path / "key"
    (output / ".refacecgan").mkdir(parents=True)
    key = sessions.key_of(file, output, make=True)
    assert sessions.key_of(file, output, make=True) == key
    assert file.stat().st_mode & 0o077 == 0
    assert key not in b"".join(contents(output).values())
    kept = file.rename(tmp_path / "kept")
    with pytest.raises(InputError, match="is not there; put it back"):
        sessions.key_of(file, output, make=True)
    assert not file.exists()
    file.write_text("ab" * 32)
    with pytest.raises(InputError, match="is another key"):
        sessions.key_of(file, output, make=True)
    file.write_text("")
    with pytest.raises(InputError, match="is empty or no key"):
        sessions.key_of(file, output, make=True)
    assert sessions.key_of(kept, output, make=True) == key


def test_a_key_in_the_output_would_be_given_away(refused, bids_root: Path, tmp_path: Path):
    line = refused(bids_root, tmp_path / "out", "--key-file", tmp_path / "out" / "key")
    assert "would lie in the output" in line
    assert not (tmp_path / "out" / "key").exists()


def test_pictures_of_originals_do_not_go_into_the_output(refused, bids_root: Path, tmp_path: Path):
    assert "lies in the output" in refused(
        bids_root, tmp_path / "out", "--qc-originals", tmp_path / "out/qc/faces"
    )


def test_a_dask_address_that_does_not_answer(refused, bids_root: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(runner, "DASK_SECONDS", 1)
    line = refused(bids_root, tmp_path / "out", "--dask", "tcp://127.0.0.1:1")
    assert "No Dask scheduler answers at tcp://127.0.0.1:1" in line
    assert "give one of them" in refused(bids_root, tmp_path / "out", "--dask", "tcp://127.0.0.1:1", "--jobs", 2)


def test_an_unknown_model(refused, bids_root: Path, tmp_path: Path):
    assert "no model nobody" in refused(bids_root, tmp_path / "out", "--model", "nobody")


def test_a_full_disk_ends_the_run(refused, tmp_path: Path, monkeypatch):
    write(tmp_path / "in/t1.nii.gz", noise())
    write(tmp_path / "in/notes.txt", "x")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    line = refused(tmp_path / "in", tmp_path / "out")
    assert "no space is left" in line
    assert not (tmp_path / "out/notes.txt").exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "Read-only file system")]
)
def test_a_disk_that_takes_no_more_amid_the_scans_ends_the_run(
    refused, tmp_path: Path, monkeypatch, number: int, words: str
):
    time_series(noise(), 2, tmp_path / "in/anna/rest.nii.gz")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if str(target).endswith(".nii.gz"):
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    line = refused(tmp_path / "in", tmp_path / "out", "--timeseries", "keep", "--jobs", 1)
    assert words in line
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_what_shows_no_head_or_is_broken_is_withheld(refacecgan: Callable, tmp_path: Path):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "anna/noise.nii.gz", noise())
    write(source / "anna/cut.nii.gz", (source / "anna/noise.nii.gz").read_bytes()[:5000])
    write(source / "anna/notes.txt", "x")
    done = refacecgan("dataset", source, output, "--device", "cpu", "--jobs", 1)
    assert done.status == 3
    assert done.err == ["refacecgan: 2 files that may show a face are not in the output; the list above says why."]
    listed = [line for line in done.out if line.startswith("anna/")]
    assert len(listed) == 2 and "cut short" in listed[0] and "no head" in listed[1]
    assert sorted(path for path in contents(output) if not path.startswith((".refacecgan", "qc/"))) == [
        "anna/notes.txt"
    ]
    assert str(tmp_path) not in (output / "qc/plan.tsv").read_text() + (output / "qc/log.jsonl").read_text()


def test_a_file_that_may_not_be_read_is_withheld_and_the_rest_is_done(
    refacecgan: Callable, tmp_path: Path, monkeypatch
):
    source, output = tmp_path / "in", tmp_path / "out"
    time_series(noise(), 2, source / "anna/secret.nii.gz")
    time_series(noise(), 2, source / "bob/rest.nii.gz")
    opened = Path.open

    def forbidden(self: Path, *arguments: object, **options: object) -> object:
        if self.name == "secret.nii.gz":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    done = refacecgan("dataset", source, output, "--device", "cpu", "--jobs", 1, "--timeseries", "keep")
    assert done.status == 3
    assert any("anna/secret.nii.gz: " in line and "may not be read" in line for line in done.out), done.out
    assert [path for path in contents(output) if path.endswith(".nii.gz")] == ["bob/rest.nii.gz"]


def test_copies_are_hard_links_on_request(refacecgan: Callable, tmp_path: Path, monkeypatch):
    """Where the disk has none they are copies, and a file that is made anew never changes the input."""
    source, output, other = tmp_path / "in", tmp_path / "out", tmp_path / "other"
    time_series(noise(), 2, source / "bob/rest.nii.gz")
    write(source / "bob/notes.txt", "x")
    options = ("--device", "cpu", "--jobs", 1, "--timeseries", "keep")

    def linked(folder: Path) -> list[bool]:
        return [os.path.samefile(source / path, folder / path) for path in ("bob/rest.nii.gz", "bob/notes.txt")]

    for _ in range(2):  # a second run finds the links there
        assert refacecgan("dataset", source, output, *options, "--link").status == 0
        assert linked(output) == [True, True]
    assert not list(output.rglob(".refacecgan-*"))
    assert refacecgan("dataset", source, output, *options).status == 0
    assert linked(output)[1] is False
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "Cross-device link")))
    assert refacecgan("dataset", source, other, *options, "--link").status == 0
    assert linked(other) == [False, False]
    assert (other / "bob/notes.txt").read_text() == "x"


def test_only_a_bids_data_set_has_a_derivatives_folder(refused, tmp_path: Path):
    write(tmp_path / "in/anna/noise.nii.gz", noise())
    assert "is no BIDS data set" in refused(tmp_path / "in", tmp_path / "out", "--layout", "derivatives")


def test_another_face_needs_a_finished_run(refused, bids_root: Path, tmp_path: Path):
    assert "holds no finished run" in refused(bids_root, tmp_path / "out", "--another-face", "01")


@pytest.mark.parametrize("given", ["01", "sub-01"])
def test_the_command_says_whose_face_was_changed(
    refacecgan: Callable, bids_root: Path, tmp_path: Path, monkeypatch, given: str
):
    asked = []

    def other(source: Path, output: Path, subject: str, key: Path | None, progress: Callable) -> list[Outcome]:
        asked.append((source, output, subject, key))
        return [Outcome(Row("a_T1w.nii.gz", subject, "", "reface", "T1w.", "", ("The chin is cut off.",)))]

    monkeypatch.setattr(another_face, "another_face", other)
    done = refacecgan(
        "dataset", bids_root, tmp_path / "out", "--another-face", given, "--key-file", tmp_path / "k"
    )
    assert done.status == 0 and asked == [(bids_root, tmp_path / "out", "01", tmp_path / "k")]
    assert done.out == ["01 has another face in 1 series:", "  a_T1w.nii.gz: reface"]
    assert any("The chin is cut off." in line for line in done.err)


def test_which_face_people_have_is_not_guessed(refused, bids_root: Path, tmp_path: Path):
    write(tmp_path / "out/.refacecgan/faces.json", "{")
    assert "faces.json is damaged" in refused(bids_root, tmp_path / "out")


def test_a_dry_run_decides_and_writes_the_plan_alone(refacecgan: Callable, tmp_path: Path):
    source, output = tmp_path / "in", tmp_path / "out"
    write(source / "anna/noise.nii.gz", noise())
    done = refacecgan("dataset", source, output, "--device", "cpu", "--jobs", 1, "--dry-run")
    assert done.status == 3
    assert done.out[0].split("\t") == list(plan.COLUMNS)
    assert {path for path in contents(output) if not path.startswith(".refacecgan")} == {"qc/plan.tsv"}
    assert not sessions.default_key_file(output).exists()
    assert [row.action for row in plan.read(output / "qc/plan.tsv")] == ["withhold"]


# --- the BIDS App ------------------------------------------------------------------------------------------


def test_the_bids_app_takes_the_usual_options(bids_root: Path, tmp_path: Path):
    chosen = write(tmp_path / "filter.json", {"t1w": {"suffix": "T1w"}})
    args = bids_app.parser().parse_args(
        [
            str(bids_root), str(tmp_path / "out"), "participant", "--participant-label", "sub-01", "02",
            "--session-label", "1", "--bids-filter-file", str(chosen), "--skip-bids-validation",
        ]
    )  # fmt: skip
    wanted = bids_app.settings_of(args).wanted
    assert (wanted.subjects, wanted.sessions, wanted.filters) == (("01", "02"), ("1",), ({"suffix": "T1w"},))
    assert {one.suffix for one in discover(bids_root, wanted).series} == {"T1w"}


def test_the_bids_app_refuses_in_one_sentence(bids_root: Path, tmp_path: Path, capsys):
    def refused(*options: object) -> str:
        assert bids_app.main([str(bids_root), str(tmp_path / "out"), *map(str, options)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "has no participant 09" in refused("participant", "--participant-label", "09")
    assert "no BIDS filter file" in refused("participant", "--bids-filter-file", write(tmp_path / "f.json", "[]"))
    assert "do the level participant first" in refused("group")
