"""Views: two faces side by side, in two real 3D views and three slices drawn into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from RefaceCGANLib import Result
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.rendering.skin_surface import LABEL_PIXELS, coarse, skin_threshold
from RefaceCGANLib.volume.volume import Volume
from slicer_offscreen import add_transform, add_volume, complaints, item_of, slicer, slicer_with, vtk

# isort: split
from RefaceCGANSlicer import layout, views
from RefaceCGANSlicer.scene import (
    add_face_region,
    add_result,
    originals_in_scene,
    remove_original,
    set_upright,
    write_result,
)

SLICES = "RefaceOriginalSlice", "RefaceRefacedSlice"
BOTH = "ViewRefaceOriginal", "ViewRefaceRefaced"
TURNED = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])


@dataclass
class Pair:
    """The sample head and a refaced version of it, on every second voxel: enough of a face, and quick."""

    original: np.ndarray
    refaced: np.ndarray
    region: np.ndarray
    affine: np.ndarray


@pytest.fixture(scope="module")
def pair(result: Result) -> Pair:
    thin = (slice(None, None, 2),) * 3
    affine = result.original.affine @ np.diag([2, 2, 2, 1.0])
    return Pair(result.original.stored[thin], result.volume.stored[thin], result.face_region[thin], affine)


@dataclass
class Stage:
    """A Slicer with a window, the two heads in it, and their faces on screen."""

    scene: Any
    original: Any
    refaced: Any
    before: set[str]
    faces: views.Faces

    @property
    def manager(self) -> Any:
        return slicer.app.layoutManager()

    def picture(self, name: str) -> np.ndarray:
        return self.manager.shown(name).picture().astype(float)

    def camera(self, name: str) -> Any:
        return layout.camera_of(self.manager.shown(name).node)

    @property
    def models(self) -> list[Any]:
        return [self.model(node) for node in (self.original, self.refaced)]

    def model(self, node: Any) -> Any:
        return self.scene.GetFirstNodeByName(f"{node.GetName()} skin")


def ids(scene: Any) -> set[str]:
    return {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}


def stage_of(scene: Any, pair: Pair) -> Stage:
    original = add_volume(pair.original, pair.affine, "Head")
    refaced = add_result(original, pair.refaced, report={"seed": 7})
    add_face_region(refaced, pair.region)
    before = ids(scene)
    return Stage(scene, original, refaced, before, views.show_faces(original, refaced))


@pytest.fixture(scope="module")
def shown(pair: Pair) -> Iterator[Stage]:
    """Faces that stay on screen; a test leaves them as it found them."""
    with slicer_with() as scene:
        yield stage_of(scene, pair)


@pytest.fixture
def stage(pair: Pair) -> Iterator[Stage]:
    """Faces for one test alone."""
    with slicer_with() as scene:
        yield stage_of(scene, pair)


def skin(picture: np.ndarray) -> np.ndarray:
    """Where a picture shows skin: it is warm, and the background is cold."""
    return picture[..., 0] > picture[..., 2] + 15


def unlike(a: np.ndarray, b: np.ndarray) -> float:
    """The mean difference of two pictures in grey levels."""
    return float(np.abs(a - b).mean())


def yellow(picture: np.ndarray) -> int:
    return int(np.count_nonzero((picture[..., 0] > 150) & (picture[..., 2] < 0.4 * picture[..., 0])))


# --- in 3D ------------------------------------------------------------------------------------------------


def test_both_faces_are_seen_and_they_are_two(shown: Stage) -> None:
    left, right = (shown.picture(name) for name in BOTH)
    for picture in (left, right):
        assert 0.2 < skin(picture).mean() < 0.7
        red, green, blue = picture[skin(picture)].mean(axis=0)
        assert red > green > blue
        assert picture[skin(picture)][:, 0].std() > 15  # light and shade
    rows = np.flatnonzero(skin(left).any(axis=1))
    crown, face = (skin(left) & (np.arange(len(left))[:, None] < rows[0] + len(rows) // 8)), skin(left)
    assert unlike(left[face], right[face]) > 4
    assert unlike(left[crown], right[crown]) < 1


def test_each_view_shows_its_own_face_only_and_the_users_view_none(shown: Stage) -> None:
    left, right = (shown.picture(name) for name in BOTH)
    display = shown.models[0].GetDisplayNode()
    display.SetVisibility(False)
    assert not skin(shown.picture(BOTH[0])).any()
    assert unlike(shown.picture(BOTH[1]), right) == 0
    display.SetVisibility(True)
    assert unlike(shown.picture(BOTH[0]), left) == 0
    assert not skin(shown.picture("View1")).any()


@pytest.mark.parametrize("view", ["frontal", "three-quarter", "profile"])
def test_a_face_fills_its_view(shown: Stage, view: str) -> None:
    shown.faces.look(view)
    pictures = [shown.picture(name) for name in BOTH]
    for picture in pictures:
        rows = np.flatnonzero(skin(picture).any(axis=1))
        assert 0.8 * len(picture) < rows[-1] - rows[0] < len(picture) - 2
    assert shown.camera(BOTH[0]).GetPosition() == shown.camera(BOTH[1]).GetPosition()
    shown.faces.look("frontal")


def test_the_nose_points_to_the_left_in_profile(shown: Stage) -> None:
    shown.faces.look("profile")
    columns = np.flatnonzero(skin(shown.picture(BOTH[0])).any(axis=0))
    tip = np.flatnonzero(skin(shown.picture(BOTH[0]))[:, columns[0] : columns[0] + 3].any(axis=1))
    height = shown.picture(BOTH[0]).shape[0]
    assert len(tip) < height / 8  # a point, not the back of a head
    shown.faces.look("frontal")


def test_a_view_that_is_not_there_is_refused(shown: Stage) -> None:
    with pytest.raises(InputError, match=r"^There is no view 'nowhere'; choose from frontal"):
        shown.faces.look("nowhere")


def test_to_turn_one_camera_turns_the_other_and_not_the_users(shown: Stage) -> None:
    camera, other, users = (shown.camera(name) for name in (*BOTH, "View1"))
    right, place = shown.picture(BOTH[1]), users.GetPosition()
    camera.SetInteractionFlags(camera.CameraInteractionFlag)
    camera.InteractingOn()
    camera.GetCamera().Azimuth(40)
    camera.Modified()
    camera.InteractingOff()
    assert other.GetPosition() == pytest.approx(camera.GetPosition())
    assert unlike(shown.picture(BOTH[1]), right) > 5
    assert users.GetPosition() == place
    shown.faces.look("frontal")


def test_left_is_left(stage: Stage, pair: Pair) -> None:
    """What grows on the patient's left cheek is on the right of the picture."""
    before = stage.picture(BOTH[1])
    points = stage.faces._skins[0].surface.points
    cheek = points[np.argmax(points[:, 1])] + (-35, -25, 0)
    voxels = np.indices(pair.refaced.shape).reshape(3, -1).T @ pair.affine[:3, :3].T + pair.affine[:3, 3]
    grown = pair.refaced.copy()
    grown[(np.linalg.norm(voxels - cheek, axis=1) < 20).reshape(grown.shape)] = 200
    stage.faces.show_refaced(add_result(stage.original, grown))
    columns = np.flatnonzero(np.abs(stage.picture(BOTH[1]) - before).sum(axis=2).max(axis=0) > 60)
    assert columns.min() > before.shape[1] / 2


