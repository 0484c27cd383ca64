"""The second half of the story in the panel: what is in reach on a small screen, the keyboard path, what the
verdict says, and saving by the engine."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")
import qt_stand_ins
import slicer

qt_stand_ins.install()

from panel_world import REPORT, World, add_head, reason
from RefaceCGANLib.models.model import Model
from RefaceCGANSlicer import layout, sections
from RefaceCGANSlicer.engine import EngineError
from RefaceCGANSlicer.verdict import verdict_of

QtCore = qt_stand_ins.QtCore
WIDTH, HEIGHT = 400, 440
"""What a screen of 1366 x 768 pixels leaves of the panel under Slicer's title, menu, tool bars and header."""
SECOND = {"name": "brain_second_opinion_ml", "value": 0.4, "limit": [0.0, 1.0], "passed": True}


def bottom_of(world: World, widget: Any) -> int:
    """How far down a widget reaches in the panel, in pixels."""
    return widget.mapTo(world.root, QtCore.QPoint(0, widget.height)).y()


# --- on one screen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "warnings", [[], ["The chin is outside the field of view; the face there is not replaced."]]
)
def test_verdict_faces_another_and_save_are_in_reach_on_a_small_screen(world: World, warnings: list[str]) -> None:
    world.root.resize(WIDTH, 768)
    world.refaced(warnings=warnings)
    world.root.resize(WIDTH, 768)
    for _ in range(3):
        qt_stand_ins.application().processEvents()
    order = [world.ui.verdictFrame, world.ui.facesList, world.ui.anotherButton, world.ui.saveButton]
    bottoms = [bottom_of(world, widget) for widget in order]
    assert all(widget.visible for widget in order)
    assert bottoms == sorted(bottoms) and bottoms[-1] <= HEIGHT
    assert world.ui.seeSection.collapsed and world.ui.judgeSection.collapsed and world.ui.studySection.collapsed


def test_no_text_from_elsewhere_widens_the_panel(world: World) -> None:
    """A model card, a message with a long path, a scan with a long name."""
    card = Model.load().card
    long = "/" + "a_folder_with_a_long_name" * 8 + "/refaced.nii.gz"
    world.panel.advanced.models = [type("Model", (), {"id": "default", "card": {**card, "licence": long}})]
    world.choose(add_head("a" * 120))
    world.ui.refaceButton.click()
    world.session.draw(warnings=[long])
    world.session.hold_saves = True
    world.ui.saveFolder.currentPath = "/tmp"
    world.ui.saveButton.click()
    world.session.saves[-1]["on_error"](EngineError(f"{long} cannot be written.", "input"))
    for section in (world.ui.seeSection, world.ui.judgeSection, world.ui.studySection, world.ui.advancedSection):
        section.collapsed = False
    world.ui.checksButton.click()
    qt_stand_ins.application().processEvents()
    assert world.root.minimumSizeHint().width() <= WIDTH


def test_the_layout_has_two_views_in_a_row_not_more() -> None:
    """Three slice views beside the panel need 1414 pixels."""
    rows = re.findall(r'<layout type="horizontal">(.*?)</layout>', layout._description())
    assert [row.count("<view ") for row in rows] == [2, 2]


def test_one_keyboard_path_leads_from_the_scan_to_the_files(world: World, tmp_path: Path) -> None:
    world.refaced()
    world.ui.saveFolder.currentPath = str(tmp_path)
    widget, passed = world.ui.inputSelector, []
    for _ in range(60):
        widget = widget.nextInFocusChain()
        passed.append(widget.property("objectName"))
    wanted = ["refaceButton", "checksButton", "facesList", "anotherButton", "saveName", "saveFormat", "saveButton"]
    assert [name for name in passed if name in wanted] == wanted
    texts = {name: getattr(world.ui, name).text for name in ("refaceButton", "anotherButton", "saveButton")}
    assert texts == {"refaceButton": "&Reface", "anotherButton": "&Another face", "saveButton": "&Save"}


# --- DICOM ------------------------------------------------------------------------------------------------


