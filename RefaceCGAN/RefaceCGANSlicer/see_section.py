"""The See section of the panel: both faces on screen, how they are shown, and the pictures of the faces drawn
so far.

The skins are made by the engine, so that the window stays alive; where it cannot make them, they are made here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import qt
from RefaceCGANLib.errors import RefaceError
from slicer.i18n import tr as _

from . import scene
from .contracts import SeeHost, Views
from .drawn_faces import state_of
from .places import label_of
from .skin_display import Skin
from .verdict import AMBER, Verdict
from .widgets import allow, sentence_of

REFINE_MS = 400
"""What was drawn coarsely, to be quick, is drawn finely this long after the last change."""
PICTURE = 128
"""Pixels of the picture of a face."""
CLOSE_MM = 80.0
"""What the slices show about a place of the face: little enough to see each voxel."""

log = logging.getLogger(__name__)


class Job:
    """Skins that are being made, one after the other; nothing is heard of it after `stop`."""

    def __init__(self, done: Callable[[list[Skin]], None], failed: Callable[[Exception], None]) -> None:
        self.done, self.failed = done, failed
        self.made: list[Skin] = []
        self.number: int | None = None
        self.stopped = self.sliding = False


class See:
    """Shows the head of the panel's session. views: RefaceCGANSlicer.views, or what behaves like it."""

    def __init__(self, ui: Any, panel: SeeHost, views: Views) -> None:
        self.ui, self.panel, self.views = ui, panel, views
        self.faces: Any = None
        """The views.Faces on screen, or None."""
        self._job: Job | None = None
        self._pictures: dict[int, Any] = {}  # id of a face -> icon, or None where none can be made
        self._listed: list[tuple[int, bool]] = []
        self._filling = False
        self._wanted: float | None = None  # the threshold that the slider was moved to last
        self._pair: tuple[Any, Any] | None = None  # two scans that are shown in place of the session's head
        self._ahead: tuple[Any, Skin] | None = None  # the state of a scan, and its skin, made ahead of time
        self._refine = qt.QTimer()
        self._refine.setSingleShot(True)
        self._refine.setInterval(REFINE_MS)
        self._refine.connect("timeout()", self._draw_finely)
        ui.showButton.connect("clicked()", lambda: self.show())
        ui.restoreButton.connect("clicked()", self._restore)
        ui.frontalButton.connect("clicked()", lambda: self._look("frontal"))
        ui.threeQuarterButton.connect("clicked()", lambda: self._look("three-quarter"))
        ui.profileButton.connect("clicked()", lambda: self._look("profile"))
        ui.placeCombo.connect("currentIndexChanged(int)", self._go_to)
        ui.nextPlaceButton.connect("clicked()", self._next_place)
        ui.skinSlider.connect("valueChanged(double)", self._threshold_moved)
        ui.skinAutoButton.connect("clicked()", self._automatic)
        ui.volumeRadio.connect("toggled(bool)", self._apply)
        ui.fadeSlider.connect("valueChanged(int)", self._apply)
        ui.outlineCheck.connect("toggled(bool)", self._apply)

    # --- both faces on screen -----------------------------------------------------------------------------

    def show(self, then: Callable[[], None] = lambda: None) -> None:
        """Show the original and the face that was picked; what cannot be shown is said in the panel. `then` is
        called in any case, once that is done, unless something else is shown before."""
        self._stop()
        self._pair = None
        head = self.panel.session.head
        assert head is not None and head.chosen is not None
        face, original = head.chosen, head.inputNode
        again = self._shows(original)
        ahead = self._ahead[1] if self._ahead and self._ahead[0] == state_of(original) else None

        def skins(made: Sequence[Skin]) -> None:
            made = [ahead, *made] if ahead and not again else made
            try:
                if again and self._shows(original):
                    self.faces.show_refaced(head.refacedNode, True, made[-1])
                else:
                    self.faces = self.views.show_faces(original, head.refacedNode, quick=True, skins=tuple(made))
                    self._show_limits()
                    self._list_places()
                self._apply()
                self._keep_picture(face, made[-1], self.faces)
                self._refine.start()
            except Exception as error:
                self._cannot_show(error)
            finally:
                then()
                self.panel.refresh()

        def failed(error: Exception) -> None:
            """The engine cannot make them."""
            log.warning("The skins are made in Slicer, as the engine could not: %s", error)
            try:
                level, made = threshold, []
                for node, _picture in wanted:
                    made.append(self.views.skin_of(node, level, True))
                    level = made[-1].threshold
            except Exception as reason:
                self._cannot_show(reason)
                then()
                self.panel.refresh()
            else:
                skins(made)

        threshold = self.faces.threshold if again else ahead.threshold if ahead else None
        first = [] if again or ahead else [(original, 0)]
        wanted = [*first, (head.refacedNode, PICTURE)]
        self._make(wanted, threshold, True, skins, failed)

    def show_pair(self, left: Any, right: Any, then: Callable[[str], None]) -> None:
        """Show two scans of one head that is not the session's, left one and right one, or one alone on both
        sides. `then` hears why that cannot be done, or an empty text, unless something else is shown before."""
        self._stop()
        self.faces, self._pair = None, (left, right)

        def skins(made: Sequence[Skin]) -> None:
            sentence = ""
            try:
                self.faces = self.views.show_faces(left, right, quick=True, skins=(made[0], made[-1]))
                self._show_limits()
                self._list_places()
                self._apply()
                self._refine.start()
            except Exception as error:
                self.faces, sentence = None, sentence_of(error)
                if not isinstance(error, (RefaceError, ImportError)):
                    log.exception("The scans cannot be shown", exc_info=error)
            then(sentence)
            self.panel.refresh()

        wanted = [(left, 0)] if left is right else [(left, 0), (right, 0)]
        self._make(wanted, None, True, skins, lambda error: then(sentence_of(error)))

    def forget_pair(self) -> None:
        """The two scans of `show_pair` are about to leave the scene."""
        if self._pair:
            self._stop()
            if self.faces:
                self.views.remove()
            self.faces = self._pair = None

    def make_ahead(self, node: Any) -> None:
        """Have the skin of a scan made before its faces are to be shown, while nothing else is to be done."""
        if self._job or (self._ahead and self._ahead[0] == state_of(node)):
            return
        state = state_of(node)

        def made(skins: Sequence[Skin]) -> None:
            self._ahead = state, skins[0]

        self._make([(node, 0)], None, True, made, lambda error: log.info("No skin ahead of time: %s", error))

    def _shows(self, original: Any) -> bool:
        """Whether the faces of this original are on screen, with all that belongs to them."""
        if not self.faces or not self.views.layout.is_shown():
            return False
        return self.faces.original is original and bool(self.faces.is_whole())

    def _cannot_show(self, error: Exception) -> None:
        """The result stays; a bug is told by name, and all of it in the log."""
        if not isinstance(error, (RefaceError, ImportError)):
            log.exception("The faces cannot be shown", exc_info=error)
        self.faces = None
        self.panel.say(Verdict(AMBER, _("The faces cannot be shown."), (sentence_of(error),)))

    def forget(self) -> None:
        """Take away all that was there to show faces."""
        self._stop()
        if self.faces:
            self.views.remove()
        self.faces = self._ahead = self._pair = None
        self._pictures.clear()

    def _restore(self) -> None:
        self._stop()
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

    # --- skins --------------------------------------------------------------------------------------------

    def _make(
        self,
        wanted: Sequence[tuple[Any, int]],
        threshold: float | None,
        quick: bool,
        done: Callable[[list[Skin]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Have skins made, in place of what was being made. wanted: volume nodes, or arrays with their matrix,
        each with the size of a picture; threshold: of all, or that of the first scan."""
        self._stop_job()
        job = self._job = Job(done, failed)

        def next_one() -> None:
            content, picture = wanted[len(job.made)]
            level = job.made[0].threshold if job.made else threshold
            try:
                array, affine = content if isinstance(content, tuple) else scene.volume_of(content)
            except RefaceError as error:
                over(partial(job.failed, error))
                return
            head = None if self._pair else self.panel.session.head
            job.number = self.panel.session.skin(
                array, affine, level, quick, picture, head.upright if head else None,
                on_done=answered, on_error=lambda error: over(lambda: job.failed(error)),
            )  # fmt: skip

        def answered(answer: dict[str, Any]) -> None:
            if job.stopped:
                return
            job.made.append(Skin.answered(answer, quick))
            next_one() if len(job.made) < len(wanted) else over(lambda: job.done(job.made))

        def over(tell: Callable[[], None]) -> None:
            if not job.stopped:
                self._job = None
                tell()

        next_one()

    def _stop(self) -> None:
        """Nobody waits any more for what is being made, or was to be made."""
        self._wanted = None
        self._stop_job()

    def _stop_job(self) -> None:
        self._refine.stop()
        job, self._job = self._job, None
        if job:
            job.stopped = True
            if job.number is not None:
                self.panel.session.give_up(job.number)

    def _threshold_moved(self, value: float) -> None:
        if self.faces and not self._filling:
            self._wanted = value
            if not (self._job and self._job.sliding):
                self._follow_slider()

    def _follow_slider(self) -> None:
        """Draw both skins at the slider's threshold; where it has moved on meanwhile, once more."""
        value, faces = self._wanted, self.faces

        def drawn(made: Sequence[Skin]) -> None:
            wanted = self._wanted
            if self.faces is faces and value is not None:
                faces.set_threshold(value, True, tuple(made))
            if wanted is not None and wanted != value:
                self._follow_slider()
            else:
                self._refine.start()

        def failed(error: Exception) -> None:
            log.info("No skin at %s: %s", value, error)  # nothing is as bright as that: all stays as it is

        self._make([(node, 0) for node in faces.nodes], value, True, drawn, failed)
        if self._job:
            self._job.sliding = True

    def _automatic(self) -> None:
        self.ui.skinSlider.value = self.faces.automatic

    def _draw_finely(self) -> None:
        """Draw finely what was drawn coarsely, then the pictures that are missing."""
        faces, head = self.faces, self.panel.session.head
        if self.panel.run:  # the processor is the engine's
            self._refine.start()
            return
        if not (head or self._pair) or self._job:
            return
        if faces and self.views.layout.is_shown() and any(faces.coarse):
            rough = [index for index in (0, 1) if faces.coarse[index]]

            def fine(made: Sequence[Skin]) -> None:
                if self.faces is faces and faces.is_whole():
                    by_index = dict(zip(rough, made, strict=True))
                    faces.refine((by_index.get(0), by_index.get(1)))
                self._draw_finely()

            wanted = [(faces.nodes[index], 0) for index in rough]
            self._make(wanted, faces.threshold, False, fine, lambda error: log.info("Not refined: %s", error))
            return
        self._draw_pictures()

    def _draw_pictures(self) -> None:
        head = self.panel.session.head
        face = next((each for each in head.faces if id(each) not in self._pictures), None) if head else None
        if not head or not face:
            return

        def drawn(made: Sequence[Skin]) -> None:
            self._keep_picture(face, made[0])
            self.panel.refresh()
            self._draw_finely()

        def failed(error: Exception) -> None:
            log.info("No picture of seed %s: %s", face.seed, error)
            self._pictures[id(face)] = None

        node = head.inputNode or head.refacedNode
        try:
            array, affine = scene.volume_of(node)
            content = face.refaced(array), affine
        except RefaceError as error:
            failed(error)
        else:
            self._make([(content, PICTURE)], None, True, drawn, failed)

    def missing_pictures(self) -> None:
        """Faces that came with a scene have no picture yet: make them when there is time."""
        self._refine.start()

    def refine_later(self) -> None:
        """The engine has time again."""
        head = self.panel.session.head
        if head and head.faces and not self._job:
            self._refine.start()

    def give_way(self) -> None:
        """A face is to be drawn, which goes first."""
        self._stop()

    def is_our_layout(self) -> bool:
        """Whether the window shows the layout of faces, filled or not."""
        return bool(self.views.layout.is_shown())

    def _keep_picture(self, face: Any, made: Skin, shown: Any = None) -> None:
        """The picture that came with a skin, or one of what is on screen."""
        if self._pictures.get(id(face)) is None:
            picture = made.picture
            if picture is None and shown:
                picture = shown.thumbnail()
            self._pictures[id(face)] = None if picture is None else icon(picture)

    def _look(self, name: str) -> None:
        if self.faces:
            self.faces.look(name)

    # --- the slices ---------------------------------------------------------------------------------------

    def _list_places(self) -> None:
        """Offer the places that this head has; the whole head comes first."""
        combo = self.ui.placeCombo
        self._filling = True
        combo.clear()
        combo.addItem(_("Whole slices"))
        for name in self.faces.places:
            combo.addItem(label_of(name))
        self._filling = False

    def _go_to(self, index: int) -> None:
        if self.faces and not self._filling and index >= 0:
            places = self.faces.places
            if index:
                self.faces.go_to(places[index - 1], CLOSE_MM)
            else:
                self.faces.go_to("nose")

    def _next_place(self) -> None:
        """Step through the places, and after the last one begin anew."""
        combo = self.ui.placeCombo
        combo.setCurrentIndex(combo.currentIndex % (combo.count - 1) + 1)

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
        ui, head = self.ui, self.panel.session.head
        shown = bool(self.faces) and self.views.layout.is_shown()
        hidden = ("" if self._pair else no_face) or ("" if shown else _("Show both faces first."))
        already = _("Both faces are shown already.") if shown and not self._pair else ""
        alone = "" if head is None or head.inputNode else _("Load the original first.")
        allow(
            ui.showButton,
            no_face or alone or already,
            _("The original left, the refaced scan right, slices of both below."),
        )
        allow(ui.restoreButton, hidden, _("Go back to the layout from before; the faces can be shown again."))
        for widget, tip in (
            (ui.frontalButton, _("Look at both faces from the front.")),
            (ui.threeQuarterButton, _("Look at both faces from the front and the side.")),
            (ui.profileButton, _("Look at both faces from the side.")),
            (ui.placeCombo, _("Where the slices go, original left, refaced right.")),
            (ui.nextPlaceButton, _("Step through eyes, nose, mouth, ears and the border of the face region.")),
            (ui.skinSlider, _("The intensity at which the skin of both faces begins.")),
            (ui.skinAutoButton, _("The intensity that was found in the original.")),
            (ui.surfaceRadio, _("Draw the skin as a surface.")),
            (ui.volumeRadio, _("Draw the scan itself. Without a graphics card the first picture takes 10 s.")),
            (ui.fadeSlider, _("Fade the right slice from the original to the refaced scan.")),
            (ui.outlineCheck, _("Show in the slices which voxels were replaced.")),
        ):
            allow(widget, hidden, tip)

    def list_faces(self, head: Any) -> None:
        """Fill the list of the faces drawn so far, and mark the one that is shown."""
        listed = [(id(face), bool(self._pictures.get(id(face)))) for face in head.faces] if head else []
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
    from RefaceCGANLib.rendering.skin_surface import write_png

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "face.png"
        write_png(picture, path)
        pixmap = qt.QPixmap(str(path))
    made = qt.QIcon(pixmap)
    made.addPixmap(pixmap, qt.QIcon.Selected)  # else it would be tinted when it is picked
    return made
