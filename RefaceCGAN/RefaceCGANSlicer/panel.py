"""What the module's widget does: which state it is in, what may be pressed and why not, and what a run comes to.

The engine, the scene and the views are reached through the session and through the sections alone, so that all
of this runs against small fakes (Testing/Python/test_panel.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from . import scene
from .contracts import Session, Views
from .drawn_faces import Face, Head
from .engine import EngineError
from .other_series import Study
from .recognition import Recognition
from .review_section import ReviewSection
from .sections import Advanced, Judge, Save
from .see_section import See
from .verdict import INFO, RED, Verdict
from .widgets import (
    allow,
    busy_text,
    device_text,
    frame_style,
    guarded,
    input_text,
    plain_tip,
    primary_style,
    sentence_of,
)

SEEDS = 10**6
"""Random seeds lie below this, so that they are easily typed again."""
PREPARED = 0.7
"""How much of a run is done when the head is prepared."""
TICK_MS = 250
"""How often the time left is written anew."""
SHOWING = "show"
"""The stage of a run whose faces are drawn and are about to be seen."""


@dataclass
class Run:
    """A run under way: how many faces it still has to draw, and how far the present one is."""

    wanted: int = 1
    drawn: int = 0
    stage: str = "start"
    fraction: float = 0.0
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def tell(self, stage: str, fraction: float) -> None:
        self.stage, self.fraction, self.told = stage, fraction, time.monotonic()

    @property
    def done(self) -> float:
        """How much of all faces is done, 0 to 1."""
        return (self.drawn + min(self.fraction, 1.0)) / (self.drawn + self.wanted)

    def seconds_left(self) -> float | None:
        """By the pace so far; None while that says nothing."""
        if self.done < 0.05:
            return None
        spent = self.told - self.began
        return max(0.0, spent / self.done - spent - (time.monotonic() - self.told))


class Panel:
    """The panel over the widgets of RefaceCGAN.ui.

    ui: the widgets by name.  session: see `Session`.  views: what the See section calls (RefaceCGANSlicer.views).
    """

    def __init__(self, ui: Any, session: Session, views: Views) -> None:
        self.ui, self.session = ui, session
        self.parameters: Any = None
        self.run: Run | None = None
        self.message: Verdict | None = None
        self.description: Any = None
        self.engine = ""
        """Why the engine cannot run; empty while nothing speaks against it."""
        self._chosen: Any = None  # what the selector holds: a scan, or a result
        self._input: Any = None  # the scan that is to get a face: that, or the result's original
        self._regions_left: dict[str, Any] = {}  # by the id of a result that leaves the scene: its face region
        self._entered = self._filling = False
        self.see = See(ui, self, views)
        self.judge = Judge(ui, self)
        self.save = Save(ui, self)
        self.study = Study(ui, self)
        self.advanced = Advanced(ui, self)
        self.review = ReviewSection(ui, self)
        self.recognition = Recognition(self)
        self.timer = qt.QTimer()
        self.timer.setInterval(TICK_MS)
        self.timer.connect("timeout()", self.show_progress)
        self.scans_timer = qt.QTimer()
        self.scans_timer.setSingleShot(True)
        self.scans_timer.connect("timeout()", self._scans_added)
        ui.refaceButton.connect("clicked()", self.reface_or_cancel)
        ui.anotherButton.connect("clicked()", lambda: self.another())
        ui.checksButton.connect("toggled(bool)", lambda _open: self._show_verdict())
        ui.installButton.connect("clicked()", self.install)
        ui.facesList.connect("currentRowChanged(int)", self.pick)
        self.refresh()

    # --- what it is about ---------------------------------------------------------------------------------

    def set_parameters(self, parameters: Any) -> None:
        """Follow another parameter node; None while the scene is closed."""
        self.parameters = parameters
        self.advanced.show_parameters()
        self.parameters_changed()
        refaced = parameters.refacedVolume if parameters else None
        if refaced and not self.session.head and self._input and scene.original_of(refaced) is self._input:
            self._take_up(refaced)

    def _take_up(self, refaced: Any) -> None:
        """Go on with a result that is in the scene, as a saved scene or another series leaves it."""
        if self.session.restore(refaced):
            self.parameters.refacedVolume = refaced
            self.save.look_for_original()
            self.study.look()
            if self.see.is_our_layout():
                qt.QTimer.singleShot(0, self.show_restored)  # when the views of the scene are there, too
            self.see.missing_pictures()
        self.refresh()

    def show_restored(self) -> None:
        """The layout of faces came with a scene: fill it, which is not saved."""
        head = self.session.head
        if head and head.chosen and head.inputNode and not self.run and self.see.is_our_layout():
            self.see.show()

    def entered(self) -> None:
        """The user opened the module: other modules may have changed what it stands on."""
        self._entered = True
        self.input_modified()
        self.save.look_for_original()
        self.study.look()
        self.check_engine()
        self.refresh()

    def left(self) -> None:
        """The user went to another module; a run under way goes on."""
        self._entered = False

    def parameters_changed(self) -> None:
        """To be called whenever the parameter node was modified."""
        node = self.parameters.inputVolume if self.parameters else None
        if node and not slicer.mrmlScene.IsNodePresent(node):
            node = None
        if node is not self._chosen:
            self.input_chosen(node)
        self.refresh()

    def input_chosen(self, node: Any, message: str | None = None) -> None:
        """Another scan, or a result: what was drawn for the one before is no longer the panel's. A result is
        taken up with its original, where that is there."""
        if self.run:
            self.stop("")
            message = message or _("Cancelled as another head was chosen; nothing was changed.")
        head, result = self.session.head, node if scene.is_refaced(node) else None
        self._chosen, self._input = node, node
        if result:  # whose original may just be leaving, which the head knows
            known = head is not None and head.refacedNode is result
            self._input = head.inputNode if head and known else scene.original_of(result)
        self.description = scene.what_is_it(self._input or node) if node else None
        if head and (head.refacedNode is not result if result else head.inputNode is not node):
            self.drop(None)
        self.message = Verdict(INFO, message) if message else None
        if result and not self.session.head:
            self._take_up(result)
        self.study.look()
        self.check_engine()
        self.refresh()

    def input_modified(self) -> None:
        """The input's voxels, its place or its name changed: faces drawn for other voxels are not offered."""
        if self._input:
            self.description = scene.what_is_it(self._input)
        head = self.session.head
        if head and head.changed() and not self.run:
            self.drop(_("The scan was changed, so the faces drawn for it before are no longer offered."))
        elif head and head.refacedNode and head.inputNode:
            scene.follow_name(head.refacedNode)
        self.refresh()

    def node_added(self) -> None:
        """Nodes came into the scene: look at them once, when all of them are there."""
        self.scans_timer.start()

    def _scans_added(self) -> None:
        if self.session.head and not self.run:
            self.study.look()
            self.refresh()

    def node_leaving(self, node: Any) -> None:
        """A node is about to leave the scene. What comes after it is decided here, before the selector takes just
        any other scan in its place."""
        if not self.parameters:  # the scene is being closed
            return
        if scene.is_result(node) and node.GetNodeReference(scene.REGION):
            self._regions_left[node.GetID()] = node.GetNodeReference(scene.REGION)
        head = self.session.head
        if node is self._input:
            message = None
            if self.run:
                self.stop("")
                message = _("The scan was removed from the scene while it was refaced; nothing was added.")
            result = head.refacedNode if head and head.inputNode is node and head.chosen else None
            if head and result:
                self._lose_original(head)
            self._go_on_with(result, message)
        elif node is self._chosen:
            self._go_on_with(self._input, None)

    def _go_on_with(self, node: Any, message: str | None) -> None:
        """Choose another node in place of one that is leaving."""
        self.input_chosen(node, message)
        self.parameters.inputVolume = node

    def node_removed(self, node: Any) -> None:
        """A node left the scene (by the user, or by Undo)."""
        region = self._regions_left.pop(node.GetID() or "", None)
        if region and slicer.mrmlScene.IsNodePresent(region):
            scene.remove(slicer.mrmlScene, region)  # else it would be drawn over the original
        head = self.session.head
        if head and node is head.refacedNode:
            self.drop(_("The refaced scan was removed from the scene."))
        if node.IsA(scene.SCAN) and self.parameters:
            self.save.look_for_original()
            self.study.look()
        self.refresh()

    def _lose_original(self, head: Head) -> None:
        """The original leaves the scene: there are no more two faces to show, and none to draw."""
        head.lose_original()
        self.see.forget()
        self.recognition.forget()

    def scene_closing(self) -> None:
        """Stop whatever runs and forget the head, also in the engine, which stays warm."""
        if self.run:
            self.stop("")
        self.drop(None)
        self.session.empty()
        self.review.scene_closing()
        self._chosen = self._input = self.description = self.message = None
        self._regions_left.clear()
        self.study.look()

    def drop(self, sentence: str | None) -> None:
        """Forget the head and its faces; their node, if it is there, is an ordinary one from now on."""
        self.session.forget()
        self.see.forget()
        self.recognition.forget()
        self.message = Verdict(INFO, sentence) if sentence else None

    def close(self) -> None:
        """To be called when the widget goes."""
        if self.run:
            self.stop("")
        self.review.close()
        self.see.forget()
        self.recognition.timer.stop()
        self.scans_timer.stop()

    # --- the engine ---------------------------------------------------------------------------------------

    def check_engine(self) -> None:
        """Say whether the engine can run, and start it, so that the first face comes sooner."""
        if not self._entered or self.run or not self.parameters:
            return
        self.engine = self._what_is_missing()
        if self.engine:
            self.ui.readyLabel.setText("✖ " + self.engine)
            return
        self.ui.readyLabel.setText(_("… Starting the engine"))
        self.session.warm_up(self.settings(), on_done=self._warm, on_error=self._not_warm)

    def _what_is_missing(self) -> str:
        """Why the engine cannot run; empty if all is there."""
        missing, own = self.session.missing(), self.session.runs_in_slicer()
        self.ui.installButton.setVisible(own and bool(missing))
        if not missing:
            return ""
        if "Python" in missing:
            return _("This Python cannot run the engine: name one of version 3.11 or later under Advanced.")
        names = ", ".join(missing)
        if own:
            return _("{names} missing: press Install, or name another Python under Advanced.").format(names=names)
        return _(
            "{names} missing in the Python you named: install there, or empty that field under Advanced."
        ).format(names=names)

    def _warm(self, answer: dict[str, Any]) -> None:
        text = _("Ready: {device}, {threads} threads, model {model}")
        device = device_text(answer["device"])
        text = text.format(device=device, threads=answer["threads"], model=answer["model"])
        self.ui.readyLabel.setText("✔ " + text)
        if self.run or self.why_not_reface():
            return
        node = self._input

        def prepared(_answer: Any) -> None:
            if not self.run and self._input is node and not self.see.faces:
                self.see.make_ahead(node)
            self.refresh()

        self.session.prepare(node, self.settings(), on_progress=self._preparing, on_done=prepared)

    def _preparing(self, stage: str, fraction: float) -> None:
        """Reface was pressed while the engine prepares the head: that is part of the run."""
        if self.run and not self.run.drawn:
            self.progressed(stage, PREPARED * fraction)

    def _not_warm(self, error: Exception) -> None:
        self.ui.readyLabel.setText("✖ " + str(error))

    def python_chosen(self) -> None:
        """Another Python is to run the engine."""
        self.session.close()
        self.save.interrupt()
        self.review.interrupt()
        self.recognition.forget()
        self.check_engine()
        self.refresh()

    def install(self) -> None:
        self.message = None
        try:
            self.session.install()
        except EngineError as error:
            self.message = Verdict(RED, str(error))
        self.check_engine()
        self.refresh()

    def settings(self) -> dict[str, Any]:
        """How the engine is to work, by name."""
        return self.advanced.settings()

    # --- runs ---------------------------------------------------------------------------------------------

    def why_not_reface(self) -> str:
        if not self._chosen:
            return _("Choose a head MRI first.")
        if not self._input:
            return _("The original is no longer in the scene; load it first.")
        if self.description.problem:
            return self.description.problem
        return self.engine

    def why_no_face(self) -> str:
        """Why there is no face to look at, judge or save; empty if there is one."""
        if self.run:
            return _("Wait until the run is over, or cancel it.")
        return "" if self._face() else _("Reface a head first.")

    def _face(self) -> Face | None:
        """The face in the refaced node, or None."""
        return self.session.head.chosen if self.session.head else None

    def reface_or_cancel(self) -> None:
        if self.run and self.run.stage == SHOWING:
            self.end(None)  # the face is there
        elif self.run:
            self.stop(_("Cancelled; nothing was changed."))
            self.check_engine()
        elif not self.why_not_reface():
            self.see.give_way()
            run = self.begin(self.parameters.candidates)
            self.session.start(self._input, self.new_seed(), self.settings(), **self._callbacks(run))

    def another(self, region: Any = None) -> None:
        """Draw one more face for the same head, within `region` (bool (I, J, K)) where that is given."""
        if not self.why_no_face() and not self.why_not_reface():
            self.see.give_way()
            run = self.begin(1)
            self.session.another(self.new_seed(), self.settings(), region, **self._callbacks(run))

    def new_seed(self) -> int:
        return secrets.randbelow(SEEDS)

    def begin(self, wanted: int) -> Run:
        self.run, self.message = Run(wanted), None
        self.timer.start()
        self.refresh()
        return self.run

    def _callbacks(self, run: Run) -> dict[str, Callable]:
        tell: dict[str, Callable] = {"on_progress": self.progressed, "on_done": self.drew, "on_error": self.failed}
        return {name: self.heard(run, function) for name, function in tell.items()}

    def heard(self, run: Run, function: Callable) -> Callable:
        """`function` as a callback that is deaf once `run` is no longer the panel's, and that ends the run where
        it fails."""
        safe = guarded(function, self.failed)
        return lambda *arguments: safe(*arguments) if self.run is run else None

    def progressed(self, stage: str, fraction: float) -> None:
        if self.run:
            self.run.tell(stage, fraction)
            self.show_progress()

    def drew(self, face: Face) -> None:
        """A face is there: draw the next one if more are wanted, and show the last one."""
        run = self.run
        assert run is not None
        run.drawn, run.wanted = run.drawn + 1, run.wanted - 1
        self.put(face)
        if run.wanted:
            run.tell("generate", 0.0)
            self.session.another(self.new_seed(), self.settings(), None, **self._callbacks(run))
            self.refresh()
            return
        run.tell(SHOWING, 0.0)
        self.show_progress()
        self.see.show(lambda: self.end(self.message) if self.run is run else None)

    def put(self, face: Face) -> None:
        """Put a face into the refaced node."""
        self.session.pick(face)
        head = self.session.head
        if head:
            self.parameters.refacedVolume = head.refacedNode
        self.save.look_for_original()
        self.study.look()

    def failed(self, error: Exception) -> None:
        """Nothing came of it. The error's sentence is shown in place of any verdict, never an older face as the
        new one."""
        details: tuple[str, ...] = ()
        face = self._face()
        if face:
            sentence = _("No new face was drawn. The one in the views is still that of seed {seed}.")
            details = (sentence.format(seed=face.seed),)
        self.end(Verdict(RED, sentence_of(error), details))
        if getattr(error, "kind", "") in ("crash", "memory"):
            self.check_engine()  # it starts anew, so that the next face need not wait for that

    def stop(self, sentence: str) -> None:
        """Cancel: within a second, and the scene stays as it was."""
        self.session.cancel()
        self.recognition.forget()
        self.end(Verdict(INFO, sentence) if sentence else None)

    def end(self, message: Verdict | None) -> None:
        self.run, self.message = None, message
        self.timer.stop()
        self.refresh()
        self.see.refine_later()

    def say(self, verdict: Verdict) -> None:
        """Show a message in place of the verdict."""
        self.message = verdict

    def is_shown(self) -> bool:
        """Whether both faces are on screen."""
        return bool(self.see.faces)

    def face_models(self) -> dict[str, Any] | None:
        """See `Advanced.face_models`."""
        return self.advanced.face_models()

    def pick(self, row: int) -> None:
        """Show one of the faces drawn so far."""
        head = self.session.head
        if (
            self._filling
            or self.run
            or not head
            or not 0 <= row < len(head.faces)
            or head.faces[row] is head.chosen
        ):
            return
        self.message = None
        try:
            self.put(head.faces[row])
        except Exception as error:
            self.say(Verdict(RED, sentence_of(error)))
            self.refresh()
        else:
            self.see.show()

    def remove_original(self) -> None:
        """Take the original's face out of the scene; the refaced scan stays, and can be judged and saved."""
        head = self.session.head
        if not head or not head.refacedNode:
            return
        node = head.refacedNode
        self._lose_original(head)
        self._go_on_with(node, None)  # before the selector finds another scan
        names = ", ".join(scene.remove_original(slicer.mrmlScene, node))
        self.save.look_for_original()
        self.say(Verdict(
            INFO, _("Removed from the scene: {names}.").format(names=names), (_("The refaced scan stays."),)
        ))  # fmt: skip
        self.refresh()

    # --- what is shown ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Write every text, state and reason anew from what is the case."""
        ui, running = self.ui, bool(self.run)
        wait = _("Wait until the run is over, or cancel it.") if running else ""
        why_not = "" if running else self.why_not_reface()
        allow(ui.inputSelector, wait, _("The head MRI that is to get a new face. It is not changed."))
        allow(ui.sampleButton, wait, _("Load the head that comes with RefaceCGAN: an average, nobody's face."))
        allow(
            ui.installButton, wait, _("Install what the engine needs into Slicer's Python; you are asked before.")
        )
        face = self._face()
        defaced = face.report["already_defaced"] if face else self.session.already_defaced(self._input)
        ui.inputLabel.setText(self._input_text(defaced))
        ui.readyLabel.setVisible(bool(self._chosen) and (not face or bool(self.engine)))
        ui.refaceButton.setText(_("&Cancel") if running else _("&Reface"))
        ui.refaceButton.setStyleSheet("" if running or why_not else primary_style())
        cancel, reface = (
            _("Stop at once and leave the scene as it was."),
            _("Give the head a new, anonymous face."),
        )
        allow(ui.refaceButton, why_not, cancel if running else reface)
        another = self.why_no_face() or why_not
        allow(ui.anotherButton, another, _("Draw a different face for the same head; it takes a second or two."))
        ui.progressFrame.setVisible(running)
        self.show_progress()
        self.recognition.refresh()
        self._show_verdict()
        self._show_faces()
        ui.saveFrame.setVisible(bool(face))
        for section in (self.see, self.judge, self.save, self.study, self.advanced, self.review):
            section.refresh(self.why_no_face())

    def _input_text(self, defaced: bool | None) -> str:
        if self._chosen and not self._input:
            return _("A refaced scan; its original is not in the scene.")
        if self._chosen is not self._input:
            return _("A refaced scan of {name}.").format(name=self._input.GetName())
        return input_text(self.description, defaced)

    def show_progress(self) -> None:
        if self.run:
            self.ui.progressBar.setValue(round(100 * self.run.done))
            self.ui.progressLabel.setText(busy_text(self.run))

    def verdict(self) -> Verdict | None:
        """What the panel says of the last thing that happened; nothing while a run is under way."""
        face = self._face()
        if self.run or self.message:
            return self.message
        return self.recognition.verdict(face) if face else None

    def _show_verdict(self) -> None:
        """The headline and what is out of the ordinary are always seen; the list of checks on request."""
        ui, verdict = self.ui, self.verdict()
        ui.verdictFrame.setVisible(bool(verdict))
        if not verdict:
            return
        ui.verdictFrame.setStyleSheet(frame_style("verdictFrame", verdict.colour))
        ui.verdictSymbol.setStyleSheet(f"color: {verdict.colour}; font-size: 16pt; font-weight: bold;")
        ui.verdictSymbol.setText(verdict.symbol)
        ui.verdictHeadline.setText(verdict.headline)
        lines = "\n".join(verdict.details)
        ui.verdictDetails.setText(lines)
        ui.verdictDetails.setToolTip(plain_tip(lines))  # a long word may not fit a narrow panel
        ui.verdictDetails.setVisible(bool(lines))
        ui.checksButton.setVisible(bool(verdict.checked or verdict.unchecked))
        allow(ui.checksButton, "", _("Show what was checked and against what, and what was not checked."))
        parts = [_("Checked:"), *verdict.checked] if verdict.checked else []
        parts += [_("Not checked:"), *(f"– {line}" for line in verdict.unchecked)] if verdict.unchecked else []
        ui.checksLabel.setText("\n".join(parts))
        ui.checksLabel.setVisible(bool(parts) and ui.checksButton.checked)

    def _show_faces(self) -> None:
        head = self.session.head
        self.ui.facesFrame.setVisible(bool(head and head.faces))
        self._filling = True
        self.see.list_faces(head)
        self._filling = False
        wait = self.why_no_face()
        allow(self.ui.facesList, wait, _("Pick the face that the refaced scan is to have."))
