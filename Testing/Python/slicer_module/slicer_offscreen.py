"""3D Slicer without its window: real MRML, real logics and real views that draw into memory, for the tests.

What is real: the scene and its nodes, `slicer.util`, the layout, slice, camera, link, segmentation, sequence and
volume rendering logics, and the displayable managers that turn nodes into pictures; all of that comes from the
package slicer-core. What is stood in for, with no more than the product uses, because slicer-core has no Qt:

* `slicer.app` by `Application` (applicationLogic, layoutManager, processEvents);
* `slicer.app.layoutManager()`, a qSlicerLayoutManager, by `LayoutManager`: it makes a view for each view node of
  the layout and drops it some time after the node has left the scene (`processEvents`), as the Qt factories do; a
  new view gets its size when events are processed, and loses the camera or offset that was set before;
* `threeDWidget(i)` and `threeDView()`, a qMRMLThreeDWidget and qMRMLThreeDView, both by `ThreeDView`; what the
  widget of a slice view does by `SliceView`;
* `slicer.modules.<name>.logic()` by `Modules`: the real logics of cameras, segmentations, sequences, volumes and
  volumerendering;
* the Qt plugins of the subject hierarchy, which give each new node its item, by `SubjectHierarchy`; it keeps what
  the application would complain of, and so does `complaints` with what VTK prints.

So these tests prove neither PythonQt nor the Qt widgets; `RefaceCGANTest` does, inside Slicer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
from RefaceCGANLib.rendering import skin_surface as surface

SIZE = 300, 270  # pixels of each 3D view
SLICE_SIZE = 200, 200
THREE_D = (
    *("vtkMRMLCameraDisplayableManager", "vtkMRMLViewDisplayableManager", "vtkMRMLModelDisplayableManager"),
    *("vtkMRMLOrientationMarkerDisplayableManager", "vtkMRMLVolumeRenderingDisplayableManager"),
)
SLICE = ("vtkMRMLSegmentationsDisplayableManager2D",)


def pixels(window: Any) -> np.ndarray:
    """What a render window shows: (H, W, 3) uint8, drawn anew."""
    window.Render()
    return surface.pixels(window)


class View:
    """A renderer in a window without a screen, filled by the displayable managers of its node."""

    def __init__(self, node: Any, factory: Any, managers: tuple[str, ...], size: tuple[int, int]) -> None:
        self.node, self.window, self.renderer = node, vtk.vtkRenderWindow(), vtk.vtkRenderer()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.Initialize(factory, self.renderer)
        self.group.SetMRMLDisplayableNode(node)

    def picture(self) -> np.ndarray:
        return pixels(self.window)

    def resized(self) -> None:
        """The view has its size now, and shows what a new view shows."""
        camera = slicer.modules.cameras.logic().GetViewActiveCameraNode(self.node)
        if camera:
            camera.Reset(True)

    def close(self) -> None:
        self.group.SetMRMLDisplayableNode(None)
        self.group.SetRenderer(None)
        self.window.Finalize()


class ThreeDView(View):
    def __init__(self, node: Any, logic: Any) -> None:
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(logic)
        super().__init__(node, factory, THREE_D, SIZE)
        self.annotation = vtk.vtkCornerAnnotation()
        self.renderer.AddViewProp(self.annotation)

    def threeDView(self) -> ThreeDView:
        return self

    def mrmlViewNode(self) -> Any:
        return self.node

    def renderWindow(self) -> Any:
        return self.window

    def cornerAnnotation(self) -> Any:
        return self.annotation

    def forceRender(self) -> None:
        self.window.Render()


class SliceView(View):
    def __init__(self, node: Any, logic: Any) -> None:
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(logic)
        self.logic.SetMRMLScene(node.GetScene())
        self.logic.SetSliceNode(node)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(logic)
        super().__init__(node, factory, SLICE, SLICE_SIZE)
        mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        mapper.SetInputConnection(self.logic.GetImageDataConnection())
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        self.actor = actor
        self.renderer.AddViewProp(actor)

    def resized(self) -> None:
        self.logic.ResizeSliceNode(*SLICE_SIZE)
        self.logic.SetSliceOffset(0)

    def picture(self) -> np.ndarray:
        self.actor.SetVisibility(self.logic.GetImageDataConnection() is not None)
        self.actor.GetMapper().SetInputConnection(self.logic.GetImageDataConnection())
        return super().picture()

    def close(self) -> None:
        super().close()
        self.logic.SetMRMLScene(None)


class LayoutManager:
    """Makes a view for each node of the layout, and closes it when the node leaves the scene."""

    def __init__(self, scene: Any, logic: Any) -> None:
        self.scene, self.logic = scene, logic
        self.views: dict[str, ThreeDView | SliceView] = {}
        self.dropped: list[ThreeDView | SliceView] = []
        self.fresh: list[ThreeDView | SliceView] = []
        self.slice_logics = vtk.vtkCollection()
        logic.SetSliceLogics(self.slice_logics)
        self.layout_logic = slicer.vtkMRMLLayoutLogic()
        self.layout_logic.SetMRMLScene(scene)
        self.node = self.layout_logic.GetLayoutNode()
        self.tags = [
            (self.node, self.node.AddObserver("ModifiedEvent", self._update)),
            (scene, scene.AddObserver(scene.NodeRemovedEvent, self._removed)),
        ]
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def layoutLogic(self) -> Any:
        return self.layout_logic

    def setLayout(self, number: int) -> None:
        self.node.SetViewArrangement(number)

    @property
    def layout(self) -> int:
        return self.node.GetViewArrangement()

    @property
    def threeDViewCount(self) -> int:
        return len(self._three_d())

    def threeDWidget(self, index: int) -> ThreeDView:
        return self._three_d()[index]

    def shown(self, name: str) -> ThreeDView | SliceView:
        """The view of a node (for the tests), by the node's name."""
        return next(view for view in self.views.values() if view.node.GetName() == name)

    def _three_d(self) -> list[ThreeDView]:
        return [view for view in self.views.values() if isinstance(view, ThreeDView)]

    def _update(self, *_: object) -> None:
        nodes = self.layout_logic.GetViewNodes()
        for node in (nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())):
            if node.GetID() in self.views:
                continue
            if node.IsA("vtkMRMLViewNode"):
                self.views[node.GetID()] = ThreeDView(node, self.logic)
            elif node.IsA("vtkMRMLSliceNode"):
                view = self.views[node.GetID()] = SliceView(node, self.logic)
                self.slice_logics.AddItem(view.logic)
            else:
                continue
            self.fresh.append(self.views[node.GetID()])

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _removed(self, _scene: object, _event: str, node: Any) -> None:
        view = self.views.pop(node.GetID() or "", None)
        if view is None:
            return
        if isinstance(view, SliceView):
            self.slice_logics.RemoveItem(view.logic)
        self.dropped.append(view)

    def drop(self) -> None:
        for view in self.dropped:
            view.close()
        self.dropped.clear()

    def process_events(self) -> None:
        self.drop()
        for view in self.fresh:
            if view in self.views.values():
                view.resized()
        self.fresh.clear()

    def close(self) -> None:
        for subject, tag in self.tags:
            subject.RemoveObserver(tag)
        self.dropped += self.views.values()
        self.views.clear()
        self.drop()
        self.layout_logic.SetMRMLScene(None)


