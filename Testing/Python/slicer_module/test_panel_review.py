"""Review a data set in the panel: scan after scan, verdicts by keyboard, qc.tsv as of the page, another face."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")
import qt_stand_ins
import slicer
from panel_world import World, add_head, reason
from PySide6 import QtGui, QtTest
from RefaceCGANLib.dataset import qc_page
from RefaceCGANLib.dataset.plan import Outcome, Row
from RefaceCGANLib.dataset.review import SCANS, write_scans
from RefaceCGANLib.dataset.verdicts import read_verdicts, write_verdicts
from RefaceCGANSlicer import review_section
from RefaceCGANSlicer.engine import EngineError

CALM, DOUBTFUL, OTHER = "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz"


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def outcome(path: str, *warnings: str) -> Outcome:
    row = Row(path, path[4], "", "reface", "T1w; face region of its own.", path, warnings)
    return Outcome(row, (path,), {"picture": "data:,", "checks": []}, (path,), (path,))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output of a run over three scans, of which one is worth a look and one was judged."""
    scans = [outcome(CALM), outcome(DOUBTFUL, "Could not be registered."), outcome(OTHER)]
    write(tmp_path / "out/qc/qc.tsv", f"path\tverdict\tnote\n{CALM}\tpass\tfine\n")
    entries = qc_page.write(tmp_path / "out/qc/index.html", scans, [], tmp_path / "out/qc/qc.tsv")
    write_scans(tmp_path / "out/qc" / SCANS, entries)
    return tmp_path / "out"


