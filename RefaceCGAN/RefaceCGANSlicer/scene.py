"""The scene: what a volume node holds, as arrays, and a result as nodes and files.

A node's voxels and its place are read without changing the node. A result is a scalar volume node that knows its
original (node reference `ORIGINAL`), its face region (`REGION`), its report and what the eye found (attributes
under `RefaceCGAN.`); all of that survives saving and loading the scene.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from RefaceCGANLib.app import saving
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.volume.volume import Volume
from vtk.util.numpy_support import vtk_to_numpy

from .child_process import _

SCAN = "vtkMRMLScalarVolumeNode"
ORIGINAL, REGION = "RefaceCGAN.original", "RefaceCGAN.faceRegion"
"""Node references of a result: to its original, and to the segmentation of its face region."""
SKIN_OF = "RefaceCGAN.skinOf"
"""Node reference of a skin model: to the volume whose face it shows."""
NAMED, UPRIGHT = "RefaceCGAN.named", "RefaceCGAN.upright"
"""Attributes of a result: the name that it was given, and the rotation from RAS to the head's own axes."""
REPORT, QC_VERDICT = "RefaceCGAN.report", "RefaceCGAN.qc.verdict"
QC_TICKS, QC_NOTE = "RefaceCGAN.qc.ticks", "RefaceCGAN.qc.note"
EYE_CHECKS = ("eyes", "nose", "mouth", "ears", "no seam", "brain intact")
REGION_COLOUR = 0.95, 0.75, 0.1


@dataclass(frozen=True)
class Description:
    """What a node is: size (voxels along I, J, K), spacing (mm), orientation (the direction in which I, J, K grow,
    e.g. "LPS"), problem (why it cannot be refaced, one sentence, or None) and note (one sentence, or None)."""

    size: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: str = ""
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class QC:
    """What the eye found: passed (None: not decided yet), ticks (which of `EYE_CHECKS` hold) and a note."""

    passed: bool | None = None
    ticks: tuple[str, ...] = ()
    note: str = ""


# --- from the scene ---------------------------------------------------------------------------------------


def volume_of(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a scalar volume node and where they lie.

    Returns a view (I, J, K) of the node's memory, in its own type, and the (4, 4) float64 matrix from voxel to
    RAS+ mm of the world: linear transforms above the node are hardened into the matrix, not into the node.
    Raises InputError for anything else: no volume, several volumes, a label map, a non-linear transform.
    """
    problem = _obstacle(node)
    if problem:
        raise InputError(problem)
    return _array(node), _world(node) @ _matrix(node)


def is_result(node: Any) -> bool:
    """Whether a node is a refaced or defaced scan of this module."""
    return node is not None and node.GetAttribute(REPORT) is not None


def is_refaced(node: Any) -> bool:
    """Whether a node is a refaced scan of this module."""
    return is_result(node) and "seed" in report_of(node)


def results_of(node: Any) -> list[Any]:
    """The results in the scene that were made of a scan."""
    scans = slicer.util.getNodesByClass(SCAN, node.GetScene())
    return [other for other in scans if is_result(other) and original_of(other) is node]


def other_series(node: Any) -> tuple[list[Any], list[Any]]:
    """The other scans in the scene that may show the same person as `node`: those of the same DICOM patient, or of
    the same study where the hierarchy knows no patient; and all others. Results are left out."""
    scans = [
        other for other in slicer.util.getNodesByClass(SCAN, node.GetScene())
        if other is not node and not is_result(other) and not other.GetHideFromEditors() and not _obstacle(other)
    ]  # fmt: skip
    person = _person_of(node)
    same = [other for other in scans if person and _person_of(other) == person]
    return same, [other for other in scans if other not in same]


def _person_of(node: Any) -> int:
    """The subject hierarchy's item of the DICOM patient, or else study, that a node belongs to; 0 for none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    item, constants = hierarchy.GetItemByDataNode(node), slicer.vtkMRMLSubjectHierarchyConstants
    for level in (constants.GetDICOMLevelPatient(), constants.GetDICOMLevelStudy()):
        above = hierarchy.GetItemAncestorAtLevel(item, level) if item else 0
        if above:
            return int(above)
    return 0


def what_is_it(node: Any) -> Description:
    """Describe a node before it is refaced; never raises for a node that cannot be."""
    problem = _obstacle(node)
    if problem:
        return Description(problem=problem)
    array, affine = volume_of(node)
    i, j, k = (float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0))
    try:
        Volume.from_array(array, affine).check()
    except InputError as error:
        problem = str(error).replace("the volume", node.GetName(), 1)
    return Description(array.shape, (i, j, k), orientation(affine), problem, _note(node))


