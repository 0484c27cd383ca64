"""The module as Slicer runs it: RefaceCGANTest on stand-ins, with real MRML, real views and the real engine;
reload; what the module's list says."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")
import qt_stand_ins
import slicer
from slicer_offscreen import add_volume, slicer_with

qt_stand_ins.install()

from RefaceCGANSlicer import head_session as session
from RefaceCGANSlicer import scene
from RefaceCGANSlicer.engine import EngineError

import RefaceCGAN as module


class Widget:
    """The module's widget over the real .ui, as Slicer makes it."""

    def __init__(self) -> None:
        qt_stand_ins.complete(slicer.app)
        self.parent = slicer.qMRMLWidget()
        qt_stand_ins.qt.QVBoxLayout(self.parent)
        self.parent.setMRMLScene(slicer.mrmlScene)
        self.widget = module.RefaceCGANWidget(self.parent)
        self.widget.setup()
        self.parent.show()

    def close(self) -> None:
        self.widget.cleanup()
        self.parent.close()


class FakeEngine:
    """Works off requests when it is polled, without a process; remembers what it was asked."""

    refuses = ""

    def __init__(self) -> None:
        self.running, self.asked, self.pending = False, [], []

    @property
    def busy(self) -> bool:
        return bool(self.pending)

    def request(
        self, command: str, on_progress: Any, on_done: Any, on_error: Any, lasting: bool = False, **arguments: Any
    ) -> int:
        self.running = True
        self.asked.append((command, arguments))
        self.pending.append((command, arguments, on_progress, on_done, on_error))
        return len(self.asked)

    def poll(self) -> None:
        for command, arguments, on_progress, on_done, on_error in self._taken():
            if command == self.refuses:
                on_error(EngineError("There is no head in this scan; choose another one.", "check"))
                continue
            if on_progress:
                on_progress("locate", 0.5)
            on_done(self._answer(command, arguments))

    def _taken(self) -> list[Any]:
        taken, self.pending = self.pending, []
        return taken

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "load":
            return {"model": "default", "device": "cpu", "threads": 2}
        if command == "prepare":
            return {"already_defaced": True}
        if command == "save":
            return {"files": [Path(arguments["path"]).name]}
        if command == "recognise":
            changed = arguments["original"] != arguments["refaced"]
            distance, limit = round(float(changed.mean()), 3), arguments["limit"]
            passed = distance >= limit
            return {"check": {"name": "face_distance", "value": distance, "limit": [limit, 2.0], "passed": passed}}
        region = arguments.get("face_region", np.indices(SHAPE)[1] > 12)
        array = head_array()
        array[region] = 5
        report = {"seed": arguments.get("seed") or 3, "already_defaced": False, "checks": [], "warnings": []}
        return {"refaced": array, "defaced": array, "face_region": region.astype(np.uint8), "report": report}

    def cancel(self, number: int | None = None) -> None:
        self.pending = []

    def stop(self) -> None:
        self.running, self.pending = False, []


SHAPE = (24, 20, 22)


def head_array() -> np.ndarray:
    return np.random.default_rng(3).integers(10, 900, SHAPE).astype(np.int16)


def add_head(name: str = "head") -> Any:
    return add_volume(head_array(), np.diag([1.5, 1.5, 1.5, 1.0]), name)


