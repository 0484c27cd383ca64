"""The panel: which state it is in, what may be pressed and why not, and what it makes of the engine's answers."""

from __future__ import annotations

import ast
import re
import types
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")
import qt_stand_ins
import slicer
from panel_world import MODULE, REPORT, SHAPE, UI, World, add_head, head_array, reason
from slicer_offscreen import add_volume

qt_stand_ins.install()

from RefaceCGANLib.errors import InputError
from RefaceCGANSlicer import scene, sections, verdict, widgets
from RefaceCGANSlicer.engine import EngineError

# --- the file and the texts -------------------------------------------------------------------------------


def test_every_class_of_the_ui_has_a_stand_in() -> None:
    tree = ET.parse(UI)
    used = {widget.get("class") for widget in tree.iter("widget")} - {"Line"}
    declared = {custom.findtext("class") for custom in tree.iter("customwidget")}
    assert declared == set(qt_stand_ins.CUSTOM)
    assert used <= declared | set(qt_stand_ins.WIDGETS)


def test_buddies_and_tab_stops_exist_and_nothing_is_left_out() -> None:
    tree = ET.parse(UI)
    kinds = {widget.get("name"): widget.get("class") for widget in tree.iter("widget")}
    buddies = {p.findtext("cstring") for p in tree.iter("property") if p.get("name") == "buddy"}
    stops = [stop.text for stop in tree.iter("tabstop")]
    passive = {"QLabel", "QFrame", "QProgressBar", "Line", "qMRMLWidget"}
    assert buddies <= set(kinds)
    assert Counter(stops) == Counter(name for name, kind in kinds.items() if kind not in passive)


def test_no_mnemonic_is_used_twice_or_is_one_of_slicer_s_menus(world: World) -> None:
    texts = [widget.text for widget in vars(world.ui).values() if isinstance(getattr(widget, "text", None), str)]
    letters = Counter(letter.lower() for text in texts for letter in re.findall(r"&(\w)", text))
    assert not [letter for letter, count in letters.items() if count > 1]
    assert not set("fevh") & set(letters)