def orientation(affine: np.ndarray) -> str:
    """The anatomical directions in which I, J, K grow, e.g. "LPS", of a voxel to RAS+ matrix (4, 4)."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    columns = [0, 1, 2]
    rows = max(itertools.permutations(columns), key=lambda rows: np.abs(cosines[list(rows), columns]).sum())
    return "".join(("LR", "PA", "IS")[row][int(cosines[row, column] > 0)] for column, row in enumerate(rows))


def _obstacle(node: Any) -> str | None:
    """Why the node holds no single scan in a known place, or None."""
    if node is None:
        return _("No scan is chosen; choose one.")
    name = node.GetName()
    if node.IsA("vtkMRMLLabelMapVolumeNode") or node.IsA("vtkMRMLSegmentationNode"):
        return _("{name} is a label map or segmentation; choose the scan itself.").format(name=name)
    if not node.IsA(SCAN):
        return _("{name} is no volume; choose a scan.").format(name=name)
    image = node.GetImageData()
    if image is None or not image.GetNumberOfPoints() or image.GetPointData().GetScalars() is None:
        return _("{name} holds no voxels; load it again.").format(name=name)
    if node.GetClassName() != SCAN or image.GetNumberOfScalarComponents() > 1:
        return _("{name} holds several volumes or colours; take out one 3D volume first.").format(name=name)
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        text = _("{name} is under a non-linear transform; harden the transform or take the scan out of it.")
        return text.format(name=name)
    return None


def _note(node: Any) -> str | None:
    if _browsers(node):
        return _("This is one item of a sequence; only the item that is shown now is refaced.")
    if node.GetParentTransformNode() is not None:
        return _("The scan is under a transform; it is refaced as it lies, and the result comes under the same.")
    return None


def _array(node: Any) -> np.ndarray:
    return slicer.util.arrayFromVolume(node).T


def _matrix(node: Any) -> np.ndarray:
    """The node's own voxel to RAS matrix, before any transform above it."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _world(node: Any) -> np.ndarray:
    matrix, transform = vtk.vtkMatrix4x4(), node.GetParentTransformNode()
    if transform is not None:
        transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _browsers(node: Any) -> list[Any]:
    """The sequence browsers that show a sequence in this node."""
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode", node.GetScene())
    return [browser for browser in browsers if browser.IsProxyNodeID(node.GetID())]


# --- into the scene ---------------------------------------------------------------------------------------


def add_result(
    input_node: Any,
    array: np.ndarray,
    name: str | None = None,
    report: dict[str, Any] | None = None,
    node: Any = None,
) -> Any:
    """Put a result into the scene, and return its node.

    array: (I, J, K), of the input's shape and type. name: default "<input> refaced", made unique; node: an
    existing scalar volume to fill instead, which keeps its name. Geometry, parent transform, window and level,
    colours and place in the subject hierarchy are the input's; its DICOM attributes are not copied, as they
    lead to the original. Raises InputError where the input has changed in the meantime or is to be replaced.
    """
    source = input_node.GetImageData()
    if _obstacle(input_node) or array.shape != _array(input_node).shape or array.dtype != _array(input_node).dtype:
        message = _("{name} changed while it was worked on; start again.")
        raise InputError(message.format(name=input_node.GetName()))
    if node is input_node:
        raise InputError(_("A result cannot replace its original; choose another output volume."))
    scene = input_node.GetScene()
    image = vtk.vtkImageData()
    image.CopyStructure(source)
    image.AllocateScalars(source.GetScalarType(), 1)
    vtk_to_numpy(image.GetPointData().GetScalars()).reshape(array.shape[::-1])[...] = array.T
    if node is None:
        name = _unique_name(scene, name or _("{name} refaced").format(name=input_node.GetName()))
        node = scene.AddNewNodeByClass(SCAN, name)
        node.SetAttribute(NAMED, name)
    with slicer.util.NodeModify(node):
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(_matrix(input_node)))
        node.SetAndObserveImageData(image)
        node.SetVoxelValueQuantity(input_node.GetVoxelValueQuantity())
        node.SetVoxelValueUnits(input_node.GetVoxelValueUnits())
        node.SetAndObserveTransformNodeID(input_node.GetTransformNodeID())
        node.SetNodeReferenceID(ORIGINAL, input_node.GetID())
        set_report(node, report or {})
        set_qc(node, QC())
    _copy_display(input_node, node)
    _place_beside(node, input_node)
    return node