class Database:
    """Slicer's DICOM database, of files that are there or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fileForInstance(self, uid: str) -> str:
        return str(self.folder / f"{uid}.dcm")


@pytest.fixture
def from_dicom(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A refaced head whose original came as two DICOM files, with Save set to DICOM."""
    for uid in ("1.2.3", "1.2.4"):
        (tmp_path / f"{uid}.dcm").write_bytes(b"DICM")
    monkeypatch.setattr(slicer, "dicomDatabase", Database(tmp_path), raising=False)
    world.refaced()
    world.parameters.inputVolume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveFormat.currentIndex = sections.FORMATS.index(sections.DICOM)
    return world


def test_a_scan_from_dicom_is_saved_back_as_its_series(from_dicom: World, tmp_path: Path) -> None:
    world = from_dicom
    assert world.ui.databaseCheck.visible and not world.ui.maskCheck.visible
    world.ui.saveButton.click()
    [folder] = [what for command, what in world.session.asked if command == "save_dicom"]
    [content] = [what for command, what in world.session.asked if command == "series"]
    assert folder == str(tmp_path / "refaced")
    assert content["sources"] == [str(tmp_path / f"{uid}.dcm") for uid in ("1.2.3", "1.2.4")]
    changed = content["volume"] != slicer.util.arrayFromVolume(world.parameters.inputVolume).T
    assert changed.any() and not changed[content["face_region"] == 0].any() and content["seed"] == 7
    assert world.ui.savedLabel.text.splitlines() == ["✔ Saved: refaced", "This is no DICOM anonymiser."]


@pytest.mark.parametrize(("taken", "words"), [(True, "✔ Saved"), (False, "did not take it")])
def test_the_new_series_goes_into_slicer_s_database_on_request(
    from_dicom: World, tmp_path: Path, taken: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[str] = []
    utils = types.SimpleNamespace(importDicom=lambda folder, database: added.append(folder) or taken)
    monkeypatch.setitem(sys.modules, "DICOMLib", types.SimpleNamespace(DICOMUtils=utils))
    from_dicom.ui.saveButton.click()
    assert not added
    from_dicom.ui.databaseCheck.checked = True
    from_dicom.ui.saveButton.click()
    assert added == [str(tmp_path / "refaced")] and words in from_dicom.ui.savedLabel.text


@pytest.mark.parametrize("what", ["not loaded from DICOM", "a file has gone", "the original has gone"])
def test_what_is_no_dicom_any_more_is_not_saved_as_dicom(from_dicom: World, tmp_path: Path, what: str) -> None:
    if what == "not loaded from DICOM":
        from_dicom.parameters.inputVolume.RemoveAttribute("DICOM.instanceUIDs")
    elif what == "a file has gone":
        (tmp_path / "1.2.4.dcm").unlink()
    else:
        from_dicom.scene.RemoveNode(from_dicom.parameters.inputVolume)
    from_dicom.panel.refresh()
    sentence = "Load the original by Slicer's DICOM module first, or choose another format."
    assert reason(from_dicom.ui.saveButton) == sentence


# --- the verdict ------------------------------------------------------------------------------------------


def test_the_verdict_lists_what_was_checked_and_what_was_not(world: World) -> None:
    world.refaced()
    assert not world.ui.checksLabel.visible
    assert world.ui.verdictDetails.text == "Distance to the original face: not measured (Advanced says how)."
    world.ui.checksButton.click()
    assert world.ui.checksLabel.visible
    assert world.ui.checksLabel.text.splitlines() == [
        "Checked:",
        "✔ Size, spacing and type are those of the original",
        "✔ Brain voxels changed: 0",
        "✔ Original voxels left in the face region: 0",
        "✔ A face is there: 80 % of an average face's tissue",
        "Not checked:",
        "– The distance to the original face. Name a face detector and a face recogniser under Advanced.",
        "– The brain by a second method: its mask is that of RefaceCGAN's own network alone.",
        "– Names and dates in the scan's header, and the file's name.",
    ]
    assert "YuNet" in world.ui.recogniserHint.text and "onnxruntime" in world.ui.recogniserHint.text


def test_a_second_opinion_on_the_brain_is_told_with_its_limit() -> None:
    verdict = verdict_of({**REPORT, "checks": [*REPORT["checks"], SECOND]})
    assert verdict.checked[-1] == "✔ Brain by a second method in the face region: 0.4 ml (at most 1)"
    assert not any("second method" in line for line in verdict.unchecked)
    failed = {**SECOND, "value": 3.0, "passed": False}
    verdict = verdict_of({**REPORT, "checks": [*REPORT["checks"], failed]})
    assert verdict.level == "red" and verdict.details == (
        "Brain by a second method in the face region: 3.0 ml (at most 1)",
    )


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"value": 2.5, "limit": [0, 5], "passed": True}, "✔ some new check: 2.5 (allowed: 0 to 5)"),
        ({"value": 7.0, "limit": [0, 5], "passed": False}, "✖ some new check: 7 (allowed: 0 to 5)"),
        ({"value": None, "limit": [0, 5], "passed": True}, "! some new check: could not be measured"),
    ],
)
def test_a_check_that_this_version_does_not_know_is_listed_all_the_same(entry: dict[str, Any], line: str) -> None:
    verdict = verdict_of({**REPORT, "checks": [*REPORT["checks"], {"name": "some_new_check", **entry}]})
    assert verdict.checked[-1] == line and (verdict.level == "red") == (not entry["passed"])


