"""One head in work: the engine that draws, the faces drawn so far, and the nodes they go to. The panel and
RefaceCGANLogic both stand on it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import qt
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.models import model as models
from slicer.i18n import tr as _

from . import install, scene
from .drawn_faces import Face, Head
from .engine import VARIABLE, Engine, EngineError, is_own, python_of
from .verdict import FACE_DISTANCE

POLL_MS = 30
"""How often the engine is asked for news while it works."""
UID_KEY = secrets.token_hex(32)
"""Decides the UIDs of DICOM series that are written until Slicer ends, so that those of a study stay together."""
LOADING = 0.6
"""How much of the progress of `load` counts in a whole run, where there is something to load."""

Callbacks = dict[str, Callable]
"""on_progress(stage, fraction), on_done(...), on_error(error); all on the main thread, none after `cancel`."""


class Session:
    """`head` is the head whose faces are shown, or None."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self._engine: Engine | None = None
        self._in_engine: tuple[Any, ...] | None = None  # which head and settings the engine holds
        self._seen: Head | None = None  # the head that was prepared last
        self._defaced: bool | None = None  # whether its face had been removed; None while that is not known
        self._polling = False
        self._complete: str | None = None  # a Python that lacks nothing
        self._end_wait: Callable | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)

    # --- the engine ---------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """What the engine's Python lacks; empty if it can run."""
        python = python_of()
        if (self._engine and self._engine.running) or python == self._complete:
            return []
        missing = install.missing(python)  # which takes half a second for a Python that is not Slicer's own
        self._complete = None if missing else python
        return missing

    def runs_in_slicer(self) -> bool:
        """Whether Slicer's own Python is to run the engine."""
        return is_own(python_of())

    def install(self) -> None:
        """Ask, then install what is missing into Slicer's Python. Raises EngineError."""
        install.install()

    def python_in_environment(self) -> str:
        """The Python that REFACECGAN_PYTHON names, which then goes before the setting."""
        return os.environ.get(VARIABLE, "")

    def models(self) -> list[models.Model]:
        return models.available()

    def warm_up(self, settings: dict[str, Any], **callbacks: Callable) -> None:
        """Start the engine and load the model; on_done hears the model's id, the device and the threads."""
        self._load(settings, callbacks)

    def cancel(self) -> None:
        """Give up whatever is under way, but for files that are being written; the engine stays warm."""
        if self._defaced is None:
            self._seen = None  # it was still being looked at
        if self._engine:
            self._engine.cancel()
        if self._end_wait:
            self._end_wait(EngineError(_("Cancelled."), "cancelled"))

    def empty(self) -> None:
        """Forget the head, also in the engine, which stays warm."""
        self.cancel()
        self.forget()
        self._seen = None
        if self._engine and self._engine.running:
            self._request("drop", {})

    def close(self) -> None:
        """End the engine for good, e.g. to start another Python."""
        self.cancel()
        self._in_engine = self._seen = None
        self._timer.stop()
        if self._engine:
            self._engine.stop()
        self._engine = None

    def wait(self, begin: Callable[..., None]) -> Any:
        """Call begin(on_progress=..., on_done=..., on_error=...) and return what on_done hears; the window stays
        alive meanwhile. Raises what on_error hears, and EngineError where the run is cancelled."""
        loop, outcome = qt.QEventLoop(), []

        def end(value: Any) -> None:
            outcome.append(value)
            loop.quit()

        self._end_wait = end
        try:
            begin(on_progress=lambda stage, fraction: None, on_done=end, on_error=end)
            if not outcome:
                run(loop)
        finally:
            self._end_wait = None
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    # --- faces --------------------------------------------------------------------------------------------

    def prepare(self, node: Any, settings: dict[str, Any], **callbacks: Callable) -> None:
        """Let the engine find brain and face of a volume node ahead of time, unless it was asked to already.
        on_done hears the answer; what goes wrong is told when the node is refaced."""
        if self._is_seen(node):
            return
        try:
            array, affine = scene.volume_of(node)
        except InputError:
            return
        seen, self._defaced = Head(node), None
        self._seen, self._in_engine = seen, None

        def found(answer: dict[str, Any]) -> None:
            if self._seen is seen:
                self._defaced = answer["already_defaced"]
                callbacks["on_done"](answer)

        listeners = {**callbacks, "on_done": found}
        self._request("prepare", listeners, volume=array, affine=affine, defaced=settings["defaced"])

    def already_defaced(self, node: Any) -> bool | None:
        """Whether the face of a volume node had been removed; None while that is not known."""
        return self._defaced if self._is_seen(node) else None

    def _is_seen(self, node: Any) -> bool:
        return self._seen is not None and self._seen.inputNode is node and not self._seen.changed()

    def start(
        self, node: Any, seed: int, settings: dict[str, Any], output: Any = None, **callbacks: Callable
    ) -> None:
        """Reface a volume node. on_done hears the Face, to be picked with `pick`; until then the scene is as it
        was. Faces drawn for the same node before are kept. output: the node to fill (default: the one filled
        before, or a new one)."""
        head = self.head
        if not head or head.inputNode is not node or head.changed() or output not in (None, head.refacedNode):
            head = Head(node, output)

        def drew(face: Face) -> None:
            self.head = head
            callbacks["on_done"](face)

        self._reface(head, {"seed": seed}, settings, {**callbacks, "on_done": drew})

    def series(self, node: Any, settings: dict[str, Any], person: dict[str, Any], **callbacks: Callable) -> None:
        """Reface another series of a person and put the result into the scene beside it; `head` stays. person:
        see `study.same_person`. on_done hears the Face."""
        results = scene.results_of(node)
        head = Head(node, results[-1] if results else None)

        def drew(face: Face) -> None:
            head.pick(face)
            callbacks["on_done"](face)

        self._reface(head, person, settings, {**callbacks, "on_done": drew}, keep=False)

    def another(
        self, seed: int, settings: dict[str, Any], region: np.ndarray | None = None, **callbacks: Callable
    ) -> None:
        """Draw one more face for the same head; region: bool (I, J, K), to draw it within, from here on."""
        head = self.head
        assert head is not None
        warm = self._engine is not None and self._engine.running
        if warm and self._in_engine == _held(head, settings) and not head.changed():
            self._draw(head, seed, settings, region, callbacks)
        else:  # the engine was stopped in the meantime, or is to work differently
            self._reface(head, {"seed": seed}, settings, callbacks, region)

    def deface(self, node: Any, settings: dict[str, Any], **callbacks: Callable) -> None:
        """Empty the face region of a volume node; on_done hears the engine's answer (defaced, face_region,
        report)."""
        self._in_engine = None
        try:
            array, affine = scene.volume_of(node)
        except InputError as error:
            callbacks["on_error"](error)
            return
        self._load(settings, {})
        self._request("deface", callbacks, volume=array, affine=affine, defaced=settings["defaced"])

    def recognise(self, face: Face, models: dict[str, Any], **callbacks: Callable) -> None:
        """Find out whether a face recogniser takes a face for its original's. models: detector and recogniser,
        ONNX files, and limit, the least distance of two people. on_done hears the entry for the report's checks,
        once it is in there; an error of kind "cancelled" says that something else was asked for in between."""
        try:
            original, affine = scene.volume_of(scene.original_of(face.volumeNode))
            refaced = face.refaced(original)
        except InputError as error:
            callbacks["on_error"](error)
            return

        def recognised(answer: dict[str, Any]) -> None:
            face.set_check(FACE_DISTANCE, answer["check"])
            callbacks["on_done"](answer["check"])

        files = {key: os.path.abspath(os.path.expanduser(models[key])) for key in ("detector", "recogniser")}
        arguments = {"original": original, "refaced": refaced, "affine": affine, **models, **files}
        self._request("recognise", {**callbacks, "on_done": recognised}, **arguments)

    def skin(
        self,
        array: np.ndarray,
        affine: np.ndarray,
        threshold: float | None,
        quick: bool,
        picture: int,
        upright: np.ndarray | None,
        **callbacks: Callable,
    ) -> int:
        """Have the skin of a scan made: array (I, J, K), affine (4, 4) voxel to RAS+ mm; the rest and the answer
        as of the engine's command `skin`. Returns a number for `give_up`."""
        return self._request(
            "skin", callbacks, volume=array, affine=affine, threshold=threshold, quick=quick, picture=picture,
            upright=upright,
        )  # fmt: skip

    def give_up(self, number: int) -> None:
        """Nobody waits for the answer to a request any more."""
        if self._engine:
            self._engine.cancel(number)

    def save(self, node: Any, path: str, mask: bool, report: bool, picture: bool, **callbacks: Callable) -> None:
        """Have a result written (see `scene.to_write`); on_done hears files, the names of what was written. It is
        not given up by `cancel`."""
        try:
            content = scene.to_write(node, mask, report)
        except InputError as error:
            callbacks["on_error"](error)
            return
        path = os.path.abspath(os.path.expanduser(path))
        self._request("save", callbacks, lasting=True, path=path, picture=picture, **content)

    def save_dicom(self, node: Any, folder: str, **callbacks: Callable) -> None:
        """Have a result written as the DICOM series that its original was loaded from, into a new folder; on_done
        hears files, its name, and warnings. All series that are written until Slicer ends get consistent UIDs. It
        is not given up by `cancel`."""
        try:
            content = scene.to_write_dicom(node)
        except InputError as error:
            callbacks["on_error"](error)
            return
        folder = os.path.abspath(os.path.expanduser(folder))
        self._request("save_dicom", callbacks, lasting=True, folder=folder, uid_key=UID_KEY, **content)

    def review_scan(self, output: str, path: str, originals: str | None, **callbacks: Callable) -> int:
        """Have a scan of a finished run read, and its original; on_done hears the answer of the engine's command
        `review_scan`. Returns a number for `give_up`; `cancel` leaves it alone."""
        return self._request("review_scan", callbacks, lasting=True, output=output, path=path, originals=originals)

    def another_person(
        self, output: str, originals: str, subject: str, key_file: str | None, **callbacks: Callable
    ) -> int:
        """Have a person of a finished run given another face; on_done hears the answer of the engine's command
        `another_person`. Returns a number for `give_up`, which leaves all as it was; `cancel` leaves it alone."""
        return self._request(
            "another_person", callbacks, lasting=True, output=output, originals=originals, subject=subject,
            key_file=key_file,
        )  # fmt: skip

    def pick(self, face: Face) -> None:
        if self.head:
            self.head.pick(face)

    def restore(self, refaced: Any) -> bool:
        """Take up a result that is in the scene; whether that can be done."""
        self.head = Head.restored(refaced)
        return self.head is not None

    def forget(self) -> None:
        """The head and its faces; its nodes stay in the scene."""
        self.head = None
        self._in_engine = None

    # --- requests -----------------------------------------------------------------------------------------

    def _reface(
        self,
        head: Head,
        face: dict[str, Any],
        settings: dict[str, Any],
        callbacks: Callbacks,
        region: np.ndarray | None = None,
        keep: bool = True,
    ) -> None:
        """The whole way: load what the settings ask for, find the anatomy, draw; then, with a region, draw
        within it. face: what decides the face, arguments of the command `reface`; keep: whether other faces for
        the same head are drawn without another look at it."""
        try:
            array, affine = scene.volume_of(head.inputNode)
        except InputError as error:
            callbacks["on_error"](error)
            return
        self._in_engine, share = None, 0.0

        def loading(stage: str, fraction: float) -> None:
            nonlocal share
            share = max(share, LOADING * fraction)
            callbacks["on_progress"](stage, share)

        def working(stage: str, fraction: float) -> None:
            callbacks["on_progress"](stage, share + (1 - share) * fraction)

        def drawn(answer: dict[str, Any]) -> None:
            self._in_engine = _held(head, settings) if keep else None
            if region is None:
                self._drew(head, answer, callbacks)
            else:
                self._draw(head, face["seed"], settings, region, callbacks)

        self._load(settings, {"on_progress": loading})
        self._request(
            "reface",
            {"on_progress": working, "on_done": drawn, "on_error": callbacks["on_error"]},
            volume=array, affine=affine, defaced=settings["defaced"], dropout=settings["dropout"], **face,
        )  # fmt: skip

    def _draw(
        self,
        head: Head,
        seed: int | None,
        settings: dict[str, Any],
        region: np.ndarray | None,
        callbacks: Callbacks,
    ) -> None:
        held, arguments = self._in_engine, dict[str, Any]()
        if region is not None:
            self._in_engine, arguments = None, {"face_region": region}  # until it is drawn: it may be cancelled

        def drawn(answer: dict[str, Any]) -> None:
            self._in_engine = held
            self._drew(head, answer, callbacks)

        drew = {**callbacks, "on_done": drawn}
        self._request("another", drew, seed=seed, dropout=settings["dropout"], **arguments)

    def _drew(self, head: Head, answer: dict[str, Any], callbacks: Callbacks) -> None:
        if head.changed():
            self._in_engine = None
            sentence = _(
                "The scan was changed while it was refaced, so the new face was dropped; press Reface again."
            )
            callbacks["on_error"](EngineError(sentence, "input"))
            return
        if "upright" in answer:
            head.upright = np.array(answer["upright"])
        callbacks["on_done"](head.add(answer["refaced"], answer["face_region"], answer["report"]))

    def _load(self, settings: dict[str, Any], callbacks: Callbacks) -> None:
        """An error is told by whatever is asked for next, too."""
        self._request("load", callbacks, **{key: settings[key] for key in ("model", "device", "threads")})

    def _request(self, command: str, callbacks: Callbacks, lasting: bool = False, **arguments: Any) -> int:
        self._engine = self._engine or Engine()
        listeners = {
            "on_progress": callbacks.get("on_progress"),
            "on_done": callbacks.get("on_done", _nothing),
            "on_error": callbacks.get("on_error", _nothing),
        }
        number = self._engine.request(command, lasting=lasting, **listeners, **arguments)
        self._timer.start()
        return number

    def _poll(self) -> None:
        """Not while a callback lets the application work off its events: what comes meanwhile is heard later."""
        if self._polling or not self._engine:
            return
        self._polling = True
        try:
            self._engine.poll()
        finally:
            self._polling = False
        if self._engine and not self._engine.busy:
            self._timer.stop()


def run(loop: Any) -> None:
    """Run a qt.QEventLoop until it is quit; PythonQt calls its method by one name with Qt 5, by another with 6."""
    (getattr(loop, "exec_", None) or loop.exec)()


def _nothing(_outcome: Any) -> None:
    """What is done where nobody wants to know."""


def _held(head: Head, settings: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine must hold to draw another face for a head: the head, and what its anatomy depends on."""
    return head, *(settings[key] for key in ("model", "device", "threads", "defaced"))