def add_shown(scene: Any, array: np.ndarray, affine: np.ndarray, name: str) -> Any:
    """Put a volume into the scene to look at it alone: array (I, J, K), affine (4, 4) voxel to RAS+ mm. It is not
    listed among the scene's data, offered as an input, or saved with the scene."""
    node = scene.CreateNodeByClass(SCAN)
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    scene.AddNode(node)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(array.T))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.asarray(affine, dtype=float)))
    node.CreateDefaultDisplayNodes()
    return node


def add_face_region(result_node: Any, region: np.ndarray) -> Any:
    """Put the face region (bool, I, J, K, in the result's geometry) into the scene as a segmentation node beside
    the result, which refers to it. Slices show its outline, 3D views do not; Segment Editor can edit it."""
    scene, original = result_node.GetScene(), original_of(result_node)
    name = _("{name} face region").format(name=(original or result_node).GetName())
    name = _unique_name(scene, name)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    segmentation.SetAttribute(NAMED, name)
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(result_node)
    segmentation.SetAndObserveTransformNodeID(result_node.GetTransformNodeID())
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(region.shape)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(image.GetPointData().GetScalars()).reshape(region.shape[::-1])[...] = region.T
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(_matrix(result_node)))
    segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, _("face region"), REGION_COLOUR)
    display = segmentation.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetVisibility3D(False)
    display.SetSliceIntersectionThickness(2)
    _place_beside(segmentation, result_node)
    result_node.SetNodeReferenceID(REGION, segmentation.GetID())
    return segmentation


def face_region_of(result_node: Any) -> np.ndarray | None:
    """The face region of a result as it stands in the scene now, edited or not: bool (I, J, K); None without."""
    segmentation = region_node_of(result_node)
    if segmentation is None:
        return None
    segment = segmentation.GetSegmentation().GetNthSegmentID(0)
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, result_node).T > 0


def follow_name(result_node: Any) -> None:
    """Name a result and its face region after its original again, which was renamed; names that somebody gave to
    them stay."""
    original, scene = original_of(result_node), result_node.GetScene()
    names = _("{name} refaced"), _("{name} face region")
    for node, name in zip((result_node, region_node_of(result_node)), names, strict=True):
        wanted = name.format(name=original.GetName()) if original else ""
        given = node.GetAttribute(NAMED) if node else None
        if given is None or given != node.GetName() or not wanted or given.startswith(wanted):
            continue
        wanted = _unique_name(scene, wanted)
        node.SetName(wanted)
        node.SetAttribute(NAMED, wanted)


def region_node_of(result_node: Any) -> Any:
    """The segmentation node of a result's face region; None where it is not in the scene, or is empty."""
    node = result_node.GetNodeReference(REGION)
    return node if node is not None and node.GetSegmentation().GetNumberOfSegments() else None


