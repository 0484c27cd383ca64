"""How far the new face is from the original's, where a face recogniser is set: asked of the engine once both faces
are on screen and nothing else runs, and given up when another face is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import qt
from slicer.i18n import tr as _

from .contracts import RecognitionHost
from .verdict import FACE_DISTANCE, Verdict, verdict_of

DELAY_MS = 800
"""The engine is asked this long after the last change, when both faces are painted and drawn finely."""


class Recognition:
    """Has the chosen face of the panel's head looked at; the answer goes into the report of the face it is about,
    so a late one is never shown as another face's."""

    def __init__(self, panel: RecognitionHost) -> None:
        self.panel = panel
        self._models: dict[str, Any] | None = None  # see Session.recognise
        self._asked: Any = None  # the face that the engine is looking at
        self._failed: tuple[Any, str] = None, ""  # the face it could not look at, and why
        self.timer = qt.QTimer()
        self.timer.setSingleShot(True)
        self.timer.setInterval(DELAY_MS)
        self.timer.connect("timeout()", self._ask)

    def refresh(self) -> None:
        """To be called after any change: what was measured with other models no longer counts."""
        models, head = self.panel.face_models(), self.panel.session.head
        if models and models != self._models:
            if self._models and head:
                for face in head.faces:
                    face.set_check(FACE_DISTANCE, None)
            self._models = models
            self.forget()
        if self._is_due():
            self.timer.start()
        else:
            self.timer.stop()

    def forget(self) -> None:
        """The engine was stopped, or is to look with other eyes: what was asked is not answered any more."""
        self._asked, self._failed = None, (None, "")

    def verdict(self, face: Any) -> Verdict:
        """The verdict on a face, with a line on a distance that is not there yet, or why there is none."""
        report = face.report
        if self._failed[0] is face:
            sentence = _("The distance to the original face was not measured. {why}")
            report = {**report, "warnings": [*report["warnings"], sentence.format(why=self._failed[1])]}
        verdict = verdict_of(report)
        if self._asked is face or self._is_due():
            line = _("Distance to the original face: being measured …")
            verdict = replace(verdict, details=(*verdict.details[:-1], line))
        elif self._failed[0] is face:
            verdict = replace(verdict, details=verdict.details[:-1])  # why is said above
        return verdict

    def _is_due(self) -> bool:
        """Whether the chosen face is on screen and still to be looked at."""
        panel, head = self.panel, self.panel.session.head
        face = head.chosen if head else None
        if not face or not head or not head.inputNode or panel.run or not panel.is_shown():
            return False
        if not panel.face_models():
            return False
        measured = face.check(FACE_DISTANCE) or face.report["already_defaced"]  # which has no face to compare with
        return not measured and face not in (self._asked, self._failed[0])

    def _ask(self) -> None:
        head = self.panel.session.head
        if self._is_due() and head and head.chosen and self._models:
            face = self._asked = head.chosen
            self.panel.session.recognise(
                face,
                self._models,
                on_done=lambda _check: self._answered(face),
                on_error=lambda error: self._answered(face, error),
            )

    def _answered(self, face: Any, error: Exception | None = None) -> None:
        if self._asked is not face:
            return
        self._asked = None
        if error and getattr(error, "kind", "") != "cancelled":  # else it is asked for again in time
            self._failed = face, str(error)
        self.panel.refresh()
