"""How much of a call is done: every fraction that a progress bar shows follows from the plans in this file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]
"""Called with the stage and how much of the whole is done (0 to 1); may raise Cancelled."""

STAGES = {
    "locate": (0.05, 0.5),
    "deface": (0.5, 0.65),
    "normalise": (0.65, 0.7),
    "sample shape": (0.7, 0.72),
    "generate": (0.72, 0.85),
    "compose": (0.85, 0.95),
    "check": (0.95, 1.0),
}
"""Where each stage of refacing begins and ends, as parts of refacing one scan: its share of the seconds."""
PREPARED = STAGES["sample shape"][0]
"""Where a scan is ready for a face to be drawn; another face of the same scan begins here."""

LOAD = 0.05
"""Where loading the model begins, in a call of the command line; before that the scan is read."""
LOADED = 0.3
"""Where the model is loaded; from here to DRAWN the scan is defaced or refaced."""
DRAWN = 0.9
"""Where the results are there and are written."""
WORKER_LOADED = 0.5
"""How much of a request to the worker is done once the model is loaded, if the request has to wait for that."""


def part(progress: Progress, start: float, end: float) -> Progress:
    """A listener for a piece of work that leads from `start` to `end` of the whole."""
    return lambda stage, fraction: progress(stage, start + fraction * (end - start))


def prepared_only(progress: Progress) -> Progress:
    """A listener for the preparation of a scan, where no face is drawn after it."""
    return part(progress, 0.0, 1 / PREPARED)


def another_face(progress: Progress) -> Progress:
    """A listener for one more face of a scan that is prepared."""
    return part(progress, -PREPARED / (1 - PREPARED), 1.0)


class Timer:
    """Times the stages of refacing, and tells the listener where the work stands."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start, end = STAGES[stage]
        if self.progress:
            self.progress(stage, start)
        began = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - began
        if self.progress:
            self.progress(stage, end)
