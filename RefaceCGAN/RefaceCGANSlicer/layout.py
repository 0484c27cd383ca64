"""The layout: two linked 3D views, original left, refaced right, above two slice views likewise; and the way back.

Two views in a row, not more: with the panel beside them they still fit a window 1366 pixels wide.

The views are our own, so the user's keep their content, cameras and links: ours have a view group of their own.
They are not saved with the scene. Like Slicer's own views they stay in it, empty, while another layout is shown:
who removes the node of a slice view gets its parts anew. `slicer.app.layoutManager()` is asked in this file only;
it is None where Slicer runs without a window.
"""

from __future__ import annotations

from typing import Any

import slicer
from RefaceCGANLib.errors import InputError

from .child_process import _
from .scene import remove

LAYOUT = GROUP = 23051  # no other layout's number, no other view group's
MARK = "RefaceCGAN.shown"
"""Attribute of every node that is there only to show faces."""
PREVIOUS = "RefaceCGAN.previousLayout"
"""Attribute of the layout node: the layout from before."""
ORIGINAL_VIEW, REFACED_VIEW = "RefaceOriginal", "RefaceRefaced"
ORIGINAL_SLICE, REFACED_SLICE = "RefaceOriginalSlice", "RefaceRefacedSlice"
SLICES = {ORIGINAL_SLICE: ("O", "#8F8F8F"), REFACED_SLICE: ("R", "#EDD54C")}
"""By layout name: the label on the view's bar, and the bar's colour."""
ORIENTATIONS = "Axial", "Coronal", "Sagittal"
FONT_SIZE = 18
BACKGROUND = (0.13, 0.14, 0.16), (0.36, 0.39, 0.44)  # bottom and top: skin stands out in a dark and a light theme


def register() -> None:
    """Make the layout known to Slicer; to be called when the module starts, so that a saved scene that shows it
    opens with it."""
    node = _layout_node()
    if not node.IsLayoutDescription(LAYOUT):
        node.AddLayoutDescription(LAYOUT, _description())


def check_window() -> None:
    """Raise InputError where Slicer has no window to show faces in."""
    _layout_node()


def activate() -> None:
    """Switch to the layout and set its views up. Raises InputError where there is no window."""
    register()
    node = _layout_node()
    if node.GetViewArrangement() != LAYOUT:
        node.SetAttribute(PREVIOUS, str(node.GetViewArrangement()))
        slicer.app.layoutManager().setLayout(LAYOUT)
    slicer.app.processEvents()  # new views get their size now; cameras and offsets set before would be lost
    for view in three_d_views():
        view.SetBoxVisible(False)
        view.SetAxisLabelsVisible(False)
        view.SetBackgroundColor(*BACKGROUND[0])
        view.SetBackgroundColor2(*BACKGROUND[1])
        view.SetRenderMode(view.Perspective)
        view.SetOrientationMarkerType(view.OrientationMarkerTypeNone)  # a face says itself where its front is
        view.SetLinkedControl(True)
        _keep_out_of_files(view, camera_of(view))
        corner = _widget_of(view).cornerAnnotation()
        corner.SetMaximumFontSize(FONT_SIZE)
        corner.SetText(corner.UpperLeft, _labels()[view.GetLayoutName()])
    for logic in slice_logics():
        logic.GetSliceCompositeNode().SetLinkedControl(True)
        logic.GetSliceCompositeNode().SetHotLinkedControl(True)  # also while a slice is still being moved
        _keep_out_of_files(
            *(logic.GetSliceNode(), logic.GetSliceCompositeNode(), logic.GetSliceDisplayNode()),
            *(logic.GetSliceModelNode(), logic.GetSliceModelTransformNode()),
        )


def label_original(text: str) -> None:
    """Write another text than "Original" into the left 3D view, until the faces are shown anew."""
    corner = _widget_of(three_d_views()[0]).cornerAnnotation()
    corner.SetText(corner.UpperLeft, text)


