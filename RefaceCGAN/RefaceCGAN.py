"""RefaceCGAN: a new, anonymous face for a head MRI, in 3D Slicer.

>>> result = RefaceCGANLogic().process(slicer.util.getNode("head"), seed=7)
>>> result.volumeNode.GetName()
'head refaced'

This file is what Slicer looks for; the work is done in RefaceCGANSlicer (scene, views, engine, panel) and, in a
process of its own, in RefaceCGANLib.
"""

import enum
import sys
from pathlib import Path
from typing import Annotated, Any

import qt
import slicer
import vtk
from RefaceCGANSlicer.self_test import Story
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

BEGUN = "RefaceCGAN.begun"
"""Attribute of a parameter node in use. Its parameters do not tell: when the scene is closed, wrappers of it that
are still about write them anew."""
IS_SAMPLE = "RefaceCGAN.sample"
"""Attribute of the node of the sample head."""
BEFORE_OTHERS = 100.0
"""Priority of an observer that hears of a node's removal before Slicer's selectors do."""
SAMPLE = "RefaceCGANAverageHead"
SAMPLES = {
    SAMPLE: (
        "average_head.nii.gz",
        "AverageHead",
        "ea363c1e367016778f7120db3f8ccb234e10f087f239697ff91d63a0ae593224",
    ),
    "RefaceCGANSharpHead": (
        "sharp_head.nii.gz",
        "SharpHead",
        "cb8d67b2248debd311ef056259d0a4b7cfd026904bddb41c047f23e01206d349",
    ),
}
"""By the name of a sample: its file, the name of its node, and the file's SHA-256."""