@pytest.fixture
def logic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A logic without a window, whose engine is a fake."""
    monkeypatch.setattr(session, "Engine", FakeEngine)
    with slicer_with(window=False):
        qt_stand_ins.complete(slicer.app)
        made = module.RefaceCGANLogic()
        yield made
        made.close()


@pytest.fixture
def widget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    qt_stand_ins.errors.clear()
    qt_stand_ins.QSettings.kept.clear()
    monkeypatch.setenv("REFACECGAN_PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with slicer_with():
        made = Widget()
        monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: made.widget)
        yield made.widget
        made.close()
    assert not qt_stand_ins.errors


@pytest.mark.timeout(900)
def test_the_self_test_passes_on_the_sample_head(
    widget: Any, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = module.RefaceCGANTest()
    said: list[str] = []
    test.delayDisplay = said.append
    with caplog.at_level(logging.ERROR):
        test.runTest()
    assert [line for line in said if not line.endswith("passed")] == [
        "test_08_saved_scene: skipped, it needs the application's readers and writers"
    ]
    assert len(said) == len([name for name in dir(test) if name.startswith("test_")]) and not caplog.records


# --- what Slicer asks of a module -------------------------------------------------------------------------


def test_the_module_list_and_the_sample_data() -> None:
    with slicer_with(window=False):
        qt_stand_ins.complete(slicer.app)
        parent = SimpleNamespace()
        module.RefaceCGAN(parent)
        assert (parent.title, parent.categories) == ("RefaceCGAN", ["Neuroimaging"])
        assert "re-identification" in parent.acknowledgementText and "anonymous face" in parent.helpText
        for registered in slicer.app.at_startup:
            registered()
    for name in module.SAMPLES:
        source = qt_stand_ins.SampleDataLogic.sources[name]
        assert source["uris"].startswith("file:///") and source["fileNames"].endswith(".nii.gz")
        content = module.sampleHead(name).read_bytes()
        assert source["checksums"] == f"SHA256:{hashlib.sha256(content).hexdigest()}"
        assert len(content) <= 3_000_000


def test_importing_the_module_loads_nothing_that_slicer_may_lack() -> None:
    own = {"RefaceCGANSlicer", "RefaceCGANLib", "slicer", "vtk", "qt", "ctk", "numpy"}
    folder = Path(module.__file__).parent
    for path in (folder / "RefaceCGAN.py", *folder.glob("RefaceCGANSlicer/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= own | sys.stdlib_module_names, path.name


def test_the_first_scan_that_is_no_result_is_chosen(widget: Any) -> None:
    result = add_head("refaced before")
    result.SetAttribute(scene.REPORT, "{}")
    head = add_head()
    widget.proposeInput()
    assert widget._parameters.inputVolume is head
    add_head("later")
    assert widget._parameters.inputVolume is head


def test_a_scan_that_is_loaded_is_chosen_where_none_was(widget: Any) -> None:
    head = add_head()
    for _ in range(5):
        qt_stand_ins.application().processEvents()
    assert widget._parameters.inputVolume is head and widget.panel._input is head


def test_cleanup_ends_the_engine_and_lets_go_of_the_scene(widget: Any) -> None:
    add_head()
    widget.proposeInput()
    widget.cleanup()
    assert widget.Observations == [] and widget.logic.session._engine is None and widget._parameters is None


def test_reload_takes_the_packages_anew(widget: Any) -> None:
    before = {name: kept for name, kept in sys.modules.items() if name.startswith("RefaceCGAN")}
    with patch.dict(sys.modules):
        widget.onReload()
        left = [name for name, kept in before.items() if "." in name and sys.modules.get(name) is kept]
    slicer.modules.RefaceCGANWidget.cleanup()
    assert not left and "RefaceCGANSlicer.panel" in before


def test_the_scene_is_closed_and_the_panel_begins_anew(widget: Any) -> None:
    add_head()
    widget.proposeInput()
    slicer.mrmlScene.Clear(0)
    assert widget._parameters.inputVolume is None and widget.panel.session.head is None
    assert qt_stand_ins.plain(widget.ui.refaceButton.toolTip) == "Choose a head MRI first."


def test_a_developers_reload_enters_the_new_panel(widget: Any) -> None:
    with patch.dict(sys.modules):
        widget.onReload()
    made = slicer.modules.RefaceCGANWidget
    try:
        assert made is not widget and made.panel._entered
    finally:
        made.cleanup()


def test_the_sample_head_is_loaded_once(widget: Any) -> None:
    for _ in range(2):
        widget.ui.sampleButton.click()
    scans = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert [node.GetName() for node in scans] == ["AverageHead"] and widget._parameters.inputVolume is scans[0]


def test_the_layout_of_faces_is_known_before_the_module_is_opened() -> None:
    from RefaceCGANSlicer import layout

    with slicer_with():
        qt_stand_ins.complete(slicer.app)
        module.RefaceCGAN(SimpleNamespace())
        node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
        assert not node.IsLayoutDescription(layout.LAYOUT)
        for registered in slicer.app.at_startup:
            registered()
        assert node.IsLayoutDescription(layout.LAYOUT)


# --- scripts ----------------------------------------------------------------------------------------------


def test_process_returns_the_result_and_fills_one_node(logic: Any) -> None:
    head, fractions = add_head(), []
    result = logic.process(head, seed=11, onProgress=lambda stage, fraction: fractions.append(fraction))
    assert (result.seed, result.volumeNode.GetName()) == (11, "head refaced") and result.faceRegion.shape == SHAPE
    assert fractions == sorted(fractions) and 0 < fractions[0] < fractions[-1] <= 1
    again = logic.process(head, seed=12)
    assert again.volumeNode is result.volumeNode
    commands = [command for command, _ in logic.session._engine.asked]
    assert commands == ["load", "reface", "another"]


def test_process_fills_the_node_that_is_given(logic: Any) -> None:
    head, output = add_head(), add_head("mine")
    result = logic.process(head, output, seed=1)
    assert result.volumeNode is output and output.GetName() == "mine"
    assert slicer.util.arrayFromVolume(output)[0, 19, 0] == 5


def test_other_settings_or_a_changed_scan_begin_from_the_start(logic: Any) -> None:
    head = add_head()
    logic.process(head, seed=1)
    logic.process(head, seed=1, defaced="no")
    slicer.util.arrayFromVolumeModified(head)
    logic.process(head, seed=1, defaced="no")
    commands = [command for command, _ in logic.session._engine.asked]
    assert commands == ["load", "reface"] * 3


def test_an_engine_that_died_begins_from_the_start_with_the_corrected_region(logic: Any) -> None:
    head = add_head()
    logic.process(head, seed=1)
    logic.session._engine.running = False
    region = np.indices(SHAPE)[1] > 15
    settings = {"model": "default", "device": "auto", "threads": None, "dropout": None, "defaced": "auto"}
    face = logic.session.wait(lambda **callbacks: logic.session.another(2, settings, region, **callbacks))
    assert [command for command, _ in logic.session._engine.asked][-3:] == ["load", "reface", "another"]
    assert np.array_equal(face.faceRegion, region) and len(logic.session.head.faces) == 2


def test_a_head_is_prepared_once_and_anew_when_it_changed(logic: Any) -> None:
    head, session, heard = add_head(), logic.session, []
    settings = {"model": "default", "device": "auto", "threads": None, "dropout": None, "defaced": "auto"}

    def prepare() -> None:
        session.prepare(head, settings, on_progress=print, on_done=heard.append)
        session._poll()

    assert session.already_defaced(head) is None
    for _ in range(2):
        prepare()
    assert session.already_defaced(head) is True and len(heard) == 1
    slicer.util.arrayFromVolumeModified(head)
    assert session.already_defaced(head) is None
    prepare()
    assert len(heard) == 2
    session.cancel()
    assert session.already_defaced(head) is True  # what is known stays known
    slicer.util.arrayFromVolumeModified(head)
    session.prepare(head, settings, on_progress=print, on_done=heard.append)
    session.cancel()  # before the answer
    prepare()
    assert len(heard) == 3


def test_process_raises_one_sentence_and_adds_nothing(logic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "refuses", "reface")
    head = add_head()
    count = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(EngineError, match="no head in this scan"):
        logic.process(head)
    assert slicer.mrmlScene.GetNumberOfNodes() == count and logic.session.head is None


def test_cancel_ends_a_script_that_waits(logic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "poll", lambda engine: logic.session.cancel())
    with pytest.raises(EngineError, match="Cancelled"):
        logic.process(add_head())


def test_the_distance_to_the_original_face_goes_into_the_report(logic: Any) -> None:
    result = logic.process(add_head(), seed=1)
    distance = logic.faceDistance(result, "yunet.onnx", "arcface.onnx")
    assert 0 < distance < 0.4
    asked = logic.session._engine.asked[-1][1]  # by an engine that works in another folder
    assert (asked["detector"], asked["recogniser"]) == (
        os.path.abspath("yunet.onnx"),
        os.path.abspath("arcface.onnx"),
    )
    entry = {"name": "face_distance", "value": distance, "limit": [0.4, 2.0], "passed": False}
    assert result.report["checks"] == [entry] == scene.report_of(result.volumeNode)["checks"]
    logic.faceDistance(result, "yunet.onnx", "arcface.onnx", threshold=0.1)
    assert [check["passed"] for check in scene.report_of(result.volumeNode)["checks"]] == [True]
    other = logic.process(add_head("other"), seed=2)
    assert scene.report_of(other.volumeNode)["checks"] == []


def test_the_engine_writes_the_files_of_a_script(logic: Any, tmp_path: Path) -> None:
    """Slicer's own Python has no nibabel."""
    result = logic.process(add_head(), seed=1)
    (file,) = logic.saveResult(result, tmp_path / "head.nii.gz", picture=False)
    command, asked = logic.session._engine.asked[-1]
    assert command == "save" and file == tmp_path / "head.nii.gz" and asked["path"] == str(file)
    assert np.array_equal(asked["volume"], slicer.util.arrayFromVolume(result.volumeNode).T)
    assert np.array_equal(asked["face_region"], result.faceRegion) and not asked["picture"]
    with pytest.raises(Exception, match="is no result"):
        logic.saveResult(add_head("other"), tmp_path / "other.nii.gz")


