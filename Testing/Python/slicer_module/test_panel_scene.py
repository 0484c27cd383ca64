"""The panel when the scene changes under it: scans and results that leave, are renamed, or come with a saved
scene."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")
import qt_stand_ins
import slicer

qt_stand_ins.install()

from panel_world import SHAPE, World, add_head, head_array, reason
from RefaceCGANLib.errors import InputError
from RefaceCGANSlicer import scene
from RefaceCGANSlicer.engine import EngineError
from slicer_offscreen import complaints, item_of


def later() -> None:
    """What was put off until the application has time."""
    for _ in range(5):
        qt_stand_ins.application().processEvents()


def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)


def at(node: Any, *index: int) -> int:
    """A voxel (I, J, K) of a volume node."""
    return int(slicer.util.arrayFromVolume(node).T[index])


# --- the original leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["by the button", "by the user", "with another scan there"])
def test_the_result_stays_the_panel_s_when_the_original_leaves(
    world: World, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for the next head to be refaced, and can be judged and saved."""
    yes(monkeypatch)
    monkeypatch.setattr("RefaceCGANLib.app.saving._draw", lambda scan, target: target.write_bytes(b"picture"))
    result, original = world.refaced(), world.parameters.inputVolume
    if how == "with another scan there":
        add_head("knee")
    if how == "by the button":
        world.ui.removeOriginalButton.click()
    else:
        world.scene.RemoveNode(original)
    assert not world.scene.IsNodePresent(original)
    assert world.ui.inputSelector.currentNode() is result is world.parameters.inputVolume
    assert reason(world.ui.refaceButton) == "The original is no longer in the scene; load it first."
    assert "its original is not in the scene" in world.ui.inputLabel.text
    assert world.session.head.chosen.seed == 7 and world.ui.facesList.count == 1
    world.ui.judgementCombo.currentIndex = 1
    world.ui.saveFolder.currentPath = str(tmp_path)
    world.ui.saveButton.click()
    assert "refaced.nii.gz" in world.ui.savedLabel.text and (tmp_path / "refaced.nii.gz").is_file()


def test_what_needs_the_original_says_so_when_it_has_left(world: World) -> None:
    world.refaced()
    world.scene.RemoveNode(world.parameters.inputVolume)
    for name in ("anotherButton", "editRegionButton", "redrawButton", "seriesButton"):
        assert "first." in reason(getattr(world.ui, name)), name
    assert reason(world.ui.showButton) == "Load the original first." and not world.ui.sceneFrame.visible
    world.set_face_models()
    assert not world.panel.recognition.timer.active


def test_the_input_that_leaves_during_a_run_says_so(world: World) -> None:
    """Also where the selector would take another scan, and before the node has gone."""
    node = world.choose(add_head())
    add_head("other")
    world.ui.refaceButton.click()
    world.scene.RemoveNode(node)
    assert world.panel.run is None and ("cancel", None) in world.session.asked
    said = "The scan was removed from the scene while it was refaced; nothing was added."
    assert world.ui.verdictHeadline.text == said
    assert world.parameters.inputVolume is None


def test_an_input_that_was_not_refaced_leaves_nothing_chosen(world: World) -> None:
    node, other = world.choose(add_head()), add_head("other")
    world.scene.RemoveNode(node)
    assert world.parameters.inputVolume is None and world.ui.inputSelector.currentNode() is None
    world.ui.inputSelector.setCurrentNode(other)
    assert world.ui.refaceButton.enabled


# --- the result leaves ------------------------------------------------------------------------------------


def test_the_face_region_goes_with_its_result(world: World) -> None:
    result, original = world.refaced(), world.parameters.inputVolume
    world.scene.RemoveNode(result)
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode", world.scene) == []
    assert world.parameters.inputVolume is original
    assert world.ui.verdictHeadline.text == "The refaced scan was removed from the scene."


def test_the_face_region_of_a_result_of_before_goes_with_it_too(world: World) -> None:
    result = world.refaced()
    world.choose(add_head("second"))
    world.scene.RemoveNode(result)
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode", world.scene) == []


def test_a_result_that_is_chosen_is_gone_on_with_its_original(world: World) -> None:
    result, original = world.refaced(), world.parameters.inputVolume
    world.choose(result)
    world.scene.RemoveNode(result)
    assert world.parameters.inputVolume is original and world.ui.refaceButton.enabled


