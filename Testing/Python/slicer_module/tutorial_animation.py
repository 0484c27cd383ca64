"""Draws the tutorial as an animated picture for the README:

    python Testing/Python/slicer_module/tutorial_animation.py OUT.webp

The panel and its views, as `panel_picture` has them, on the way that the README's tutorial tells: the sample head,
Reface, both faces, another face, places of the face in the slices, a judgement, the saved files. Needs Pillow.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import panel_picture
import qt_stand_ins
import slicer_offscreen
from PIL import Image
from test_module import Widget

SEEDS = 33, 9
SHORT, LONG = 900, 2200
"""Milliseconds that a picture stands."""
LARGEST = 2_000_000
"""Bytes that the animation may have in the README."""


class Film:
    """Pictures of the panel beside its views, each with how long it stands."""

    def __init__(self, made: Widget) -> None:
        self.made = made
        self.pictures: list[Image.Image] = []
        self.times: list[int] = []
        self.views = np.zeros((*panel_picture.VIEWS[::-1], 3), np.uint8) + 40

    def take(self, milliseconds: int, views: bool = False) -> None:
        """One picture; views: the views have changed, too. What does not fit on the screen is scrolled down to."""
        width, height = panel_picture.PANEL
        for _ in range(3):
            qt_stand_ins.application().processEvents()
            self.made.parent.setFixedSize(width, max(height, self.made.parent.sizeHint().height()))
        if views:
            self.views = panel_picture.views()
        panel = panel_picture.picture_of(self.made.parent)[-height:]
        picture = np.concatenate([panel, self.views], axis=1)
        self.pictures.append(Image.fromarray(picture))
        self.times.append(milliseconds)

    def write(self, path: Path) -> None:
        """As WebP, in the best quality that is small enough."""
        for quality in (80, 65, 50, 35):
            content = io.BytesIO()
            self.pictures[0].save(
                content, "WEBP", save_all=True, append_images=self.pictures[1:], duration=self.times, loop=0,
                quality=quality, method=4,
            )  # fmt: skip
            if len(content.getvalue()) <= LARGEST:
                break
        path.write_bytes(content.getvalue())
        print(
            f"{path}: {len(self.pictures)} pictures, {len(content.getvalue()) / 1e6:.2f} MB at quality {quality}"
        )


def reface(made: Widget, film: Film, button: Any, seed: int) -> None:
    """Press a button that draws a face, and film it on the way."""
    panel = made.widget.panel
    panel.new_seed = lambda: seed
    began = time.monotonic()
    button.click()
    panel_picture.wait("under way", lambda: not panel.run or panel.run.stage in ("generate", "compose"), began)
    film.take(SHORT)
    panel_picture.wait("a face", lambda: panel.run is None, began)
    panel_picture.wait("drawn finely", lambda: not any(panel.see.faces.coarse), time.monotonic())
    film.take(LONG, views=True)


def draw(path: Path) -> None:
    made = Widget()
    widget, ui = made.widget, made.widget.ui
    made.parent.setFixedSize(*panel_picture.PANEL)
    film = Film(made)
    widget.enter()
    film.take(SHORT)
    began = time.monotonic()
    ui.sampleButton.click()
    panel_picture.wait("the engine has the head", lambda: "Whole head." in ui.inputLabel.text, began)
    film.take(LONG)
    reface(made, film, ui.refaceButton, SEEDS[0])
    ui.threeQuarterButton.click()
    film.take(LONG, views=True)
    reface(made, film, ui.anotherButton, SEEDS[1])
    ui.seeSection.collapsed = False
    for _ in range(3):
        ui.nextPlaceButton.click()
        film.take(SHORT, views=True)
    ui.seeSection.collapsed, ui.judgeSection.collapsed = True, False
    ui.eyesCheck.click()
    ui.noseCheck.click()
    ui.judgementCombo.currentIndex = 1
    film.take(LONG)
    ui.judgeSection.collapsed = True
    with tempfile.TemporaryDirectory() as folder:
        ui.saveFolder.currentPath = folder
        began = time.monotonic()
        ui.saveButton.click()
        panel_picture.wait("the files", lambda: ui.savedLabel.text.startswith(("✔", "✖")), began)
        ui.saveFolder.currentPath = "/data/shared"
        film.take(LONG)
    film.write(path)
    made.close()


if __name__ == "__main__":
    with slicer_offscreen.slicer_with():
        draw(Path(sys.argv[1]))
