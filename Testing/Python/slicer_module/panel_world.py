"""A panel over the real .ui in a scene, for the tests of the panel: real MRML and real faces
(RefaceCGANSlicer.drawn_faces, .scene); the engine and the views are fakes, the widgets stand-ins. The fixture
`world` (conftest.py) gives it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")
import qt_stand_ins
import slicer
import vtk
from slicer_offscreen import add_volume, slicer_with

qt_stand_ins.install()

from RefaceCGANLib.errors import InputError
from RefaceCGANLib.rendering.skin_surface import Surface
from RefaceCGANSlicer import drawn_faces as faces
from RefaceCGANSlicer import panel, scene
from RefaceCGANSlicer.engine import EngineError
from RefaceCGANSlicer.skin_display import Skin

MODULE = Path(panel.__file__).parents[1]
UI = MODULE / "Resources" / "UI" / "RefaceCGAN.ui"
SHAPE = (24, 20, 22)
REPORT = {
    **{"program": "RefaceCGAN", "version": "0.1.0", "model": "default", "model_sha256": "0", "dropout": 0.25},
    "seed": 7,
    "already_defaced": False,
    "checks": [
        {"name": "same_geometry", "value": 1.0, "limit": [1, 1], "passed": True},
        {"name": "brain_voxels_changed", "value": 0.0, "limit": [0, 0], "passed": True},
        {"name": "original_voxels_left", "value": 0.0, "limit": [0, 0], "passed": True},
        {"name": "face_tissue_ratio", "value": 0.8, "limit": [0.5, 1.7], "passed": True},
    ],
    "warnings": [],
}


def head_array() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 900, SHAPE).astype(np.int16)


def add_head(name: str = "head") -> Any:
    return add_volume(head_array(), np.diag([1.5, 1.5, 1.5, 1.0]), name)


class FakeSession:
    """Answers when the test says so, with faces kept by the real faces.Head."""

    def __init__(self) -> None:
        self.head: faces.Head | None = None
        self.lacking: list[str] = []
        self.python, self.own = "", True
        self.asked: list[tuple[str, Any]] = []
        self.callbacks: dict[str, Callable] = {}
        self.region: np.ndarray | None = None
        self.prepared: list[tuple[Any, Callable, Callable]] = []
        self.defaced: bool | None = None
        self.looks: list[tuple[faces.Face, dict[str, Any], dict[str, Callable]]] = []
        self.skins: list[tuple[dict[str, Any], dict[str, Callable]]] = []
        self.skin_error: Exception | None = None
        self.hold_skins = False
        self.given_up: list[int] = []
        self.saves: list[dict[str, Callable]] = []
        self.hold_saves = False
        self.reads: list[tuple[tuple[str, str, str | None], dict[str, Callable]]] = []
        self.persons: list[tuple[tuple[str, str, str, str | None], dict[str, Callable]]] = []
        self._next: faces.Head | None = None

    def missing(self) -> list[str]:
        return self.lacking

    def runs_in_slicer(self) -> bool:
        return self.own

    def install(self) -> None:
        if self.lacking == ["torch"]:
            raise EngineError("PyTorch needs the PyTorch extension.")
        self.lacking = []

    def python_in_environment(self) -> str:
        return self.python

    def models(self) -> list[Any]:
        card = {"description": "A model", "licence": "CC BY-SA 3.0", "not_seen": "children"}
        return [types.SimpleNamespace(id=name, card=card) for name in ("default", "other")]

    def warm_up(self, settings: dict[str, Any], on_done: Callable, on_error: Callable) -> None:
        on_done({"device": "cpu", "threads": 2, "model": settings["model"]})

    def prepare(self, node: Any, settings: dict[str, Any], on_progress: Callable, on_done: Callable) -> None:
        self.prepared.append((node, on_progress, on_done))

    def already_defaced(self, node: Any) -> bool | None:
        return self.defaced

    def start(self, node: Any, seed: int, settings: dict[str, Any], **callbacks: Callable) -> None:
        self.asked.append(("start", settings))
        self.callbacks, self._next = callbacks, self.head or faces.Head(node)

    def another(self, seed: int, settings: dict[str, Any], region: Any = None, **callbacks: Callable) -> None:
        self.asked.append(("another", region))
        self.callbacks, self._next = callbacks, self.head
        self.region = region

    def cancel(self) -> None:
        self.asked.append(("cancel", None))

    def recognise(self, face: faces.Face, models: dict[str, Any], **callbacks: Callable) -> None:
        self.looks.append((face, models, callbacks))

    def series(self, node: Any, settings: dict[str, Any], person: dict[str, Any], **callbacks: Callable) -> None:
        self.asked.append(("series", (node, person)))
        self.callbacks, self._next = callbacks, faces.Head(node)

    def skin(
        self, array: Any, affine: Any, threshold: Any, quick: bool, picture: int, upright: Any, **callbacks: Any
    ) -> int:
        """The skin of a scan, at once unless it is held."""
        asked = {"array": array, "threshold": threshold, "quick": quick, "picture": picture}
        self.skins.append((asked, callbacks))
        number = len(self.skins)
        if not self.hold_skins:
            self.make_skin(number)
        return number

    def make_skin(self, number: int) -> None:
        asked, callbacks = self.skins[number - 1]
        if number in self.given_up:
            return
        if self.skin_error:
            callbacks["on_error"](self.skin_error)
            return
        corners = np.array([[0, 30, 0], [9, 0, 0], [-9, 0, 0]], np.float32)
        picture = np.full((asked["picture"],) * 2 + (3,), 120, np.uint8) if asked["picture"] else None
        callbacks["on_done"]({
            "points": corners, "triangles": np.array([[0, 1, 2]], np.int32), "normals": corners / 30,
            "threshold": asked["threshold"] or 120.0, "darkest": 0.0, "brightest": 900.0, "picture": picture,
        })  # fmt: skip

    def give_up(self, number: int) -> None:
        self.given_up.append(number)

    def save(self, node: Any, path: str, mask: bool, report: bool, picture: bool, **callbacks: Callable) -> None:
        """What the engine does, here and now unless it is held."""
        self.saves.append(callbacks)
        if self.hold_saves:
            return
        try:
            written = scene.write_result(node, path, mask, report, picture)
        except InputError as error:
            callbacks["on_error"](error)
        else:
            callbacks["on_done"]({"files": [file.name for file in vars(written).values() if file]})

    def save_dicom(self, node: Any, folder: str, **callbacks: Callable) -> None:
        """What the engine does, without reading the files."""
        self.saves.append(callbacks)
        self.asked.append(("save_dicom", folder))
        try:
            content = scene.to_write_dicom(node)
        except InputError as error:
            callbacks["on_error"](error)
            return
        self.asked.append(("series", content))
        callbacks["on_done"]({"files": [Path(folder).name], "warnings": ["This is no DICOM anonymiser."]})

    def review_scan(self, output: str, path: str, originals: str | None, **callbacks: Callable) -> int:
        self.reads.append(((output, path, originals), callbacks))
        return 1000 + len(self.reads)

    def another_person(
        self, output: str, originals: str, subject: str, key_file: str | None, **callbacks: Callable
    ) -> int:
        self.persons.append(((output, originals, subject, key_file), callbacks))
        return 2000 + len(self.persons)

    def restore(self, refaced: Any) -> bool:
        self.head = faces.Head.restored(refaced)
        return self.head is not None

    def pick(self, face: faces.Face) -> None:
        self.head.pick(face)

    def forget(self) -> None:
        self.head = None

    def close(self) -> None:
        self.asked.append(("close", None))

    def empty(self) -> None:
        self.asked.append(("empty", None))
        self.head = None

    # what the engine would do
    def draw(self, seed: int = 7, **report: Any) -> None:
        """The engine drew a face: the front third of the head gets the seed's value."""
        self.head = self._next
        refaced, region = head_array(), np.zeros(SHAPE, np.uint8)
        region[:, 13:] = 1
        if self.region is not None:
            region = self.region.astype(np.uint8)
        refaced[region != 0] = seed
        self.callbacks["on_done"](self.head.add(refaced, region, {**REPORT, "seed": seed, **report}))

    def draw_series(self, seed: int) -> None:
        """The engine refaced another series, and the session put the result beside it."""
        assert self._next is not None
        refaced, region = head_array(), np.zeros(SHAPE, np.uint8)
        region[:, 13:] = 1
        refaced[region != 0] = seed
        face = self._next.add(refaced, region, {**REPORT, "seed": seed})
        self._next.pick(face)
        self.callbacks["on_done"](face)

    def read(self, original: bool = True, why: str = "") -> None:
        """The engine read the scan of a run that was asked for last."""
        affine = np.diag([1.5, 1.5, 1.5, 1.0]).tolist()
        scan = head_array().astype(np.float32)
        self.reads[-1][1]["on_done"]({
            "scan": scan, "scan_affine": affine, "original": scan + 1 if original else None,
            "original_affine": affine if original else None, "why": why,
        })  # fmt: skip

    def recognised(
        self, distance: float | None, detected: tuple[float, float] = (0.9, 0.9), limit: float = 0.4
    ) -> None:
        """The engine measured a distance: that asked for last."""
        face, _models, callbacks = self.looks[-1]
        passed = distance is None or distance >= limit
        check = {"name": "face_distance", "value": distance, "limit": [limit, 2.0], "passed": passed}
        face.set_check("face_distance", {**check, "detected": list(detected)})
        callbacks["on_done"](check)