class SubjectHierarchy:
    """Gives each new node an item, under that of the scene, and takes it away with the node. As in the
    application, a node that is to be removed
    must be in the scene, and a node that was removed takes its display nodes along."""

    def __init__(self, scene: Any) -> None:
        self.scene, self.node = scene, slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        self.errors: list[str] = []
        self.tags = [
            scene.AddObserver(scene.NodeAddedEvent, self._added),
            scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._leaving),
            scene.AddObserver(scene.NodeRemovedEvent, self._removed),
        ]

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _removed(self, _scene: object, _event: str, node: Any) -> None:
        if node.IsA("vtkMRMLDisplayableNode") and not self.scene.IsClosing():
            names = [node.GetNthDisplayNodeID(i) for i in range(node.GetNumberOfDisplayNodes())]
            for display in filter(None, (self.scene.GetNodeByID(name) for name in names if name)):
                self.scene.RemoveNode(display)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leaving(self, _scene: object, _event: str, node: Any) -> None:
        if node.GetScene() is None:
            self.errors.append(f"Failed to access subject hierarchy node ({node.GetName()})")
        elif not self.scene.IsClosing() and (item := self.node.GetItemByDataNode(node)):
            self.node.RemoveItem(item, False, False)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _added(self, _scene: object, _event: str, node: Any) -> None:
        if node.IsA("vtkMRMLDisplayableNode") and not node.GetHideFromEditors():
            self.node.CreateItem(self.node.GetSceneItemID(), node)

    def close(self) -> None:
        for tag in self.tags:
            self.scene.RemoveObserver(tag)


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What VTK and the subject hierarchy complain of: the list is full at the end."""
    lines: list[str] = []
    window, before = vtk.vtkStringOutputWindow(), vtk.vtkOutputWindow.GetInstance()
    vtk.vtkOutputWindow.SetInstance(window)
    seen = len(slicer.hierarchy.errors)
    try:
        yield lines
    finally:
        vtk.vtkOutputWindow.SetInstance(before)
        lines += [line for line in window.GetOutput().splitlines() if "SubjectHierarchy" in line]
        lines += slicer.hierarchy.errors[seen:]


class Modules:
    """`slicer.modules`: the logics of the modules that the product asks for."""

    def __init__(self, scene: Any, application_logic: Any) -> None:
        classes = {
            "cameras": slicer.vtkSlicerCamerasModuleLogic,
            "segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
            "sequences": slicer.vtkSlicerSequencesLogic,
            "volumes": slicer.vtkSlicerVolumesLogic,
            "volumerendering": slicer.vtkSlicerVolumeRenderingLogic,
        }
        self.logics = []
        for name, made in classes.items():
            logic = made()
            logic.SetMRMLApplicationLogic(application_logic)
            logic.SetMRMLScene(scene)
            self.logics.append(logic)
            setattr(self, name, SimpleNamespace(logic=lambda logic=logic: logic))

    def close(self) -> None:
        for logic in self.logics:
            logic.SetMRMLScene(None)


class Application:
    """`slicer.app`; without a window it has no layout manager, as under --no-main-window."""

    def __init__(self, scene: Any, window: bool) -> None:
        self.logic = slicer.vtkMRMLApplicationLogic()
        self.logic.SetMRMLScene(scene)
        self.colours = slicer.vtkMRMLColorLogic()
        self.colours.SetMRMLScene(scene)
        self.manager = LayoutManager(scene, self.logic) if window else None

    def applicationLogic(self) -> Any:
        return self.logic

    def layoutManager(self) -> LayoutManager | None:
        return self.manager

    def processEvents(self) -> None:
        if self.manager:
            self.manager.process_events()

    def close(self) -> None:
        if self.manager:
            self.manager.close()
        self.colours.SetMRMLScene(None)
        self.logic.SetMRMLScene(None)


@contextmanager
def slicer_with(window: bool = True) -> Iterator[Any]:
    """A Slicer with an empty scene, which is yielded; `window=False` is Slicer under --no-main-window."""
    scene = slicer.vtkMRMLScene()
    kept = {name: getattr(slicer, name, None) for name in ("mrmlScene", "app", "modules")}
    application = Application(scene, window)
    hierarchy, modules = SubjectHierarchy(scene), Modules(scene, application.logic)
    slicer.mrmlScene, slicer.app, slicer.modules, slicer.hierarchy = scene, application, modules, hierarchy
    application.processEvents()
    try:
        yield scene
    finally:
        hierarchy.close()
        application.close()
        modules.close()
        scene.Clear(1)
        for name, value in kept.items():
            setattr(slicer, name, value) if value is not None else delattr(slicer, name)


@pytest.fixture
def scene() -> Iterator[Any]:
    """An empty scene in a Slicer without a window."""
    with slicer_with(window=False) as made:
        yield made


def add_volume(array: np.ndarray, affine: np.ndarray, name: str, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    """A volume in the scene: array (I, J, K), affine (4, 4) voxel to RAS+ mm."""
    return slicer.util.addVolumeFromArray(np.ascontiguousarray(array.T), affine, name, kind)


def add_transform(matrix: np.ndarray, *nodes: Any) -> Any:
    """A linear transform (4, 4) to RAS in the scene, with nodes under it."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def item_of(node: Any) -> tuple[Any, int]:
    """The subject hierarchy and a node's item in it."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    return hierarchy, hierarchy.GetItemByDataNode(node)
