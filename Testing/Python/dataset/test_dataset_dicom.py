"""DICOM in, DICOM out: voxels, tags, UIDs, transfer syntaxes, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from data_sets import contents, write
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage, RLELossless
from RefaceCGANLib import Volume
from RefaceCGANLib.app.saving import write_dicom
from RefaceCGANLib.dataset.discovery import discover
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.volume.dicom_output import new_uid, read_files, write_series

SLICES, ROWS, COLUMNS = 18, 40, 44
KEY = b"k" * 32


def make_series(
    folder: Path, number: int = 1, patient: str = "anna", syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> list[Path]:
    """A small MR series, sagittal, 2 mm, 12 of 16 bits, with a real-value scale, an icon and a private UID."""
    folder.mkdir(parents=True, exist_ok=True)
    random, paths = np.random.default_rng(number), []
    for at in range(SLICES):
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
        dataset.file_meta.TransferSyntaxUID = syntax if syntax != RLELossless else ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}.{at}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", f"1.2.3.{number}"
        dataset.FrameOfReferenceUID = "1.2.4"
        dataset.PatientID, dataset.PatientName, dataset.Modality = patient, "Doe^Anna", "MR"
        dataset.SeriesNumber, dataset.SeriesDescription = number, "t1_mprage"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [2 * at, 0, 0], [0, 1, 0, 0, 0, -1]
        dataset.PixelSpacing, dataset.SliceThickness = [2, 2], 2
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -10
        other = Dataset()
        other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = MRImageStorage, "1.2.3.1.0"
        dataset.ReferencedImageSequence = [other]
        icon = Dataset()
        icon.Rows = 8
        dataset.IconImageSequence = [icon]
        dataset.add_new(0x00091010, "LO", "PRIVATE")
        pixels = random.integers(0, 4096, (ROWS, COLUMNS)).astype(np.uint16)
        dataset.PixelData = pixels.tobytes()
        dataset.LargestImagePixelValue = int(pixels.max())
        for name, value in tags.items():
            setattr(dataset, name, value)
        if syntax == RLELossless:
            dataset.compress(RLELossless, pixels)
            dataset.SOPInstanceUID = f"1.2.3.{number}.{at}"
        paths.append(folder / f"{SLICES - at:03d}.dcm")  # names run against the positions
        pydicom.dcmwrite(paths[-1], dataset, enforce_file_format=True)
    return paths


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., tuple[list[Path], list[Path], Volume, Volume]]:
    """Write a series again with a changed block: sources, targets, original, changed."""

    def call(syntax: str = ExplicitVRLittleEndian, **tags: Any) -> tuple[list[Path], list[Path], Volume, Volume]:
        sources = make_series(tmp_path / "in", syntax=syntax, **tags)
        original = read_files(sources)
        stored = original.stored.copy()
        stored[4:9, 5:12, 3:8] = 998
        changed = original.with_stored(stored)
        (tmp_path / "out").mkdir()
        targets = [tmp_path / "out" / path.name for path in sources]
        write_series(sources, targets, original, changed, KEY)
        return sources, targets, original, changed

    return call


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_voxels_come_back_as_they_were_changed(written, syntax: str):
    _, targets, original, changed = written(syntax)
    again = read_files(targets)
    assert np.array_equal(again.stored, changed.stored)
    assert np.array_equal(again.affine, original.affine)
    kept = pydicom.dcmread(targets[0]).file_meta.TransferSyntaxUID
    assert kept == (ExplicitVRLittleEndian if syntax == RLELossless else syntax)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
def test_jpeg_2000_and_jpeg_ls_are_decoded(tmp_path: Path, syntax: str):
    plugin = "pylibjpeg" if syntax.endswith("90") else "pyjpegls"
    pytest.importorskip("openjpeg" if plugin == "pylibjpeg" else "jpeg_ls")
    sources = make_series(tmp_path / "in")
    for path in sources:
        dataset = pydicom.dcmread(path)
        uid = dataset.SOPInstanceUID
        dataset.compress(syntax, encoding_plugin=plugin)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.save_as(path)
    original = read_files(sources)
    (tmp_path / "out").mkdir()
    targets = [tmp_path / "out" / path.name for path in sources]
    stored = original.stored.copy()
    stored[:5, :5, :5] = 200
    write_series(sources, targets, original, original.with_stored(stored), KEY)
    assert np.array_equal(read_files(targets).stored, stored)


def test_every_tag_is_kept_but_those_that_must_change(written):
    sources, targets, _, _ = written()
    before, after = pydicom.dcmread(sources[12]), pydicom.dcmread(targets[12])
    tags = {element.tag: element.keyword for element in (*before, *after)}
    changed = {keyword for tag, keyword in tags.items() if before.get(tag) != after.get(tag)}
    assert changed == {
        *("ImageType", "DerivationDescription", "RecognizableVisualFeatures", "DeidentificationMethod"),
        *("DeidentificationMethodCodeSequence", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
        *("FrameOfReferenceUID", "ReferencedImageSequence", "IconImageSequence", "PixelData"),
    }
    assert list(after.ImageType) == ["DERIVED", "PRIMARY", "M"]
    assert after.RecognizableVisualFeatures == "NO"
    [code] = after.DeidentificationMethodCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113102", "DCM")
    assert len(after.DeidentificationMethod) <= 64
    assert after.LargestImagePixelValue == after.pixel_array.max()


def test_uids_are_new_and_consistent(written):
    sources, targets, _, _ = written()
    befores, afters = [[pydicom.dcmread(path) for path in paths] for paths in (sources, targets)]
    for before, after in zip(befores, afters, strict=True):
        assert (
            after.SOPInstanceUID
            == new_uid(before.SOPInstanceUID, KEY)
            == after.file_meta.MediaStorageSOPInstanceUID
        )
        assert after.SOPClassUID == before.SOPClassUID
        [reference] = after.ReferencedImageSequence
        assert reference.ReferencedSOPClassUID == MRImageStorage
        first = next(one for one in befores if one.SOPInstanceUID == "1.2.3.1.0")
        assert reference.ReferencedSOPInstanceUID == new_uid(first.SOPInstanceUID, KEY)
    assert len({after.SOPInstanceUID for after in afters}) == SLICES
    assert len({(after.StudyInstanceUID, after.SeriesInstanceUID) for after in afters}) == 1
    assert new_uid("1.2.3", KEY) != new_uid("1.2.3", b"another") and len(new_uid("1.2.3", KEY)) <= 64


def test_dciodvfy_finds_no_new_error(written, tmp_path: Path):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    sources, targets, _, _ = written()

    def errors(path: Path) -> set[str]:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        return {line for line in done.stderr.splitlines() if line.startswith("Error")}

    assert errors(sources[0])  # our own small series is no model of a header
    assert errors(targets[0]) <= errors(sources[0])


# --- one scan that another program has read ---------------------------------------------------------------


@pytest.fixture
def turned(tmp_path: Path) -> tuple[list[Path], Volume, np.ndarray]:
    """A series, and it refaced with its axes in another order and direction, as Slicer may have read it, with the
    mask of what was changed."""
    sources = make_series(tmp_path / "in")
    original = read_files(sources)
    array, region = original.array.copy(), np.zeros(original.shape, bool)
    region[4:9, 5:12, 3:8] = True
    array[region] = 998
    order = (2, 0, 1)
    axes = np.eye(4)[:, [*order, 3]]
    last = array.shape[order[1]] - 1
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = last
    changed = np.ascontiguousarray(array.transpose(order)[:, ::-1])
    mask = np.ascontiguousarray(region.transpose(order)[:, ::-1])
    return sources, Volume.from_array(changed, original.affine @ axes @ flip), mask


def test_a_scan_goes_back_to_its_series_however_it_was_read(turned, tmp_path: Path):
    sources, scan, region = turned
    folder, warnings = write_dicom(tmp_path / "out", scan, region, sources, KEY, 7)
    before, after = read_files(sources), read_files(sorted(folder.iterdir()))
    assert np.array_equal(before.affine, after.affine)
    changed = before.stored != after.stored
    assert changed.any() and not changed[:4].any() and (after.array[4:9, 5:12, 3:8] == 998).all()
    assert np.array_equal(np.sort(after.array[changed]), np.full(np.count_nonzero(changed), 998))
    assert "no DICOM anonymiser" in warnings[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("changed outside", "differs from its DICOM files outside the face"),
        ("moved", "lies otherwise than its DICOM files"),
        ("a full folder", "is not empty"),
        ("in the input", "lie in each other"),
    ],
)
def test_what_is_not_that_series_is_not_written(turned, tmp_path: Path, what: str, words: str):
    sources, scan, region = turned
    target = tmp_path / "in/out" if what == "in the input" else tmp_path / "out"
    before = contents(tmp_path / "in")
    if what == "changed outside":
        array = scan.array.copy()
        array[tuple(np.argwhere(~region)[0])] += 10
        scan = Volume.from_array(array, scan.affine)
    elif what == "moved":
        moved = scan.affine.copy()
        moved[0, 3] += 1.0
        scan = Volume.from_array(scan.array, moved)
    elif what == "a full folder":
        write(target / "thesis.txt", "x")
    with pytest.raises(InputError, match=words):
        write_dicom(target, scan, region, sources, KEY, 7)
    assert contents(tmp_path / "in") == before
    assert not list(tmp_path.glob("**/.refacecgan-*")) and not list(tmp_path.glob("out/*.dcm"))


# --- discovery --------------------------------------------------------------------------------------------


def withheld(root: Path) -> dict[str, str]:
    return {row.path: row.reason for row in discover(root).rows if row.action == "withhold"}


def test_a_study_in_one_folder_is_sorted_into_series(tmp_path: Path):
    make_series(tmp_path / "study")
    for path in make_series(tmp_path / "other", number=2, SeriesDescription="t2_tse"):
        path.rename(tmp_path / "study" / f"b{path.name}")
    found = discover(tmp_path)
    assert [(one.path, one.subject, one.suffix, len(one.files)) for one in found.series] == [
        ("study/[1 t1_mprage]", "anna", "T1w", SLICES), ("study/[2 t2_tse]", "anna", "T2w", SLICES),
    ]  # fmt: skip
    assert len({one.session for one in found.series}) == 1


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": 30}, "multi-frame"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"Modality": "RTSTRUCT"}, "of the kind RTSTRUCT"),
        ({"patient": "bob"}, "more than one patient"),
    ],
)
def test_what_is_not_handled_is_withheld_with_a_sentence(tmp_path: Path, tags: dict, words: str):
    make_series(tmp_path / "a")
    make_series(tmp_path / "b", number=2, **tags)
    reasons = {reason for path, reason in withheld(tmp_path).items() if path.startswith("b/")}
    assert len(reasons) == 1 and words in reasons.pop()


def test_missing_and_doubled_slices_are_withheld(refacecgan: Callable, tmp_path: Path):
    for path in make_series(tmp_path / "in/missing")[5:8]:
        path.unlink()
    doubled = make_series(tmp_path / "in/doubled", number=2)
    copy = pydicom.dcmread(doubled[3])
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = "1.2.3.2.99"
    copy.save_as(tmp_path / "in/doubled/extra.dcm")
    write(tmp_path / "in/broken.dcm", bytes(128) + b"DICM" + b"rubbish" * 10)
    before = contents(tmp_path / "in")
    done = refacecgan("dataset", tmp_path / "in", tmp_path / "out", "--device", "cpu")
    assert done.status == 3
    reasons = [line for line in done.out if line.startswith(("missing/", "doubled/", "broken"))]
    assert len(reasons) == 3
    assert "damaged DICOM" in reasons[0] and "several slices at one position" in reasons[1]
    assert "missing or unevenly spaced slices" in reasons[2]
    assert not list((tmp_path / "out").rglob("*.dcm"))
    assert contents(tmp_path / "in") == before


# --- one real head ----------------------------------------------------------------------------------------


@pytest.mark.heads
def test_a_dicom_series_comes_out_as_dicom(refacecgan: Callable, heads: Path, tmp_path: Path):
    """This one lacks a slice, which is tolerated with a warning."""
    source, output, mask = heads / "native" / "adi_dicom", tmp_path / "out", tmp_path / "mask.nii.gz"
    options = ("--device", "cpu", "--mask", mask)
    done = refacecgan("reface", source, output, "--seed", 3, *options)
    assert done.status == 0, done
    assert any("no DICOM anonymiser" in line and "PatientName" in line for line in done.err)
    before, after, region = Volume.read(source), Volume.read(output), Volume.read(mask).stored > 0
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.stored[~region], after.stored[~region])
    assert (before.stored != after.stored)[region].mean() > 0.3
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in output.iterdir()) == names
    if shutil.which("dciodvfy"):
        for name in names[::60]:
            said = [
                subprocess.run(
                    ["dciodvfy", str(folder / name)], capture_output=True, text=True, check=False
                ).stderr
                for folder in (source, output)
            ]
            assert said[0] == said[1]


def test_a_dicom_output_needs_a_new_folder_outside_the_input(refacecgan: Callable, tmp_path: Path):
    make_series(tmp_path / "in")
    write(tmp_path / "full/file", "x")
    for output, words in (
        (tmp_path / "in", "is not empty"),
        (tmp_path / "in/out", "lie in each other"),
        (tmp_path / "full", "is not empty"),
        (tmp_path / "nowhere/out", "parent is no folder"),
    ):
        done = refacecgan("reface", tmp_path / "in", output)
        assert done.status == 2 and words in done.err[0], done
    assert sorted(contents(tmp_path / "full")) == ["file"]
