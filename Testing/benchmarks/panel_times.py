"""How long the panel lets a user wait: python Testing/benchmarks/panel_times.py [REPEATS]

From the click until both faces are on screen: of the sample head with an engine that is ready and has not seen
the head (pressed at once after *Sample head*), of the sample head once the engine has prepared it, of another
face, and of another face after *Cancel*. Beside it, for how long the panel's own code kept the window from
answering (processor time). The module's real panel, views and engine run on the stand-ins of the tests, in
software rendering; in Slicer itself the views are drawn by the graphics card. Prints a table in Markdown, the
median of each and the worst.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python" / "slicer_module"))
import panel_picture
import qt_stand_ins
import slicer
import slicer_offscreen
from test_module import Widget

REPEATS = 3
STEPS = {
    "sample head, engine ready": 3.0,
    "sample head, prepared by the engine": None,
    "another face": 1.2,
    "another face after Cancel": 2.0,
}
"""What is waited for, and the seconds that are aimed at, where there is an aim."""
WINDOW = 0.3
"""Seconds for which the window may not answer."""
Times = dict[str, list[tuple[float, float]]]


def ready(made: Widget) -> None:
    """Wait until the engine runs and has loaded its model, with an empty scene."""
    slicer.mrmlScene.Clear()
    qt_stand_ins.application().processEvents()
    made.widget.ui.readyLabel.setText("")
    made.widget.enter()  # which asks the engine whether it is ready
    began = time.monotonic()
    panel_picture.wait("the engine is ready", lambda: made.widget.ui.readyLabel.text.startswith("✔"), began)


def faces(made: Widget, what: str, began: float) -> tuple[float, float]:
    return panel_picture.wait(what, lambda: made.widget.panel.run is None, began)


def measure(made: Widget, times: Times) -> None:
    """One pass over all steps, beginning with an empty scene."""
    widget, ui, panel = made.widget, made.widget.ui, made.widget.panel
    first, second, another, after = STEPS
    for what, prepared in ((first, False), (second, True)):
        ready(made)
        ui.sampleButton.click()
        if prepared:
            began = time.monotonic()
            panel_picture.wait("prepared", lambda: "Whole head." in ui.inputLabel.text, began)
            panel_picture.wait("and its skin", lambda: panel.see._ahead, began)
        began = time.monotonic()
        ui.refaceButton.click()
        times[what].append(faces(made, what, began))
    began = time.monotonic()
    ui.anotherButton.click()
    times[another].append(faces(made, another, began))
    ui.anotherButton.click()
    began = time.monotonic()
    panel_picture.wait("under way", lambda: panel.run.stage in ("generate", "compose", "show"), began)
    ui.refaceButton.click()
    began = time.monotonic()
    ui.anotherButton.click()
    times[after].append(faces(made, after, began))
    assert widget.logic.session.head


def table(times: Times) -> str:
    lines = ["| wait for | median, s | worst, s | aim, s | window busy, worst, s |", "|---|---|---|---|---|"]
    for what, aim in STEPS.items():
        took, busy = zip(*times[what], strict=True)
        middle, worst, longest = statistics.median(took), max(took), max(busy)
        lines.append(f"| {what} | {middle:.1f} | {worst:.1f} | {aim or '-'} | {longest:.2f} (aim {WINDOW}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if sys.argv[1:] else REPEATS
    times: Times = {what: [] for what in STEPS}
    with slicer_offscreen.slicer_with():
        made = Widget()
        made.parent.setFixedSize(*panel_picture.PANEL)
        made.widget.enter()
        for _ in range(repeats):
            measure(made, times)
        made.close()
    print(table(times))
