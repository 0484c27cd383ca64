"""The engine's process, seen from Slicer: starts `RefaceCGANLib.app.worker`, asks it, hears it, kills it.

>>> engine = Engine()
>>> number = engine.request("reface", volume=array, affine=affine, seed=7)
>>> done = engine.wait(number)                 # a script; a panel gives on_done and calls poll() from a timer
>>> done["refaced"], done["face_region"], done["report"]
>>> engine.wait(engine.request("another", seed=8))["refaced"]

The commands, their arguments and answers are the methods of RefaceCGANLib.app.worker.Worker. Arrays go to the
process and come back as files in a folder that nobody else may read, and that is removed with it. A crash or an
out-of-memory ends the process and never Slicer; the next request starts another one. `cancel` gives requests up
and keeps the process, with the model that it has loaded. Uses no Qt.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .child_process import Child, EngineError, _, sweep

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of RefaceCGANLib."""
WORKER = "RefaceCGANLib.app.worker"
VARIABLE = "REFACECGAN_PYTHON"
"""Environment variable that names another Python; goes before the setting."""
SETTING = "RefaceCGAN/Python"
"""Key of the application's setting that names another Python."""
PAUSE = 0.02
"""Seconds between two looks of `wait`."""
LET_GO = 60.0
"""Seconds after which a process is killed that has not let go of what was cancelled. It does so between two
operations, which take a second at most; but to load torch, which it finishes, may take half a minute on a slow
disk."""


@dataclass(eq=False)
class _Task:
    """A request that is under way, or whose outcome `wait` is to fetch."""

    on_progress: Callable[[str, float], None] | None
    on_done: Callable[[dict[str, Any]], None] | None
    on_error: Callable[[EngineError], None] | None
    lasting: bool = False
    awaited: bool = False
    outcome: dict[str, Any] | EngineError | None = None


