"""Review a data set: the scans of a finished run one after the other, refaced beside original, with a verdict and
a note on each, kept in the same qc.tsv as the run's page exports; and another face for a person who needs one.

The engine reads the scans and makes the faces; what is judged is written here, at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import ctk
import qt
import slicer
from RefaceCGANLib.dataset.review import Review, Reviewed
from RefaceCGANLib.errors import InputError
from slicer.i18n import tr as _

from . import scene
from .contracts import Host, Pair
from .verdict import COLOURS, GREEN, RED, SYMBOLS
from .widgets import allow, guarded, on_path, plain_tip, sentence_of

FOLDER, ORIGINALS, KEY_FILE = (f"RefaceCGAN/Review{key}" for key in ("Folder", "Originals", "KeyFile"))
"""Keys of the application's settings: what was reviewed last."""
MARKS = {"pass": SYMBOLS[GREEN], "fail": SYMBOLS[RED], "": "·"}
KEYS = ("J", "K", "P", "F", "U", "N")
"""Next, back, pass, fail, undo, note: as on the page of the run, while the section has the keyboard."""


class ReviewHost(Host, Protocol):
    """What the review needs of the panel."""

    @property
    def see(self) -> Pair: ...


class ReviewSection:
    """`review` is the run that is open, or None; `current` its scan that is shown."""

    def __init__(self, ui: Any, panel: ReviewHost) -> None:
        self.ui, self.panel = ui, panel
        self.review: Review | None = None
        self.current: Reviewed | None = None
        self._nodes: list[Any] = []
        self._reading: int | None = None  # the request for the scan that is to be shown
        self._drawing: int | None = None  # the request for another face
        self._filling = False
        self._said, self._level = "", GREEN
        ui.reviewOriginals.filters, ui.reviewKey.filters = ctk.ctkPathLineEdit.Dirs, ctk.ctkPathLineEdit.Files
        for edit, key in ((ui.reviewOriginals, ORIGINALS), (ui.reviewKey, KEY_FILE)):
            edit.currentPath = str(qt.QSettings().value(key, ""))
        ui.reviewButton.connect("clicked()", self._choose)
        on_path(ui.reviewOriginals, self._originals_named)
        ui.reviewList.connect("currentRowChanged(int)", self._picked)
        ui.reviewNote.connect("editingFinished()", self._noted)
        ui.reviewAnotherButton.connect("clicked()", self._another_or_cancel)
        actions = (
            (ui.reviewNextButton, lambda: self.move(1)), (ui.reviewBackButton, lambda: self.move(-1)),
            (ui.reviewPassButton, lambda: self.judge("pass")), (ui.reviewFailButton, lambda: self.judge("fail")),
            (ui.reviewUndoButton, lambda: self.judge("")),
        )  # fmt: skip
        for button, action in actions:
            button.connect("clicked()", action)
        self._shortcuts = []
        for key, action in zip(KEYS, (*(action for _button, action in actions), self._write_note), strict=True):
            shortcut = qt.QShortcut(qt.QKeySequence(key), ui.reviewSection)
            shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
            shortcut.connect("activated()", action)
            self._shortcuts.append(shortcut)

    # --- a run and its scans ------------------------------------------------------------------------------

    def _choose(self) -> None:
        start = str(qt.QSettings().value(FOLDER, ""))
        folder = choose_folder(self.ui.reviewSection, start)
        if folder:
            self.open(Path(folder))

    def open(self, folder: Path) -> None:
        """Review the output of a run, beginning with the first scan that has no verdict yet."""
        self.close()
        try:
            self.review = Review.open(folder)
        except InputError as error:
            self._say(str(error), RED)
        else:
            qt.QSettings().setValue(FOLDER, str(folder))
            self._list()
            scans = self.review.scans
            self.go_to(next((at for at, scan in enumerate(scans) if not scan.verdict), 0))
            self.ui.reviewSection.collapsed = False
            self.ui.reviewList.setFocus()
        self.panel.refresh()

    def close(self) -> None:
        """Nothing is reviewed any more; a face that is being made is given up."""
        self._give_up()
        if self._drawing is not None:
            self.panel.session.give_up(self._drawing)
        self._drawing = self.review = self.current = None
        self._said = ""
        self._clear()
        self._list()

    def interrupt(self) -> None:
        """The engine was ended: nobody answers any more."""
        if self._drawing is not None or self._reading is not None:
            self._drawing = self._reading = None
            self._say(_("The engine was ended; nothing was changed."), RED)

    def scene_closing(self) -> None:
        """The nodes go with the scene; what is reviewed stays."""
        self._give_up()
        self._nodes.clear()
        self.current = None

    def go_to(self, row: int) -> None:
        """Show a scan of the list."""
        if self.review and 0 <= row < len(self.review.scans):
            self._noted()
            self.current = self.review.scans[row]
            self._fill(row)
            self._show()

    def move(self, step: int) -> None:
        """Go on in the list, or back."""
        if self.review and self.current:
            self.go_to(self.review.scans.index(self.current) + step)

    def judge(self, verdict: str) -> None:
        """Keep a verdict on the scan that is shown, and go on to the next one, or with "" take it back."""
        if self.review and self.current and self._drawing is None:
            scan = self.current
            if self._keep(scan, verdict, str(self.ui.reviewNote.text)) and verdict:
                self.move(1)
            self.panel.refresh()

    def _keep(self, scan: Reviewed, verdict: str | None, note: str) -> bool:
        assert self.review is not None
        try:
            self.review.judge(scan, verdict, note)
        except InputError as error:
            self._say(str(error), RED)
            return False
        item = self.ui.reviewList.item(self.review.scans.index(scan))
        item.setText(_line(scan))
        return True

    def _noted(self) -> None:
        if self.review and self.current and not self._filling and self._drawing is None:
            self._keep(self.current, None, str(self.ui.reviewNote.text))

    def _write_note(self) -> None:
        self.ui.reviewNote.setFocus()

    def _picked(self, row: int) -> None:
        if not self._filling:
            self.go_to(row)
            self.panel.refresh()

    def _originals_named(self, path: str) -> None:
        qt.QSettings().setValue(ORIGINALS, path)
        if self.current and self._drawing is None:
            self._show()
        self.panel.refresh()

    # --- both scans on screen -----------------------------------------------------------------------------

    def _show(self) -> None:
        """Have the scan and its original read, and show them in place of those before."""
        assert self.review is not None and self.current is not None
        self._give_up()
        scan, originals = self.current, str(self.ui.reviewOriginals.currentPath).strip()
        self._say(_("… Reading {path}").format(path=scan.path), GREEN)

        def there(answer: dict[str, Any]) -> None:
            self._reading = None
            self._clear()
            name = Path(scan.path).name
            right = self._add(answer["scan"], answer["scan_affine"], name)
            left = right
            if answer["original"] is not None:
                left = self._add(
                    answer["original"], answer["original_affine"], _("{name} original").format(name=name)
                )
            why = _("The original is not shown: {why}").format(why=answer["why"]) if left is right else ""
            self.panel.see.show_pair(
                left, right, lambda sentence: self._say(sentence or why, RED if sentence else GREEN)
            )

        def not_there(error: Exception) -> None:
            self._reading = None
            self._clear()
            self._say(sentence_of(error), RED)

        self._reading = self.panel.session.review_scan(
            str(self.review.folder), scan.path, originals or None,
            on_done=guarded(there, not_there), on_error=not_there,
        )  # fmt: skip
        self.panel.refresh()

    def _add(self, array: Any, affine: Any, name: str) -> Any:
        node = scene.add_shown(slicer.mrmlScene, array, affine, name)
        self._nodes.append(node)
        return node

    def _give_up(self) -> None:
        if self._reading is not None:
            self.panel.session.give_up(self._reading)
            self._reading = None

    def _clear(self) -> None:
        """Take the scans that were shown out of the scene."""
        if self._nodes:
            self.panel.see.forget_pair()
            scene.remove(slicer.mrmlScene, *self._nodes)
            self._nodes.clear()

    # --- another face -------------------------------------------------------------------------------------

    def _another_or_cancel(self) -> None:
        if self._drawing is not None:
            self.panel.session.give_up(self._drawing)
            self._drawing = None
            self._say(_("Cancelled; all series keep the face they have."), GREEN)
            self.panel.refresh()
        elif self.review and self.current and not self._why_no_other():
            self._noted()
            self._another(self.review, self.current)

    def _another(self, review: Review, scan: Reviewed) -> None:
        path, key = (str(edit.currentPath).strip() for edit in (self.ui.reviewOriginals, self.ui.reviewKey))
        qt.QSettings().setValue(KEY_FILE, key)

        def progressed(_stage: str, share: float) -> None:
            text = _("… Another face for {person}: {share} % of the series")
            self._say(text.format(person=scan.subject or scan.path, share=round(100 * share)), GREEN)

        def done(answer: dict[str, Any]) -> None:
            self._drawing = None
            self.open(review.folder)
            assert self.review is not None
            paths = [one.path for one in self.review.scans]
            if scan.path in paths:
                self.go_to(paths.index(scan.path))
            text = _("{count} series of {person} have another face; judge them again.")
            self._say(text.format(count=answer["series"], person=scan.subject or scan.path), GREEN)

        def failed(error: Exception) -> None:
            self._drawing = None
            self._say(sentence_of(error), RED)

        self._drawing = self.panel.session.another_person(
            str(review.folder), path, scan.subject, key or None,
            on_progress=progressed, on_done=guarded(done, failed), on_error=failed,
        )  # fmt: skip
        progressed("", 0.0)

    def _why_no_other(self) -> str:
        if not str(self.ui.reviewOriginals.currentPath).strip():
            return _("Name the folder of the originals first.")
        return ""

    # --- the widgets --------------------------------------------------------------------------------------

    def refresh(self, _no_face: str) -> None:
        ui = self.ui
        none = "" if self.review else _("Open the output folder of a run first.")
        empty = none or ("" if self.current else _("Choose a scan first."))
        busy = empty or (_("Wait for the other face, or cancel it.") if self._drawing is not None else "")
        allow(
            ui.reviewButton,
            _("Wait for the other face, or cancel it.") if self._drawing is not None else "",
            _("Open the output folder of refacecgan dataset, and look through its scans."),
        )
        for widget, why, tip in (
            (ui.reviewList, busy or none, _("The scans of the run, those most worth a look first.")),
            (ui.reviewOriginals, none, _("The input of the run, to see both faces and to draw others.")),
            (ui.reviewKey, none, _("The run's secret key file; empty: beside the output, where the run put it.")),
            (ui.reviewNextButton, busy, _("The next scan (key J).")),
            (ui.reviewBackButton, busy, _("The scan before (key K).")),
            (ui.reviewPassButton, busy, _("This scan is good (key P).")),
            (ui.reviewFailButton, busy, _("This scan is not good (key F).")),
            (ui.reviewUndoButton, busy, _("Take the verdict back (key U).")),
            (ui.reviewNote, busy, _("Whatever should be remembered of this scan (key N).")),
        ):
            allow(widget, why, tip)
        drawing = self._drawing is not None
        ui.reviewAnotherButton.setText(_("Cancel") if drawing else _("Another face for this person"))
        allow(
            ui.reviewAnotherButton,
            empty or ("" if drawing else self._why_no_other()),
            _("All series keep the face they have.") if drawing
            else _("Draw another face in all series of this person; takes as long as the run took for them."),
        )  # fmt: skip
        scans = self.review.scans if self.review else []
        text = _("{judged} of {count} judged, {failed} failed. Verdicts are kept in qc.tsv.")
        judged, failed = sum(bool(scan.verdict) for scan in scans), sum(scan.verdict == "fail" for scan in scans)
        ui.reviewLabel.setText(
            text.format(judged=judged, count=len(scans), failed=failed) if self.review
            else _("The scans of a finished run, refaced beside original.")
        )  # fmt: skip
        ui.reviewText.setText(_about(self.current) if self.current else "")
        ui.reviewText.setVisible(bool(self.current))
        ui.reviewMessage.setText(self._said)
        ui.reviewMessage.setStyleSheet("" if self._level == GREEN else f"color: {COLOURS[self._level]};")
        ui.reviewMessage.setVisible(bool(self._said))

    def _say(self, text: str, level: str) -> None:
        self._said, self._level = text, level
        self.panel.refresh()

    def _list(self) -> None:
        self._filling = True
        self.ui.reviewList.clear()
        for scan in self.review.scans if self.review else ():
            item = qt.QListWidgetItem(_line(scan))
            item.setToolTip(plain_tip(scan.path))
            self.ui.reviewList.addItem(item)
        self._filling = False

    def _fill(self, row: int) -> None:
        assert self.current is not None
        self._filling = True
        self.ui.reviewList.currentRow = row
        self.ui.reviewNote.setText(self.current.note)
        self._filling = False


def choose_folder(parent: Any, start: str) -> str:
    """Ask for a folder; empty where none was chosen."""
    return str(qt.QFileDialog.getExistingDirectory(parent, _("Output folder of a run"), start) or "")


def _line(scan: Reviewed) -> str:
    worth = f"{SYMBOLS['amber']} " if scan.look and not scan.verdict else ""
    return f"{MARKS[scan.verdict]} {worth}{scan.path}"


def _about(scan: Reviewed) -> str:
    """What the run says of a scan; the reasons to look at it come first."""
    return "\n".join([*(f"! {line}" for line in scan.look), f"{scan.action}: {scan.reason}", *scan.checks])
