"""Small things that all of the panel's widgets share: why one is disabled, and how it looks in any theme."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from RefaceCGANLib.errors import RefaceError
from slicer.i18n import tr as _

from .engine import EngineError


def allow(widget: Any, reason: str, tip: str) -> None:
    """Enable a widget unless there is a reason why not; its tool tip says the reason, or what the widget does."""
    widget.setEnabled(not reason)
    widget.setToolTip(plain_tip(reason or tip))


def plain_tip(text: str) -> str:
    """A text for a tool tip. Slicer takes tool tips for HTML, so that what means something there must be
    escaped."""
    return f"<p>{html.escape(text, quote=False)}</p>" if set(text) & set("<>&") else text


def on_path(edit: Any, changed: Callable[[str], None]) -> None:
    """Call changed(path) whenever a ctkPathLineEdit holds another path; that it was emptied it says otherwise."""
    edit.connect("currentPathChanged(QString)", changed)
    edit.connect("validInputChanged(bool)", lambda valid: None if valid else changed(edit.currentPath))


def primary_style() -> str:
    """Style sheet of the one button to press, in the theme's own colours."""
    return """
        QPushButton { background: palette(highlight); color: palette(highlighted-text); border-radius: 5px; }
        QPushButton:hover { border: 2px solid palette(light); }
        QPushButton:focus { border: 2px solid palette(window-text); }
        QPushButton:pressed { border: 2px solid palette(mid); }
    """


def frame_style(name: str, colour: str) -> str:
    """Style sheet of a message's frame: an edge in `colour` and the window's own background."""
    return (
        f"QFrame#{name} {{ border: 1px solid palette(mid); border-left: 5px solid {colour}; border-radius: 3px; }}"
    )


def sentence_of(error: Exception) -> str:
    """What to tell of an error. Views need packages in Slicer's own Python, also if the engine's is another; what
    nobody thought of is told as a bug."""
    if isinstance(error, ImportError):
        return _("{name} is missing in Slicer's own Python; install it there.").format(name=error.name)
    if isinstance(error, (RefaceError, EngineError)):
        return str(error)
    message = _("This is a bug in RefaceCGAN ({kind}: {why}); please report it with the application's log.")
    return message.format(kind=type(error).__name__, why=" ".join(str(error).split())[:200])


def guarded(function: Callable, failed: Callable[[Exception], None]) -> Callable:
    """`function` as a callback that never fails: what it raises, which the application would only print, goes to
    the log and to `failed`, so that whatever waits for it comes to an end."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            if not isinstance(error, (RefaceError, EngineError)):
                logging.exception("RefaceCGAN: %s failed", getattr(function, "__name__", function))
            failed(error)

    return call


def input_text(description: Any, already_defaced: bool | None) -> str:
    """What a scan is (`scene.Description`), and whether it has a face, where that is known."""
    if description is None:
        return _("Load a head MRI, or try the sample head.")
    if description.problem:
        return "✖ " + description.problem
    size, spacing = (
        " × ".join(f"{x:g}" for x in np.round(triple, 2)) for triple in (description.size, description.spacing)
    )
    if len(set(np.round(description.spacing, 2))) == 1:
        spacing = f"{description.spacing[0]:.3g}"
    text = _("{size} voxels of {spacing} mm, {orientation}").format(
        size=size, spacing=spacing, orientation=description.orientation
    )
    if already_defaced is None:
        face = _("Whole head or already defaced: Reface will tell.")
    else:
        face = _("Already defaced before.") if already_defaced else _("Whole head.")
    return "\n".join(filter(None, (f"{text}. {face}", description.note)))


def device_text(device: str) -> str:
    """A device of torch in words."""
    kind = device.split(":")[0]
    return {"cpu": _("processor"), "cuda": _("NVIDIA graphics card"), "mps": _("Apple graphics")}.get(kind, device)


def stage_text(stage: str) -> str:
    """What the engine is doing, in words."""
    return {
        "start": _("Starting the engine"),
        "load": _("Loading the model"),
        "locate": _("Finding the brain and the face"),
        "deface": _("Emptying the face region"),
        "normalise": _("Measuring the intensities"),
        "sample shape": _("Choosing a shape"),
        "generate": _("Drawing the face"),
        "compose": _("Fitting the face into the scan"),
        "check": _("Checking the result"),
        "show": _("Showing both faces"),
    }.get(stage, stage)


def busy_text(run: Any) -> str:
    """One line on a run: its stage, which face it is, and the time left."""
    parts = [stage_text(run.stage)]
    if run.drawn + run.wanted > 1:
        parts.append(_("face {number} of {count}").format(number=run.drawn + 1, count=run.drawn + run.wanted))
    left = run.seconds_left()
    if left is not None:
        parts.append(_("about {seconds} s left").format(seconds=max(1, round(left))))
    return "  ·  ".join(parts)
