"""Scene: from a volume node to arrays, and from a result to nodes and files, on real MRML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.volume.volume import Volume
from slicer_offscreen import add_transform, add_volume, item_of, scene, slicer, vtk

# isort: split
from RefaceCGANSlicer.scene import (
    QC,
    SKIN_OF,
    add_face_region,
    add_result,
    face_region_of,
    originals_in_scene,
    read_qc,
    remove_original,
    report_of,
    set_qc,
    volume_of,
    what_is_it,
    write_result,
)

__all__ = ["scene"]  # a fixture

SHAPE = 18, 20, 22
TYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64", "int8", "uint32")
REPORT = {
    "program": "RefaceCGAN", "version": "0.1.0", "model": "default", "model_sha256": "0" * 64, "seed": 7,
    "dropout": 0.5, "brain_voxels_changed": 0, "warnings": ['a "quoted"; note: <&> ü'],
}  # fmt: skip


def turn(x: float, y: float, z: float) -> np.ndarray:
    """A rotation matrix (3, 3) from angles in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians((x, y, z))):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = one @ matrix
    return matrix


def affine_of(directions: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.2, 0.9)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = -80.5, 33.25, 12
    return affine


OBLIQUE = affine_of(turn(20, -12, 33)[:, [2, 0, 1]])
SHEARED = affine_of(np.array([[1, 0.1, 0], [0, 1, 0.2], [0, 0, 1]]))
LPS, LEFT_HANDED = affine_of(np.diag([-1.0, -1.0, 1.0])), affine_of(turn(5, 8, -3) * (-1, 1, 1))
GEOMETRIES = {"LPS": LPS, "oblique": OBLIQUE, "left-handed": LEFT_HANDED, "sheared": SHEARED}
READABLE = {name: affine for name, affine in GEOMETRIES.items() if name != "sheared"}  # for Slicer's reader


def values(dtype: str = "int16", shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Every voxel its own, over the type's range; the array's order is not that of a file."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return np.random.default_rng(1).standard_normal(shape).astype(kind)
    info = np.iinfo(kind)
    return np.random.default_rng(1).integers(info.min, info.max, shape, kind, endpoint=True)


def flip_of(axis: int) -> np.ndarray:
    """The matrix that turns an axis of `SHAPE` over."""
    matrix = np.eye(4)
    matrix[axis, axis], matrix[axis, 3] = -1, SHAPE[axis] - 1
    return matrix


def changed(array: np.ndarray) -> np.ndarray:
    """What a refaced scan differs by: its anterior voxels, mirrored."""
    result = array.copy()
    result[:, 12:] = result[::-1, 12:]
    return result


@pytest.fixture
def head(scene: Any) -> Any:
    return add_volume(values(), OBLIQUE, "Head")


@pytest.fixture
def refaced(head: Any) -> Any:
    return add_result(head, changed(values()), report=REPORT)


def names(scene: Any, kind: str) -> list[str]:
    return [node.GetName() for node in slicer.util.getNodesByClass(kind, scene)]


# --- from the scene ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_voxels_of_every_type_come_out_bit_for_bit_in_native_order(scene: Any, dtype: str) -> None:
    array, _ = volume_of(add_volume(values(dtype), OBLIQUE, "Head"))
    assert array.dtype == np.dtype(dtype)
    assert np.array_equal(array, values(dtype))


@pytest.mark.parametrize("affine", READABLE.values(), ids=READABLE)
def test_the_matrix_is_that_of_the_file_in_ras(scene: Any, tmp_path: Path, affine: np.ndarray) -> None:
    Volume.from_array(values("float32"), affine).write(tmp_path / "head.nii.gz")
    array, matrix = volume_of(loaded(scene, tmp_path / "head.nii.gz"))
    file = nib.load(tmp_path / "head.nii.gz")
    if affine is LEFT_HANDED:  # Slicer turns the last axis over, voxels and matrix alike
        array, matrix = array[:, :, ::-1], matrix @ flip_of(2)
    assert np.allclose(matrix, file.affine, atol=1e-4)
    assert np.array_equal(array, np.asanyarray(file.dataobj))


@pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_node_and_the_file_written_of_it_lie_in_the_same_place(
    scene: Any, tmp_path: Path, affine: np.ndarray
) -> None:
    node = add_volume(values(), affine, "Head")
    result = add_result(node, changed(values()))
    for suffix in (".nii.gz", ".nrrd"):
        written = write_result(result, tmp_path / f"refaced{suffix}", picture=False)
        volume = Volume.read(written.scan)
        assert np.allclose(volume.affine, affine, atol=1e-5)
        assert np.array_equal(volume.stored, changed(values()))
    assert np.allclose(nib.load(tmp_path / "refaced.nii.gz").affine, affine, atol=1e-5)


def test_a_linear_transform_counts_but_the_node_stays_as_it_is(head: Any) -> None:
    first, second = affine_of(turn(0, 0, 30), (1, 1, 1)), affine_of(turn(10, 5, 0), (1, 1, 1))
    add_transform(second, add_transform(first, head))
    array, matrix = volume_of(head)
    assert np.allclose(matrix, second @ first @ OBLIQUE)
    assert np.array_equal(array, values())
    head.SetAndObserveTransformNodeID(None)
    assert np.allclose(volume_of(head)[1], OBLIQUE)


def test_a_nonlinear_transform_is_refused(scene: Any, head: Any) -> None:
    grid = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    grid.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    head.SetAndObserveTransformNodeID(grid.GetID())
    with pytest.raises(InputError, match=r"^Head is under a non-linear transform; .*\.$"):
        volume_of(head)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("vtkMRMLLabelMapVolumeNode", "label map"), ("vtkMRMLVectorVolumeNode", "several volumes")],
)
def test_what_is_no_single_scan_is_refused_in_a_sentence(scene: Any, kind: str, sentence: str) -> None:
    node = add_volume(values("uint8"), OBLIQUE, "Other", kind)
    with pytest.raises(InputError, match=f"^Other .*{sentence}.*;.*\\.$"):
        volume_of(node)
    assert sentence in what_is_it(node).problem


