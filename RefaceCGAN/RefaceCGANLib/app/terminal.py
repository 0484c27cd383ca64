"""What a command says: progress, lines, warnings, and the end by a signal."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ..errors import Cancelled, InputError
from ..progress import Progress, part
from .outputs import Outputs

DEBUG = "REFACECGAN_DEBUG"
"""Environment variable; set, it makes a failed call print a traceback as well."""
WIPE = "\r\033[K"
"""Takes the progress bar off a terminal's line."""


class Work:
    """How far the work is, for whoever watches stderr, and how many seconds each stage took."""

    def __init__(self, kind: str) -> None:
        self.seconds: dict[str, float] = {}
        self._kind = kind if kind == "json" or (kind == "bar" and sys.stderr.isatty()) else "none"

    def show(self, stage: str, fraction: float) -> None:
        if self._kind == "json":
            text = json.dumps({"stage": stage, "fraction": round(fraction, 3)}) + "\n"
        elif self._kind == "bar":
            text = f"\r{'#' * round(30 * fraction):-<30} {fraction:4.0%} {stage}\033[K"
            text = WIPE if fraction >= 1 else text
        else:
            return
        with suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, fraction: float) -> Iterator[None]:
        """Time one stage, which begins when `fraction` of the work is done."""
        self.show(name, fraction)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def part(self, start: float, end: float) -> Progress:
        """The listener for a piece of work that leads from `start` to `end` of the whole."""
        return part(self.show, start, end)


def on_signals(handler: Any) -> None:
    """Handle SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def abort(outputs: Outputs) -> NoReturn:
    """End the process at once; nothing is written."""
    on_signals(signal.SIG_IGN)
    outputs.discard()
    with suppress(OSError):
        wipe = WIPE if os.isatty(2) else ""
        os.write(2, f"{wipe}refacecgan: cancelled; nothing was written.\n".encode())
    os._exit(Cancelled.exit_status)


def complain(sentence: str) -> None:
    """One line on stderr."""
    with suppress(OSError):
        wipe = WIPE if sys.stderr.isatty() else ""
        print(f"{wipe}refacecgan: {one_line(sentence)}", file=sys.stderr, flush=True)


def say(lines: Sequence[str]) -> None:
    """Print to stdout; a reader that went away is no error."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter tries once more when it ends
    except UnicodeEncodeError:
        print("\n".join(lines).encode("ascii", "backslashreplace").decode())


def one_line(text: object) -> str:
    """A text without line breaks."""
    return " ".join(str(text).split())


def set_up_logging(training: bool) -> None:
    """The library's warnings come with its results, and `main` says them: the log would say them twice."""
    import logging

    if os.environ.get(DEBUG):
        logging.basicConfig(level=logging.INFO)
    elif training:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    elif not (library := logging.getLogger("RefaceCGANLib")).handlers:
        library.addHandler(logging.NullHandler())


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a call in one sentence instead of usage and error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")
