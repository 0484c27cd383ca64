"""The faces drawn for one head, and the node that shows the one that was picked.

A face is kept as the voxels of its face region alone: all else is the original's, so however many faces are
drawn they take little memory, and picking one takes no engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import vtk
from RefaceCGANLib.errors import InputError

from . import scene
from .child_process import _


@dataclass(eq=False)
class Face:
    """One refaced head, as RefaceCGANLogic.process returns it.

    volumeNode: the node that shows it, or another face of the same head once that was picked.  seed: draws it
    again. report: what report.json holds.  faceRegion: bool (I, J, K), the voxels that were replaced; values:
    what by, in the order of `array[faceRegion]`.  qc: what the eye found.
    """

    volumeNode: Any
    seed: int
    report: dict[str, Any]
    faceRegion: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    qc: scene.QC = field(default_factory=scene.QC)

    def refaced(self, original: np.ndarray) -> np.ndarray:
        """The refaced scan (I, J, K), made from the original's voxels. Raises InputError for those of another."""
        if original.shape != self.faceRegion.shape or original.dtype != self.values.dtype:
            raise InputError(_("The scan was changed since this face was drawn; reface it again."))
        array = original.copy(order="K")
        array[self.faceRegion] = self.values
        return array

    def check(self, name: str) -> dict[str, Any] | None:
        """A check of the report; None where it was not made."""
        return next((entry for entry in self.report["checks"] if entry["name"] == name), None)

    def set_check(self, name: str, entry: dict[str, Any] | None) -> None:
        """Put a check into the report in place of that of the same name, or, with None, take that out; also in
        the node's report, where the node shows this face."""
        node = self.volumeNode
        shown = node is not None and node.GetAttribute(scene.REPORT) == json.dumps(self.report)
        others = [other for other in self.report["checks"] if other["name"] != name]
        self.report["checks"] = [*others, *filter(None, (entry,))]
        if shown:
            scene.set_report(node, self.report)


class Head:
    """One input volume node and the faces that were drawn for it, oldest first; `chosen` is in `refacedNode`.

    inputNode: None where the original is no longer in the scene; then there is one face, the one in `refacedNode`.
    upright: the rotation (3, 3) from RAS to the head's own axes, where it is known."""

    def __init__(self, inputNode: Any, refacedNode: Any = None) -> None:
        """refacedNode: the node to show faces in; by default one is made for the first face."""
        self.inputNode, self.refacedNode = inputNode, refacedNode
        self.faces: list[Face] = []
        self.chosen: Face | None = None
        self.upright: np.ndarray | None = None
        self._state, self._region_time = state_of(inputNode) if inputNode else (), 0

    @classmethod
    def restored(cls, refacedNode: Any) -> Head | None:
        """The head of a result that is in the scene already, with the one face that it shows; None where its face
        region is not there any more, its original is another scan now, or the node is no result."""
        if not scene.is_result(refacedNode) or "seed" not in scene.report_of(refacedNode):
            return None
        region = scene.face_region_of(refacedNode)
        if region is None:
            return None
        inputNode = scene.original_of(refacedNode)
        head, array = cls(inputNode, refacedNode), scene.volume_of(refacedNode)[0]
        if inputNode and array.shape != scene.volume_of(inputNode)[0].shape:
            return None
        report = {key: value for key, value in scene.report_of(refacedNode).items() if key != "qc"}
        qc = scene.read_qc(refacedNode)
        head.chosen = Face(refacedNode, report["seed"], report, region, array[region], qc)
        head.faces.append(head.chosen)
        head.upright = scene.read_upright(refacedNode)
        head._region_time = _region_time(refacedNode)
        return head

    def lose_original(self) -> None:
        """The original leaves the scene: the face that is shown stays, the others would need its voxels."""
        self.inputNode, self._state = None, ()
        self.faces = [self.chosen] if self.chosen else []

    def changed(self) -> bool:
        """Whether the input is no longer what it was: gone from the scene, other voxels, or in another place."""
        if self.inputNode is None:
            return False
        return not slicer.mrmlScene.IsNodePresent(self.inputNode) or state_of(self.inputNode) != self._state

    def add(self, refaced: np.ndarray, region: np.ndarray, report: dict[str, Any]) -> Face:
        """Keep one more face: the refaced scan and its face region, both (I, J, K)."""
        region = region != 0
        if self.faces and np.array_equal(region, self.faces[-1].faceRegion):
            region = self.faces[-1].faceRegion
        face = Face(self.refacedNode, int(report["seed"]), report, region, refaced[region])
        self.faces.append(face)
        return face

    def pick(self, face: Face) -> None:
        """Put a face into `refacedNode`, with its report, its face region and what the eye found. Raises
        InputError where the input has changed."""
        array = face.refaced(scene.volume_of(self.inputNode)[0])
        self.refacedNode = scene.add_result(self.inputNode, array, report=face.report, node=self.refacedNode)
        scene.set_qc(self.refacedNode, face.qc)
        scene.set_upright(self.refacedNode, self.upright)
        gone = scene.region_node_of(self.refacedNode) is None
        if gone or self.chosen is None or face.faceRegion is not self.chosen.faceRegion or self.region_edited():
            self._show_region(face.faceRegion)
        face.volumeNode, self.chosen = self.refacedNode, face

    def _show_region(self, region: np.ndarray) -> None:
        shown = self.refacedNode.GetNodeReference(scene.REGION)
        if shown:
            scene.remove(slicer.mrmlScene, shown)
        scene.add_face_region(self.refacedNode, region)
        self._region_time = _region_time(self.refacedNode)

    def judge(self, qc: scene.QC) -> None:
        """Keep what the eye found of the face that is shown."""
        assert self.chosen is not None
        self.chosen.qc = qc
        scene.set_qc(self.refacedNode, qc)

    def region_edited(self) -> bool:
        """Whether somebody changed the face region in the scene since the face that is shown was put there."""
        return self.chosen is not None and _region_time(self.refacedNode) not in (0, self._region_time)


def _region_time(refacedNode: Any) -> int:
    """When the face region in the scene was changed last (VTK's count); 0 where there is none."""
    node = scene.region_node_of(refacedNode)
    if node is None:
        return 0
    image = node.GetBinaryLabelmapInternalRepresentation(node.GetSegmentation().GetNthSegmentID(0))
    return int(image.GetMTime())


def state_of(node: Any) -> tuple[Any, ...]:
    """Equal for two moments at which a volume node held the same voxels at the same place."""
    image, matrix = node.GetImageData(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    world, transform = vtk.vtkMatrix4x4(), node.GetParentTransformNode()
    if transform:
        transform.GetMatrixTransformToWorld(world)
    scalars = image.GetPointData().GetScalars() if image else None
    numbers = [each.GetElement(i, j) for each in (matrix, world) for i in range(4) for j in range(4)]
    return image, scalars, scalars and scalars.GetMTime(), *numbers