def remove(scene: Any, *nodes: Any) -> None:
    """Remove nodes from the scene, each with its display and storage nodes, which go first: a displayable node
    that has left the scene must not hear of its parts any more. Those that are not there are passed over."""
    for node in nodes:
        parts = []
        if node.IsA("vtkMRMLDisplayableNode"):
            parts += [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
        if node.IsA("vtkMRMLStorableNode"):
            parts += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
        for part in (*filter(None, parts), node):
            if scene.IsNodePresent(part):
                scene.RemoveNode(part)


def _place_beside(node: Any, other: Any) -> None:
    hierarchy, item = _item(node)
    hierarchy.SetItemParent(item, hierarchy.GetItemParent(_item(other)[1]))


def _item(node: Any) -> tuple[Any, int]:
    """The subject hierarchy and the node's item in it, which is made where it is missing."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    item = hierarchy.GetItemByDataNode(node)
    return hierarchy, item or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def _unique_name(scene: Any, name: str) -> str:
    return name if scene.GetFirstNodeByName(name) is None else scene.GenerateUniqueName(name)


def _copy_display(source: Any, node: Any) -> None:
    if node.GetScalarVolumeDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    if source.GetScalarVolumeDisplayNode() is not None:
        display = node.GetScalarVolumeDisplayNode()
        display.CopyContent(source.GetScalarVolumeDisplayNode())
        display.SetAutoWindowLevel(False)  # else it would be found anew, and the two would differ in brightness


# --- what a result knows ----------------------------------------------------------------------------------


def original_of(result_node: Any) -> Any:
    """The original's node, or None where it is no longer in the scene."""
    return result_node.GetNodeReference(ORIGINAL)


def report_of(result_node: Any) -> dict[str, Any]:
    """The report that came with a result, and under "qc" what the eye found; empty where there was none.

    Raises InputError for a node that is no result.
    """
    text = result_node.GetAttribute(REPORT)
    if text is None:
        message = _("{name} is no result of RefaceCGAN; choose a refaced scan.")
        raise InputError(message.format(name=result_node.GetName()))
    report = json.loads(text)
    qc = read_qc(result_node)
    if report and qc != QC():
        report["qc"] = {"passed": qc.passed, "ticks": list(qc.ticks), "note": qc.note}
    return report


def set_report(result_node: Any, report: dict[str, Any]) -> None:
    """Keep a report in the result node's attributes."""
    result_node.SetAttribute(REPORT, json.dumps(report))


def set_upright(result_node: Any, upright: np.ndarray | None) -> None:
    """Keep how the head lies in the scan: the rotation (3, 3) from RAS to the head's own axes."""
    if upright is not None:
        result_node.SetAttribute(UPRIGHT, json.dumps(np.asarray(upright).tolist()))


def read_upright(result_node: Any) -> np.ndarray | None:
    """What `set_upright` kept, also after the scene was saved and loaded."""
    text = result_node.GetAttribute(UPRIGHT)
    return None if text is None else np.array(json.loads(text), dtype=float)


def set_qc(result_node: Any, qc: QC) -> None:
    """Keep what the eye found in the result node's attributes."""
    verdict = None if qc.passed is None else ("pass" if qc.passed else "fail")
    for name, value in ((QC_VERDICT, verdict), (QC_TICKS, "|".join(qc.ticks)), (QC_NOTE, qc.note)):
        if value:
            result_node.SetAttribute(name, value)
        else:
            result_node.RemoveAttribute(name)


def read_qc(result_node: Any) -> QC:
    """What `set_qc` kept, also after the scene was saved and loaded."""
    verdict, ticks = result_node.GetAttribute(QC_VERDICT), result_node.GetAttribute(QC_TICKS)
    passed = None if verdict is None else verdict == "pass"
    return QC(passed, tuple(ticks.split("|")) if ticks else (), result_node.GetAttribute(QC_NOTE) or "")


# --- the original's face in the scene ---------------------------------------------------------------------


def originals_in_scene(result_node: Any) -> list[Any]:
    """The nodes that hold the original face, in what would be saved with the scene or on screen: the original,
    copies of it with the same voxels, sequences that show in one of these, and models of its skin.

    Volumes that were computed from the original by other means (filtered, resampled) are not recognised.
    """
    original = original_of(result_node)
    if original is None:
        return []
    scene, values = result_node.GetScene(), _array(original)
    held = [original]
    for node in slicer.util.getNodesByClass(SCAN, scene):
        image = node.GetImageData()
        same = image is not None and _obstacle(node) is None and np.array_equal(_array(node), values)
        if same and node not in (original, result_node):
            held.append(node)
    sequences = [browser.GetSequenceNode(node) for node in held for browser in _browsers(node)]
    models = slicer.util.getNodesByClass("vtkMRMLModelNode", scene)
    skins = [model for model in models if model.GetNodeReference(SKIN_OF) in held]
    return list(dict.fromkeys([*held, *sequences, *skins]))


def remove_original(scene: Any, node: Any) -> list[str]:
    """Remove the original of the result `node` from the scene, with all of `originals_in_scene`, their display and
    storage nodes; returns the names of what was removed. The result and the files on disk stay."""
    held = originals_in_scene(node)
    names = [each.GetName() for each in held]
    remove(scene, *reversed(held))  # sequences first, else their browsers show the item anew
    node.RemoveNodeReferenceIDs(ORIGINAL)
    return names


# --- files ------------------------------------------------------------------------------------------------


def to_write(result_node: Any, mask: bool = True, report: bool = True) -> dict[str, Any]:
    """What is written of a result, as the engine's command `save` takes it (RefaceCGANLib.app.worker): the voxels
    of the refaced scan alone, bit for bit, in the node's own geometry: a transform above it is not applied, as in
    Slicer's own saving. The mask is the face region as it stands in the scene now.

    Raises InputError where the node is no result or holds the original's voxels."""
    content, original, values = report_of(result_node), original_of(result_node), _array(result_node)
    if original is not None and np.array_equal(values, _array(original)):
        message = _("{name} still shows the original's face; reface it first.")
        raise InputError(message.format(name=result_node.GetName()))
    source = _source(original)
    return {
        "volume": values,
        "affine": _matrix(result_node),
        "face_region": face_region_of(result_node) if mask else None,
        "report": content if report else {},
        "source": None if source is None else str(source),
        "protected": [str(path) for path in _files_of_others(result_node)],
    }


def dicom_files_of(result_node: Any) -> list[Path]:
    """The files of the DICOM series that the original of a result was loaded from, by Slicer's database; none
    where it was loaded otherwise, or where one of them is not there any more."""
    original, database = original_of(result_node), getattr(slicer, "dicomDatabase", None)
    uids = (original.GetAttribute("DICOM.instanceUIDs") or "").split() if original is not None else []
    if not uids or database is None:
        return []
    files = [Path(database.fileForInstance(uid) or "") for uid in uids]
    return files if all(file.is_file() for file in files) else []


def to_write_dicom(result_node: Any) -> dict[str, Any]:
    """What is written of a result as a DICOM series, as the engine's command `save_dicom` takes it.

    Raises InputError where the node is no result, holds the original's voxels, has no face region in the scene, or
    where its original was not loaded from DICOM."""
    content, sources, region = (
        to_write(result_node, False),
        dicom_files_of(result_node),
        face_region_of(result_node),
    )
    if not sources:
        raise InputError(_("The original was not loaded by Slicer's DICOM module; choose another format."))
    if region is None:
        raise InputError(_("The face region was removed from the scene; draw another face first."))
    original = original_of(result_node)
    changed = np.asarray(content["volume"] != _array(original))
    return {
        "volume": content["volume"],
        "affine": content["affine"],
        "face_region": (region | changed).astype(np.uint8),
        "sources": [str(file) for file in sources],
        "seed": content["report"].get("seed"),
    }


def add_to_dicom_database(folder: Path) -> bool:
    """Make a folder's DICOM series known to Slicer's database, where they lie; whether that was done."""
    from DICOMLib import DICOMUtils

    return bool(DICOMUtils.importDicom(str(folder), slicer.dicomDatabase))


def write_result(
    result_node: Any, path: str | os.PathLike[str], mask: bool = True, report: bool = True, picture: bool = True
) -> saving.Written:
    """Write the refaced scan alone, without the scene, and beside it what belongs to it (see `to_write` and
    `saving.write`). It is done in Slicer's own Python, which needs nibabel for NIfTI; RefaceCGANLogic.saveResult
    has the engine do it.

    Raises InputError as `to_write` does, where a file of another node of the scene would be overwritten, and where
    something cannot be written."""
    content = to_write(result_node, mask, report)
    region, affine, source = content["face_region"], content["affine"], content["source"]
    return saving.write(
        path,
        Volume.from_array(content["volume"], affine),
        region=None if region is None else Volume.from_array(region, affine),
        report=content["report"],
        source=None if source is None else Path(source),
        picture=picture,
        protected=[Path(other) for other in content["protected"]],
    )


def files_of(*nodes: Any) -> list[Path]:
    """The files on disk that volume nodes were read from or written to."""
    storages = [node.GetStorageNode() for node in nodes]
    return [file for storage in storages if storage is not None for file in _files(storage)]


def _files_of_others(result_node: Any) -> list[Path]:
    """The files that other nodes of the scene were read from or written to."""
    own = [result_node.GetNthStorageNode(i) for i in range(result_node.GetNumberOfStorageNodes())]
    storages = slicer.util.getNodesByClass("vtkMRMLStorageNode", result_node.GetScene())
    return [file for storage in storages if storage not in own for file in _files(storage)]


def _files(storage: Any) -> list[Path]:
    names = [storage.GetFileName(), *(storage.GetNthFileName(i) for i in range(storage.GetNumberOfFileNames()))]
    return [Path(name) for name in dict.fromkeys(filter(None, names))]


def _source(original: Any) -> Path | None:
    """The file that the original was read from, if it is one file, still there, and its voxels are those."""
    files = files_of(original) if original is not None else []
    if len(files) != 1 or not files[0].is_file() or original.GetModifiedSinceRead():
        return None
    return files[0]