def test_what_holds_nothing_is_refused_in_a_sentence(scene: Any) -> None:
    with pytest.raises(InputError, match=r"^Empty holds no voxels; load it again\.$"):
        volume_of(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty"))
    with pytest.raises(InputError, match=r"^Skull is no volume; choose a scan\.$"):
        volume_of(scene.AddNewNodeByClass("vtkMRMLModelNode", "Skull"))
    with pytest.raises(InputError, match=r"^No scan is chosen; choose one\.$"):
        volume_of(None)


def test_a_description_says_what_a_scan_is(head: Any) -> None:
    what = what_is_it(head)
    assert (what.size, what.problem, what.note) == (SHAPE, None, None)
    assert what.spacing == pytest.approx((1.0, 1.2, 0.9))
    assert what.orientation == "".join(nib.aff2axcodes(OBLIQUE))


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR", "ASL", "SRP"])
def test_the_orientation_is_that_of_nibabel(scene: Any, order: str) -> None:
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(order), (1, 1, 1))[:3, :3]
    affine = affine_of(turn(9, 14, -8) @ axes)
    assert what_is_it(add_volume(values(), affine, "Head")).orientation == "".join(nib.aff2axcodes(affine))


def test_a_description_names_the_problem(scene: Any) -> None:
    small = what_is_it(add_volume(values(shape=(18, 20, 5)), OBLIQUE, "Slab"))
    assert small.problem.startswith("Slab has 18x20x5 voxels, too few")
    assert small.size == (18, 20, 5)


# --- into the scene ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_a_result_has_the_inputs_type_geometry_and_its_own_values(scene: Any, dtype: str) -> None:
    head = add_volume(values(dtype), SHEARED, "Head")
    result = add_result(head, changed(values(dtype)))
    array, affine = volume_of(result)
    assert (array.dtype, result.GetImageData().GetScalarType()) == (
        np.dtype(dtype), head.GetImageData().GetScalarType(),
    )  # fmt: skip
    assert np.array_equal(array, changed(values(dtype)))
    assert np.array_equal(affine, volume_of(head)[1])
    assert np.array_equal(volume_of(head)[0], values(dtype))


