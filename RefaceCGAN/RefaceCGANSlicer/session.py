"""One head in work: the engine that draws, the faces drawn so far, and the nodes they go to. The panel and
RefaceCGANLogic both stand on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import qt
from RefaceCGANLib import models
from RefaceCGANLib.errors import InputError
from slicer.i18n import tr as _

from . import install, scene
from .engine import VARIABLE, Engine, EngineError, is_own, python_of
from .faces import Face, Head
from .verdict import FACE_DISTANCE

POLL_MS = 30
"""How often the engine is asked for news while it works."""
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
        self._waiting = 0
        self._end_wait: Callable | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)

    # --- the engine ---------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """What the engine's Python lacks; empty if it can run."""
        return [] if self._engine and self._engine.running else install.missing(python_of())

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
        """Kill the engine with whatever it does; the next request starts another."""
        self._waiting, self._in_engine, self._seen = 0, None, None
        self._timer.stop()
        if self._engine:
            self._engine.cancel()
        if self._end_wait:
            self._end_wait(EngineError(_("Cancelled."), "cancelled"))

    def close(self) -> None:
        """End the engine for good, e.g. to start another Python."""
        self.cancel()
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
        self._seen = seen

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
        self._reface(head, seed, settings, callbacks)

    def another(
        self, seed: int, settings: dict[str, Any], region: np.ndarray | None = None, **callbacks: Callable
    ) -> None:
        """Draw one more face for the same head; region: bool (I, J, K), to draw it within, from here on."""
        head = self.head
        warm = self._engine is not None and self._engine.running
        if warm and self._in_engine == _held(head, settings) and not head.changed():
            self._draw(head, seed, settings, region, callbacks)
        else:  # the engine was stopped in the meantime, or is to work differently
            self._reface(head, seed, settings, callbacks, region)

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

    def pick(self, face: Face) -> None:
        self.head.pick(face)

    def restore(self, node: Any, refaced: Any) -> bool:
        """Take up a result that came with a scene; whether it is one of `node`."""
        self.head = Head.restored(refaced) if scene.original_of(refaced) is node else None
        return self.head is not None

    def forget(self) -> None:
        """The head and its faces; its nodes stay in the scene."""
        self.head = None
        self._in_engine = None

    # --- requests -----------------------------------------------------------------------------------------

    def _reface(
        self,
        head: Head,
        seed: int | None,
        settings: dict[str, Any],
        callbacks: Callbacks,
        region: np.ndarray | None = None,
    ) -> None:
        """The whole way: load what the settings ask for, find the anatomy, draw; then, with a region, draw
        within it."""
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
            self._in_engine = _held(head, settings)
            if region is None:
                self._drew(head, answer, callbacks)
            else:
                self._draw(head, seed, settings, region, callbacks)

        self._load(settings, {"on_progress": loading})
        arguments = {"volume": array, "affine": affine, "seed": seed, "defaced": settings["defaced"]}
        on_error = callbacks["on_error"]
        self._request(
            "reface",
            {"on_progress": working, "on_done": drawn, "on_error": on_error},
            dropout=settings["dropout"],
            **arguments,
        )

    def _draw(
        self,
        head: Head,
        seed: int | None,
        settings: dict[str, Any],
        region: np.ndarray | None,
        callbacks: Callbacks,
    ) -> None:
        drew = {**callbacks, "on_done": lambda answer: self._drew(head, answer, callbacks)}
        arguments = {} if region is None else {"face_region": region}
        self._request("another", drew, seed=seed, dropout=settings["dropout"], **arguments)

    def _drew(self, head: Head, answer: dict[str, Any], callbacks: Callbacks) -> None:
        if head.changed():
            self._in_engine = None
            sentence = _(
                "The scan was changed while it was refaced, so the new face was dropped; press Reface again."
            )
            callbacks["on_error"](EngineError(sentence, "input"))
            return
        face = head.add(answer["refaced"], answer["face_region"], answer["report"])
        self.head = head
        callbacks["on_done"](face)

    def _load(self, settings: dict[str, Any], callbacks: Callbacks) -> None:
        """An error is told by whatever is asked for next, too."""
        self._request("load", callbacks, **{key: settings[key] for key in ("model", "device", "threads")})

    def _request(self, command: str, callbacks: Callbacks, **arguments: Any) -> None:
        self._engine = self._engine or Engine()
        self._waiting += 1

        def then(name: str) -> Callable:
            def answered(outcome: Any) -> None:
                self._waiting -= 1
                callbacks.get(name, _nothing)(outcome)

            return answered

        self._engine.request(command, callbacks.get("on_progress"), then("on_done"), then("on_error"), **arguments)
        self._timer.start()

    def _poll(self) -> None:
        self._engine.poll()
        if not self._waiting:
            self._timer.stop()


def run(loop: Any) -> None:
    """Run a qt.QEventLoop until it is quit; PythonQt calls its method by one name with Qt 5, by another with 6."""
    (getattr(loop, "exec_", None) or loop.exec)()


def _nothing(_outcome: Any) -> None:
    """What is done where nobody wants to know."""


def _held(head: Head, settings: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine must hold to draw another face for a head: the head, and what its anatomy depends on."""
    return head, *(settings[key] for key in ("model", "device", "threads", "defaced"))