def test_the_threshold_is_the_paper_s() -> None:
    from RefaceCGANLib.evaluation.reidentification import MATCH

    defaults = inspect.signature(module.RefaceCGANLogic.faceDistance).parameters
    assert defaults["threshold"].default == MATCH
    assert "faceThreshold: Annotated[float, WithinRange(0.0, 2.0)] = 0.4" in inspect.getsource(module)


def test_deface_gives_a_node_of_its_own(logic: Any) -> None:
    node = logic.deface(add_head())
    assert node.GetName() == "head defaced" and scene.face_region_of(node)[0, 15, 0]


def test_the_report_is_saved_with_what_the_eye_found(logic: Any, tmp_path: Path) -> None:
    result = logic.process(add_head(), seed=4)
    logic.session.head.judge(scene.QC(False, ("eyes",), "odd chin"))
    logic.saveReport(result, str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seed"] == 4 and report["qc"]["note"] == "odd chin"


def test_remembered_settings_are_those_of_a_new_scene_only(logic: Any) -> None:
    qt_stand_ins.QSettings.kept["RefaceCGAN/Settings"] = '{"threads": 3}'
    assert logic.getParameterNode().threads == 3
    logic.getParameterNode().threads = 5
    assert logic.getParameterNode().threads == 5
    slicer.mrmlScene.Clear()
    assert logic.getParameterNode().threads == 3
    qt_stand_ins.QSettings.kept.clear()
