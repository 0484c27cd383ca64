"""The parts of the panel about one face: Judge, Save and Advanced. Each fills its widgets, says why one of them
cannot be used, and passes on what the user does."""

from __future__ import annotations

import enum
import json
import logging
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from . import scene
from .contracts import AdvancedHost, JudgeHost, SaveHost
from .engine import SETTING
from .verdict import AMBER, COLOURS, GREEN, RED, SYMBOLS, verdict_of
from .widgets import allow, frame_style, on_path, sentence_of

FOLDER, FORMAT, REMEMBERED = (f"RefaceCGAN/{key}" for key in ("SaveFolder", "SaveFormat", "Settings"))
DETECTOR, RECOGNISER = (f"RefaceCGAN/{key}" for key in ("FaceDetector", "FaceRecogniser"))
"""Keys of the application's settings."""
SETTINGS = ("model", "candidates", "dropout", "threads", "defaced", "device", "faceThreshold")
"""The parameters that can be remembered."""
DICOM = "DICOM"
FORMATS = (".nii.gz", ".nrrd", ".nii", DICOM)
"""The format DICOM is a folder with the series that the original was loaded from."""


class Judge:
    """What the eye finds, kept with the face and in the node's attributes, and the correction of the face
    region."""

    def __init__(self, ui: Any, panel: JudgeHost) -> None:
        self.ui, self.panel, self._filling = ui, panel, False
        boxes = (ui.eyesCheck, ui.noseCheck, ui.mouthCheck, ui.earsCheck, ui.seamCheck, ui.brainCheck)
        self.ticks = dict(zip(scene.EYE_CHECKS, boxes, strict=True))
        for text in (_("Not decided yet"), _("Pass"), _("Fail")):
            ui.judgementCombo.addItem(text)
        for box in boxes:
            box.connect("toggled(bool)", self._changed)
        ui.noteEdit.connect("textChanged(QString)", self._changed)
        ui.judgementCombo.connect("currentIndexChanged(int)", self._changed)
        ui.editRegionButton.connect("clicked()", self._edit)
        ui.redrawButton.connect("clicked()", self._redraw)

    def refresh(self, no_face: str) -> None:
        ui, head = self.ui, self.panel.session.head
        for name, box in self.ticks.items():
            allow(box, no_face, _("Tick if this is right: {what}.").format(what=name))
        allow(ui.noteEdit, no_face, _("Whatever should be remembered of this face."))
        allow(ui.judgementCombo, no_face, _("Your judgement; a face that failed cannot be saved."))
        there = bool(head and head.refacedNode and scene.region_node_of(head.refacedNode))
        gone = "" if there else _("The face region was removed from the scene; draw another face first.")
        not_drawable = no_face or gone or self.panel.why_not_reface()
        allow(ui.editRegionButton, not_drawable, _("Change the face region in Segment Editor, then come back."))
        unedited = "" if head and head.region_edited() else _("Edit the face region first.")
        allow(ui.redrawButton, not_drawable or unedited, _("Draw a face within the face region as you edited it."))
        if not head or not head.chosen:
            return
        self._filling, qc = True, head.chosen.qc
        for name, box in self.ticks.items():
            box.setChecked(name in qc.ticks)
        if ui.noteEdit.text != qc.note:
            ui.noteEdit.setText(qc.note)
        ui.judgementCombo.setCurrentIndex({None: 0, True: 1, False: 2}[qc.passed])
        self._filling = False

    def _changed(self, *_value: Any) -> None:
        head = self.panel.session.head
        if self._filling or not head or not head.chosen:
            return
        ticks = tuple(name for name, box in self.ticks.items() if box.checked)
        passed = (None, True, False)[self.ui.judgementCombo.currentIndex]
        head.judge(scene.QC(passed, ticks, self.ui.noteEdit.text))
        self.panel.refresh()

    def _edit(self) -> None:
        """Open Segment Editor with the face region; the way back is the module selector's."""
        head = self.panel.session.head
        region = scene.region_node_of(head.refacedNode) if head else None
        if not head or region is None:  # it has just gone
            self.panel.refresh()
            return
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.SegmentEditorWidget.editor
        editor.setSegmentationNode(region)
        editor.setSourceVolumeNode(head.inputNode)

    def _redraw(self) -> None:
        head = self.panel.session.head
        if head:
            self.panel.another(scene.face_region_of(head.refacedNode))