def test_the_order_of_the_axes_does_not_matter(pair: Pair, shown: Stage) -> None:
    pictures = [shown.picture(name) for name in BOTH]
    turned = Pair(*(array.transpose(1, 2, 0)[::-1] for array in (pair.original, pair.refaced, pair.region)),
                  affine=pair.affine @ TURNED @ flipped(pair.original.shape[1]))  # fmt: skip
    with slicer_with() as scene:
        again = stage_of(scene, turned)
        for name, picture in zip(BOTH, pictures, strict=True):
            assert unlike(again.picture(name), picture) < 2
    assert turned.original.shape != pair.original.shape


def flipped(count: int) -> np.ndarray:
    matrix = np.diag([-1, 1, 1, 1.0])
    matrix[0, 3] = count - 1
    return matrix


def test_the_threshold_is_the_originals_and_holds_for_both(stage: Stage, pair: Pair) -> None:
    faces = stage.faces
    spacing = np.linalg.norm(pair.affine[:3, :3], axis=0)
    assert faces.threshold == faces.automatic == skin_threshold(pair.original, spacing)
    assert faces.limits[0] < faces.automatic < faces.limits[1]
    counts = [model.GetPolyData().GetNumberOfPoints() for model in stage.models]
    pictures = [stage.picture(name) for name in BOTH]
    faces.set_threshold(1.6 * faces.automatic)
    assert all(model.GetPolyData().GetNumberOfPoints() != n for model, n in zip(stage.models, counts, strict=True))
    assert all(unlike(stage.picture(name), picture) > 1 for name, picture in zip(BOTH, pictures, strict=True))
    with pytest.raises(InputError, match="nothing brighter than the threshold"):
        faces.set_threshold(1e6)
    assert faces.threshold == 1.6 * faces.automatic


