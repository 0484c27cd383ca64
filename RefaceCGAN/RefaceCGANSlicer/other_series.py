"""The other series of the same person: all get the same new face, each in its own contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import qt
from slicer.i18n import tr as _

from . import scene
from .contracts import Host
from .drawn_faces import Face
from .verdict import INFO, RED, Verdict, verdict_of
from .widgets import allow

SHOWN_NODE = 256
"""Role of a list item that holds the id of its scan (Qt::UserRole)."""


def same_person(face: Face) -> dict[str, Any]:
    """What makes the engine draw the face of one series in another series of the same person: arguments of its
    command `reface`."""
    return {"seed": face.seed}


class StudyHost(Host, Protocol):
    """What the study needs of the panel."""

    def why_not_reface(self) -> str: ...
    def settings(self) -> dict[str, Any]: ...
    def begin(self, wanted: int) -> Any: ...
    def heard(self, run: Any, function: Callable) -> Callable: ...
    def progressed(self, stage: str, fraction: float) -> None: ...
    def end(self, message: Verdict | None) -> None: ...


@dataclass
class Series:
    """One other series: its scan, whether it is to be refaced, and what came of it."""

    node: Any
    wanted: bool
    verdict: Verdict | None = None


class Study:
    """Lists the other scans of the scene; those of the same DICOM patient or study are ticked."""

    def __init__(self, ui: Any, panel: StudyHost) -> None:
        self.ui, self.panel = ui, panel
        self.series: list[Series] = []
        self._of: Any = None  # the head whose other series these are
        self._waiting: list[Series] = []
        self._filling = False
        ui.seriesList.connect("itemChanged(QListWidgetItem*)", self._ticked)
        ui.seriesButton.connect("clicked()", self._reface)

    def look(self) -> None:
        """Find the other series anew; to be called when scans come or go and when another head is shown."""
        head = self.panel.session.head
        node = head.inputNode if head else None
        known = {id(each.node): each for each in self.series} if self._of is node else {}
        self._of, self.series = node, []
        if node is not None:
            same, others = scene.other_series(node)
            fresh = [Series(other, other in same) for other in (*same, *others)]
            self.series = [known.get(id(each.node), each) for each in fresh]
        self._list()

    def refresh(self, no_face: str) -> None:
        ui = self.ui
        alone = "" if self.series else _("Load other series of the same person first.")
        unticked = "" if any(each.wanted for each in self.series) else _("Tick a series first.")
        why_not = no_face or alone or unticked or self.panel.why_not_reface()
        allow(ui.seriesList, no_face or alone, _("Tick the scans that show the same person."))
        allow(ui.seriesButton, why_not, _("Give each of the ticked scans the face that is shown."))
        ui.seriesHint.setVisible(bool(self.series))

    def _list(self) -> None:
        widget = self.ui.seriesList
        self._filling = True
        widget.clear()
        for each in self.series:
            verdict = each.verdict
            text = each.node.GetName()
            if verdict:
                text = f"{verdict.symbol} {text}: {verdict.headline}"
            item = qt.QListWidgetItem(text)
            item.setCheckState(qt.Qt.Checked if each.wanted else qt.Qt.Unchecked)
            item.setToolTip("\n".join(verdict.details) if verdict else _("Tick it if it shows the same person."))
            item.setData(SHOWN_NODE, each.node.GetID())
            widget.addItem(item)
        self._filling = False

    def _ticked(self, item: Any) -> None:
        if self._filling:
            return
        for each in self.series:
            if each.node.GetID() == item.data(SHOWN_NODE):
                each.wanted = item.checkState() == qt.Qt.Checked
        self.panel.refresh()

    # --- one after the other ------------------------------------------------------------------------------

    def _reface(self) -> None:
        self._waiting = [each for each in self.series if each.wanted]
        for each in self._waiting:
            each.verdict = None
        self._list()
        run = self.panel.begin(len(self._waiting))
        self._next(run)

    def _next(self, run: Any) -> None:
        if not self._waiting:
            self._over()
            return
        each, head = self._waiting.pop(0), self.panel.session.head
        assert head is not None and head.chosen is not None
        answers: dict[str, Callable] = {
            "on_progress": self.panel.progressed,
            "on_done": lambda face: self._done(run, each, verdict_of(face.report)),
            "on_error": lambda error: self._done(run, each, Verdict(RED, str(error))),
        }
        callbacks = {name: self.panel.heard(run, function) for name, function in answers.items()}
        self.panel.session.series(each.node, self.panel.settings(), same_person(head.chosen), **callbacks)

    def _done(self, run: Any, each: Series, verdict: Verdict) -> None:
        each.verdict = verdict
        run.drawn, run.wanted = run.drawn + 1, max(0, run.wanted - 1)
        self.panel.progressed("locate", 0.0)
        self._list()
        self._next(run)

    def _over(self) -> None:
        made = [each for each in self.series if each.wanted and each.verdict]
        bad = [each for each in made if each.verdict and each.verdict.level == RED]
        if bad:
            names = ", ".join(each.node.GetName() for each in bad)
            self.panel.end(Verdict(RED, _("Not all series were refaced."), (names,)))
        else:
            text = _("{count} other series were refaced, too.").format(count=len(made))
            hint = _("Each has a verdict of its own, under Same person. Choose a result as the scan to see it.")
            self.panel.end(Verdict(INFO, text, (hint,)))