# --- saving -----------------------------------------------------------------------------------------------


def test_the_engine_writes_and_its_word_stands_beside_the_button(world: World, tmp_path: Path) -> None:
    world.session.hold_saves = True
    world.refaced()
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveButton.click()
    assert world.ui.savedLabel.text == "… Writing the files" and world.ui.savedLabel.visible
    assert reason(world.ui.saveButton) == "Wait until the files are written first."
    world.session.saves[-1]["on_error"](EngineError("The disk is full.", "input"))
    assert world.ui.savedLabel.text == "✖ The disk is full. Nothing was written."
    assert world.ui.verdictHeadline.text == "All checks passed"
    world.ui.saveButton.click()
    world.session.saves[-1]["on_done"]({"files": ["refaced.nii.gz", "refaced.json"]})
    assert world.ui.savedLabel.text == "✔ Saved: refaced.nii.gz, refaced.json" and world.ui.saveButton.enabled
    assert qt_stand_ins.QSettings.kept[sections.FOLDER] == str(tmp_path)
    assert sections.FORMATS[0] == ".nii.gz"


def test_what_was_said_of_one_face_is_not_said_of_another(world: World, tmp_path: Path) -> None:
    world.session.hold_saves = True
    world.refaced(seed=7)
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveButton.click()
    world.session.saves[-1]["on_done"]({"files": ["refaced.nii.gz"]})
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    assert world.ui.savedLabel.text == "" and not world.ui.savedLabel.visible
    world.ui.facesList.currentRow = 0
    assert world.ui.savedLabel.text == "✔ Saved: refaced.nii.gz"


def test_an_engine_that_is_ended_while_it_writes_says_so(world: World, tmp_path: Path) -> None:
    world.session.hold_saves = True
    world.refaced()
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveButton.click()
    late = world.session.saves[-1]
    world.ui.pythonPath.currentPath = "/opt/other/python"
    assert world.ui.savedLabel.text == "✖ The engine was ended. Nothing was written."
    late["on_done"]({"files": ["too late"]})
    assert "too late" not in world.ui.savedLabel.text


def test_slicers_own_python_needs_no_nibabel_to_save(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything up to the engine's door works without."""
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    world.session.hold_saves = True
    world.refaced()
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveButton.click()
    from RefaceCGANSlicer import scene

    assert scene.to_write(world.session.head.refacedNode)["face_region"].any()
    assert world.ui.savedLabel.text == "… Writing the files"


def test_the_engine_is_started_when_the_module_is_opened_not_when_a_scan_is_there(world: World) -> None:
    assert world.ui.readyLabel.text.startswith("✔ Ready") and world.parameters.inputVolume is None
    assert not world.ui.readyLabel.visible and not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
