"""The test of the module, as RefaceCGANTest runs it inside Slicer: a person's whole way on the sample head,
without a network. What needs the engine is skipped by name where Slicer's Python lacks its packages and
REFACECGAN_PYTHON names no other."""

from __future__ import annotations

import html
import json
import re
import shutil
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import qt
import slicer
import vtk

if TYPE_CHECKING:
    TestCase = unittest.TestCase
else:
    TestCase = object  # ScriptedLoadableModuleTest, which this is mixed into, is one


class Story(TestCase):
    """To be mixed into ScriptedLoadableModuleTest. Tests run in the order of their names; one that needs a
    refaced head takes that of the test before, or makes it, so that each can also be run alone."""

    delayDisplay: Callable[[str], None]
    ENGINE_SECONDS = 240
    """How long a run may take, with the first start of the engine on a slow computer."""

    def runTest(self) -> None:
        for name in sorted(name for name in dir(self) if name.startswith("test_")):
            self.setUp()
            try:
                getattr(self, name)()
                self.delayDisplay(f"{name}: passed")
            except unittest.SkipTest as reason:
                self.delayDisplay(f"{name}: skipped, {reason}")
            finally:
                self.tearDown()

    def setUp(self) -> None:
        self.widget = slicer.util.getModuleWidget("RefaceCGAN")
        self.widget.enter()
        self.panel, self.ui, self.session = self.widget.panel, self.widget.ui, self.widget.logic.session

    def tearDown(self) -> None:
        self.widget.exit()

    # what the tests share

    @staticmethod
    def tip(widget: Any) -> str:
        """What a tool tip says, without the markup that the application puts around it."""
        return html.unescape(re.sub(r"<[^<>]*>", "", widget.toolTip))

    def head(self) -> Any:
        """The sample head in an empty scene, chosen as the input."""
        slicer.mrmlScene.Clear()
        self.ui.sampleButton.click()
        node = self.widget.logic.getParameterNode().inputVolume
        self.assertIsNotNone(node)
        return node

    def refaced(self) -> tuple[Any, Any]:
        """The sample head and its refaced node: those of the test before, if it left them."""
        self.requireEngine()
        head = self.session.head
        if not head or not head.inputNode or head.inputNode.GetName() != "AverageHead":
            self.head()
            self.reface()
        return self.session.head.inputNode, self.session.head.refacedNode

    def requireEngine(self) -> None:
        missing = self.session.missing()
        if missing:
            self.skipTest(f"the engine's Python lacks {', '.join(missing)}")

    def waitFor(self, isThere: Callable[[], bool], what: str) -> None:
        """Let the application live until isThere()."""
        from RefaceCGANSlicer import head_session as session

        loop, timer, limit = qt.QEventLoop(), qt.QTimer(), time.monotonic() + self.ENGINE_SECONDS
        timer.setInterval(20)
        timer.connect("timeout()", lambda: loop.quit() if isThere() or time.monotonic() > limit else None)
        timer.start()
        session.run(loop)
        timer.stop()
        self.assertTrue(isThere(), f"{what} did not come; the panel says: {self.ui.verdictHeadline.text}")

    def reface(self) -> Any:
        """Press Reface, wait, and return the refaced node."""
        self.requireEngine()
        self.ui.refaceButton.click()
        self.assertTrue(self.panel.run, self.tip(self.ui.refaceButton))
        self.waitFor(lambda: self.panel.run is None, "a refaced head")
        self.assertIsNotNone(self.session.head, self.ui.verdictHeadline.text)
        return self.session.head.refacedNode

    # the story

    def test_01_sample_data(self) -> None:
        """The sample head loads without a network, once, and can be refaced."""
        node = self.head()
        self.ui.sampleButton.click()
        self.assertIs(self.widget.logic.getParameterNode().inputVolume, node)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"), 1)
        self.assertEqual(slicer.util.arrayFromVolume(node).shape, (167, 171, 128))
        self.assertIn("128 × 171 × 167", self.ui.inputLabel.text)

    def test_02_what_cannot_be_done_is_explained(self) -> None:
        slicer.mrmlScene.Clear()
        self.assertFalse(self.ui.refaceButton.enabled)
        for button in (self.ui.refaceButton, self.ui.anotherButton, self.ui.saveButton, self.ui.frontalButton):
            self.assertTrue(not button.enabled and self.tip(button).endswith("first."), button.name)

    def test_03_reface(self) -> None:
        """The panel says that the head has a face. Then: two faces, a green verdict, and nothing changed outside
        the face region."""
        from RefaceCGANSlicer import layout, scene

        self.requireEngine()
        original = self.head()
        self.waitFor(lambda: "Whole head." in self.ui.inputLabel.text, "a word on the face")
        before = slicer.util.arrayFromVolume(original).copy()
        refaced = self.reface()
        after, region = slicer.util.arrayFromVolume(refaced), self.session.head.chosen.faceRegion.T
        self.assertTrue(np.array_equal(slicer.util.arrayFromVolume(original), before))
        self.assertTrue(np.array_equal(after[~region], before[~region]))
        self.assertGreater(np.mean(after[region] != before[region]), 0.3)
        self.assertEqual(refaced.GetName(), "AverageHead refaced")
        self.assertIs(scene.original_of(refaced), original)
        self.assertEqual(scene.report_of(refaced)["brain_voxels_changed"], 0)
        if slicer.app.layoutManager():
            self.assertTrue(layout.is_shown())
            self.assertEqual((self.ui.verdictSymbol.text, self.panel.verdict().level), ("✔", "green"))

    def test_04_another_face(self) -> None:
        """Another face goes to the same node, and both can be picked."""
        _original, refaced = self.refaced()
        first, count = slicer.util.arrayFromVolume(refaced).copy(), self.ui.facesList.count
        self.ui.anotherButton.click()
        self.waitFor(lambda: self.panel.run is None, "another face")
        self.assertIs(self.session.head.refacedNode, refaced)
        self.assertEqual(self.ui.facesList.count, count + 1)
        self.assertFalse(np.array_equal(slicer.util.arrayFromVolume(refaced), first))
        self.ui.facesList.currentRow = count - 1
        self.assertTrue(np.array_equal(slicer.util.arrayFromVolume(refaced), first))

    def test_05_views(self) -> None:
        """Cameras, places in the slices, skin, rendering, fade and outline; and the way back to the layout from
        before."""
        from RefaceCGANSlicer import layout

        if not slicer.app.layoutManager():
            self.skipTest("Slicer runs without a window")
        self.refaced()
        self.ui.restoreButton.click()
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
        self.ui.showButton.click()
        self.waitFor(lambda: layout.is_shown() and self.panel.see.faces, "both faces")
        nose, offsets = self.panel.see.faces._found()["nose"].point, []
        for logic in layout.slice_logics():  # new views have their size late, and lose what was set before
            self.assertEqual(logic.GetSliceNode().GetOrientation(), "Sagittal")
            self.assertAlmostEqual(logic.GetSliceNode().GetSliceToRAS().GetElement(0, 3), nose[0], delta=1)
        for _ in range(self.ui.placeCombo.count - 1):
            self.ui.nextPlaceButton.click()
            offsets.append(layout.slice_logics()[0].GetSliceOffset())
            self.assertAlmostEqual(layout.slice_logics()[1].GetSliceOffset(), offsets[-1], delta=0.1)
        self.assertGreater(len(set(offsets)), 3)
        cameras = [layout.camera_of(view) for view in layout.three_d_views()]
        for button in (self.ui.profileButton, self.ui.threeQuarterButton, self.ui.frontalButton):
            button.click()
            left, right = (np.array(camera.GetPosition()) for camera in cameras)
            self.assertLess(np.abs(left - right).max(), 0.1)
        faces = self.panel.see.faces
        self.ui.skinSlider.value = faces.automatic * 1.2
        wanted = self.ui.skinSlider.value
        self.waitFor(lambda: abs(faces.threshold - wanted) < 1e-6, "the skin at another threshold")
        self.ui.skinAutoButton.click()
        self.ui.volumeRadio.click()
        self.assertEqual(faces.rendering, "volume")
        self.ui.surfaceRadio.click()
        self.assertEqual(faces.rendering, "surface")
        self.ui.fadeSlider.value = 30
        self.assertAlmostEqual(layout.slice_logics()[1].GetSliceCompositeNode().GetForegroundOpacity(), 0.3)
        self.ui.outlineCheck.click()
        self.ui.outlineCheck.click()
        self.ui.restoreButton.click()
        self.assertEqual(slicer.app.layoutManager().layout, slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
        self.ui.showButton.click()
        self.waitFor(layout.is_shown, "both faces again")

    def test_06_judge_and_save(self) -> None:
        """What the eye found goes to the node and into the report; the files, in the default format, are written
        by the engine and hold the refaced scan alone."""
        import SimpleITK as sitk  # comes with Slicer

        from RefaceCGANSlicer.sections import FORMATS

        suffix = FORMATS[0]
        original, refaced = self.refaced()
        self.ui.eyesCheck.click()
        self.ui.noteEdit.text = "looks like nobody"
        self.ui.judgementCombo.currentIndex = 1
        with tempfile.TemporaryDirectory() as folder:
            self.ui.saveFolder.currentPath, self.ui.saveName.text = folder, "sub-01_T1w"
            self.ui.saveFormat.currentIndex = FORMATS.index(suffix)
            self.ui.saveButton.click()
            self.waitFor(lambda: not self.ui.savedLabel.text.startswith("…"), "the files")
            self.assertTrue(self.ui.savedLabel.text.startswith("✔"), self.ui.savedLabel.text)
            written = sorted(path.name for path in Path(folder).iterdir())
            saved = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / f"sub-01_T1w{suffix}")))
            report = json.loads((Path(folder) / "sub-01_T1w_report.json").read_text(encoding="utf-8"))
        names = (".json", suffix, ".png", f"_face-region{suffix}", "_report.json")
        self.assertEqual(written, [f"sub-01_T1w{name}" for name in names])
        self.assertTrue(np.array_equal(saved, slicer.util.arrayFromVolume(refaced)))
        self.assertFalse(np.array_equal(saved, slicer.util.arrayFromVolume(original)))
        self.assertEqual(report["qc"], {"passed": True, "ticks": ["eyes"], "note": "looks like nobody"})

    def test_07_face_region_edited_by_hand(self) -> None:
        """A face is drawn within an edited face region: what was taken out of it keeps the original."""
        from RefaceCGANSlicer import scene

        original, refaced = self.refaced()
        region, count = scene.face_region_of(refaced), len(self.session.head.faces)
        assert region is not None
        low = slice(0, region.shape[2] // 3)
        region[:, :, low] = False
        segmentation = refaced.GetNodeReference(scene.REGION)
        segment = segmentation.GetSegmentation().GetNthSegmentID(0)
        slicer.util.updateSegmentBinaryLabelmapFromArray(region.T.astype(np.uint8), segmentation, segment, refaced)
        self.panel.entered()
        self.assertTrue(self.ui.redrawButton.enabled, self.tip(self.ui.redrawButton))
        self.ui.redrawButton.click()
        self.waitFor(lambda: self.panel.run is None, "a face within the edited region")
        self.assertEqual(len(self.session.head.faces), count + 1, self.ui.verdictHeadline.text)
        before, after = (slicer.util.arrayFromVolume(node)[low] for node in (original, refaced))
        self.assertTrue(np.array_equal(before, after))

    def test_08_saved_scene(self) -> None:
        """A scene that was saved and loaded brings the panel back, and the faces with their picture."""
        from RefaceCGANSlicer import layout

        if not hasattr(slicer.app, "coreIOManager"):
            self.skipTest("it needs the application's readers and writers")
        self.refaced()
        self.ui.noseCheck.click()
        seed, ticks = self.session.head.chosen.seed, self.session.head.chosen.qc.ticks
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            slicer.mrmlScene.Clear()
            slicer.util.loadScene(path)
        self.assertEqual(self.session.head.chosen.seed, seed)
        self.assertEqual(self.session.head.chosen.qc.ticks, ticks)
        self.assertEqual(self.ui.facesList.count, 1)
        if slicer.app.layoutManager():
            self.assertTrue(layout.is_shown())
            self.waitFor(lambda: self.panel.see.faces is not None, "both faces")
            self.assertFalse(self.ui.facesList.item(0).icon().isNull())

    def test_09_remove_original(self) -> None:
        """The original's face leaves the scene, with the skin that was drawn of it; the refaced scan stays, and
        the panel with it."""
        original, refaced = self.refaced()
        self.panel.remove_original()
        self.assertFalse(slicer.mrmlScene.IsNodePresent(original))
        self.assertTrue(slicer.mrmlScene.IsNodePresent(refaced))
        self.assertIs(self.widget.logic.getParameterNode().inputVolume, refaced)
        self.assertFalse(self.ui.refaceButton.enabled)
        self.assertIs(self.session.head.refacedNode, refaced)
        self.assertFalse(
            [node for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if "skin" in node.GetName()]
        )

    def test_10_cancel(self) -> None:
        """Cancel takes a second at most and leaves the scene as it was."""
        self.requireEngine()
        self.head()
        count = slicer.mrmlScene.GetNumberOfNodes()
        self.ui.refaceButton.click()
        self.waitFor(lambda: self.panel.run is None or self.panel.run.fraction > 0, "the engine's first word")
        self.assertTrue(self.panel.run, self.ui.verdictHeadline.text)
        began = time.monotonic()
        self.ui.refaceButton.click()
        self.assertLess(time.monotonic() - began, 2.0)  # a second more, for a computer that is busy
        self.assertIsNone(self.panel.run)
        self.assertIsNone(self.session.head)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        process = self.session._engine._child.process.pid
        self.reface()
        self.assertEqual(self.session._engine._child.process.pid, process, "the engine was started anew")

    def test_11_scene_close(self) -> None:
        """A scene that is closed during a run takes the run along."""
        self.requireEngine()
        self.head()
        self.ui.refaceButton.click()
        slicer.mrmlScene.Clear()
        self.assertIsNone(self.panel.run)
        self.assertIsNone(self.session.head)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"), 0)
        self.assertFalse(self.ui.refaceButton.enabled)

    def test_12_input_changed_during_a_run(self) -> None:
        """A face for voxels that are no longer there is dropped."""
        self.requireEngine()
        node = self.head()
        self.ui.refaceButton.click()
        slicer.util.arrayFromVolume(node)[0, 0, 0] += 1
        slicer.util.arrayFromVolumeModified(node)
        self.waitFor(lambda: self.panel.run is None, "the end of the run")
        self.assertIsNone(self.session.head)
        self.assertIn("was changed while it was refaced", self.ui.verdictHeadline.text)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"), 1)

    def test_13_console(self) -> None:
        """process, deface, compareImage and saveReport, on a head under a transform; one seed draws one face."""
        self.requireEngine()
        node, logic = self.head(), self.widget.logic
        transform, matrix = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode"), vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, 12.0)
        transform.SetMatrixTransformToParent(matrix)
        node.SetAndObserveTransformNodeID(transform.GetID())
        told = []
        result = logic.process(node, seed=7, onProgress=lambda stage, fraction: told.append(fraction))
        again = logic.process(node, seed=7)
        self.assertEqual((result.seed, told[-1]), (7, 1.0))
        self.assertEqual(told, sorted(told))
        self.assertTrue(np.array_equal(result.values, again.values))
        self.assertEqual(result.volumeNode.GetTransformNodeID(), transform.GetID())
        with tempfile.TemporaryDirectory() as folder:
            picture, report = Path(folder) / "faces.png", Path(folder) / "report.json"
            logic.compareImage(node, result.volumeNode, picture)
            logic.saveReport(result, report)
            scan, *beside = logic.saveResult(result, Path(folder) / "head.nii.gz")
            self.assertTrue(scan.is_file() and len(beside) == 4)
            self.assertGreater(picture.stat().st_size, 10000)
            self.assertEqual(json.loads(report.read_text(encoding="utf-8"))["seed"], 7)
        defaced = logic.deface(node)
        self.assertEqual(defaced.GetName(), "AverageHead defaced")
        self.assertFalse(np.array_equal(slicer.util.arrayFromVolume(defaced), slicer.util.arrayFromVolume(node)))

    def test_14_an_empty_scan_is_refused(self) -> None:
        """One sentence, and the scene stays as it was."""
        self.requireEngine()
        slicer.mrmlScene.Clear()
        empty = slicer.util.addVolumeFromArray(np.zeros((40, 40, 40), np.int16), name="empty")
        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaisesRegex(Exception, "give a scan that shows a head"):
            self.widget.logic.process(empty)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        slicer.mrmlScene.Clear()

    def test_15_a_face_recogniser_that_cannot_be_used(self) -> None:
        """The panel says why the distance to the original face was not measured; the verdict is there without."""
        if not slicer.app.layoutManager():
            self.skipTest("Slicer runs without a window")
        self.refaced()
        edits = self.ui.faceDetector, self.ui.faceRecogniser
        before = [edit.currentPath for edit in edits]
        try:
            for edit in edits:
                edit.currentPath = str(Path(tempfile.gettempdir()) / "no network.onnx")
            self.waitFor(lambda: "was not measured" in self.ui.verdictDetails.text, "a word on the distance")
            self.assertEqual(self.panel.verdict().level, "amber")
        finally:
            for edit, path in zip(edits, before, strict=True):
                edit.currentPath = path
        self.assertEqual([edit.currentPath for edit in edits], before)

    def test_16_other_series_of_the_person(self) -> None:
        """Another scan of the scene gets a face, too, in one click, and has a verdict of its own."""
        from RefaceCGANSlicer import scene

        original, refaced = self.refaced()
        copy = slicer.util.addVolumeFromArray(
            slicer.util.arrayFromVolume(original), self.matrixOf(original), "another series"
        )
        self.panel.entered()
        self.assertEqual(self.ui.seriesList.count, 1)
        self.ui.seriesList.item(0).setCheckState(qt.Qt.Checked)
        self.ui.seriesButton.click()
        self.waitFor(lambda: self.panel.run is None, "the other series")
        (result,) = scene.results_of(copy)
        self.assertIn("another series: All checks passed", self.ui.seriesList.item(0).text())
        self.assertIs(self.session.head.refacedNode, refaced)
        self.assertEqual(scene.report_of(result)["brain_voxels_changed"], 0)
        slicer.mrmlScene.Clear()

    def test_17_review_a_data_set(self) -> None:
        """A scan of a finished run comes on screen beside its original; a verdict goes into the run's qc.tsv."""
        from RefaceCGANLib.dataset.plan import Outcome, Row
        from RefaceCGANLib.dataset.records import Records
        from RefaceCGANLib.dataset.review import write_scans

        from RefaceCGAN import sampleHead

        if not slicer.app.layoutManager():
            self.skipTest("Slicer runs without a window")
        self.requireEngine()
        slicer.mrmlScene.Clear()
        before, review = self.ui.reviewOriginals.currentPath, self.panel.review
        name, facts = "sub-1_T1w.nii.gz", {"subject": "1", "session": "", "action": "reface", "reason": "A test."}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(sampleHead(), Path(folder) / name)
            row = Row(name, "1", "", "reface", "A test.")
            Records(Path(folder)).store(Outcome(row, (name,), {}, (name,), (name,)), "0" * 64)
            (Path(folder) / "qc").mkdir()
            write_scans(Path(folder) / "qc" / "scans.json", [{"path": name, **facts, "look": [], "checks": []}])
            try:
                self.ui.reviewOriginals.currentPath = folder
                review.open(Path(folder))
                self.waitFor(lambda: self.panel.see.faces or self.ui.reviewMessage.text[:1] not in "…", "the scan")
                self.assertIsNotNone(self.panel.see.faces, self.ui.reviewMessage.text)
                left, right = (slicer.util.arrayFromVolume(node) for node in self.panel.see.faces.nodes)
                self.assertTrue(np.array_equal(left, right))
                self.ui.reviewPassButton.click()
                table = (Path(folder) / "qc" / "qc.tsv").read_text(encoding="utf-8")
                self.assertEqual(table.splitlines()[1], f"{name}\tpass\tn/a")
            finally:
                review.close()
                self.ui.reviewOriginals.currentPath = before
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"), 0)

    @staticmethod
    def matrixOf(node: Any) -> np.ndarray:
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        return slicer.util.arrayFromVTKMatrix(matrix)