class FakeViews:
    """Remembers what is on screen."""

    def __init__(self) -> None:
        self.shown: Any = None
        self.layout_is_ours, self.made_here = False, 0
        self.layout = types.SimpleNamespace(is_shown=lambda: self.layout_is_ours)

    def show_faces(self, original: Any, refaced: Any, quick: bool = False, skins: Any = None) -> Any:
        self.shown = FakeFaces(original, refaced)
        self.layout_is_ours = True
        return self.shown

    def skin_of(self, node: Any, threshold: Any = None, quick: bool = False) -> Any:
        self.made_here += 1
        return Skin(Surface(*(np.zeros((3, 3), kind) for kind in (np.float32, np.int32, np.float32))), 120, 0, 9)

    def restore_layout(self) -> None:
        self.shown, self.layout_is_ours = None, False

    remove = restore_layout


class FakeFaces:
    limits, automatic, threshold, rendering = (10.0, 300.0), 120.0, 120.0, "surface"
    places, coarse = ("left eye", "nose", "upper border"), (True, True)

    def __init__(self, original: Any, refaced: Any) -> None:
        self.original, self.refaced = original, refaced
        self.nodes = original, refaced
        self.calls: list[Any] = []
        self.whole = True

    def is_whole(self) -> bool:
        return self.whole

    def refine(self, skins: Any) -> None:
        self.coarse = False, False

    def thumbnail(self) -> np.ndarray:
        return np.full((96, 96, 3), 120, np.uint8)

    def set_rendering(self, kind: str) -> None:
        self.rendering = kind

    def __getattr__(self, name: str) -> Callable:
        return lambda *arguments, **options: self.calls.append((name, *arguments))


