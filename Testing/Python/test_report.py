"""The report: what stands in report.json and in the BIDS sidecar, and what must not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from RefaceCGANLib import Result, __version__
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.report import bids_sidecar, file_sha256, report_of, write_json

DESIGNED = {
    "version", "model", "model_sha256", "seed", "dropout", "device", "threads", "seconds", "input_sha256",
    "output_sha256", "shape", "voxel_size_mm", "brain_voxels_changed", "voxels_changed", "face_region_ml",
    "checks", "warnings",
}  # fmt: skip


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "Doe, Jane"
    folder.mkdir()
    source, output = folder / "scan.nii.gz", folder / "refaced.nii.gz"
    source.write_bytes(b"before")
    output.write_bytes(b"after")
    return source, output


def test_the_report_holds_what_the_design_promises(result: Result, files: tuple[Path, Path]) -> None:
    report = report_of(result, *files)
    assert set(report) >= DESIGNED
    assert (report["version"], report["seed"]) == (__version__, 7)
    assert report["brain_voxels_changed"] == 0 and report["voxels_changed"] > 0
    for check in report["checks"]:
        assert set(check) == {"name", "value", "limit", "passed"}


def test_the_report_tells_the_two_files_by_name_and_sum(result: Result, files: tuple[Path, Path]) -> None:
    report = report_of(result, *files)
    assert (report["input"], report["output"]) == ("scan.nii.gz", "refaced.nii.gz")
    assert (report["input_sha256"], report["output_sha256"]) == (sha256(b"before"), sha256(b"after"))


def test_the_report_does_not_say_where_the_files_lay(result: Result, files: tuple[Path, Path]) -> None:
    assert "Doe" not in json.dumps(report_of(result, *files))


def test_the_report_says_when_in_utc(result: Result, files: tuple[Path, Path]) -> None:
    created = datetime.fromisoformat(report_of(result, *files)["created"])
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)


def test_a_result_that_was_not_written_has_no_output(result: Result, files: tuple[Path, Path]) -> None:
    report = report_of(result, files[0])
    assert report["output"] is None and report["output_sha256"] is None


def test_the_report_leaves_the_result_as_it_was(result: Result, files: tuple[Path, Path]) -> None:
    report_of(result, *files)
    assert "input" not in result.report


def test_a_dicom_folder_is_summed_over_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "2.dcm").write_bytes(b"two")
    (tmp_path / "1.dcm").write_bytes(b"one")
    (tmp_path / "sub").mkdir()
    assert file_sha256(tmp_path) == sha256(b"onetwo")


def test_a_folder_named_by_a_dot_is_told_by_its_name(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report_of(result, Path())["input"] == tmp_path.name


def test_the_bids_sidecar_says_how_the_face_was_removed(result: Result) -> None:
    sidecar = bids_sidecar(dataclasses.replace(result, report={**result.report, "model": "default"}))
    assert sidecar["Refaced"] is True and sidecar["RefacingSeed"] == 7
    assert sidecar["RefacingModelSHA256"] == result.report["model_sha256"]
    # BIDS: a list of texts, and a list of codes of DICOM's CID 7050
    [method] = sidecar["DeidentificationMethod"]
    assert method == f"RefaceCGAN {__version__}: face replaced by a generated one (model default)"
    [code] = sidecar["DeidentificationMethodCodeSequence"]
    assert code["CodeValue"] == "113102" and code["CodingSchemeDesignator"] == "DCM"
    json.dumps(sidecar)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    content = {"input": "M\u00fcller\udcff.nii.gz", "seconds": {"read": 0.1}, "checks": [1, None, True]}
    write_json(content, path)
    assert json.loads(path.read_text()) == content
    with pytest.raises(ValueError):
        write_json({"value": float("nan")}, path)
    with pytest.raises(InputError):
        write_json({}, tmp_path / "nowhere" / "report.json")
    assert json.loads(path.read_text()) == content and os.listdir(tmp_path) == ["report.json"]
