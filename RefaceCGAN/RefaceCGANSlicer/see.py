"""The See section of the panel: both faces on screen, how they are shown, and the pictures of the faces drawn
so far."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import qt
from RefaceCGANLib.errors import RefaceError
from slicer.i18n import tr as _

from .verdict import AMBER, Verdict
from .widgets import allow, sentence_of

REFINE_MS = 400
"""What was drawn coarsely, to be quick, is drawn finely this long after the last change."""


class See:
    """Shows the head of the panel's session. views: RefaceCGANSlicer.views, or what behaves like it."""

    def __init__(self, ui: Any, panel: Any, views: Any) -> None:
        self.ui, self.panel, self.views = ui, panel, views
        self.faces: Any = None
        """The views.Faces on screen, or None."""
        self._pictures: dict[int, Any] = {}  # id of a face -> icon
        self._listed: list[tuple[int, bool]] = []
        self._filling = False
        self._refine = qt.QTimer()
        self._refine.setSingleShot(True)
        self._refine.setInterval(REFINE_MS)
        self._refine.connect("timeout()", self._draw_finely)
        ui.showButton.connect("clicked()", self.show)
        ui.restoreButton.connect("clicked()", self._restore)
        ui.frontalButton.connect("clicked()", lambda: self.faces.look("frontal"))
        ui.threeQuarterButton.connect("clicked()", lambda: self.faces.look("three-quarter"))
        ui.profileButton.connect("clicked()", lambda: self.faces.look("profile"))
        ui.skinSlider.connect("valueChanged(double)", self._threshold_moved)
        ui.skinAutoButton.connect("clicked()", self._automatic)
        ui.volumeRadio.connect("toggled(bool)", self._apply)
        ui.fadeSlider.connect("valueChanged(int)", self._apply)
        ui.outlineCheck.connect("toggled(bool)", self._apply)

    # --- both faces on screen -----------------------------------------------------------------------------

    def show(self) -> None:
        """Show the original and the face that was picked; what cannot be shown is said in the panel."""
        head = self.panel.session.head
        try:
            if self.faces and self.views.layout.is_shown() and self.faces.original is head.inputNode:
                self.faces.show_refaced(head.refacedNode, quick=True)
                self._refine.start()
            else:
                self.faces = self.views.show_faces(head.inputNode, head.refacedNode, quick=True)
                self._refine.start()
                self._show_limits()
            self._apply()
            if id(head.chosen) not in self._pictures:
                self._pictures[id(head.chosen)] = icon(self.faces.thumbnail())
        except (RefaceError, ImportError) as error:
            self.faces = None
            self.panel.message = Verdict(AMBER, _("The faces cannot be shown."), (sentence_of(error),))
        self.panel.refresh()

    def forget(self) -> None:
        """Take away all that was there to show faces."""
        self._refine.stop()
        if self.faces:
            self.views.remove()
        self.faces = None
        self._pictures.clear()

    def _restore(self) -> None:
        self.views.restore_layout()
        self.panel.refresh()

    def _show_limits(self) -> None:
        slider, (low, high) = self.ui.skinSlider, self.faces.limits
        self._filling = True
        slider.decimals = 0 if high - low > 50 else 2
        slider.singleStep = (high - low) / 100
        slider.minimum, slider.maximum = low, high
        slider.value = self.faces.threshold
        self._filling = False

    def _threshold_moved(self, value: float) -> None:
        if self.faces and not self._filling:
            self.faces.set_threshold(value, quick=True)
            self._refine.start()

    def _automatic(self) -> None:
        self.ui.skinSlider.value = self.faces.automatic

    def _draw_finely(self) -> None:
        if self.panel.run:  # the processor is the engine's
            self._refine.start()
        elif self.faces and self.views.layout.is_shown():
            self.faces.refine()

    def _apply(self, *_value: Any) -> None:
        """Show the faces as the widgets say."""
        if self.faces:
            kind = "volume" if self.ui.volumeRadio.checked else "surface"
            if self.faces.rendering != kind:
                self.faces.set_rendering(kind)
            self.faces.set_fade(self.ui.fadeSlider.value / 100)
            self.faces.show_face_region(self.ui.outlineCheck.checked)

    # --- the widgets --------------------------------------------------------------------------------------

    def refresh(self, no_face: str) -> None:
        ui, shown = self.ui, bool(self.faces) and self.views.layout.is_shown()
        hidden = no_face or ("" if shown else _("Show both faces first."))
        already = _("Both faces are shown already.") if shown else ""
        allow(
            ui.showButton,
            no_face or already,
            _("The original left, the refaced scan right, slices of both below."),
        )
        allow(ui.restoreButton, hidden, _("Go back to the layout from before; the faces can be shown again."))
        for widget, tip in (
            (ui.frontalButton, _("Look at both faces from the front.")),
            (ui.threeQuarterButton, _("Look at both faces from the front and the side.")),
            (ui.profileButton, _("Look at both faces from the side.")),
            (ui.skinSlider, _("The intensity at which the skin of both faces begins.")),
            (ui.skinAutoButton, _("The intensity that was found in the original.")),
            (ui.surfaceRadio, _("Draw the skin as a surface.")),
            (ui.volumeRadio, _("Draw the scan itself; it takes a graphics card to be quick.")),
            (ui.fadeSlider, _("Fade the slices from the original to the refaced scan.")),
            (ui.outlineCheck, _("Show in the slices which voxels were replaced.")),
        ):
            allow(widget, hidden, tip)

    def list_faces(self, head: Any) -> None:
        """Fill the list of the faces drawn so far, and mark the one that is shown."""
        listed = [(id(face), id(face) in self._pictures) for face in head.faces] if head else []
        widget = self.ui.facesList
        if listed != self._listed:
            self._listed = listed
            widget.clear()
            for face in head.faces if head else ():
                widget.addItem(_item(face, self._pictures.get(id(face))))
        if head and head.chosen in head.faces:
            widget.currentRow = head.faces.index(head.chosen)


def _item(face: Any, picture: Any) -> Any:
    text = _("seed {seed}").format(seed=face.seed)
    item = qt.QListWidgetItem(picture, text) if picture else qt.QListWidgetItem(text)
    item.setToolTip(_("The face of seed {seed}: the same seed draws it again.").format(seed=face.seed))
    return item


def icon(picture: np.ndarray) -> Any:
    """A picture (H, W, 3) uint8 as a qt.QIcon; no file of it stays behind."""
    from RefaceCGANLib.surface import write_png

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "face.png"
        write_png(picture, path)
        pixmap = qt.QPixmap(str(path))
    made = qt.QIcon(pixmap)
    made.addPixmap(pixmap, qt.QIcon.Selected)  # else it would be tinted when it is picked
    return made