class World:
    """A panel over the real .ui, in a scene with one head."""

    def __init__(self, sys_scene: Any) -> None:
        import RefaceCGAN

        qt_stand_ins.QSettings.kept.clear()
        qt_stand_ins.complete(slicer.app)
        self.scene, self.session, self.views = sys_scene, FakeSession(), FakeViews()
        self.root = slicer.util.loadUI(str(UI))
        self.root.setMRMLScene(sys_scene)
        self.ui = slicer.util.childWidgetVariables(self.root)
        self.panel = panel.Panel(self.ui, self.session, self.views)
        self.node = qt_stand_ins.ScriptedLoadableModuleLogic().getParameterNode()
        self.parameters = RefaceCGAN.RefaceCGANParameterNode(self.node)
        self.parameters.connectGui(self.ui)
        self.node.AddObserver("ModifiedEvent", lambda *_: self.panel.parameters_changed())
        sys_scene.AddObserver(sys_scene.NodeAboutToBeRemovedEvent, self._leaving, RefaceCGAN.BEFORE_OTHERS)
        sys_scene.AddObserver(sys_scene.NodeRemovedEvent, self._removed)
        self.panel.set_parameters(self.parameters)
        self.panel.entered()
        self.root.show()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leaving(self, _scene: object, _event: str, node: Any) -> None:
        self.panel.node_leaving(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _removed(self, _scene: object, _event: str, node: Any) -> None:
        self.panel.node_removed(node)

    def choose(self, node: Any) -> Any:
        self.parameters.inputVolume = node
        return node

    def set_face_models(self) -> None:
        self.ui.faceDetector.currentPath, self.ui.faceRecogniser.currentPath = (
            "/models/yunet.onnx",
            "/models/arc.onnx",
        )

    def a_while_later(self) -> None:
        """The faces have been on screen for a while."""
        if self.panel.recognition.timer.active:
            self.panel.recognition.timer.timeout.emit()

    def refaced(self, seed: int = 7, **report: Any) -> Any:
        """Choose a head, reface it, and return the node of the result."""
        self.choose(add_head())
        self.ui.refaceButton.click()
        self.session.draw(seed, **report)
        return self.session.head.refacedNode


def reason(widget: Any) -> str:
    """Why a widget is disabled, as its tool tip says."""
    assert not widget.enabled
    return qt_stand_ins.plain(widget.toolTip)


@contextmanager
def made_world() -> Iterator[World]:
    """A panel, of whose receivers of signals none may have failed in the end."""
    qt_stand_ins.errors.clear()
    with slicer_with(window=False) as made:
        world = World(made)
        yield world
        assert not qt_stand_ins.errors
        world.panel.close()
        world.root.close()