def test_every_text_of_the_code_is_translated() -> None:
    shown = {"setText", "setToolTip", "addItem", "setWindowTitle", "Verdict", "allow", "confirmOkCancelDisplay"}
    shown |= {"InputError", "EngineError"}
    for path in (*MODULE.glob("RefaceCGANSlicer/*.py"), MODULE / "RefaceCGAN.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            given = call.args[:1] if name.endswith("Error") else call.args  # then follows its kind
            parts = [part for a in given for part in (a.values if isinstance(a, ast.JoinedStr) else [a])]
            plain = [
                part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            if name in shown:
                assert not [
                    text for text in plain if re.search(r"\w{2}", text) and text not in ("refaced", "RefaceCGAN")
                ], (
                    path.name,
                    plain,
                )


def test_it_fits_a_narrow_panel(world: World) -> None:
    world.refaced()
    for section in (world.ui.seeSection, world.ui.judgeSection, world.ui.studySection, world.ui.advancedSection):
        section.collapsed = False
    qt_stand_ins.application().processEvents()
    assert world.root.minimumSizeHint().width() <= 400


# --- states -----------------------------------------------------------------------------------------------


def test_without_a_scan_nothing_can_be_done_and_each_widget_says_why(world: World) -> None:
    assert reason(world.ui.refaceButton) == "Choose a head MRI first."
    for name in (
        "anotherButton",
        "showButton",
        "frontalButton",
        "saveButton",
        "editRegionButton",
        "noteEdit",
        "eyesCheck",
    ):
        assert reason(getattr(world.ui, name)) == "Reface a head first."
    assert world.ui.sampleButton.enabled and world.ui.inputLabel.text.startswith("Load a head")
    assert (
        not world.ui.verdictFrame.visible
        and not world.ui.facesFrame.visible
        and not world.ui.progressFrame.visible
    )


@pytest.mark.parametrize("stage", ["nothing", "ready", "running", "done", "error", "missing"])
def test_a_disabled_widget_always_says_why_in_one_sentence(world: World, stage: str) -> None:
    if stage == "missing":
        world.session.lacking = ["torch"]
    if stage != "nothing":
        world.choose(add_head())
    if stage in ("running", "done", "error"):
        world.ui.refaceButton.click()
    if stage == "done":
        world.session.draw()
    if stage == "error":
        world.session.callbacks["on_error"](
            EngineError("There is no head in this scan; choose another one.", "check")
        )
    kinds = tuple(
        getattr(qt_stand_ins.qt, kind)
        for kind in (
            "QPushButton",
            "QToolButton",
            "QCheckBox",
            "QRadioButton",
            "QComboBox",
            "QSpinBox",
            "QLineEdit",
        )
    )
    for widget in vars(world.ui).values():
        if isinstance(widget, (*kinds, *qt_stand_ins.CUSTOM.values())) and not widget.enabled:
            assert re.fullmatch(
                r"[A-Zt].*(first|run is over, or cancel it|already|Advanced)[.]", reason(widget)
            ), widget.name


def test_a_scan_is_described_and_can_be_refaced(world: World) -> None:
    world.choose(add_head())
    said = "24 × 20 × 22 voxels of 1.5 mm, RAS. Whole head or already defaced: Reface will tell."
    assert world.ui.inputLabel.text == said
    assert world.ui.readyLabel.text == "✔ Ready: processor, 2 threads, model default"
    assert world.ui.refaceButton.enabled and world.ui.refaceButton.text == "&Reface"


@pytest.mark.parametrize(("defaced", "words"), [(False, "Whole head."), (True, "Already defaced before.")])
def test_a_scan_is_prepared_ahead_and_the_panel_says_whether_it_has_a_face(
    world: World, defaced: bool, words: str
) -> None:
    node = world.choose(add_head())
    (prepared, on_progress, on_done), *others = world.session.prepared
    assert prepared is node and not others
    on_progress("locate", 0.5)  # nobody waits for it
    assert not world.ui.progressFrame.visible
    world.session.defaced = defaced
    on_done({})
    assert world.ui.inputLabel.text.endswith(words)


def test_what_is_prepared_already_counts_in_a_run(world: World) -> None:
    world.choose(add_head())
    world.ui.refaceButton.click()
    world.session.prepared[0][1]("locate", 0.5)
    assert world.ui.progressBar.value == 35 and world.panel.run.stage == "locate"


def test_a_scan_that_cannot_be_refaced_says_why(world: World) -> None:
    world.choose(add_volume(np.zeros(SHAPE, np.int16), np.eye(4), "empty"))
    assert "empty holds the value 0 in every voxel" in world.ui.inputLabel.text
    assert "empty holds the value 0" in reason(world.ui.refaceButton) and not world.session.prepared


def test_what_is_missing_is_named_and_one_button_installs_it(world: World) -> None:
    world.session.lacking = ["torch (200 MB)", "nibabel"]
    world.choose(add_head())
    assert world.ui.installButton.visible and "torch (200 MB), nibabel missing" in reason(world.ui.refaceButton)
    world.ui.installButton.click()
    assert not world.ui.installButton.visible and world.ui.refaceButton.enabled


@pytest.mark.parametrize(
    ("own", "lacking", "words"), [(False, "nibabel", "in the Python you named"), (False, "Python", "3.11")]
)
def test_nothing_is_installed_into_another_python(world: World, own: bool, lacking: str, words: str) -> None:
    world.session.own, world.session.lacking = own, [lacking]
    world.choose(add_head())
    assert not world.ui.installButton.visible and words in reason(world.ui.refaceButton)


def test_an_installation_that_fails_says_why(world: World) -> None:
    world.session.lacking = ["torch"]
    world.choose(add_head())
    world.ui.installButton.click()
    assert (
        world.ui.verdictHeadline.text == "PyTorch needs the PyTorch extension." and world.ui.installButton.visible
    )


def test_two_scans_of_one_name_are_two_inputs(world: World) -> None:
    first, second = add_head(), add_head()
    world.ui.inputSelector.setCurrentNode(second)
    assert world.parameters.inputVolume is second
    world.ui.inputSelector.setCurrentNode(first)
    assert world.parameters.inputVolume is first


# --- a run ------------------------------------------------------------------------------------------------


def test_reface_becomes_cancel_and_tells_how_far_it_is(world: World) -> None:
    world.choose(add_head())
    world.ui.refaceButton.click()
    assert world.ui.refaceButton.text == "&Cancel" and world.ui.progressFrame.visible
    world.panel.run.began -= 2.0
    world.session.callbacks["on_progress"]("locate", 0.5)
    assert world.ui.progressBar.value == 50
    assert world.ui.progressLabel.text == "Finding the brain and the face  ·  about 2 s left"
    assert reason(world.ui.inputSelector) == reason(world.ui.modelCombo) == reason(world.ui.anotherButton)


def test_a_run_ends_with_two_faces_on_screen_and_a_verdict(world: World) -> None:
    node = world.refaced()
    assert world.views.shown.original is world.parameters.inputVolume and world.views.shown.refaced is node
    assert node.GetName() == "head refaced" and world.parameters.refacedVolume is node
    assert world.ui.refaceButton.text == "&Reface" and not world.ui.progressFrame.visible
    assert (world.ui.verdictSymbol.text, world.ui.verdictHeadline.text) == ("✔", "All checks passed")
    assert "Whole head." in world.ui.inputLabel.text and world.ui.facesList.count == 1


def test_the_verdict_is_said_in_words_and_symbols_too() -> None:
    failed = [*REPORT["checks"][:2], {**REPORT["checks"][2], "value": 40.0, "passed": False}]
    levels = [
        verdict.verdict_of(REPORT),
        verdict.verdict_of({**REPORT, "warnings": ["The chin is outside the field of view."]}),
        verdict.verdict_of({**REPORT, "checks": failed}),
    ]
    assert [each.level for each in levels] == [verdict.GREEN, verdict.AMBER, verdict.RED]
    assert len({(each.symbol, each.headline) for each in levels}) == 3
    assert levels[1].details[0] == "The chin is outside the field of view."
    assert levels[2].details == ("Original voxels left in the face region: 40",)


def test_cancel_leaves_the_scene_as_it_was(world: World) -> None:
    world.choose(add_head())
    before = world.scene.GetNumberOfNodes()
    world.ui.refaceButton.click()
    late = dict(world.session.callbacks)
    world.ui.refaceButton.click()
    assert ("cancel", None) in world.session.asked and world.scene.GetNumberOfNodes() == before
    assert (
        world.ui.verdictHeadline.text == "Cancelled; nothing was changed."
        and world.ui.refaceButton.text == "&Reface"
    )
    late["on_error"]("too late")
    late["on_progress"]("locate", 0.5)
    assert (
        world.ui.verdictHeadline.text == "Cancelled; nothing was changed." and not world.ui.progressFrame.visible
    )


def test_an_error_is_shown_in_place_of_a_verdict_and_nothing_is_added(world: World) -> None:
    world.choose(add_head())
    before = world.scene.GetNumberOfNodes()
    world.ui.refaceButton.click()
    world.session.callbacks["on_error"](EngineError("There is no head in this scan; choose another one.", "check"))
    assert (world.ui.verdictSymbol.text, world.ui.verdictHeadline.text) == (
        "✖",
        "There is no head in this scan; choose another one.",
    )
    assert world.scene.GetNumberOfNodes() == before and not world.ui.facesFrame.visible
    assert not world.ui.saveButton.enabled and world.views.shown is None


def test_an_error_never_passes_an_old_face_off_as_new(world: World) -> None:
    node = world.refaced(seed=7)
    values = slicer.util.arrayFromVolume(node).copy()
    world.ui.anotherButton.click()
    assert not world.ui.verdictFrame.visible and reason(world.ui.saveButton).startswith("Wait")
    world.session.callbacks["on_error"](EngineError("The memory does not suffice.", "memory"))
    assert world.ui.verdictHeadline.text == "The memory does not suffice."
    assert "still that of seed 7" in world.ui.verdictDetails.text
    assert np.array_equal(slicer.util.arrayFromVolume(node), values) and world.ui.facesList.count == 1


def test_the_settings_reach_the_engine(world: World) -> None:
    world.choose(add_head())
    world.ui.dropoutSpin.value, world.ui.threadsSpin.value = 0.4, 2
    world.ui.deviceCombo.currentIndex, world.ui.defacedCombo.currentIndex = 1, 2
    world.ui.modelCombo.currentIndex = 1
    world.ui.refaceButton.click()
    wanted = {"model": "other", "device": "cpu", "threads": 2, "dropout": pytest.approx(0.4), "defaced": "no"}
    assert world.session.asked[-1] == ("start", wanted)


# --- faces ------------------------------------------------------------------------------------------------


def test_another_face_goes_to_the_same_node_and_any_can_be_picked(world: World) -> None:
    node = world.refaced(seed=7)
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    assert world.session.head.refacedNode is node and world.ui.facesList.count == 2
    assert world.ui.facesList.currentRow == 1 and slicer.util.arrayFromVolume(node)[0, 19, 0] == 8
    assert not world.ui.facesList.item(0).icon().isNull()
    world.ui.facesList.currentRow = 0
    assert slicer.util.arrayFromVolume(node)[0, 19, 0] == 7 and scene.report_of(node)["seed"] == 7
    assert np.array_equal(slicer.util.arrayFromVolume(node).T[:, :13], head_array()[:, :13])


def test_several_faces_can_be_drawn_in_one_run(world: World) -> None:
    world.choose(add_head())
    world.ui.candidatesSpin.value = 3
    world.ui.refaceButton.click()
    for seed in (1, 2):
        world.session.draw(seed)
        assert world.panel.run and f"face {seed + 1} of 3" in world.ui.progressLabel.text
    world.session.draw(3)
    assert not world.panel.run and world.ui.facesList.count == 3


def test_judgement_belongs_to_a_face_and_is_kept_in_its_node(world: World) -> None:
    node = world.refaced(seed=7)
    world.ui.eyesCheck.click()
    world.ui.noteEdit.text = "ear out of view"
    world.ui.judgementCombo.currentIndex = 1
    assert scene.read_qc(node) == scene.QC(True, ("eyes",), "ear out of view")
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    assert not world.ui.eyesCheck.checked and world.ui.noteEdit.text == "" and scene.read_qc(node) == scene.QC()
    world.ui.facesList.currentRow = 0
    assert world.ui.eyesCheck.checked and scene.read_qc(node).note == "ear out of view"


def test_the_face_region_opens_in_segment_editor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node, calls = world.refaced(), []
    editor = types.SimpleNamespace(
        setSegmentationNode=lambda node: calls.append(node), setSourceVolumeNode=lambda node: calls.append(node)
    )
    monkeypatch.setattr(slicer.util, "selectModule", calls.append)
    slicer.modules.SegmentEditorWidget = types.SimpleNamespace(editor=editor)
    world.ui.editRegionButton.click()
    assert calls == ["SegmentEditor", node.GetNodeReference(scene.REGION), world.parameters.inputVolume]


def test_the_face_region_can_be_corrected_and_the_face_drawn_within_it(world: World) -> None:
    node = world.refaced(seed=7)
    assert reason(world.ui.redrawButton) == "Edit the face region first."
    segmentation = node.GetNodeReference(scene.REGION)
    region = np.zeros(SHAPE, np.uint8)
    region[:, 15:] = 1
    segment = segmentation.GetSegmentation().GetNthSegmentID(0)
    slicer.util.updateSegmentBinaryLabelmapFromArray(region.T, segmentation, segment, node)
    world.panel.entered()
    world.ui.redrawButton.click()
    assert np.array_equal(world.session.asked[-1][1], region != 0)
    world.session.draw(seed=9)
    assert np.array_equal(scene.face_region_of(node), region != 0)
    assert slicer.util.arrayFromVolume(node)[0, 14, 0] == head_array()[0, 14, 0]
    world.ui.facesList.currentRow = 0
    assert scene.face_region_of(node)[0, 13, 0] and reason(world.ui.redrawButton) == "Edit the face region first."


# --- the distance to the original's face -------------------------------------------------------------------


DISTANCE = "Distance to the original face: "


def test_the_distance_is_asked_for_once_both_faces_are_on_screen(world: World) -> None:
    world.set_face_models()
    world.refaced()
    assert world.session.looks == [] and world.ui.verdictHeadline.text == "All checks passed"
    assert world.ui.verdictDetails.text.endswith(DISTANCE + "being measured …")
    world.a_while_later()
    (face, models, _callbacks), *others = world.session.looks
    assert face is world.session.head.chosen and not others
    assert models == {"detector": "/models/yunet.onnx", "recogniser": "/models/arc.onnx", "limit": 0.4}
    world.session.recognised(0.66)
    world.a_while_later()
    assert world.ui.verdictDetails.text.endswith(DISTANCE + "0.66 (a match is below 0.40)")
    assert world.ui.verdictSymbol.text == "✔" and len(world.session.looks) == 1
    assert scene.report_of(world.session.head.refacedNode)["checks"][-1]["value"] == 0.66


def test_a_face_that_matches_its_owner_s_is_red_and_saved_only_on_purpose(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.set_face_models()
    world.refaced()
    world.a_while_later()
    world.session.recognised(0.31)
    assert (world.ui.verdictSymbol.text, world.ui.verdictHeadline.text) == ("✖", "Not safe to share")
    assert world.ui.verdictDetails.text == DISTANCE + "0.31 (a match is below 0.40)"
    questions: list[str] = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", questions.append)
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveButton.click()
    assert "0.31" in questions[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("detected", "words"),
    [((0.9, 0.0), "No face was detected in the refaced head."), ((0.0, 0.9), "in the original")],
)
def test_where_no_face_is_seen_the_verdict_is_amber(
    world: World, detected: tuple[float, float], words: str
) -> None:
    world.set_face_models()
    world.refaced()
    world.a_while_later()
    world.session.recognised(None, detected)
    assert world.ui.verdictSymbol.text == "!" and words in world.ui.verdictDetails.text


def test_a_recogniser_that_cannot_be_used_is_said_and_the_verdict_goes_on(world: World) -> None:
    world.set_face_models()
    world.refaced()
    world.a_while_later()
    world.session.looks[-1][2]["on_error"](EngineError("Faces need ONNX Runtime; install it.", "input"))
    assert world.ui.verdictSymbol.text == "!" and reason(world.ui.saveButton) == "Choose a folder first."
    assert "was not measured. Faces need ONNX Runtime; install it." in world.ui.verdictDetails.text
    world.a_while_later()
    assert len(world.session.looks) == 1  # it is not asked for over and over


def test_another_face_comes_first_and_a_late_answer_stays_with_its_own_face(world: World) -> None:
    world.set_face_models()
    world.refaced(seed=7)
    world.a_while_later()
    first, _models, late = world.session.looks[0]
    world.ui.anotherButton.click()
    late["on_error"](EngineError("Another request came in between.", "cancelled"))
    world.session.draw(seed=8)
    world.a_while_later()
    assert world.session.looks[-1][0] is world.session.head.chosen is not first
    late["on_done"]({})
    assert world.ui.verdictDetails.text.endswith("being measured …")
    world.session.recognised(0.55)
    world.ui.facesList.currentRow = 0
    assert "0.55" not in world.ui.verdictDetails.text
    world.a_while_later()
    assert world.session.looks[-1][0] is first
    world.session.recognised(0.44)
    world.ui.facesList.currentRow = 1
    assert DISTANCE + "0.55" in world.ui.verdictDetails.text and not world.panel.recognition.timer.active


def test_a_cancelled_run_does_not_leave_the_distance_open(world: World) -> None:
    world.set_face_models()
    world.refaced()
    world.a_while_later()
    world.ui.anotherButton.click()
    world.ui.refaceButton.click()  # Cancel ends the engine, which had not answered
    world.a_while_later()
    assert len(world.session.looks) == 2


def test_other_face_models_or_another_threshold_measure_anew(world: World) -> None:
    world.set_face_models()
    world.refaced()
    world.a_while_later()
    world.session.recognised(0.45)
    world.ui.faceThresholdSpin.value = 0.5
    assert world.ui.verdictDetails.text.endswith("being measured …")
    world.a_while_later()
    assert world.session.looks[-1][1]["limit"] == 0.5
    world.session.recognised(0.45, limit=0.5)
    assert world.ui.verdictSymbol.text == "✖"
    world.ui.faceDetector.currentPath = ""
    assert not world.panel.recognition.timer.active and "0.45" in world.ui.verdictDetails.text


@pytest.mark.parametrize("report", [{}, {"already_defaced": True}])
def test_nothing_is_measured_without_a_recogniser_or_a_face(world: World, report: dict[str, Any]) -> None:
    world.ui.faceDetector.currentPath = "/models/yunet.onnx"
    if report:
        world.set_face_models()
    world.refaced(**report)
    world.a_while_later()
    assert world.session.looks == [] and DISTANCE + "being" not in world.ui.verdictDetails.text


def test_a_distance_comes_back_with_a_saved_scene(world: World) -> None:
    world.set_face_models()
    world.refaced()
    world.a_while_later()
    world.session.recognised(0.66)
    world.session.head = None
    world.panel.see.forget()
    world.panel.set_parameters(world.parameters)
    world.ui.showButton.click()
    assert DISTANCE + "0.66" in world.ui.verdictDetails.text and not world.panel.recognition.timer.active


# --- see --------------------------------------------------------------------------------------------------


def test_the_see_section_drives_the_views(world: World) -> None:
    world.refaced()
    shown = world.views.shown
    for button in (world.ui.profileButton, world.ui.threeQuarterButton, world.ui.frontalButton):
        button.click()
    assert [call[1] for call in shown.calls if call[0] == "look"] == ["profile", "three-quarter", "frontal"]
    world.ui.skinSlider.value = 90
    (moved,) = (call for call in shown.calls if call[0] == "set_threshold")
    assert moved[1:3] == (90.0, True) and [made.threshold for made in moved[3]] == [90.0, 90.0]
    world.ui.skinAutoButton.click()
    assert world.ui.skinSlider.value == shown.automatic
    world.ui.volumeRadio.click()
    assert shown.rendering == "volume"
    world.ui.fadeSlider.value = 20
    world.ui.outlineCheck.click()
    assert shown.calls[-2:] == [("set_fade", 0.2), ("show_face_region", False)]


def test_the_previous_layout_comes_back_and_the_faces_again(world: World) -> None:
    world.refaced()
    assert reason(world.ui.showButton) == "Both faces are shown already."
    world.ui.restoreButton.click()
    assert world.views.shown is None and reason(world.ui.frontalButton) == "Show both faces first."
    world.ui.showButton.click()
    assert world.views.shown is not None and world.ui.frontalButton.enabled


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("The scan shows no head."), "shows no head"),
        (ImportError(name="nibabel"), "nibabel is missing"),
    ],
)
def test_what_cannot_be_shown_is_said_and_the_result_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(original: Any, refaced: Any, quick: bool, skins: Any) -> None:
        raise error

    monkeypatch.setattr(world.views, "show_faces", fail)
    node = world.refaced()
    assert world.ui.verdictHeadline.text == "The faces cannot be shown." and words in world.ui.verdictDetails.text
    assert world.scene.IsNodePresent(node) and reason(world.ui.frontalButton) == "Show both faces first."