class RefaceCGAN(ScriptedLoadableModule):
    """What Slicer's module list says, and the sample data."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("RefaceCGAN")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        parent.dependencies = ["SampleData", "SegmentEditor", "Segmentations", "VolumeRendering"]
        parent.contributors = ["RefaceCGAN contributors"]
        parent.helpText = _(
            "Gives a head MRI a new, anonymous face, so that it can be shared without its owner being recognised. "
            "Choose a head scan, press Reface, look at both faces, and save the refaced scan. Every voxel outside "
            "the face region, and so the whole brain, stays bit-identical. Metadata is not changed."
        )
        parent.acknowledgementText = _(
            "Implements Molchanova et al. 2023, Fast refacing of MR images with a generative neural network "
            "lowers re-identification risk and preserves volumetric consistency (arXiv:2305.16922). The model's "
            "weights and the sample head were computed from the IXI dataset (brain-development.org, CC BY-SA 3.0)."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)
        slicer.app.connect("startupCompleted()", registerLayout)


def sampleHead(sample: str = SAMPLE) -> Path:
    """A sample head that comes with the module: beside it where installed, in the repository otherwise."""
    folder = Path(__file__).resolve().parent
    places = [folder / "Resources" / "SampleData", folder.parent / "Resources" / "SampleData"]
    for place in places:
        if (place / SAMPLES[sample][0]).is_file():
            return place / SAMPLES[sample][0]
    raise RuntimeError(_("The sample head is missing; install RefaceCGAN again."))


def registerSampleData() -> None:
    """Offer the sample heads in the Sample Data module; they are on this disk, so no network is needed."""
    import SampleData

    for sample, (file, node, sha256) in SAMPLES.items():
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="RefaceCGAN",
            sampleName=sample,
            uris=sampleHead(sample).as_uri(),
            fileNames=f"RefaceCGAN_{file}",
            nodeNames=node,
            checksums=f"SHA256:{sha256}",
        )


def registerLayout() -> None:
    """Make the layout of faces known, so that a scene saved with it opens in it also before the module was
    opened."""
    if slicer.app.layoutManager():
        from RefaceCGANSlicer import layout

        layout.register()


# --- parameters -------------------------------------------------------------------------------------------


class Device(enum.Enum):
    """Where the networks run."""

    AUTO, CPU, CUDA, MPS = "auto", "cpu", "cuda", "mps"

    def label(self) -> str:
        return {
            "auto": _("Best there is"),
            "cpu": _("Processor"),
            "cuda": _("NVIDIA graphics card"),
            "mps": _("Apple graphics"),
        }[self.value]


class Defaced(enum.Enum):
    """Whether the face was removed before."""

    AUTO, YES, NO = "auto", "yes", "no"

    def label(self) -> str:
        return {"auto": _("Look for it"), "yes": _("Yes"), "no": _("No")}[self.value]


@parameterNodeWrapper
class RefaceCGANParameterNode:
    """What is saved with the scene.

    inputVolume, refacedVolume: the head and its result.  dropout: below 0 for the model's own.  threads: 0 for
    all.  faceThreshold: the distance below which two faces match (Molchanova et al. 2023, appendix D).
    """

    inputVolume: vtkMRMLScalarVolumeNode
    refacedVolume: vtkMRMLScalarVolumeNode
    model: str = "default"
    candidates: Annotated[int, WithinRange(1, 8)] = 1
    dropout: Annotated[float, WithinRange(-0.05, 0.95)] = -0.05
    threads: Annotated[int, WithinRange(0, 64)] = 0
    faceThreshold: Annotated[float, WithinRange(0.0, 2.0)] = 0.4
    defaced: Defaced = Defaced.AUTO
    device: Device = Device.AUTO


# --- the widget -------------------------------------------------------------------------------------------


class RefaceCGANWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Loads the panel and tells it what happens in the scene."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = self.panel = self._parameters = self._guiTag = self._observedInput = None

    def setup(self) -> None:
        from RefaceCGANSlicer import views
        from RefaceCGANSlicer.panel import Panel

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/RefaceCGAN.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = RefaceCGANLogic()
        self.panel = Panel(self.ui, self.logic.session, views)
        self.ui.sampleButton.connect("clicked()", self.onSample)
        registerLayout()
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(
            scene, scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved, priority=BEFORE_OTHERS
        )
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        self.setParameterNode(None)
        self.removeObservers()
        if self.panel:
            self.panel.close()
        if self.logic:
            self.logic.close()

    def enter(self) -> None:
        self.initializeParameterNode()
        self.panel.entered()

    def exit(self) -> None:
        """The panel stays connected, so that a run under way comes to its end."""
        self.panel.left()

    def onReload(self) -> None:
        """Take the packages anew, too (Reload of the developer's section)."""
        for name in [name for name in sys.modules if name.split(".")[0] in ("RefaceCGANSlicer", "RefaceCGANLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)
        getattr(slicer.modules, f"{self.moduleName}Widget").enter()  # it is on screen, and nobody else tells it

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        self.panel.scene_closing()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        self.panel.node_leaving(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        self.panel.node_removed(node)

    def onNodeAdded(self, caller: Any, event: Any) -> None:
        self.panel.node_added()
        if self._parameters and not self._parameters.inputVolume:
            qt.QTimer.singleShot(0, self.proposeInput)  # when the node has its voxels

    def onSample(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The sample head cannot be loaded."), waitCursor=True):
            import SampleData
            from RefaceCGANSlicer import scene

            there = [
                node for node in slicer.util.getNodesByClass(scene.SCAN)
                if node.GetAttribute(IS_SAMPLE) and node.GetImageData() and not scene.is_result(node)
            ]  # fmt: skip
            if not there:
                registerSampleData()
                there = [SampleData.downloadSample(SAMPLE)]
                there[0].SetAttribute(IS_SAMPLE, "1")
            self._parameters.inputVolume = there[0]

    def initializeParameterNode(self) -> None:
        """Follow the scene's parameter node."""
        self.setParameterNode(self.logic.getParameterNode())
        self.proposeInput()

    def proposeInput(self) -> None:
        """Choose the first scan in the scene that is no result, where nothing is chosen yet."""
        from RefaceCGANSlicer import scene

        if not self._parameters or self._parameters.inputVolume:
            return
        for node in slicer.util.getNodesByClass(scene.SCAN):
            offered = node.GetClassName() == scene.SCAN and not node.GetHideFromEditors()
            if offered and node.GetImageData() and not scene.is_result(node):
                self._parameters.inputVolume = node
                return

    def setParameterNode(self, parameters: RefaceCGANParameterNode | None) -> None:
        if self._parameters:
            self._parameters.disconnectGui(self._guiTag)
            self.removeObserver(
                self._parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified
            )
        self._parameters = parameters
        if parameters:
            widgets = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
            widgets.pop(None, None)  # connectGui would do all this, but tells no tag to disconnect by
            self._guiTag = parameters.connectParametersToGui(widgets)
            self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)
        if self.panel:
            self.panel.set_parameters(parameters)
        self._observeInput()

    def onParametersModified(self, caller: Any = None, event: Any = None) -> None:
        self.panel.parameters_changed()
        self._observeInput()

    def _observeInput(self) -> None:
        """Follow the voxels and the place of the chosen input."""
        node = self._parameters.inputVolume if self._parameters else None
        if node is self._observedInput:
            return
        events = (
            slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent,
            slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            vtk.vtkCommand.ModifiedEvent,
        )
        for event in events:
            if self._observedInput:
                self.removeObserver(self._observedInput, event, self.onInputModified)
            if node:
                self.addObserver(node, event, self.onInputModified)
        self._observedInput = node

    def onInputModified(self, caller: Any, event: Any) -> None:
        self.panel.input_modified()


# --- the logic --------------------------------------------------------------------------------------------


class RefaceCGANLogic(ScriptedLoadableModuleLogic):
    """RefaceCGAN for scripts: `process`, `deface`, `saveResult`, `saveReport`, `faceDistance`, `showFaces`,
    `compareImage`.
    Works with and without a window. One logic keeps one engine warm: use it for all scans of a loop."""

    def __init__(self) -> None:
        from RefaceCGANSlicer.head_session import Session

        ScriptedLoadableModuleLogic.__init__(self)
        self.session = Session()

    def close(self) -> None:
        """End the engine; it ends by itself with Slicer."""
        self.session.close()

    def getParameterNode(self) -> RefaceCGANParameterNode:
        """The scene's parameter node; a new one begins with the remembered settings."""
        from RefaceCGANSlicer.sections import recall

        node = ScriptedLoadableModuleLogic.getParameterNode(self)
        isNew = not node.GetAttribute(BEGUN)
        node.SetAttribute(BEGUN, "1")
        parameters = RefaceCGANParameterNode(node)
        if isNew:
            recall(parameters)
        return parameters

    def process(
        self,
        inputVolumeNode: Any,
        outputVolumeNode: Any = None,
        seed: int | None = None,
        dropout: float | None = None,
        defaced: str = "auto",
        model: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        onProgress: Any = None,
    ) -> Any:
        """Give a head a new face and return it: an object with volumeNode, report, seed and faceRegion, a bool
        array (I, J, K). Another seed for the same node takes a second.

        outputVolumeNode: the node to fill; by default "<input> refaced" is made, and filled again for the same
        input. seed: drawn by chance by default.  defaced: "auto", "yes" or "no".  model: an id or the path of a
        card. device: "auto", "cpu", "cuda" or "mps".  onProgress(stage, fraction) is called on the way.
        Raises an error with one sentence (RefaceError or EngineError) and then leaves the scene as it was.
        """
        settings = {
            "model": model or "default",
            "device": device,
            "threads": threads,
            "dropout": dropout,
            "defaced": defaced,
        }
        session, head = self.session, self.session.head
        known = (
            head is not None and head.inputNode is inputVolumeNode and outputVolumeNode in (None, head.refacedNode)
        )

        def begin(**callbacks: Any) -> None:
            if onProgress:
                callbacks["on_progress"] = onProgress
            if known and not head.changed():
                session.another(seed, settings, **callbacks)
            else:
                session.start(inputVolumeNode, seed, settings, outputVolumeNode, **callbacks)

        face = session.wait(begin)
        session.pick(face)
        return face

    def deface(self, inputVolumeNode: Any, outputVolumeNode: Any = None, defaced: str = "auto") -> Any:
        """Empty the face region and return the node of the result ("<input> defaced"). Raises as `process`
        does."""
        from RefaceCGANSlicer import scene

        settings = {"model": "default", "device": "auto", "threads": None, "defaced": defaced}
        answer = self.session.wait(lambda **callbacks: self.session.deface(inputVolumeNode, settings, **callbacks))
        name = _("{name} defaced").format(name=inputVolumeNode.GetName())
        node = scene.add_result(inputVolumeNode, answer["defaced"], name, answer["report"], outputVolumeNode)
        scene.add_face_region(node, answer["face_region"])
        return node

    def saveResult(
        self, result: Any, path: str, mask: bool = True, report: bool = True, picture: bool = True
    ) -> list[Path]:
        """Have the engine write a result of `process`, or its node, to a file (.nii.gz, .nii, .nrrd, .mgh, .mgz),
        and beside it its face region, report with BIDS sidecar, and picture; returns the files. All of them are
        written, or none. Raises as `process` does."""
        node, session = getattr(result, "volumeNode", result), self.session
        answer = session.wait(
            lambda **callbacks: session.save(node, str(path), mask, report, picture, **callbacks)
        )
        return [Path(path).parent / name for name in answer["files"]]

    def faceDistance(self, result: Any, detector: str, recogniser: str, threshold: float = 0.4) -> float | None:
        """How far the face of a result of `process` is from its original's for a face recogniser: 0..2, None where
        no view shows both faces. Below `threshold` they match; the result's report then has a failed check.

        detector, recogniser: the ONNX files of YuNet and of a network of the ArcFace family. Raises as `process`
        does, also where the engine's Python has no ONNX Runtime."""
        models = {"detector": str(detector), "recogniser": str(recogniser), "limit": threshold}
        session = self.session
        check = session.wait(lambda **callbacks: session.recognise(result, models, **callbacks))
        distance: float | None = check["value"]
        return distance

    def showFaces(self, originalVolumeNode: Any, refacedVolumeNode: Any) -> Any:
        """Show two scans of one head side by side; see RefaceCGANSlicer.views.Faces for what can be done with
        it."""
        from RefaceCGANSlicer import views

        return views.show_faces(originalVolumeNode, refacedVolumeNode)

    def compareImage(self, originalVolumeNode: Any, refacedVolumeNode: Any, path: str) -> Path:
        """Write a picture (PNG): original left, refaced right. It shows the original's face: do not share it."""
        from RefaceCGANSlicer import views

        return views.compare_image(originalVolumeNode, refacedVolumeNode, path)

    def saveReport(self, result: Any, path: str) -> None:
        """Write the report of a result of `process`, or of its node, as JSON, with what the eye found."""
        from RefaceCGANLib.report import write_json
        from RefaceCGANLib.volume.volume import check_output
        from RefaceCGANSlicer import scene

        write_json(scene.report_of(getattr(result, "volumeNode", result)), check_output(path, suffixes=(".json",)))


# --- the test ---------------------------------------------------------------------------------------------


class RefaceCGANTest(Story, ScriptedLoadableModuleTest):
    """The whole story on the sample head, inside Slicer and without a network (RefaceCGANSlicer.self_test)."""