def test_a_quick_surface_shows_the_same_face_with_half_the_points(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finer(stored: np.ndarray) -> np.ndarray:  # voxels of 1 mm: coarser ones are not thinned out
        return stored.repeat(2, 0).repeat(2, 1).repeat(2, 2)

    affine = result.original.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    with slicer_with() as scene:
        original = add_volume(finer(result.original.stored), affine, "Head")
        refaced = add_result(original, finer(result.volume.stored))
        faces = views.show_faces(original, refaced)
        shown = Stage(scene, original, refaced, set(), faces)
        fine = [shown.picture(name) for name in BOTH]
        points = [model.GetPolyData().GetNumberOfPoints() for model in shown.models]
        for quick in (True, False):
            faces.set_threshold(faces.threshold, quick)
            if quick:
                quickly = [shown.picture(name) for name in BOTH]
                fewer = [model.GetPolyData().GetNumberOfPoints() for model in shown.models]
        assert all(a < b / 2 for a, b in zip(fewer, points, strict=True))
        assert all(unlike(a, b) < 5 for a, b in zip(quickly, fine, strict=True))
        assert all(unlike(shown.picture(name), a) == 0 for name, a in zip(BOTH, fine, strict=True))


def test_another_face_changes_the_right_view_only(stage: Stage, pair: Pair) -> None:
    stage.faces.look("three-quarter")
    left, right = (stage.picture(name) for name in BOTH)
    array = pair.refaced.copy()
    array[pair.region] = 0
    other = add_result(stage.original, array)
    for quick in (True, False):
        stage.faces.show_refaced(other, quick)
        assert unlike(stage.picture(BOTH[0]), left) == 0
        assert unlike(stage.picture(BOTH[1]), right) > 5
    assert stage.faces.refaced is other
    assert stage.model(other) is stage.faces._models[1]
    composites = [logic.GetSliceCompositeNode() for logic in layout.slice_logics()]
    assert [node.GetForegroundVolumeID() for node in composites] == [None, other.GetID()]


def test_a_scan_without_its_original_is_shown_alone_and_says_so(stage: Stage) -> None:
    """As the review of a data set does it, on whose left no other scan may be taken for the original."""
    alone = views.show_faces(stage.faces.refaced, stage.faces.refaced, quick=True)
    view = slicer.app.layoutManager().shown(layout.three_d_views()[0].GetName())
    assert view.annotation.GetText(view.annotation.UpperLeft) == "Refaced (no original)"
    assert alone.is_whole()
    views.show_faces(stage.faces.original, stage.faces.refaced, quick=True)
    assert view.annotation.GetText(view.annotation.UpperLeft) == "Original"


def test_the_volumes_themselves_can_be_rendered(stage: Stage) -> None:
    surfaces = [stage.picture(name) for name in BOTH]
    before = ids(stage.scene)
    stage.faces.set_rendering("volume")
    left, right = (stage.picture(name) for name in BOTH)
    assert stage.faces.rendering == "volume"
    for picture, of_surface in zip((left, right), surfaces, strict=True):
        assert skin(picture).mean() == pytest.approx(skin(of_surface).mean(), rel=0.15)
        assert unlike(picture, of_surface) > 0.5
    assert unlike(left, right) > 1
    assert not skin(stage.picture("View1")).any()
    stage.faces.set_threshold(1.5 * stage.faces.automatic, quick=True)
    assert unlike(stage.picture(BOTH[0]), left) > 0.5
    stage.faces.set_threshold(stage.faces.automatic)
    stage.faces.set_rendering("surface")
    assert ids(stage.scene) == before
    assert stage.original.GetNumberOfDisplayNodes() == 1
    assert all(unlike(stage.picture(name), a) < 0.01 for name, a in zip(BOTH, surfaces, strict=True))
    with pytest.raises(InputError, match=r"^There is no rendering 'wire'; choose from surface, volume\.$"):
        stage.faces.set_rendering("wire")


def test_a_thumbnail_shows_the_refaced_face(shown: Stage) -> None:
    picture = shown.faces.thumbnail(64)
    assert picture.shape == (64, 64, 3)
    assert 0.2 < skin(picture.astype(float)).mean() < 0.8


def test_skins_lie_where_a_transform_puts_the_scan(pair: Pair) -> None:
    with slicer_with() as scene:
        original = add_volume(pair.original, pair.affine, "Head")
        move = np.eye(4)
        move[:3, 3] = 100, 20, -30
        add_transform(move, original)
        refaced = add_result(original, pair.refaced)
        faces = views.show_faces(original, refaced)
        shown = Stage(scene, original, refaced, set(), faces)
        volume, model = np.zeros(6), np.zeros(6)
        original.GetRASBounds(volume)
        shown.models[0].GetRASBounds(model)
        assert np.all(model[::2] >= volume[::2] - 3) and np.all(model[1::2] <= volume[1::2] + 3)
        assert skin(shown.picture(BOTH[0])).mean() > 0.2


# --- in slices --------------------------------------------------------------------------------------------


def test_the_left_slice_shows_the_original_and_the_right_one_fades_to_the_refaced_scan(shown: Stage) -> None:
    shown.faces.show_face_region(False)
    left = shown.picture(SLICES[0])
    pictures = []
    for share in (0, 0.5, 1):
        shown.faces.set_fade(share)
        pictures.append(shown.picture(SLICES[1]))
        assert unlike(shown.picture(SLICES[0]), left) == 0
    first, middle, last = pictures
    assert first.max() > 100 and unlike(first, left) < 0.5
    assert unlike(first, last) > 0.5
    assert unlike(middle, (first + last) / 2) < 1.5
    shown.faces.show_face_region(True)


def test_the_two_slices_go_together_and_the_users_stay(shown: Stage) -> None:
    left, right = (logic.GetSliceNode() for logic in layout.slice_logics())
    users = slicer.app.applicationLogic().GetSliceLogic(shown.scene.GetNodeByID("vtkMRMLSliceNodeRed"))
    before = users.GetSliceOffset()
    left.SetInteractionFlags(left.SliceToRASFlag)
    left.InteractingOn()
    left.SetSliceOffset(left.GetSliceOffset() + 7)
    assert right.GetSliceOffset() == pytest.approx(left.GetSliceOffset())  # while it is moved
    left.InteractingOff()
    assert right.GetSliceOffset() == pytest.approx(left.GetSliceOffset())
    assert users.GetSliceOffset() == before and users.GetSliceCompositeNode().GetBackgroundVolumeID() is None
    shown.faces.go_to("nose")


def test_the_slices_go_through_the_nose_when_the_faces_are_first_shown(shown: Stage) -> None:
    """New views get their size late, and lose what was set before."""
    points = shown.faces._skins[0].surface.points
    right, front, _up = points[np.argmax(points[:, 1])]
    for logic in layout.slice_logics():
        assert logic.GetSliceNode().GetOrientation() == "Sagittal"
        assert logic.GetSliceNode().GetSliceToRAS().GetElement(0, 3) == pytest.approx(right, abs=4)
    assert front > 0 and unlike(shown.picture(SLICES[0]), shown.picture(SLICES[1])) > 0.5
    assert shown.camera(BOTH[0]).GetViewAngle() == pytest.approx(14)


@pytest.mark.parametrize(
    ("place", "orientation"),
    [("left eye", "Axial"), ("mouth", "Axial"), ("right ear", "Coronal"), ("upper border", "Sagittal")],
)
def test_slices_step_through_the_places_of_a_face_close_enough_to_see_voxels(
    shown: Stage, place: str, orientation: str
) -> None:
    shown.faces.go_to(place, 80)
    for logic in layout.slice_logics():
        node = logic.GetSliceNode()
        assert node.GetOrientation() == orientation and min(node.GetFieldOfView()[:2]) == pytest.approx(80)
        matrix = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
        assert np.allclose(matrix[:3, 3], shown.faces._found()[place].point, atol=1e-3)
    shown.faces.go_to("nose")
    with pytest.raises(InputError, match=r"^There is no place 'navel'; choose from left eye"):
        shown.faces.go_to("navel")


def test_places_lie_where_they_belong(shown: Stage) -> None:
    at = {name: np.array(place.point) for name, place in shown.faces._found().items()}
    for part in ("eye", "ear"):
        assert at[f"left {part}"][0] < at["nose"][0] - 20 < at["nose"][0] + 20 < at[f"right {part}"][0]
    assert at["left ear"][1] < at["left eye"][1] - 30 < at["nose"][1]
    assert at["mouth"][2] < at["nose"][2] < at["left eye"][2] < at["upper border"][2]


def test_the_face_region_is_outlined_in_every_slice(shown: Stage) -> None:
    assert all(yellow(shown.picture(name)) > 50 for name in SLICES)
    shown.faces.show_face_region(False)
    assert not any(yellow(shown.picture(name)) for name in SLICES)
    shown.faces.show_face_region(True)


# --- a head that lies askew, and what goes wrong ----------------------------------------------------------


def test_the_front_is_the_heads_own_however_it_lies_in_the_scanner(pair: Pair, shown: Stage) -> None:
    """A head turned by 40 degrees looks into the camera, as the one that lies straight does."""
    shown.faces.look("frontal")
    straight = [shown.picture(name) for name in BOTH]
    angle = np.radians(40)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    askew = Pair(pair.original, pair.refaced, pair.region, turn @ pair.affine)
    with slicer_with() as scene:
        original = add_volume(askew.original, askew.affine, "Head")
        refaced = add_result(original, askew.refaced, report={"seed": 7})
        set_upright(refaced, turn[:3, :3].T)
        add_face_region(refaced, askew.region)
        again = Stage(scene, original, refaced, set(), views.show_faces(original, refaced))
        for name, picture in zip(BOTH, straight, strict=True):
            assert unlike(again.picture(name), picture) < 2
        assert unlike(again.faces.thumbnail(64), shown.faces.thumbnail(64)) < 3
        places = {name: turn[:3, :3].T @ place.point for name, place in again.faces._found().items()}
        for name, place in shown.faces._found().items():
            assert np.linalg.norm(places[name] - place.point) < 6, name


def test_no_cube_is_dark_on_dark(shown: Stage) -> None:
    for view in layout.three_d_views():
        assert view.GetOrientationMarkerType() == view.OrientationMarkerTypeNone


def test_faces_know_when_something_of_them_was_taken_away(stage: Stage) -> None:
    assert stage.faces.is_whole()
    stage.scene.RemoveNode(stage.model(stage.refaced))
    assert not stage.faces.is_whole()
    views.remove()


def test_faces_come_and_go_without_a_complaint_of_the_subject_hierarchy(pair: Pair) -> None:
    with slicer_with() as scene, complaints() as lines:
        stage = stage_of(scene, pair)
        stage.faces.set_rendering("volume")
        views.show_faces(stage.original, stage.refaced)
        views.remove()
        remove_original(scene, stage.refaced)
    assert lines == []


# --- and back ---------------------------------------------------------------------------------------------


def test_restore_goes_back_and_the_faces_can_come_again(stage: Stage) -> None:
    assert layout.is_shown()
    views.restore_layout()
    assert stage.manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    assert not layout.is_shown()
    views.restore_layout()  # the user's own choice stays
    assert stage.manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    views.show_faces(stage.original, stage.refaced)
    assert layout.is_shown()
    assert len(slicer.util.getNodesByClass("vtkMRMLModelNode", stage.scene)) == 2 + 5  # 5: of slice views
    views.restore_layout()
    assert stage.manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView


def test_remove_leaves_nothing_but_empty_views(stage: Stage) -> None:
    views.restore_layout()
    there = {stage.scene.GetNodeByID(name) for name in ids(stage.scene) - stage.before}
    stage.faces.set_rendering("volume")
    views.remove()
    slicer.app.processEvents()
    left = {stage.scene.GetNodeByID(name) for name in ids(stage.scene) - stage.before}
    assert left < there
    assert not any(node.IsA("vtkMRMLModelNode") and "skin" in node.GetName() for node in left)
    for logic in layout.slice_logics():
        composite = logic.GetSliceCompositeNode()
        assert not (composite.GetBackgroundVolumeID() or composite.GetForegroundVolumeID())
    assert not stage.manager.node.GetAttributeNames()
    assert stage.original.GetNumberOfDisplayNodes() == 1
    assert originals_in_scene(stage.refaced) == [stage.original]


def test_the_scene_can_be_closed_while_faces_are_shown(stage: Stage, pair: Pair) -> None:
    stage.scene.Clear(0)
    views.remove()
    assert not layout.is_shown()
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode", stage.scene)
    again = stage_of(stage.scene, pair)
    assert all(skin(again.picture(name)).mean() > 0.2 for name in BOTH)


def test_nothing_of_it_is_saved_with_the_scene(stage: Stage, tmp_path: Path) -> None:
    stage.faces.set_rendering("volume")
    stage.scene.Commit(str(tmp_path / "scene.mrml"))
    text = (tmp_path / "scene.mrml").read_text()
    assert 'name="Head refaced"' in text
    for word in ("RefaceOriginal", "RefaceAxial", "RefaceCGAN.shown", "Head skin", "<GPURayCast", "<CPURayCast"):
        assert word not in text
    other = slicer.vtkMRMLScene()
    other.SetURL(str(tmp_path / "scene.mrml"))
    assert other.Connect()
    head = other.GetFirstNodeByName("Head")
    assert head.GetNumberOfDisplayNodes() == 1
    other.Clear(1)


def test_the_originals_skin_counts_as_its_face_and_is_no_data_of_the_user(shown: Stage) -> None:
    assert originals_in_scene(shown.refaced) == [shown.original, shown.models[0]]
    for model in shown.models:
        assert not item_of(model)[1]
        assert model.GetHideFromEditors()


# --- pictures, without a window ---------------------------------------------------------------------------


@pytest.fixture
def windowless(pair: Pair) -> Iterator[tuple[Any, Any]]:
    """Original and refaced in a Slicer without a window."""
    with slicer_with(window=False):
        original = add_volume(pair.original, pair.affine, "Head")
        yield original, add_result(original, pair.refaced, report={"program": "RefaceCGAN"})


def read_png(path: Path) -> np.ndarray:
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    width, height, _ = reader.GetOutput().GetDimensions()
    from vtk.util.numpy_support import vtk_to_numpy

    pixels = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars())
    return pixels.reshape(height, width, 3)[::-1].astype(float)