def test_a_result_looks_like_its_input(scene: Any, head: Any) -> None:
    display = head.GetScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(321, 123)
    display.SetInterpolate(0)
    copied = add_result(head, changed(values())).GetScalarVolumeDisplayNode()
    assert copied.GetID() != display.GetID()
    assert (copied.GetWindow(), copied.GetLevel(), copied.GetInterpolate()) == (321, 123, 0)
    assert copied.GetColorNodeID() == display.GetColorNodeID()


def test_an_automatic_window_is_not_found_anew(head: Any) -> None:
    head.GetScalarVolumeDisplayNode().SetAutoWindowLevel(True)
    display = head.GetScalarVolumeDisplayNode()
    copied = add_result(head, values() // 3).GetScalarVolumeDisplayNode()
    assert (copied.GetWindow(), copied.GetLevel()) == (display.GetWindow(), display.GetLevel())


def test_a_result_comes_beside_its_input_under_the_same_transform(head: Any) -> None:
    transform = add_transform(affine_of(turn(0, 0, 30), (1, 1, 1)), head)
    hierarchy, item = item_of(head)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.SetItemParent(item, study)
    result = add_result(head, changed(values()))
    assert hierarchy.GetItemParent(item_of(result)[1]) == study
    assert result.GetParentTransformNode() is transform
    assert np.allclose(volume_of(result)[1], volume_of(head)[1])


def test_two_scans_of_one_name_and_two_faces_of_one_scan_are_kept_apart(scene: Any, head: Any) -> None:
    other = add_volume(values() // 2, OBLIQUE, "Head")
    results = [add_result(node, changed(volume_of(node)[0])) for node in (head, head, other)]
    assert results[0].GetName() == "Head refaced"
    assert len({node.GetName() for node in results}) == 3
    assert [originals_in_scene(node)[0] for node in results] == [head, head, other]


def test_a_result_can_fill_a_node_that_is_there(scene: Any, head: Any) -> None:
    output = add_volume(np.zeros((3, 4, 5)), np.eye(4), "Output")
    set_qc(output, QC(True, ("eyes",)))
    assert add_result(head, changed(values()), node=output) is output
    assert (output.GetName(), volume_of(output)[0].dtype) == ("Output", np.int16)
    assert read_qc(output) == QC()  # of another face
    with pytest.raises(InputError, match="cannot replace its original"):
        add_result(head, changed(values()), node=head)


def test_a_result_of_a_scan_that_changed_meanwhile_is_refused(head: Any) -> None:
    with pytest.raises(InputError, match=r"^Head changed while it was worked on; start again"):
        add_result(head, values(shape=(20, 20, 20)))


def test_identifiers_of_the_original_are_not_copied(head: Any) -> None:
    head.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    assert add_result(head, changed(values())).GetAttribute("DICOM.instanceUIDs") is None


def test_the_face_region_is_an_outline_that_can_be_edited(scene: Any, head: Any, refaced: Any) -> None:
    add_transform(affine_of(turn(0, 0, 30), (1, 1, 1)), head, refaced)
    region = np.zeros(SHAPE, bool)
    region[2:15, 12:, 3:18] = True
    node = add_face_region(refaced, region)
    assert np.array_equal(face_region_of(refaced), region)
    display = node.GetDisplayNode()
    assert display.GetVisibility2DOutline() and not (display.GetVisibility2DFill() or display.GetVisibility3D())
    assert node.GetName() == "Head face region"
    segment = node.GetSegmentation().GetNthSegmentID(0)
    region[4, 13, 5] = False
    region[0, 0, 0] = True
    slicer.util.updateSegmentBinaryLabelmapFromArray(region.T.astype(np.uint8), node, segment, refaced)
    assert np.array_equal(face_region_of(refaced), region)


def test_without_a_segmentation_there_is_no_face_region(scene: Any, refaced: Any) -> None:
    assert face_region_of(refaced) is None
    node = add_face_region(refaced, np.ones(SHAPE, bool))
    node.GetSegmentation().RemoveAllSegments()
    assert face_region_of(refaced) is None


# --- what a result knows ----------------------------------------------------------------------------------


def test_qc_and_report_survive_saving_and_loading_the_scene(scene: Any, refaced: Any, tmp_path: Path) -> None:
    qc = QC(False, ("eyes", "no seam"), 'left ear "cut"; see: <a> & b|c, größer\nsecond line')
    set_qc(refaced, qc)
    refaced.SetSaveWithScene(True)
    assert scene.Commit(str(tmp_path / "scene.mrml"))
    loaded = slicer.vtkMRMLScene()
    loaded.SetURL(str(tmp_path / "scene.mrml"))
    assert loaded.Connect()
    node = loaded.GetFirstNodeByName("Head refaced")
    assert read_qc(node) == qc
    assert report_of(node) == {**REPORT, "qc": {"passed": False, "ticks": list(qc.ticks), "note": qc.note}}
    loaded.Clear(1)


def test_qc_can_be_taken_back(refaced: Any) -> None:
    set_qc(refaced, QC(True, ("eyes",), "good"))
    assert read_qc(refaced) == QC(True, ("eyes",), "good")
    set_qc(refaced, QC())
    assert read_qc(refaced) == QC()
    assert report_of(refaced) == REPORT


def test_a_scan_that_is_no_result_has_no_report(head: Any) -> None:
    with pytest.raises(InputError, match=r"^Head is no result of RefaceCGAN"):
        report_of(head)


# --- the original's face in the scene ---------------------------------------------------------------------


def test_the_original_its_copies_and_its_skin_are_found_and_removed(scene: Any, head: Any, refaced: Any) -> None:
    copy = add_volume(values(), np.eye(4), "Copy")
    add_volume(values() // 2, OBLIQUE, "Other")
    skin = scene.AddNewNodeByClass("vtkMRMLModelNode", "Skin")
    skin.SetNodeReferenceID(SKIN_OF, head.GetID())
    head.AddDefaultStorageNode()
    hierarchy, item = item_of(head)
    child = scene.AddNewNodeByClass("vtkMRMLModelNode", "Brain")
    hierarchy.SetItemParent(item_of(child)[1], item)
    assert set(originals_in_scene(refaced)) == {head, copy, skin}
    assert sorted(remove_original(scene, refaced)) == ["Copy", "Head", "Skin"]
    assert sorted(names(scene, "vtkMRMLScalarVolumeNode")) == ["Head refaced", "Other"]
    assert names(scene, "vtkMRMLModelNode") == ["Brain"]
    assert not names(scene, "vtkMRMLStorageNode")
    assert len(names(scene, "vtkMRMLScalarVolumeDisplayNode")) == 2
    assert originals_in_scene(refaced) == []
    assert np.array_equal(volume_of(refaced)[0], changed(values()))


def test_a_saved_scene_holds_no_original_after_that(scene: Any, refaced: Any, tmp_path: Path) -> None:
    remove_original(scene, refaced)
    scene.Commit(str(tmp_path / "scene.mrml"))
    text = (tmp_path / "scene.mrml").read_text()
    assert 'name="Head refaced"' in text
    assert 'name="Head"' not in text


def sequence_of(scene: Any, arrays: list[np.ndarray]) -> tuple[Any, Any]:
    """A sequence of volumes under a browser: the browser and the node that shows the first of them."""
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Sequence")
    for index, array in enumerate(arrays):
        node = add_volume(array, OBLIQUE, "item")
        sequence.SetDataNodeAtValue(node, str(index))
        scene.RemoveNode(node.GetDisplayNode())
        scene.RemoveNode(node)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSelectedItemNumber(0)
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(scene)
    logic.UpdateProxyNodesFromSequences(browser)
    return browser, browser.GetProxyNode(sequence)


def test_an_item_of_a_sequence_is_refaced_by_itself(scene: Any) -> None:
    browser, shown = sequence_of(scene, [values(), values() // 2])
    what = what_is_it(shown)
    assert what.problem is None
    assert "one item of a sequence" in what.note
    result = add_result(shown, changed(values()))
    assert not browser.IsProxyNodeID(result.GetID())
    held = originals_in_scene(result)
    assert held[0] is shown
    assert [node.GetName() for node in held[1:]] == ["Sequence"]
    remove_original(scene, result)
    assert names(scene, "vtkMRMLScalarVolumeNode") == [result.GetName()]
    assert not names(scene, "vtkMRMLSequenceNode")
    assert np.array_equal(volume_of(result)[0], changed(values()))


# --- files ------------------------------------------------------------------------------------------------


def loaded(scene: Any, path: Path, name: str = "Head") -> Any:
    """A node with the voxels of a file, as Slicer loads it."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    node.SetAndObserveStorageNodeID(storage.GetID())
    return node


def test_all_that_belongs_to_a_result_is_written_beside_it(scene: Any, tmp_path: Path) -> None:
    source = tmp_path / "sub-01_T1w.nii.gz"
    Volume.from_array(values(), LPS).write(source)
    head = loaded(scene, source)
    result = add_result(head, changed(volume_of(head)[0]), report=REPORT)
    region = np.zeros(SHAPE, bool)
    region[:, 12:] = True
    add_face_region(result, region)
    set_qc(result, QC(True, ("eyes", "nose")))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "head.json").write_text('{"RepetitionTime": 2.3}')
    written = write_result(result, folder / "head.nii.gz", picture=False)
    assert sorted(path.name for path in folder.iterdir()) == [
        "head.json", "head.nii.gz", "head_face-region.nii.gz", "head_report.json",
    ]  # fmt: skip
    assert np.array_equal(Volume.read(written.scan).stored, changed(values()))
    assert np.array_equal(Volume.read(written.mask).stored, region)
    report = json.loads(written.report.read_text())
    assert (report["input"], report["output"], report["seed"]) == (source.name, "head.nii.gz", 7)
    assert report["qc"] == {"passed": True, "ticks": ["eyes", "nose"], "note": ""}
    sidecar = json.loads(written.sidecar.read_text())
    assert (sidecar["RepetitionTime"], sidecar["RefacingSeed"]) == (2.3, 7)


def test_a_report_does_not_name_a_file_whose_voxels_were_changed(scene: Any, tmp_path: Path) -> None:
    Volume.from_array(values(), LPS).write(tmp_path / "head.nii.gz")
    head = loaded(scene, tmp_path / "head.nii.gz")
    slicer.util.updateVolumeFromArray(head, values().T // 2)
    result = add_result(head, changed(volume_of(head)[0]), report=REPORT)
    written = write_result(result, tmp_path / "refaced.nii.gz", picture=False)
    report = json.loads(written.report.read_text())
    assert "input" not in report
    assert len(report["output_sha256"]) == 64


@pytest.mark.parametrize("name", ["head.nii.gz", "linked.nii.gz"])
def test_the_inputs_file_is_never_overwritten(scene: Any, tmp_path: Path, name: str) -> None:
    Volume.from_array(values(), LPS).write(tmp_path / "head.nii.gz")
    (tmp_path / "linked.nii.gz").symlink_to(tmp_path / "head.nii.gz")
    before = (tmp_path / "head.nii.gz").read_bytes()
    head = loaded(scene, tmp_path / "head.nii.gz")
    result = add_result(head, changed(volume_of(head)[0]), report=REPORT)
    with pytest.raises(InputError, match=r"is the input itself, which is never overwritten"):
        write_result(result, tmp_path / name)
    assert (tmp_path / "head.nii.gz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_original_is_never_written_as_a_result(head: Any, refaced: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^Head is no result"):
        write_result(head, tmp_path / "refaced.nii.gz")
    slicer.util.updateVolumeFromArray(refaced, values().T)
    with pytest.raises(InputError, match="still shows the original's face"):
        write_result(refaced, tmp_path / "refaced.nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(refaced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("RefaceCGANLib.app.saving._write_sidecar", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_result(refaced, tmp_path / "refaced.nii.gz", picture=False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_sidecar_is_not_overwritten(refaced: Any, tmp_path: Path) -> None:
    (tmp_path / "refaced.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="is no BIDS sidecar"):
        write_result(refaced, tmp_path / "refaced.nii.gz", picture=False)
    assert [path.name for path in tmp_path.iterdir()] == ["refaced.json"]


def test_a_transform_is_not_applied_to_the_file(head: Any, refaced: Any, tmp_path: Path) -> None:
    add_transform(affine_of(turn(0, 0, 30), (1, 1, 1)), refaced)
    written = write_result(refaced, tmp_path / "refaced.nii.gz", picture=False)
    assert np.allclose(Volume.read(written.scan).affine, OBLIQUE, atol=1e-5)