class Save:
    """Where the refaced scan goes and what goes with it, and the original's face that stays in the scene. The
    engine writes the files; what came of it is said beside the button."""

    def __init__(self, ui: Any, panel: SaveHost) -> None:
        self.ui, self.panel = ui, panel
        self.held: list[str] = []
        """Names of the nodes that hold the original's face."""
        self._writing: object | None = None  # what is being written
        self._said: tuple[Any, str, str] = None, "", GREEN  # of which face, what, and in which colour
        ui.saveFolder.filters = ctk.ctkPathLineEdit.Dirs
        ui.saveFolder.currentPath = str(qt.QSettings().value(FOLDER, ""))
        for suffix in FORMATS:
            ui.saveFormat.addItem(suffix)
        ui.saveFormat.setCurrentIndex(
            max(0, ui.saveFormat.findText(str(qt.QSettings().value(FORMAT, FORMATS[0]))))
        )
        ui.saveName.setText("refaced")  # not the scan's name, which may be the patient's
        ui.saveFormat.connect("currentIndexChanged(int)", lambda _index: panel.refresh())
        on_path(ui.saveFolder, self._typed)
        ui.saveName.connect("textChanged(QString)", self._typed)
        ui.saveButton.connect("clicked()", self._save)
        ui.removeOriginalButton.connect("clicked()", self._remove_original)
        ui.sceneFrame.setStyleSheet(frame_style("sceneFrame", COLOURS[AMBER]))
        ui.sceneSymbol.setStyleSheet(f"color: {COLOURS[AMBER]}; font-size: 16pt; font-weight: bold;")

    def refresh(self, no_face: str) -> None:
        ui = self.ui
        series = self._as_dicom()
        alone = _("A DICOM series is written alone; choose another format first.") if series else ""
        for widget, why, tip in (
            (ui.saveFolder, no_face, _("The folder that the files go into.")),
            (ui.saveName, no_face, _("The name that all files begin with; it should not be the patient's.")),
            (ui.saveFormat, no_face, _("The format of the files; DICOM: the series that the original came as.")),
            (ui.maskCheck, no_face or alone, _("The voxels that were replaced, as a second volume.")),
            (ui.reportCheck, no_face or alone, _("What was done and measured, your judgement, a BIDS sidecar.")),
            (ui.pictureCheck, no_face or alone, _("A picture of the refaced head alone, never of the original.")),
            (ui.databaseCheck, no_face, _("Show the new series in Slicer's DICOM module, too.")),
        ):
            allow(widget, why, tip)
        ui.databaseCheck.setVisible(series)
        for widget in (ui.maskCheck, ui.reportCheck, ui.pictureCheck):
            widget.setVisible(not series)
        writing = _("Wait until the files are written first.") if self._writing else ""
        why_not = no_face or writing or self._why_not()
        allow(ui.saveButton, why_not, _("Write the refaced scan alone, never the original."))
        head = self.panel.session.head
        face, text, level = self._said
        text = text if head and head.chosen and head.chosen is face else ""
        if self._writing:
            text, level = _("… Writing the files"), GREEN
        ui.savedLabel.setText(text)
        ui.savedLabel.setStyleSheet("" if level == GREEN else f"color: {COLOURS[level]};")
        ui.savedLabel.setVisible(bool(text))
        ui.sceneFrame.setVisible(bool(self.held) and not no_face)
        ui.sceneLabel.setText(
            _("A saved scene still holds the original's face: {names}.").format(names=", ".join(self.held))
        )
        allow(ui.removeOriginalButton, no_face, _("Take all of these out of the scene; files on disk stay."))

    def look_for_original(self) -> None:
        """Find out what in the scene holds the original's face (it compares voxels: not at each refresh)."""
        head = self.panel.session.head
        result = head.refacedNode if head else None
        self.held = [node.GetName() for node in scene.originals_in_scene(result)] if result else []

    def _as_dicom(self) -> bool:
        return bool(self.ui.saveFormat.currentText == DICOM)

    def _why_not(self) -> str:
        ui, head = self.ui, self.panel.session.head
        if self._as_dicom() and head and head.refacedNode and not scene.dicom_files_of(head.refacedNode):
            return _("Load the original by Slicer's DICOM module first, or choose another format.")
        if head and head.chosen and head.chosen.qc.passed is False:
            return _("You judged that this face failed; draw another one.")
        if not ui.saveFolder.currentPath.strip():
            return _("Choose a folder first.")
        name = ui.saveName.text.strip()
        if not name or set(name) & set('/\\:*?"<>|'):
            return _('Give a file name without / \\ : * ? " < > |.')
        return ""

    def _typed(self, _text: str) -> None:
        self.panel.refresh()

    def _save(self) -> None:
        ui, head = self.ui, self.panel.session.head
        if not head or not head.chosen:
            return
        face, path = head.chosen, Path(ui.saveFolder.currentPath.strip()).expanduser()
        series = self._as_dicom()
        path = path / (ui.saveName.text.strip() + ("" if series else ui.saveFormat.currentText))
        question = _("{path} exists. Replace it?").format(path=path)
        if path.exists() and not series and not slicer.util.confirmOkCancelDisplay(question):
            return
        verdict = verdict_of(face.report)
        question = "\n".join((f"{verdict.headline}.", *verdict.details, _("Save it all the same?")))
        if verdict.level == RED and not slicer.util.confirmOkCancelDisplay(question):
            return
        self._writing, self._said = (token := object()), (None, "", GREEN)
        told = {
            "on_done": lambda answer: self._written(token, face, answer, path if series else None),
            "on_error": lambda error: self._not_written(token, face, error),
        }
        if series:
            self.panel.session.save_dicom(head.refacedNode, str(path), **told)
        else:
            self.panel.session.save(
                head.refacedNode, str(path),
                ui.maskCheck.checked, ui.reportCheck.checked, ui.pictureCheck.checked, **told,
            )  # fmt: skip
        self.panel.refresh()

    def _written(self, token: object, face: Any, answer: dict[str, Any], series: Path | None) -> None:
        if self._writing is token:
            settings = qt.QSettings()
            settings.setValue(FOLDER, self.ui.saveFolder.currentPath)
            settings.setValue(FORMAT, self.ui.saveFormat.currentText)
            said = [f"{SYMBOLS[GREEN]} " + _("Saved: {names}").format(names=", ".join(answer["files"]))]
            said += answer.get("warnings", [])
            level = GREEN
            if series and self.ui.databaseCheck.checked and not scene.add_to_dicom_database(series):
                level, said = (
                    AMBER,
                    [*said, _("Slicer's DICOM database did not take it; import the folder there.")],
                )
            self._end(face, "\n".join(said), level)

    def _not_written(self, token: object, face: Any, error: Exception) -> None:
        if self._writing is token:
            text = _("{why} Nothing was written.").format(why=sentence_of(error))
            self._end(face, f"{SYMBOLS[RED]} {text}", RED)

    def _end(self, face: Any, text: str, level: str) -> None:
        self._writing, self._said = None, (face, text, level)
        self.panel.refresh()

    def interrupt(self) -> None:
        """The engine was ended: what it was writing is not there."""
        if self._writing:
            head = self.panel.session.head
            text = _("The engine was ended. Nothing was written.")
            self._writing, self._said = None, (head.chosen if head else None, f"{SYMBOLS[RED]} {text}", RED)

    def _remove_original(self) -> None:
        question = _("Remove the original from the scene? What is not saved of it is lost; files on disk stay.")
        if slicer.util.confirmOkCancelDisplay(question):
            self.panel.remove_original()