def test_a_picture_of_both_needs_no_window(windowless: tuple[Any, Any], tmp_path: Path) -> None:
    picture = read_png(views.compare_image(*windowless, tmp_path / "faces.png", ("frontal",)))
    assert picture.shape == (512 + LABEL_PIXELS, 1024, 3)
    left, right = picture[:, :512], picture[:, 512:]
    assert min(skin(left).mean(), skin(right).mean()) > 0.2
    assert unlike(left, right) > 2


def test_the_picture_saved_with_a_result_shows_the_refaced_face_only(
    windowless: tuple[Any, Any], tmp_path: Path
) -> None:
    written = write_result(windowless[1], tmp_path / "refaced.nii.gz")
    picture = read_png(written.picture)
    assert picture.shape == (512, 1024, 3)
    both = read_png(views.compare_image(*windowless, tmp_path / "faces.png", ("frontal",)))
    original, refaced = (both[LABEL_PIXELS:, side] for side in (slice(512), slice(512, None)))
    assert unlike(picture[:, :512], refaced) < unlike(picture[:, :512], original)


def test_without_a_window_faces_are_not_shown_and_nothing_changes(windowless: tuple[Any, Any]) -> None:
    scene = windowless[0].GetScene()
    before = ids(scene)
    with pytest.raises(InputError, match=r"^Slicer has no window to show faces in; .* compareImage"):
        views.show_faces(*windowless)
    views.remove()
    views.restore_layout()
    assert ids(scene) == before


