"""python -m RefaceCGANLib: the command line."""

from __future__ import annotations

import os
import signal


def _abort(*_: object) -> None:
    os.write(2, b"refacecgan: cancelled; nothing was written.\n")
    os._exit(130)


for number in (signal.SIGINT, signal.SIGTERM):  # until `main` looks after them
    signal.signal(number, _abort)

from .app.command_line import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