@pytest.fixture
def opened(world: World, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """That run in the panel, opened by the button, with the first scan on screen."""
    monkeypatch.setattr(review_section, "choose_folder", lambda _parent, _start: str(run))
    world.ui.reviewOriginals.currentPath = str(tmp_path / "in")
    world.ui.reviewButton.click()
    world.session.read()
    return world


def lines(world: World) -> list[str]:
    return [world.ui.reviewList.item(row).text() for row in range(world.ui.reviewList.count)]


def verdicts(run: Path) -> dict[str, tuple[str, str]]:
    return read_verdicts(run / "qc/qc.tsv")


def press(world: World, *keys: str) -> None:
    """Press keys where the keyboard is, as a user does."""
    for key in keys:
        widget = qt_stand_ins.QtWidgets.QApplication.focusWidget() or world.ui.reviewList
        QtTest.QTest.keyClick(widget, QtGui.QKeySequence(key)[0].key())


def test_the_scans_of_a_run_come_in_the_order_of_the_page(opened: World, run: Path, tmp_path: Path) -> None:
    assert lines(opened) == [f"· ! {DOUBTFUL}", f"✔ {CALM}", f"· {OTHER}"]
    assert not opened.ui.reviewSection.collapsed
    assert opened.ui.reviewLabel.text.startswith("1 of 3 judged, 0 failed.")
    assert opened.ui.reviewText.text.splitlines()[:2] == [
        "! Could not be registered.", "reface: T1w; face region of its own.",
    ]  # fmt: skip
    assert opened.session.reads[0][0] == (str(run), DOUBTFUL, str(tmp_path / "in"))


def test_refaced_and_original_are_side_by_side_and_stay_out_of_the_scene_s_data(opened: World) -> None:
    left, right = opened.views.shown.nodes
    assert slicer.util.arrayFromVolume(left)[0, 0, 0] == slicer.util.arrayFromVolume(right)[0, 0, 0] + 1
    for node in (left, right):
        assert node.GetHideFromEditors() and not node.GetSaveWithScene()
    assert opened.parameters.inputVolume is None and not opened.session.prepared
    assert opened.ui.threeQuarterButton.enabled and not opened.ui.reviewMessage.visible
    opened.ui.reviewNextButton.click()
    opened.session.read()
    assert not opened.scene.IsNodePresent(left) and not opened.scene.IsNodePresent(right)
    there = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", opened.scene)
    assert {node.GetID() for node in there} == {node.GetID() for node in opened.views.shown.nodes}


def test_without_the_original_the_refaced_scan_is_shown_and_the_panel_says_so(opened: World) -> None:
    opened.ui.reviewOriginals.currentPath = "/nowhere"
    assert opened.session.reads[-1][0][2] == "/nowhere"
    opened.session.read(original=False, why="/nowhere/x is not there.")
    left, right = opened.views.shown.nodes
    assert left is right
    assert opened.ui.reviewMessage.text == "The original is not shown: /nowhere/x is not there."


def test_a_scan_that_cannot_be_read_says_why_and_the_next_one_can_be_shown(opened: World) -> None:
    opened.session.reads[-1][1]["on_error"](EngineError("x is damaged; copy it again.", "input"))
    assert opened.ui.reviewMessage.text == "x is damaged; copy it again."
    opened.ui.reviewNextButton.click()
    opened.session.read()
    assert opened.views.shown and not opened.ui.reviewMessage.visible


def test_verdicts_are_given_by_keyboard_and_kept_at_once(opened: World, run: Path) -> None:
    opened.root.activateWindow()
    qt_stand_ins.application().processEvents()
    opened.ui.reviewList.setFocus()
    press(opened, "F")
    assert verdicts(run)[DOUBTFUL] == ("fail", "")
    assert opened.panel.review.current.path == CALM and opened.ui.reviewNote.text == "fine"
    press(opened, "J")
    assert opened.panel.review.current.path == OTHER
    press(opened, "P", "K", "U")
    assert verdicts(run) == {DOUBTFUL: ("fail", ""), CALM: ("", "fine"), OTHER: ("pass", "")}
    press(opened, "N")
    assert qt_stand_ins.QtWidgets.QApplication.focusWidget() is opened.ui.reviewNote
    QtTest.QTest.keyClicks(opened.ui.reviewNote, " pf")  # letters, not verdicts
    opened.ui.reviewList.setFocus()
    assert verdicts(run)[CALM] == ("", "fine pf")
    assert lines(opened)[0] == f"✖ {DOUBTFUL}"
    assert opened.ui.reviewLabel.text.startswith("2 of 3 judged, 1 failed.")


def test_the_table_is_the_one_that_the_page_exports(opened: World, run: Path) -> None:
    opened.ui.reviewNote.text = 'a "quoted" note'
    opened.ui.reviewFailButton.click()
    text = (run / "qc/qc.tsv").read_text()
    assert text.splitlines() == [
        "path\tverdict\tnote",
        f'{DOUBTFUL}\tfail\ta "quoted" note',
        f"{CALM}\tpass\tfine",
        f"{OTHER}\tn/a\tn/a",
    ]
    [entry] = [entry for entry in page_entries(run) if entry["path"] == DOUBTFUL]
    assert (entry["verdict"], entry["note"]) == ("fail", 'a "quoted" note')


def page_entries(run: Path) -> list[dict[str, Any]]:
    """What the page of a second run takes over."""
    scans = [outcome(CALM), outcome(DOUBTFUL, "Could not be registered."), outcome(OTHER)]
    qc_page.write(run / "qc/index.html", scans, [], run / "qc/qc.tsv")
    text = (run / "qc/index.html").read_text()
    entries: list[dict[str, Any]] = json.loads(
        re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    )
    return entries


def test_a_verdict_that_cannot_be_written_is_not_shown_as_given(opened: World, run: Path) -> None:
    (run / "qc/qc.tsv").unlink()
    (run / "qc/qc.tsv").mkdir()
    opened.ui.reviewPassButton.click()
    assert "cannot be written" in opened.ui.reviewMessage.text
    assert lines(opened)[0] == f"· ! {DOUBTFUL}"


@pytest.mark.parametrize(("content", "words"), [(None, "holds no finished run"), ("{", "is damaged")])
def test_a_folder_without_a_run_is_refused(
    world: World, tmp_path: Path, content: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content:
        write(tmp_path / "qc" / SCANS, content)
    monkeypatch.setattr(review_section, "choose_folder", lambda _parent, _start: str(tmp_path))
    world.ui.reviewButton.click()
    assert words in world.ui.reviewMessage.text and world.ui.reviewList.count == 0
    assert reason(world.ui.reviewPassButton) == "Open the output folder of a run first."


def test_another_face_goes_to_all_series_of_the_person(opened: World, run: Path, tmp_path: Path) -> None:
    opened.ui.reviewKey.currentPath = "/keys/mine"
    opened.ui.reviewAnotherButton.click()
    asked, answers = opened.session.persons[-1]
    assert asked == (str(run), str(tmp_path / "in"), "1", "/keys/mine")
    answers["on_progress"]("series", 0.5)
    assert opened.ui.reviewMessage.text == "… Another face for 1: 50 % of the series"
    assert reason(opened.ui.reviewPassButton) == "Wait for the other face, or cancel it."
    write_verdicts(run / "qc/qc.tsv", [(OTHER, "pass", "")])  # what the engine leaves of the verdicts
    answers["on_done"]({"series": 2, "warnings": []})
    assert opened.session.reads[-1][0][1] == DOUBTFUL
    assert "2 series of 1 have another face" in opened.ui.reviewMessage.text
    assert lines(opened) == [f"· ! {DOUBTFUL}", f"· {CALM}", f"✔ {OTHER}"]


def test_another_face_needs_the_originals_and_can_be_cancelled(opened: World) -> None:
    opened.ui.reviewAnotherButton.click()
    number = 2000 + len(opened.session.persons)
    assert opened.ui.reviewAnotherButton.text == "Cancel"
    opened.ui.reviewAnotherButton.click()
    assert number in opened.session.given_up
    assert opened.ui.reviewMessage.text == "Cancelled; all series keep the face they have."
    opened.ui.reviewOriginals.currentPath = ""
    opened.panel.refresh()
    assert reason(opened.ui.reviewAnotherButton) == "Name the folder of the originals first."


def test_an_engine_that_refuses_says_why_and_nothing_is_lost(opened: World, run: Path) -> None:
    before = verdicts(run)
    opened.ui.reviewAnotherButton.click()
    sentence = "The key file is not there; put it back."
    opened.session.persons[-1][1]["on_error"](EngineError(sentence, "input"))
    assert opened.ui.reviewMessage.text == sentence and verdicts(run) == before
    assert opened.ui.reviewPassButton.enabled


def test_a_run_of_the_panel_leaves_the_review_alone_and_takes_the_views(opened: World) -> None:
    """The head of the panel and the scan of a run are two things."""
    opened.choose(add_head())
    opened.ui.refaceButton.click()
    opened.session.draw()
    assert opened.views.shown.refaced is opened.session.head.refacedNode
    opened.ui.reviewNextButton.click()
    opened.session.read()
    assert opened.views.shown.refaced is not opened.session.head.refacedNode
    opened.ui.showButton.click()
    assert opened.views.shown.refaced is opened.session.head.refacedNode


def test_a_scene_that_is_closed_takes_the_scans_along_and_the_review_goes_on(opened: World) -> None:
    opened.panel.scene_closing()
    opened.scene.Clear(0)
    opened.panel.refresh()
    opened.ui.reviewList.currentRow = 2
    opened.session.read()
    assert opened.views.shown and opened.panel.review.current.path == OTHER