def test_a_picture_does_not_replace_what_it_should_not(windowless: tuple[Any, Any], tmp_path: Path) -> None:
    for name in ("faces.nii.gz", "nowhere/faces.png"):
        with pytest.raises(InputError):
            views.compare_image(*windowless, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_faces_of_what_is_no_head_are_not_shown(pair: Pair) -> None:
    with slicer_with() as scene:
        empty = add_volume(np.zeros((30, 30, 30), np.int16), pair.affine, "Empty")
        before = ids(scene)
        with pytest.raises(InputError, match="shows no head"):
            views.show_faces(empty, empty)
        assert ids(scene) == before
        assert not layout.is_shown()


@pytest.mark.parametrize("shape", [(50, 61, 40), (9, 30, 7)])
def test_coarse_voxels_lie_where_the_fine_ones_did(shape: tuple[int, int, int]) -> None:
    affine = Volume.from_array(np.zeros((20, 20, 20)), np.diag([1.2, 0.8, 3, 1])).affine
    array = np.indices(shape)[1].astype(float)  # grows by one for each voxel along J
    means, moved = coarse(array, affine)
    assert means.shape == (shape[0] // 2, shape[1] // 3, shape[2])
    assert np.allclose(moved[:3, :3], np.diag([2.4, 2.4, 3]))
    place = np.linalg.solve(affine, moved @ [0, 4, 0, 1])  # a coarse voxel's middle, in fine voxels
    assert means[0, 4, 0] == pytest.approx(place[1])
