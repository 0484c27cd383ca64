"""A child process of the engine: started, asked, heard and killed, with a private folder that goes with it.

Two threads read what it says; nothing here waits for it but `Child.end`, and that for a second at most.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    from slicer.i18n import tr as _
except ImportError:  # outside the application

    def _(text: str) -> str:
        return text


log = logging.getLogger(__name__)

PREFIX, LOCK = "refacecgan-", "lock"
LEFT_OVER = 10.0
"""Seconds after which a private folder that no process holds is swept away."""
LINES, LINE, LAST_LINES = 200, 2000, 20
"""What is kept of the process's stderr: lines, bytes of a line; and how many lines go to the log if it dies."""
ANSWER = 1 << 20
"""Bytes of the longest answer."""
GRACE = 0.5
"""Seconds between the end of a process and that of its stdout, or the other way round."""


class EngineError(RuntimeError):
    """One sentence for the user. kind: input, check, memory, crash, cancelled or timeout."""

    def __init__(self, message: str, kind: str = "crash") -> None:
        super().__init__(message)
        self.kind = kind


class Child:
    """One process, its private folder, and what it has said.

    said: its answers; None when it said the last one.  ready: it has started."""

    def __init__(self, command: Sequence[str], place: Path, environment: dict[str, str], parent: Path) -> None:
        """Run `command` in `place`, with a private folder made in `parent` as its last argument.

        Raises EngineError where it cannot be run."""
        self.folder, lock = _private_folder(parent)
        try:
            self.process = subprocess.Popen(
                [*command, str(self.folder)], cwd=place, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **_own_group(),
            )  # fmt: skip
        except OSError as error:
            _remove(self.folder, lock)
            message = _("{python} cannot be run ({why}); name another Python under Advanced.")
            raise EngineError(message.format(python=command[0], why=error.strerror)) from error
        self.ready = False
        self._died: float | None = None
        self.said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._complaints: deque[str] = deque(maxlen=LINES)
        readers = [
            threading.Thread(
                target=_read_answers, args=(self.process.stdout, self.said, self.folder), daemon=True
            ),
            threading.Thread(target=_read_complaints, args=(self.process.stderr, self._complaints), daemon=True),
        ]
        for reader in readers:
            reader.start()
        self.end = weakref.finalize(self, _end, self.process, readers, self.folder, lock)
        """Kills the process and removes its folder; called at the latest when Python ends."""

    @property
    def dead(self) -> bool:
        """Whether the process has ended. It is not reaped: its number stays its own until all of it is killed."""
        if self.process.returncode is None and hasattr(os, "waitid"):  # not on Windows and older macOS
            with contextlib.suppress(ChildProcessError):  # someone else has reaped it
                return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self.process.poll() is not None

    def lost(self) -> bool:
        """Whether it died and will not say so, as a child of its own keeps its stdout open."""
        if self._died is None and self.dead:
            self._died = time.monotonic()
        return self._died is not None and time.monotonic() - self._died > GRACE

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request; arrays become files. Raises EngineError where they cannot be written."""
        try:
            line = json.dumps({name: self._sendable(value) for name, value in request.items()}) + "\n"
        except OSError as error:
            message = _("The scan cannot be handed to the engine ({why}); free some space for temporary files.")
            raise EngineError(message.format(why=error.strerror)) from error
        self._tell(line)

    def cancel(self, numbers: Iterable[int]) -> None:
        """Tell it that nobody waits for these requests any more."""
        self._tell(json.dumps({"command": "cancel", "ids": list(numbers)}) + "\n")

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has just died: `said` will end
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()

    def _sendable(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return write_array(self.folder, value) if value.ndim == 3 else value.tolist()
        if isinstance(value, np.generic):
            return value.item()
        return str(value) if isinstance(value, Path) else value

    def epitaph(self) -> EngineError:
        """What to tell about a process that has died; its last words go to the log."""
        end = time.monotonic() + GRACE
        while not self.dead and time.monotonic() < end:  # its stdout is closed: it is about to
            time.sleep(0.01)
        self.end()
        status = self.process.returncode
        last = [line for line in self._complaints if line.strip()][-LAST_LINES:]
        log.error("The engine ended (status %s). Its last words:\n%s", status, "\n".join(last) or "none")
        if status in (-9, 128 + 9):  # SIGKILL, seen from the parent or through a launcher
            message = _("The engine was killed, as happens when memory runs out; close programs and try again.")
            return EngineError(message, "memory")
        if not self.ready:
            message = _("The engine cannot start ({why}); mend that or name another Python under Advanced.")
            return EngineError(message.format(why=last[-1][:200] if last else status))
        return EngineError(_("The engine ended unexpectedly; the application's log says more. Try again."))


# --- arrays -----------------------------------------------------------------------------------------------


def write_array(folder: Path, array: np.ndarray) -> str:
    """Write an array for the engine and return the path. Raises OSError; a file cut short is removed."""
    path = folder / f"{secrets.token_hex(8)}.npy"
    try:
        np.save(path, array.astype(np.uint8) if array.dtype == bool else array, allow_pickle=False)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return str(path)


def read_array(path: str) -> np.ndarray:
    """Read an array of the engine and remove its file. Raises OSError or ValueError."""
    array = np.load(path, allow_pickle=False)
    os.unlink(path)
    return array


# --- the process ------------------------------------------------------------------------------------------


def _own_group() -> dict[str, Any]:
    """How to start a process so that it and its children can be killed together, and no console window opens."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    if process.returncode is not None:
        return
    if sys.platform == "win32":
        command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(command, capture_output=True, creationflags=subprocess.CREATE_NO_WINDOW, check=False)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], readers: list[threading.Thread], folder: Path, lock: IO[bytes]) -> None:
    """Kill a process and remove its folder, whatever state they are in."""
    _kill(process)
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    for reader in readers:
        reader.join(0.5)
    _remove(folder, lock)


