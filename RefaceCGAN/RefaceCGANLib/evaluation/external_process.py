"""Outside programs as processes: with a time limit, and ended with all their children."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from ..errors import InputError


def run_program(
    command: list[str], folder: Path, variables: dict[str, str], time_limit: float, name: str, mend: str
) -> None:
    """Run a program in `folder` to the end, or end it with all its children.

    variables: of its environment, besides ours. time_limit: in seconds. Raises InputError, which calls the
    program `name` and ends with `mend` where the time did not suffice."""
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | variables, start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        raise InputError(f"{name} took longer than {time_limit:g} s; {mend}.") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise InputError(f"{name} failed with status {process.returncode}: {last[0].strip()[:200]}.")