@pytest.mark.parametrize("how", ["the node", "its segment"])
def test_a_face_region_that_is_gone_opens_no_segment_editor(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(slicer.util, "selectModule", opened.append)
    slicer.modules.SegmentEditorWidget = types.SimpleNamespace()
    region = world.refaced().GetNodeReference(scene.REGION)
    if how == "the node":
        world.scene.RemoveNode(region)
        assert reason(world.ui.editRegionButton) == reason(world.ui.redrawButton)
        assert "The face region was removed from the scene" in reason(world.ui.editRegionButton)
    else:  # nobody tells
        region.GetSegmentation().RemoveAllSegments()
        world.ui.editRegionButton.click()
        assert "The face region was removed from the scene" in reason(world.ui.editRegionButton)
    assert opened == []
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    assert world.ui.editRegionButton.enabled


def test_nodes_leave_without_a_complaint_of_the_subject_hierarchy(world: World) -> None:
    """Parts go before what they are parts of, and none twice."""
    with complaints() as lines:
        result = world.refaced()
        scene.remove_original(world.scene, result)
        scene.remove(world.scene, result, result)
    assert lines == []


# --- names ------------------------------------------------------------------------------------------------


def test_the_result_follows_the_name_of_its_original_unless_it_has_one_of_its_own(world: World) -> None:
    result, original = world.refaced(), world.parameters.inputVolume
    original.SetName("sub-01")
    world.panel.input_modified()
    region = result.GetNodeReference(scene.REGION)
    assert (result.GetName(), region.GetName()) == ("sub-01 refaced", "sub-01 face region")
    result.SetName("mine")
    original.SetName("sub-02")
    world.panel.input_modified()
    assert (result.GetName(), region.GetName()) == ("mine", "sub-02 face region")


def test_a_tool_tip_with_a_name_of_markup_says_the_name(world: World) -> None:
    world.choose(add_head("<b>T1</b> & <T2>"))
    slicer.util.arrayFromVolume(world.parameters.inputVolume)[...] = 0
    slicer.util.arrayFromVolumeModified(world.parameters.inputVolume)
    world.panel.input_modified()
    assert reason(world.ui.refaceButton).startswith("<b>T1</b> & <T2> holds the value 0")


def test_a_defaced_result_is_a_scan_to_be_refaced_like_any_other(world: World) -> None:
    original = add_head()
    defaced = scene.add_result(original, head_array(), "head defaced", {"already_defaced": False, "checks": []})
    world.choose(defaced)
    assert world.ui.refaceButton.enabled and "24 × 20 × 22 voxels" in world.ui.inputLabel.text
    world.ui.refaceButton.click()
    world.session.draw()
    assert scene.original_of(world.session.head.refacedNode) is defaced


# --- a saved scene ----------------------------------------------------------------------------------------


def reopened(world: World, layout_is_ours: bool) -> None:
    """The scene comes back with its parameter node and layout, but nothing that was there to show faces."""
    world.session.head = None
    world.panel.see.forget()
    world.panel.input_chosen(None)
    world.views.layout_is_ours = layout_is_ours
    world.panel.parameters_changed()  # the node is read: its layout and display nodes are yet to come
    assert world.views.shown is None
    world.panel.set_parameters(world.parameters)  # the end of the import


def test_a_scene_saved_with_both_faces_shows_them_again_with_their_picture(world: World) -> None:
    result = world.refaced(seed=7)
    reopened(world, layout_is_ours=True)
    assert world.views.shown is None  # not before the scene's views are there
    later()
    assert world.views.shown.refaced is result and world.ui.frontalButton.enabled
    assert not world.ui.facesList.item(0).icon().isNull()
    assert world.ui.verdictHeadline.text == "All checks passed"


def test_a_scene_saved_in_another_layout_stays_in_it_and_gets_its_picture(world: World) -> None:
    world.refaced(seed=7)
    reopened(world, layout_is_ours=False)
    later()
    assert world.views.shown is None and world.ui.showButton.enabled
    world.panel.see._refine.timeout.emit()
    assert not world.ui.facesList.item(0).icon().isNull()


def test_every_face_has_a_picture_also_one_that_came_with_the_scene(world: World) -> None:
    world.refaced(seed=7)
    reopened(world, layout_is_ours=False)
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    for _ in range(3):
        world.panel.see._refine.timeout.emit()
    assert [world.ui.facesList.item(row).icon().isNull() for row in range(2)] == [False, False]


def test_a_scene_without_the_original_brings_the_result_back(world: World) -> None:
    result = world.refaced(seed=7)
    world.scene.RemoveNode(world.parameters.inputVolume)
    world.session.head = None
    world.panel.input_chosen(None)
    world.panel.set_parameters(world.parameters)
    assert world.parameters.inputVolume is result and world.session.head.chosen.seed == 7
    assert world.ui.verdictHeadline.text == "All checks passed"


# --- a run always ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["views", "skins", "pick", "progress"])
def test_an_error_that_nobody_thought_of_ends_the_run(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("no such model")

    world.choose(add_head())
    world.ui.refaceButton.click()
    if where == "progress":
        monkeypatch.setattr(world.panel.run, "tell", broken)
        world.session.callbacks["on_progress"]("locate", 0.5)
        monkeypatch.undo()
    else:
        target = {"views": (world.views, "show_faces"), "skins": (world.session, "skin"),
                  "pick": (world.session, "pick")}[where]  # fmt: skip
        monkeypatch.setattr(*target, broken)
        world.session.draw()
        monkeypatch.undo()
    assert world.panel.run is None and world.ui.refaceButton.text == "&Reface"
    said = world.ui.verdictHeadline.text + world.ui.verdictDetails.text
    assert "bug in RefaceCGAN (AttributeError: no such model)" in said
    world.ui.refaceButton.click()
    world.session.draw()
    assert world.ui.verdictHeadline.text == "All checks passed"


def test_skins_that_a_script_removed_are_made_anew(world: World) -> None:
    world.refaced(seed=7)
    first = world.views.shown
    first.whole = False
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    assert world.views.shown is not first and world.ui.verdictHeadline.text == "All checks passed"


def test_where_the_engine_makes_no_skins_they_are_made_here(world: World) -> None:
    world.session.skin_error = EngineError("vtk is missing in /opt/python.", "input")
    world.refaced()
    assert world.views.made_here == 2 and world.views.shown is not None
    assert world.ui.verdictHeadline.text == "All checks passed"


def test_an_error_of_the_engine_starts_it_anew_for_the_next_face(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Any] = []
    world.choose(add_head())
    world.ui.refaceButton.click()
    monkeypatch.setattr(world.session, "warm_up", lambda settings, **_: starts.append(settings))
    world.session.callbacks["on_error"](InputError("There is no head."))
    assert starts == []
    world.ui.refaceButton.click()
    world.session.callbacks["on_error"](EngineError("The engine ended.", "crash"))
    assert len(starts) == 1


# --- what waits gives way ---------------------------------------------------------------------------------


def test_a_run_ends_when_the_faces_are_on_screen(world: World) -> None:
    world.session.hold_skins = True
    world.choose(add_head())
    world.session.skins.clear()
    world.ui.refaceButton.click()
    world.session.draw()
    assert world.panel.run and world.ui.progressLabel.text.startswith("Showing both faces")
    for number in (1, 2):
        world.session.make_skin(number)
    assert world.panel.run is None and world.views.shown is not None


def test_cancel_while_the_faces_are_shown_keeps_the_face(world: World) -> None:
    world.session.hold_skins = True
    world.choose(add_head())
    world.ui.refaceButton.click()
    world.session.draw()
    world.ui.refaceButton.click()
    assert world.panel.run is None and ("cancel", None) not in world.session.asked
    assert world.ui.verdictHeadline.text == "All checks passed"


def test_another_face_gives_up_the_skins_that_were_being_made(world: World) -> None:
    world.refaced(seed=7)
    world.session.hold_skins = True
    world.panel.see._refine.timeout.emit()
    refining = len(world.session.skins)
    assert not world.session.skins[-1][0]["quick"]
    world.ui.anotherButton.click()
    assert refining in world.session.given_up


def test_the_slider_is_followed_by_the_latest_value_alone(world: World) -> None:
    world.refaced()
    world.session.hold_skins, before = True, len(world.session.skins)
    for value in (90, 100, 110):
        world.ui.skinSlider.value = value
    assert len(world.session.skins) == before + 1
    for number in (before + 1, before + 2):
        world.session.make_skin(number)
    assert [asked["threshold"] for asked, _ in world.session.skins[before:]] == [90.0, 90.0, 110.0]


# --- the slices -------------------------------------------------------------------------------------------


def test_a_button_steps_through_the_places_of_the_face(world: World) -> None:
    world.refaced()
    shown, combo = world.views.shown, world.ui.placeCombo
    assert [combo.itemText(row) for row in range(combo.count)] == [
        "Whole slices", "Left eye", "Nose", "Upper border"
    ]  # fmt: skip
    for _ in range(4):
        world.ui.nextPlaceButton.click()
    combo.setCurrentIndex(0)
    assert [call[1:] for call in shown.calls if call[0] == "go_to"] == [
        ("left eye", 80.0), ("nose", 80.0), ("upper border", 80.0), ("left eye", 80.0), ("nose",)
    ]  # fmt: skip


# --- other series -----------------------------------------------------------------------------------------


def patient(*nodes: Any) -> None:
    """Put scans under one DICOM patient and study, as Slicer's DICOM module does."""
    hierarchy, _ = item_of(nodes[0])
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    person = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(person, "study")
    assert hierarchy.GetItemLevel(person) == constants.GetDICOMLevelPatient()
    for node in nodes:
        hierarchy.SetItemParent(item_of(node)[1], study)


def ticked(world: World) -> dict[str, bool]:
    items = [world.ui.seriesList.item(row) for row in range(world.ui.seriesList.count)]
    return {item.text(): item.checkState() == qt_stand_ins.QtCore.Qt.CheckState.Checked for item in items}


def test_other_series_of_the_same_patient_are_ticked_and_results_are_no_series(world: World) -> None:
    first, second, other = add_head("T1"), add_head("T2"), add_head("somebody")
    patient(first, second)
    world.choose(first)
    assert reason(world.ui.seriesButton) == "Reface a head first."
    world.ui.refaceButton.click()
    world.session.draw()
    assert ticked(world) == {"T2": True, "somebody": False} and world.ui.seriesButton.enabled
    assert scene.other_series(other) == ([], [first, second])


def test_the_whole_study_gets_the_same_face_one_after_the_other_each_with_its_verdict(world: World) -> None:
    first, second, third = (add_head(name) for name in ("T1", "T2", "FLAIR"))
    patient(first, second, third)
    world.choose(first)
    world.ui.refaceButton.click()
    world.session.draw(seed=7)
    head = world.session.head
    world.ui.seriesButton.click()
    assert (
        world.session.asked[-1] == ("series", (second, {"seed": 7}))
        and "face 1 of 2" in world.ui.progressLabel.text
    )
    world.session.draw_series(7)
    assert (
        world.session.asked[-1] == ("series", (third, {"seed": 7}))
        and "face 2 of 2" in world.ui.progressLabel.text
    )
    world.session.callbacks["on_error"](EngineError("No head was found.", "check"))
    assert world.panel.run is None and world.session.head is head
    texts = list(ticked(world))
    assert texts[0].startswith("✔ T2: All checks passed") and texts[1] == "✖ FLAIR: No head was found."
    assert (
        world.ui.verdictHeadline.text == "Not all series were refaced." and "FLAIR" in world.ui.verdictDetails.text
    )
    (result,) = scene.results_of(second)
    assert at(result, 0, 19, 0) == 7 and at(second, 0, 19, 0) == head_array()[0, 19, 0]


def test_a_result_that_is_chosen_is_shown_with_its_verdict_and_goes_on_from_there(world: World) -> None:
    first = world.refaced(seed=7)
    original = world.parameters.inputVolume
    world.choose(add_head("second"))
    assert world.session.head is None
    world.choose(first)
    assert world.ui.inputLabel.text == "A refaced scan of head."
    assert world.session.head.inputNode is original and world.session.head.chosen.seed == 7
    assert world.ui.verdictHeadline.text == "All checks passed" and world.ui.saveFrame.visible
    world.ui.anotherButton.click()
    world.session.draw(seed=8)
    assert world.session.head.refacedNode is first and at(first, 0, SHAPE[1] - 1, 0) == 8


def test_cancel_ends_the_study_and_keeps_what_is_there(world: World) -> None:
    first, second, third = (add_head(name) for name in ("T1", "T2", "FLAIR"))
    patient(first, second, third)
    world.choose(first)
    world.ui.refaceButton.click()
    world.session.draw(seed=7)
    world.ui.seriesButton.click()
    world.session.draw_series(7)
    world.ui.refaceButton.click()
    assert world.panel.run is None and len(scene.results_of(second)) == 1 and scene.results_of(third) == []
    assert len([command for command, _ in world.session.asked if command == "series"]) == 2