def _read_answers(stream: IO[bytes], said: queue.SimpleQueue[dict[str, Any] | None], folder: Path) -> None:
    """Until the process ends; with its arrays, so that nobody has to read files on the main thread. A line that is
    no answer is passed on as such."""
    with stream:
        while line := stream.readline(ANSWER):
            try:
                event = json.loads(line)
                understood = event["event"] in ("ready", "progress", "done", "error")
            except (ValueError, TypeError, KeyError):
                understood = False
            if not understood:
                event = {"event": "garbage", "line": repr(line[:200])}
            elif event["event"] == "done":
                event = _with_arrays(event, folder)
            said.put(event)
    said.put(None)


def _with_arrays(event: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An answer with the arrays that its files hold; an error in place of one that cannot be read."""

    def fetched(value: Any) -> Any:
        is_file = isinstance(value, str) and value.endswith(".npy") and Path(value).parent == folder
        return read_array(value) if is_file else value

    try:
        return {name: fetched(value) for name, value in event.items()}
    except (OSError, ValueError) as error:
        message = _("The engine's answer cannot be read ({why}); try again.").format(why=error)
        return {"event": "error", "id": event.get("id"), "kind": "crash", "message": message}


def _read_complaints(stream: IO[bytes], complaints: deque[str]) -> None:
    with stream:
        while line := stream.readline(LINE):
            complaints.append(line.decode("utf-8", "replace").rstrip())


# --- the private folder -----------------------------------------------------------------------------------


def _private_folder(parent: Path) -> tuple[Path, IO[bytes]]:
    """Make a folder that only this user may enter, and a lock in it that is held as long as this process lives."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = open(folder / LOCK, "wb")  # noqa: SIM115  (closed by _remove)
    except OSError as error:
        message = _("No temporary folder can be made in {folder} ({why}); mend that and try again.")
        raise EngineError(message.format(folder=parent, why=error.strerror)) from error
    _hold(lock)
    return folder, lock


def _remove(folder: Path, lock: IO[bytes]) -> None:
    lock.close()
    shutil.rmtree(folder, ignore_errors=True)


def _hold(lock: IO[bytes]) -> bool:
    """Lock a file until it is closed or this process ends; False where another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep(parent: Path) -> None:
    """Remove private folders whose process died without doing so (a power cut, a kill of all)."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it just goes, or is another user's
            mine = os.name == "nt" or folder.lstat().st_uid == os.getuid()
            if not mine or not folder.is_dir() or folder.is_symlink():
                continue
            if time.time() - folder.stat().st_mtime < LEFT_OVER:  # it may just be in the making
                continue
            with open(folder / LOCK, "ab") as lock:
                held = not _hold(lock)
            if not held:
                shutil.rmtree(folder, ignore_errors=True)