# --- save -------------------------------------------------------------------------------------------------


def test_saving_writes_the_refaced_scan_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.saving, "_draw", lambda scan, target: target.write_bytes(b"picture"))
    world.refaced()
    world.ui.saveFolder.currentPath = ""
    assert reason(world.ui.saveButton) == "Choose a folder first."
    world.ui.saveFolder.currentPath, world.ui.saveName.text = str(tmp_path), "a/b"
    assert reason(world.ui.saveButton).startswith("Give a file name without")
    world.ui.saveName.text = "sub-1_T1w"
    world.ui.judgementCombo.currentIndex = 1
    world.ui.saveButton.click()
    endings = (".json", ".nii.gz", ".png", "_face-region.nii.gz", "_report.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"sub-1_T1w{ending}" for ending in endings]
    assert "sub-1_T1w.nii.gz" in world.ui.savedLabel.text and world.ui.savedLabel.visible
    assert '"passed": true' in (tmp_path / "sub-1_T1w_report.json").read_text()


def test_a_face_that_failed_is_not_saved(world: World, tmp_path: Path) -> None:
    world.refaced()
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.judgementCombo.currentIndex = 2
    assert reason(world.ui.saveButton) == "You judged that this face failed; draw another one."


def test_what_cannot_be_written_is_said(world: World, tmp_path: Path) -> None:
    world.refaced()
    world.ui.saveFolder.currentPath = str(tmp_path / "nowhere")
    world.ui.saveButton.click()
    assert "folder does not exist" in world.ui.savedLabel.text and world.ui.savedLabel.visible
    assert world.ui.savedLabel.text.endswith("Nothing was written.")
    assert world.ui.verdictHeadline.text == "All checks passed"


def test_the_original_is_named_and_can_be_removed_from_the_scene(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    node = world.refaced()
    original = world.parameters.inputVolume
    assert world.ui.sceneFrame.visible and "head" in world.ui.sceneLabel.text
    world.ui.removeOriginalButton.click()
    assert not world.scene.IsNodePresent(original) and world.scene.IsNodePresent(node)
    assert world.ui.verdictHeadline.text.startswith("Removed from the scene: head")
    assert world.views.shown is None


# --- what happens in the scene ----------------------------------------------------------------------------


def test_the_scene_is_closed_during_a_run(world: World) -> None:
    world.choose(add_head())
    world.ui.refaceButton.click()
    late = dict(world.session.callbacks)
    world.panel.scene_closing()
    world.panel.set_parameters(None)
    assert [name for name, _ in world.session.asked[-2:]] == ["cancel", "empty"] and world.panel.run is None
    late["on_error"]("too late")
    assert not world.ui.verdictFrame.visible and reason(world.ui.refaceButton) == "Choose a head MRI first."


def test_the_input_is_removed_during_a_run(world: World) -> None:
    node = world.choose(add_head())
    world.ui.refaceButton.click()
    world.scene.RemoveNode(node)
    world.panel.node_removed(node)
    assert world.panel.run is None and ("cancel", None) in world.session.asked
    assert world.ui.verdictHeadline.text.endswith("nothing was added.")


def test_faces_of_a_scan_that_changed_are_dropped(world: World) -> None:
    node = world.refaced()
    original = world.parameters.inputVolume
    slicer.util.arrayFromVolume(original)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(original)
    world.panel.input_modified()
    assert world.session.head is None and world.scene.IsNodePresent(node)
    assert world.ui.verdictHeadline.text.startswith("The scan was changed")
    assert not world.ui.facesFrame.visible and reason(world.ui.saveButton) == "Reface a head first."


def test_a_transform_put_on_the_scan_changes_it_too(world: World) -> None:
    world.refaced()
    transform = world.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    world.parameters.inputVolume.SetAndObserveTransformNodeID(transform.GetID())
    matrix = np.eye(4)
    matrix[0, 3] = 5
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    world.panel.input_modified()
    assert world.session.head is None


def test_the_refaced_node_is_removed(world: World) -> None:
    node = world.refaced()
    world.scene.RemoveNode(node)
    world.panel.node_removed(node)
    assert (
        world.session.head is None
        and world.ui.verdictHeadline.text == "The refaced scan was removed from the scene."
    )


def test_another_head_is_chosen(world: World) -> None:
    node = world.refaced()
    world.choose(add_head("second"))
    assert world.session.head is None and world.scene.IsNodePresent(node) and not world.ui.verdictFrame.visible
    assert world.ui.refaceButton.enabled


def test_a_saved_scene_brings_the_panel_back(world: World) -> None:
    world.refaced(seed=7)
    world.ui.eyesCheck.click()
    world.session.head = None
    world.panel.see.forget()
    world.panel.set_parameters(world.parameters)
    assert world.session.head.chosen.seed == 7 and world.ui.eyesCheck.checked
    assert world.ui.verdictHeadline.text == "All checks passed" and world.ui.facesList.count == 1
    world.ui.showButton.click()
    assert world.views.shown is not None


# --- advanced ---------------------------------------------------------------------------------------------


def test_settings_are_remembered_only_when_wanted(world: World) -> None:
    kept = qt_stand_ins.QSettings.kept
    world.choose(add_head())
    world.ui.threadsSpin.value = 3
    assert sections.REMEMBERED not in kept
    world.ui.rememberCheck.click()
    world.ui.threadsSpin.value = 4
    assert '"threads": 4' in kept[sections.REMEMBERED]
    world.ui.rememberCheck.click()
    assert sections.REMEMBERED not in kept


def test_remembered_settings_begin_a_new_scene_and_unknown_ones_are_passed_over(world: World) -> None:
    kept = qt_stand_ins.QSettings.kept
    kept[sections.REMEMBERED] = (
        '{"threads": 4, "device": "CPU", "defaced": "SOMETIMES", "colour": 1, "dropout": 9}'
    )
    sections.recall(world.parameters)
    found = world.parameters
    assert (found.threads, found.device.value, found.defaced.value, found.dropout) == (4, "cpu", "auto", -0.05)


def test_the_model_card_is_shown(world: World) -> None:
    world.choose(add_head())
    assert world.ui.cardLabel.text == "A model\nNot seen in training: children\nLicence: CC BY-SA 3.0"


def test_the_python_of_the_environment_goes_before_the_setting(world: World) -> None:
    world.session.python = "/opt/python"
    world.choose(add_head())
    assert reason(world.ui.pythonPath) == "REFACECGAN_PYTHON names the Python: /opt/python"


def test_face_models_are_the_application_s_and_the_threshold_the_scene_s(world: World) -> None:
    kept = qt_stand_ins.QSettings.kept
    world.set_face_models()
    assert (kept[sections.DETECTOR], kept[sections.RECOGNISER]) == ("/models/yunet.onnx", "/models/arc.onnx")
    world.ui.faceThresholdSpin.value = 0.3
    assert world.parameters.faceThreshold == 0.3
    world.ui.rememberCheck.click()
    assert '"faceThreshold": 0.3' in kept[sections.REMEMBERED]
    world.ui.faceDetector.currentPath = ""
    assert kept[sections.DETECTOR] == "" and world.panel.advanced.face_models() is None


def test_an_emptied_python_is_slicer_s_own(world: World) -> None:
    world.choose(add_head())
    for path in ("/opt/other/python", ""):
        world.ui.pythonPath.currentPath = path
        assert qt_stand_ins.QSettings().value(sections.SETTING) == path
    assert world.session.asked.count(("close", None)) == 2


def test_another_python_starts_another_engine(world: World) -> None:
    world.choose(add_head())
    world.ui.pythonPath.currentPath = "/opt/other/python"
    assert ("close", None) in world.session.asked
    assert qt_stand_ins.QSettings().value(sections.SETTING) == "/opt/other/python"


def test_stages_the_panel_does_not_know_are_shown_as_they_are() -> None:
    assert widgets.stage_text("polish") == "polish"
