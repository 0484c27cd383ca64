"""The pool: work done by several processes, each of which keeps what it has loaded.

Unlike the standard library's, it outlives a process that dies (of memory, of a bug in a library): what that one
was at has failed, and the rest goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from ..errors import RefaceError

Say = Callable[[str, float], None]
"""Called by the work with what it has just done and how much of the whole that was."""
THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VTK_SMP_MAX_THREADS"


def run(
    work: Callable[[Any, Say], Any],
    tasks: Sequence[Any],
    workers: int,
    say: Say,
    finished: Callable[[Any, Any, str | None], None],
    apart: bool = False,
) -> None:
    """Do `work(task, say)` for each task and call finished(task, result, None), or finished(task, None, reason)
    where it raised or its process died. work: a function of a module; tasks and results: picklable.

    With one worker (or one task) it is done in this process, unless it is to be done apart, else in `workers`
    processes of one thread each. Any exception here ends them all."""
    if min(workers, len(tasks)) < 2 and not apart:
        for task in tasks:
            finished(task, *_outcome(work, task, say))
        return
    waiting = list(reversed(tasks))
    with processes() as pool:
        busy: dict[Connection, tuple[Any, Any]] = {}  # connection -> process, task
        while waiting or busy:
            while waiting and len(busy) < workers:
                connection, process = pool.idle(work)
                task = waiting.pop()
                connection.send(task)
                busy[connection] = process, task
            for connection in cast(list[Connection], wait(list(busy))):
                process, task = busy[connection]
                try:
                    kind, *message = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    del busy[connection]
                    finished(task, None, f"Its process ended with status {process.exitcode}.")
                    continue
                if kind == "said":
                    say(*message)
                else:
                    del busy[connection]
                    pool.rest(connection, process)
                    finished(task, *message)


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RefaceError) else f"{type(error).__name__}: {text[:300]}."


def _outcome(work: Callable[[Any, Say], Any], task: Any, say: Say) -> tuple[Any, str | None]:
    try:
        return work(task, say), None
    except Exception as error:
        return None, reason(error)


class _Processes:
    def __init__(self) -> None:
        self.all: list[Any] = []
        self.resting: list[tuple[Connection, Any]] = []

    def idle(self, work: Callable[[Any, Say], Any]) -> tuple[Connection, Any]:
        if self.resting:
            return self.resting.pop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        process.start()
        theirs.close()
        self.all.append(process)
        return ours, process

    def rest(self, connection: Connection, process: Any) -> None:
        self.resting.append((connection, process))


@contextmanager
def processes() -> Iterator[_Processes]:
    """Processes with one thread each; they are gone in the end."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    pool = _Processes()
    try:
        yield pool
    finally:
        for process in pool.all:
            process.terminate()
        for process in pool.all:
            process.join(20)
            if process.is_alive():
                process.kill()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(work: Callable[[Any, Say], Any], connection: Connection) -> None:
    """What a process does: one task after the other, until it is ended."""
    signal.signal(signal.SIGINT, lambda *_: None)  # the parent decides; programs called from here do end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def say(what: str, share: float) -> None:
        connection.send(("said", what, share))

    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            connection.send(("done", *_outcome(work, task, say)))
