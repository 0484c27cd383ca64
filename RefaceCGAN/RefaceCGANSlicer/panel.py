"""What the module's widget does: which state it is in, what may be pressed and why not, and what a run comes to.

The engine, the scene and the views are reached through the session and through the sections alone, so that all
of this runs against small fakes (Testing/Python/test_panel.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import qt
import slicer
from RefaceCGANLib.errors import RefaceError
from slicer.i18n import tr as _

from . import scene
from .engine import EngineError
from .recognition import Recognition
from .sections import Advanced, Judge, Save
from .see import See
from .verdict import INFO, RED, Verdict
from .widgets import allow, busy_text, device_text, frame_style, input_text, primary_style

SEEDS = 10**6
"""Random seeds lie below this, so that they are easily typed again."""
PREPARED = 0.7
"""How much of a run is done when the head is prepared."""
TICK_MS = 250
"""How often the time left is written anew."""


class Session(Protocol):
    """What the panel needs of session.Session. Callbacks come on the main thread, and none after cancel()."""

    head: Any
    """The faces.Head whose faces are shown, or None."""

    def missing(self) -> list[str]: ...
    def runs_in_slicer(self) -> bool: ...
    def close(self) -> None: ...
    def install(self) -> None: ...
    def warm_up(self, settings: dict[str, Any], **callbacks: Callable) -> None: ...
    def prepare(self, node: Any, settings: dict[str, Any], **callbacks: Callable) -> None: ...
    def already_defaced(self, node: Any) -> bool | None: ...
    def start(self, node: Any, seed: int, settings: dict[str, Any], **callbacks: Callable) -> None: ...
    def another(self, seed: int, settings: dict[str, Any], region: Any = None, **callbacks: Callable) -> None: ...
    def cancel(self) -> None: ...
    def recognise(self, face: Any, models: dict[str, Any], **callbacks: Callable) -> None: ...
    def restore(self, node: Any, refaced: Any) -> bool: ...
    def pick(self, face: Any) -> None: ...
    def forget(self) -> None: ...


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

    def __init__(self, ui: Any, session: Session, views: Any) -> None:
        self.ui, self.session = ui, session
        self.parameters: Any = None
        self.run: Run | None = None
        self.message: Verdict | None = None
        self.description: Any = None
        self.engine = ""
        """Why the engine cannot run; empty while nothing speaks against it."""
        self._input: Any = None
        self._entered = self._filling = False
        self.see = See(ui, self, views)
        self.judge = Judge(ui, self)
        self.save = Save(ui, self)
        self.advanced = Advanced(ui, self)
        self.recognition = Recognition(self)
        self.timer = qt.QTimer()
        self.timer.setInterval(TICK_MS)
        self.timer.connect("timeout()", self.show_progress)
        ui.refaceButton.connect("clicked()", self.reface_or_cancel)
        ui.anotherButton.connect("clicked()", self.another)
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
        if refaced and not self.session.head and self.session.restore(self._input, refaced):
            self.save.look_for_original()
            self.refresh()

    def entered(self) -> None:
        """The user opened the module: other modules may have changed what it stands on."""
        self._entered = True
        self.input_modified()
        self.save.look_for_original()
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
        if node is not self._input:
            self.input_chosen(node)
        self.refresh()

    def input_chosen(self, node: Any) -> None:
        """Another head: what was drawn for the one before is no longer the panel's."""
        message = None
        if self.run and self._input_gone():
            message = _("The scan was removed from the scene while it was refaced; nothing was added.")
        elif self.run:
            message = _("Cancelled as another head was chosen; nothing was changed.")
        if self.run:
            self.stop("")
        self._input, self.description = node, scene.what_is_it(node) if node else None
        if self.session.head and self.session.head.inputNode is not node:
            self.drop(None)
        self.message = Verdict(INFO, message) if message else None
        self.check_engine()
        self.refresh()

    def _input_gone(self) -> bool:
        return not slicer.mrmlScene.IsNodePresent(self._input)

    def input_modified(self) -> None:
        """The input's voxels, its place or its name changed: faces drawn for other voxels are not offered."""
        if self._input:
            self.description = scene.what_is_it(self._input)
        if self.session.head and self.session.head.changed() and not self.run:
            self.drop(_("The scan was changed, so the faces drawn for it before are no longer offered."))
        self.refresh()

    def node_removed(self, node: Any) -> None:
        """A node left the scene (by the user, or by Undo)."""
        if self._input and self._input_gone():
            self.input_chosen(None)
        elif self.session.head and node is self.session.head.refacedNode:
            self.drop(_("The refaced scan was removed from the scene."))
        self.refresh()

    def scene_closing(self) -> None:
        """Stop whatever runs, forget the head and end the engine, which holds it, too."""
        if self.run:
            self.stop("")
        self.drop(None)
        self.session.close()
        self._input = self.description = self.message = None

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
        self.see.forget()
        self.recognition.timer.stop()

    # --- the engine ---------------------------------------------------------------------------------------

    def check_engine(self) -> None:
        """Say whether the engine can run, and start it once there is a head, so that the first face comes
        sooner."""
        if not self._entered or not self._input or self.run:
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
        if not self.run and not self.why_not_reface():
            listeners = {"on_progress": self._preparing, "on_done": lambda _answer: self.refresh()}
            self.session.prepare(self._input, self.settings(), **listeners)

    def _preparing(self, stage: str, fraction: float) -> None:
        """Reface was pressed while the engine prepares the head: that is part of the run."""
        if self.run and not self.run.drawn:
            self.progressed(stage, PREPARED * fraction)

    def _not_warm(self, error: Exception) -> None:
        self.ui.readyLabel.setText("✖ " + str(error))

    def python_chosen(self) -> None:
        """Another Python is to run the engine."""
        self.session.close()
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
        if not self._input:
            return _("Choose a head MRI first.")
        if self.description.problem:
            return self.description.problem
        return self.engine

    def why_no_face(self) -> str:
        """Why there is no face to look at, judge or save; empty if there is one."""
        if self.run:
            return _("Wait until the run is over, or cancel it.")
        return "" if self._face() else _("Reface a head first.")

    def _face(self) -> Any:
        """The face in the refaced node, or None."""
        return self.session.head.chosen if self.session.head else None

    def reface_or_cancel(self) -> None:
        if self.run:
            self.stop(_("Cancelled; nothing was changed."))
            self.check_engine()
        elif not self.why_not_reface():
            run = self.begin(self.parameters.candidates)
            self.session.start(self._input, self.new_seed(), self.settings(), **self._callbacks(run))

    def another(self, region: Any = None) -> None:
        """Draw one more face for the same head, within `region` (bool (I, J, K)) where that is given."""
        if not self.why_no_face() and not self.why_not_reface():
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
        """Callbacks that are deaf once `run` is no longer the panel's."""
        tell = {"on_progress": self.progressed, "on_done": self.drew, "on_error": self.failed}

        def heard(function: Callable) -> Callable:
            return lambda *arguments: function(*arguments) if self.run is run else None

        return {name: heard(function) for name, function in tell.items()}

    def progressed(self, stage: str, fraction: float) -> None:
        self.run.tell(stage, fraction)
        self.show_progress()

    def drew(self, face: Any) -> None:
        """A face is there: show it, and draw the next one if more are wanted."""
        run = self.run
        run.drawn, run.wanted = run.drawn + 1, run.wanted - 1
        run.tell("generate", 0.0)
        try:
            self.show_face(face)
        except RefaceError as error:
            self.failed(error)
            return
        if run.wanted:
            self.session.another(self.new_seed(), self.settings(), None, **self._callbacks(run))
            self.refresh()
            return
        self.ui.seeSection.collapsed = self.ui.judgeSection.collapsed = False
        self.end(self.message)

    def show_face(self, face: Any) -> None:
        """Put a face into the refaced node and on screen."""
        self.session.pick(face)
        self.parameters.refacedVolume = self.session.head.refacedNode
        self.save.look_for_original()
        self.see.show()

    def failed(self, error: Exception) -> None:
        """Nothing came of it. The error's sentence is shown in place of any verdict, never an older face as the
        new one."""
        details, face = (), self._face()
        if face:
            sentence = _("No new face was drawn. The one in the views is still that of seed {seed}.")
            details = (sentence.format(seed=face.seed),)
        self.end(Verdict(RED, str(error), details))

    def stop(self, sentence: str) -> None:
        """Cancel: within a second, and the scene stays as it was."""
        self.session.cancel()
        self.recognition.forget()
        self.end(Verdict(INFO, sentence) if sentence else None)

    def end(self, message: Verdict | None) -> None:
        self.run, self.message = None, message
        self.timer.stop()
        self.refresh()

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
        self.show_face(head.faces[row])

    def remove_original(self) -> None:
        """Take the original's face out of the scene; the refaced scan stays, as an ordinary one."""
        node = self.session.head.refacedNode
        self.drop(None)
        names = ", ".join(scene.remove_original(slicer.mrmlScene, node))
        self.message = Verdict(
            INFO, _("Removed from the scene: {names}.").format(names=names), (_("The refaced scan stays."),)
        )
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
        ui.inputLabel.setText(input_text(self.description, defaced))
        ui.readyLabel.setVisible(bool(self._input))
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
        for section in (self.see, self.judge, self.save, self.advanced):
            section.refresh(self.why_no_face())

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
        ui, verdict = self.ui, self.verdict()
        ui.verdictFrame.setVisible(bool(verdict))
        if verdict:
            ui.verdictFrame.setStyleSheet(frame_style("verdictFrame", verdict.colour))
            ui.verdictSymbol.setStyleSheet(f"color: {verdict.colour}; font-size: 16pt; font-weight: bold;")
            ui.verdictSymbol.setText(verdict.symbol)
            ui.verdictHeadline.setText(verdict.headline)
            ui.verdictDetails.setText("\n".join(verdict.details))
            ui.verdictDetails.setVisible(bool(verdict.details))

    def _show_faces(self) -> None:
        head = self.session.head
        self.ui.facesFrame.setVisible(bool(head and head.faces))
        self._filling = True
        self.see.list_faces(head)
        self._filling = False
        wait = self.why_no_face()
        allow(self.ui.facesList, wait, _("Pick the face that the refaced scan is to have."))