class Advanced:
    """How the engine works. What are files of this computer, the Python environment and the face models, is the
    application's; the rest belongs to the scene, and can be remembered for new ones."""

    def __init__(self, ui: Any, panel: AdvancedHost) -> None:
        self.ui, self.panel, self._filling = ui, panel, True
        for edit, key in ((ui.pythonPath, SETTING), (ui.faceDetector, DETECTOR), (ui.faceRecogniser, RECOGNISER)):
            edit.filters = ctk.ctkPathLineEdit.Files
            edit.currentPath = str(qt.QSettings().value(key, ""))
        self.models = panel.session.models()
        for model in self.models:
            ui.modelCombo.addItem(model.id)
        ui.rememberCheck.setChecked(qt.QSettings().contains(REMEMBERED))
        ui.modelCombo.connect("currentIndexChanged(int)", self._model_chosen)
        on_path(ui.pythonPath, self._python_chosen)
        on_path(ui.faceDetector, lambda path: self._face_model_chosen(DETECTOR, path))
        on_path(ui.faceRecogniser, lambda path: self._face_model_chosen(RECOGNISER, path))
        ui.rememberCheck.connect("toggled(bool)", self._remember)
        self._filling = False

    def show_parameters(self) -> None:
        """Show the model of the parameter node; the wrapper shows the rest."""
        if self.panel.parameters:
            self._filling = True
            self.ui.modelCombo.setCurrentIndex(max(0, self.ui.modelCombo.findText(self.panel.parameters.model)))
            self._filling = False

    def settings(self) -> dict[str, Any]:
        chosen = self.panel.parameters
        return {
            "model": chosen.model,
            "device": chosen.device.value,
            "threads": chosen.threads or None,
            "dropout": None if chosen.dropout < 0 else chosen.dropout,
            "defaced": chosen.defaced.value,
        }

    def face_models(self) -> dict[str, Any] | None:
        """What a new face is compared with the original's by (see Session.recognise); None where no face
        recogniser is set."""
        detector, recogniser = (
            str(edit.currentPath).strip() for edit in (self.ui.faceDetector, self.ui.faceRecogniser)
        )
        if not (detector and recogniser and self.panel.parameters):
            return None
        return {"detector": detector, "recogniser": recogniser, "limit": self.panel.parameters.faceThreshold}

    def refresh(self, _no_face: str) -> None:
        ui = self.ui
        wait = _("Wait until the run is over, or cancel it.") if self.panel.run else ""
        for widget, tip in (
            (ui.modelCombo, _("The trained model that draws the face.")),
            (ui.candidatesSpin, _("How many faces Reface draws, to pick one.")),
            (ui.dropoutSpin, _("Probability of the noise in the network; the more, the more the faces differ.")),
            (ui.defacedCombo, _("Whether the face was taken off before; then only what was emptied is filled.")),
            (ui.deviceCombo, _("Where the networks run.")),
            (ui.threadsSpin, _("How many threads of the processor the engine may use.")),
            (ui.faceDetector, _("YuNet as an ONNX file; with a face recogniser, new faces are compared.")),
            (ui.faceRecogniser, _("A network of the ArcFace family as an ONNX file, for 112 × 112 pixels.")),
            (ui.faceThresholdSpin, _("Two faces with a distance below this are taken for one person's.")),
            (ui.rememberCheck, _("Use these settings for new scenes, too.")),
        ):
            allow(widget, wait, tip)
        named = self.panel.session.python_in_environment()
        taken = _("REFACECGAN_PYTHON names the Python: {path}").format(path=named) if named else ""
        allow(
            ui.pythonPath,
            wait or taken,
            _("The python program of another environment with the engine's packages."),
        )
        index = ui.modelCombo.currentIndex
        ui.cardLabel.setText(card_text(self.models[index].card) if index >= 0 else _("No model is installed."))
        if self.panel.parameters and ui.rememberCheck.checked:
            self._remember(True)

    def _model_chosen(self, index: int) -> None:
        if not self._filling and self.panel.parameters and index >= 0:
            self.panel.parameters.model = self.models[index].id

    def _python_chosen(self, path: str) -> None:
        qt.QSettings().setValue(SETTING, path)
        self.panel.python_chosen()

    def _face_model_chosen(self, key: str, path: str) -> None:
        qt.QSettings().setValue(key, path)
        self.panel.refresh()

    def _remember(self, wanted: bool) -> None:
        if wanted and self.panel.parameters:
            values = {name: getattr(self.panel.parameters, name) for name in SETTINGS}
            texts = {name: value.name if isinstance(value, enum.Enum) else value for name, value in values.items()}
            qt.QSettings().setValue(REMEMBERED, json.dumps(texts))
        elif not wanted:
            qt.QSettings().remove(REMEMBERED)


def recall(parameters: Any) -> None:
    """Set a new parameter node to the remembered settings, as far as this version knows them."""
    for name, value in json.loads(slicer.util.settingsValue(REMEMBERED, "{}")).items():
        try:
            kind = type(getattr(parameters, name))
            setattr(parameters, name, kind[value] if issubclass(kind, enum.Enum) else value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logging.warning("The remembered setting %s is not used: %s", name, error)


def card_text(card: dict[str, Any]) -> str:
    """What a user should know of a model, from its card."""
    lines = [card.get("description", ""), card.get("intended_use", "")]
    if card.get("not_seen"):
        lines.append(_("Not seen in training: {what}").format(what=card["not_seen"]))
    if card.get("licence"):
        lines.append(_("Licence: {licence}").format(licence=card["licence"]))
    return "\n".join(filter(None, lines))