def is_shown() -> bool:
    """Whether the window shows our layout."""
    return slicer.app.layoutManager() is not None and _layout_node().GetViewArrangement() == LAYOUT


def restore() -> None:
    """Go back to the layout from before, if ours is the one shown."""
    if is_shown():
        before = _layout_node().GetAttribute(PREVIOUS) or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        _layout_node().RemoveAttribute(PREVIOUS)
        slicer.app.layoutManager().setLayout(int(before))


def clear(scene: Any) -> None:
    """Go back to the layout from before, empty our views, and remove every marked node from the scene."""
    restore()
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", scene):
        if composite.GetLayoutName() in SLICES:
            composite.SetBackgroundVolumeID(None)
            composite.SetForegroundVolumeID(None)
    remove_marked(scene)


def mark(*nodes: Any) -> None:
    """Say of nodes that they are there only to show faces: `clear` removes them, and they are not saved."""
    for node in nodes:
        node.SetAttribute(MARK, "1")
    _keep_out_of_files(*nodes)


def remove_marked(scene: Any) -> None:
    """Remove every marked node from the scene."""
    remove(scene, *(node for node in slicer.util.getNodesByClass("vtkMRMLNode", scene) if node.GetAttribute(MARK)))


def _keep_out_of_files(*nodes: Any) -> None:
    for node in filter(None, nodes):
        node.SetSaveWithScene(False)


def three_d_views() -> tuple[Any, Any]:
    """The view nodes of original and refaced."""
    return _view(ORIGINAL_VIEW, "vtkMRMLViewNode"), _view(REFACED_VIEW, "vtkMRMLViewNode")


def slice_logics() -> list[Any]:
    """The logics of the two slice views: of the original, of the refaced scan."""
    return [slicer.app.applicationLogic().GetSliceLogic(_view(tag, "vtkMRMLSliceNode")) for tag in SLICES]


def renderer_of(view: Any) -> Any:
    """The renderer that draws a 3D view."""
    return _widget_of(view).renderWindow().GetRenderers().GetFirstRenderer()


def camera_of(view: Any) -> Any:
    """The camera node of a 3D view."""
    return slicer.modules.cameras.logic().GetViewActiveCameraNode(view)


def _layout_node() -> Any:
    manager = slicer.app.layoutManager()
    if manager is None:
        raise InputError(_("Slicer has no window to show faces in; make a picture with compareImage instead."))
    return manager.layoutLogic().GetLayoutNode()


def _view(tag: str, kind: str) -> Any:
    return slicer.mrmlScene.GetSingletonNode(tag, kind)


def _widget_of(view: Any) -> Any:
    manager = slicer.app.layoutManager()
    widgets = (manager.threeDWidget(index).threeDView() for index in range(manager.threeDViewCount))
    return next(widget for widget in widgets if widget.mrmlViewNode().GetID() == view.GetID())


def _labels() -> dict[str, str]:
    """What is written into the two 3D views."""
    return {ORIGINAL_VIEW: _("Original"), REFACED_VIEW: _("Refaced")}


def _description() -> str:
    """The layout as Slicer's XML."""

    def view(kind: str, tag: str, **properties: object) -> str:
        lines = "".join(f'<property name="{n}" action="default">{v}</property>' for n, v in properties.items())
        return f'<item><view class="{kind}" singletontag="{tag}">{lines}</view></item>'

    faces = [view("vtkMRMLViewNode", tag, viewlabel=text, viewgroup=GROUP) for tag, text in _labels().items()]
    slices = [
        view("vtkMRMLSliceNode", tag, orientation="Axial", viewlabel=text, viewcolor=colour, viewgroup=GROUP)
        for tag, (text, colour) in SLICES.items()
    ]
    rows = (
        f'<item splitSize="{size}"><layout type="horizontal">{"".join(row)}</layout></item>'
        for size, row in ((550, faces), (450, slices))
    )
    return f'<layout type="vertical" split="true">{"".join(rows)}</layout>'
