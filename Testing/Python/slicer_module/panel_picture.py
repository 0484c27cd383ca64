"""Draws the picture of the panel for the README:

    python Testing/Python/slicer_module/panel_picture.py OUT.png [FACE_MODELS]

The module's real panel beside its real views, on the stand-ins of the tests, on the sample head with faces of
the real engine, in a window of 1366 x 768 pixels; OUT-dark.png is the same in a dark theme. FACE_MODELS: a
folder with yunet.onnx and MobileFaceNet.onnx, for the distance in the verdict. Prints how long each step took, and
for how long the panel's own code kept the window from answering.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPOSITORY / "RefaceCGAN"), str(Path(__file__).parent)]
os.environ.setdefault("REFACECGAN_PYTHON", sys.executable)

import qt_stand_ins
import slicer
import slicer_offscreen

qt_stand_ins.install()

from RefaceCGANLib.rendering import skin_surface as surface
from RefaceCGANSlicer import layout
from test_module import Widget

PANEL, VIEWS = (420, 768), (946, 768)
"""Width and height in pixels of the panel, and of the views beside it: a screen of 1366 x 768."""
ROW, SEEDS, CANCELLED = 420, (5, 4, 3), 2
"""Height of the 3D views; the faces that are drawn, and the one that is cancelled once."""
DARK = {"Window": "#2d2d30", "WindowText": "#e6e6e6", "Base": "#1f1f22", "Text": "#e6e6e6", "Button": "#3a3a3d",
        "ButtonText": "#e6e6e6", "PlaceholderText": "#9a9a9a", "Light": "#5a5a5e", "Mid": "#4a4a4e"}  # fmt: skip
"""Colours of a dark theme, by role."""


def wait(what: str, is_there: Callable[[], bool], began: float) -> tuple[float, float]:
    """Let the application live until something is there, and say and return how long it took since `began`, and
    the longest time that the panel's code kept the window from answering (of the processor, so that a busy
    computer does not count); seconds."""
    application, longest = qt_stand_ins.application(), 0.0
    while not is_there():
        before = time.thread_time()
        application.processEvents()
        longest = max(longest, time.thread_time() - before)
        time.sleep(0.005)
        assert time.monotonic() - began < 240, what
    took = time.monotonic() - began
    print(f"{what}: {took:.1f} s (window busy for {longest:.2f} s at most)", file=sys.stderr, flush=True)
    return took, longest


def darken() -> None:
    """Put the application into a dark theme."""
    palette = qt_stand_ins.QtGui.QPalette(qt_stand_ins.application().palette())
    for role, colour in DARK.items():
        palette.setColor(getattr(qt_stand_ins.QtGui.QPalette.ColorRole, role), qt_stand_ins.QtGui.QColor(colour))
    qt_stand_ins.application().setPalette(palette)


def picture_of(widget: qt_stand_ins.QtWidgets.QWidget) -> np.ndarray:
    """What a widget shows, (H, W, 3) uint8."""
    image = widget.grab().toImage().convertToFormat(qt_stand_ins.QtGui.QImage.Format.Format_RGB888)
    # a copy, as the image goes when this returns
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def row_of(names: tuple[str, ...], height: int) -> np.ndarray:
    """The views of some layout names, side by side."""
    views = [view for view in slicer.app.layoutManager().views.values() if view.node.GetLayoutName() in names]
    for view in views:
        view.window.SetSize(VIEWS[0] // len(names), height)
        if isinstance(view, slicer_offscreen.SliceView):
            view.logic.ResizeSliceNode(VIEWS[0] // len(names), height)
    pictures = np.concatenate([view.picture() for view in views], axis=1)
    return np.pad(pictures, [(0, 0), (0, VIEWS[0] - pictures.shape[1]), (0, 0)])


def views() -> np.ndarray:
    """Both faces, and the slices below, as they are on screen."""
    qt_stand_ins.application().processEvents()
    return np.concatenate([
        row_of((layout.ORIGINAL_VIEW, layout.REFACED_VIEW), ROW), row_of(tuple(layout.SLICES), VIEWS[1] - ROW)
    ])  # fmt: skip


def draw(path: Path, face_models: Path | None) -> None:
    made = Widget()
    widget, ui, panel = made.widget, made.widget.ui, made.widget.panel
    made.parent.setFixedSize(*PANEL)
    if face_models:
        ui.faceDetector.currentPath = str(face_models / "yunet.onnx")
        ui.faceRecogniser.currentPath = str(face_models / "MobileFaceNet.onnx")
    widget.enter()
    began = time.monotonic()
    ui.sampleButton.click()
    wait("the engine has the head", lambda: "Whole head." in ui.inputLabel.text, began)
    wait("and its skin", lambda: panel.see._ahead, began)
    for seed in SEEDS:
        panel.new_seed = lambda seed=seed: seed
        began = time.monotonic()
        (ui.anotherButton if widget.logic.session.head else ui.refaceButton).click()
        print(f"the click: {time.monotonic() - began:.2f} s")
        wait(f"both faces on screen, seed {seed}", lambda: panel.run is None, began)
        if face_models:
            wait("its distance", lambda: "a match is below" in ui.verdictDetails.text, began)
    panel.new_seed = lambda: CANCELLED
    began = time.monotonic()
    ui.anotherButton.click()
    wait("the next one is begun", lambda: panel.run.stage in ("generate", "compose"), began)
    ui.refaceButton.click()
    began = time.monotonic()
    ui.anotherButton.click()
    wait("a face after Cancel", lambda: panel.run is None, began)
    ui.facesList.currentRow = 2
    wait("the face that is picked", lambda: not panel.see._job, began)
    began = time.monotonic()
    wait("drawn finely", lambda: not any(panel.see.faces.coarse), began)
    ui.saveFolder.currentPath = "/data/shared"
    ui.threeQuarterButton.click()
    panel.see.faces.fit()
    shown = views()
    surface.write_png(np.concatenate([picture_of(made.parent), shown], axis=1), path)
    darken()
    panel.refresh()
    qt_stand_ins.application().processEvents()
    dark = np.concatenate([picture_of(made.parent), shown], axis=1)
    surface.write_png(dark, path.with_name(f"{path.stem}-dark.png"))
    made.close()


if __name__ == "__main__":
    with slicer_offscreen.slicer_with():
        draw(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