class Engine:
    """One warm process. To be used on the main thread; all callbacks run inside `poll`.

    python: the Python to run it, `python_of()` by default.  folder: where its private folder is made, by default
    where the system has its temporary files.
    """

    def __init__(self, python: str | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self._python, self._folder = python, Path(folder or tempfile.gettempdir())
        self._child: Child | None = None
        self._numbers = itertools.count(1)
        self._tasks: dict[int, _Task] = {}
        self._given_up: dict[int, float] = {}  # cancelled, not yet answered: when
        self._failed: deque[tuple[int, EngineError]] = deque()  # told by the next `poll`

    @property
    def running(self) -> bool:
        return self._child is not None and not self._child.dead

    @property
    def busy(self) -> bool:
        """Whether `poll` has something to wait for."""
        unanswered = any(task.outcome is None for task in self._tasks.values())
        return unanswered or bool(self._failed) or (self.running and bool(self._given_up))

    def start(self) -> None:
        """Start the process unless it runs; it loads torch and the default model at once.

        Raises EngineError where the Python cannot be run."""
        if self.running:
            return
        self._bury()
        sweep(self._folder)
        python = self._python or python_of()
        self._child = Child([python, "-m", WORKER], PACKAGE, environment_of(python), self._folder)

    def request(
        self,
        command: str,
        on_progress: Callable[[str, float], None] | None = None,
        on_done: Callable[[dict[str, Any]], None] | None = None,
        on_error: Callable[[EngineError], None] | None = None,
        lasting: bool = False,
        **arguments: Any,
    ) -> int:
        """Ask for `command`; returns the number of the request. Requests are worked off in their order. A lasting
        one is left alone by a `cancel` of all.

        arguments: numbers, texts, and arrays; a 3D array is voxels in native order (I, J, K).  on_progress hears
        the stage and how much is done (0..1).  on_done hears the answer, a dictionary with its arrays in it.
        on_error hears an EngineError, also where the process cannot be started."""
        number = next(self._numbers)
        try:
            self.start()
            assert self._child is not None
            self._child.ask({"id": number, "command": command, **arguments})
        except EngineError as error:
            self._failed.append((number, error))
        self._tasks[number] = _Task(on_progress, on_done, on_error, lasting)
        return number

    def poll(self) -> None:
        """Hear what the process has said and call the callbacks; to be called by a timer, or by `wait`."""
        time.sleep(0.001)  # lets the readers run where the application's event loop keeps Python's lock
        while self._failed:
            self._finish(*self._failed.popleft())
        while self._child is not None:
            try:
                event = self._child.said.get_nowait()
            except queue.Empty:
                if not (self._child.lost() or self._holds_on()):
                    return
                event = None
            if event is None:
                self._bury()
                while self._failed:
                    self._finish(*self._failed.popleft())
            else:
                self._hear(self._child, event)

    def wait(
        self, number: int, timeout: float | None = None, process_events: Callable[[], Any] | None = None
    ) -> dict[str, Any]:
        """The answer to a request, when it is there.

        timeout: in seconds.  process_events: called while waiting, e.g. slicer.app.processEvents, which keeps the
        window alive. Raises EngineError where the request failed, was cancelled or is not answered in time."""
        task = self._tasks.get(number)
        if task is None:
            raise EngineError(_("This request is not under way any more."), "cancelled")
        task.awaited = True
        began = time.monotonic()
        while True:
            self.poll()
            if task.outcome is not None:
                break
            if timeout is not None and time.monotonic() - began > timeout:
                raise EngineError(_("The engine has not answered in time; cancel and try again."), "timeout")
            if process_events is not None:
                process_events()
            time.sleep(PAUSE)
        self._tasks.pop(number, None)
        if isinstance(task.outcome, EngineError):
            raise task.outcome
        return task.outcome

    def cancel(self, number: int | None = None) -> None:
        """Give up a request, or all that are not lasting: no callback of theirs is called any more, and `wait`
        raises. The process stops working on them and goes on with what is asked next."""
        chosen = [number] if number in self._tasks else []
        numbers = [n for n, task in self._tasks.items() if not task.lasting] if number is None else chosen
        unasked = {each for each, _error in self._failed}
        self._failed = deque(entry for entry in self._failed if entry[0] not in numbers)
        for each in numbers:
            task = self._tasks.pop(each)
            if task.outcome is None and each not in unasked:
                self._given_up[each] = time.monotonic()
            task.outcome = EngineError(_("Cancelled."), "cancelled")
        if self._child is not None and self._given_up:
            self._child.cancel(self._given_up)

    def stop(self) -> None:
        """Kill the process and its children, and remove its folder; happens by itself when the engine is deleted
        or Python ends. The next request starts another process."""
        for task in self._tasks.values():
            task.outcome = task.outcome or EngineError(_("Cancelled."), "cancelled")
        self._tasks.clear()
        self._failed.clear()
        self._given_up.clear()
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _holds_on(self) -> bool:
        """Whether the process does not let go of what was cancelled."""
        now = time.monotonic()
        return any(now - since > LET_GO for since in self._given_up.values())

    # --- what the process says ----------------------------------------------------------------------------

    def _hear(self, child: Child, event: dict[str, Any]) -> None:
        kind, number = event.pop("event"), event.pop("id", None)
        if kind == "garbage":
            log.warning("The engine said what is no answer: %s", event["line"])
        elif kind == "ready":
            child.ready = True
            log.info("The engine %s runs on Python %s.", event["version"], event["python"])
        elif number in self._given_up:
            if kind != "progress":
                del self._given_up[number]
        elif number not in self._tasks:
            log.warning("The engine answered nobody: %s %s", kind, event.get("message", ""))
        elif kind == "progress":
            if listener := self._tasks[number].on_progress:
                listener(event["stage"], event["fraction"])
        elif kind == "error":
            self._finish(number, EngineError(event["message"], event["kind"]))
        else:
            self._finish(number, event)

    def _finish(self, number: int, outcome: dict[str, Any] | EngineError) -> None:
        task = self._tasks.pop(number)
        callback = task.on_error if isinstance(outcome, EngineError) else task.on_done
        if task.awaited or callback is None:
            task.outcome = outcome
            self._tasks[number] = task
        if callback is not None:
            callback(outcome)  # type: ignore[arg-type]

    def _bury(self) -> None:
        """Clear away a process that has died, and have all requests fail that it had not answered."""
        child, self._child = self._child, None
        if child is None:
            return
        if self._holds_on():
            child.end()
        self._given_up.clear()
        error = child.epitaph()
        unanswered = [number for number, task in self._tasks.items() if task.outcome is None]
        self._failed.extend((number, error) for number in unanswered)


# --- which Python -----------------------------------------------------------------------------------------


def python_of(environment: Mapping[str, str] | None = None, setting: str | None = None) -> str:
    """The Python that runs the engine: what `VARIABLE` names in `environment`, else `setting`, else Slicer's own.

    Both may also name the folder of an environment. By default they are the process's environment and the
    application's setting `SETTING`. Whether it is there is not looked at."""
    environment = os.environ if environment is None else environment
    named = environment.get(VARIABLE) or (_application_setting() if setting is None else setting)
    if not named:
        return _own_python()
    path = Path(named).expanduser()
    if path.is_dir():
        inside = ("python.exe", "Scripts/python.exe") if os.name == "nt" else ("bin/python3", "bin/python")
        path = next((path / name for name in inside if (path / name).is_file()), path)
    return str(path)


def is_own(python: str) -> bool:
    """Whether a Python is Slicer's own."""
    return os.path.normcase(os.path.abspath(python)) == os.path.normcase(os.path.abspath(_own_python()))


def environment_of(python: str) -> dict[str, str]:
    """The environment variables to run a Python with; for any but Slicer's own, those before Slicer started."""
    if is_own(python):
        environment = dict(os.environ)
        others = environment.get("PYTHONPATH")
    else:
        environment, others = _startup_environment(), None
        for name in ("PYTHONHOME", "PYTHONPATH"):
            environment.pop(name, None)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGE), others)))
    return environment


def _own_python() -> str:
    """PythonSlicer, which sets the libraries' paths; outside the application, the Python that runs this."""
    application = _application()
    if application is None:
        return sys.executable
    beside = Path(application.slicerHome) / "bin" / ("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
    return str(beside) if beside.is_file() else shutil.which("PythonSlicer") or sys.executable


def _application() -> Any:
    """slicer.app, or None in a Python without the application."""
    try:
        import slicer
    except ImportError:
        return None
    return getattr(slicer, "app", None)


def _application_setting() -> str:
    if _application() is None:
        return ""
    import slicer

    return slicer.util.settingsValue(SETTING, "") or ""


def _startup_environment() -> dict[str, str]:
    if _application() is None:
        return dict(os.environ)
    import slicer

    return dict(slicer.util.startupEnvironment())
