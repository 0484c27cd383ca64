"""What the engine's Python lacks, and its installation into Slicer's own Python: asked first, never at import.

PyTorch comes by the PyTorch extension, which knows the graphics card; the rest, which requirements.txt names, by
Slicer's own pip. Slicer brings along numpy, scipy and SimpleITK. Another Python is the user's: nothing is
installed into it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .child_process import EngineError, _
from .engine import environment_of, is_own, python_of

REQUIREMENTS = Path(__file__).resolve().parent.parent / "Resources" / "requirements.txt"
NEEDED = {
    "torch": ("torch", (2, 4)),
    "nibabel": ("nibabel", (5, 2)),
    "SimpleITK": ("SimpleITK", (2, 3)),
    "scipy": ("scipy", (1, 11)),
    "scikit-image": ("skimage", (0, 25)),
    "numpy": ("numpy", (1, 26)),
}
"""By their names for pip: the module to import, and the oldest version that will do."""
PYTHON = (3, 11)
SIZES = {"torch": 190, "nibabel": 4, "scikit-image": 24}
"""Megabytes to download: the wheels for Linux with what they need in turn; torch for the processor alone."""
ANSWER_SECONDS = 30


def missing(python: str | None = None) -> list[str]:
    """What a Python (`python_of()` by default) lacks to run the engine, by the names of `NEEDED`; "Python" itself
    where it is too old or cannot be run. Nothing is imported."""
    python = python or python_of()
    if is_own(python):
        importlib.invalidate_caches()
        found = _found(NEEDED)
    else:
        call = "import json, sys\nprint(json.dumps(_found(json.loads(sys.argv[1]))))"
        script = f"from __future__ import annotations\n{inspect.getsource(_found)}\n{call}"
        try:
            done = subprocess.run(
                [python, "-c", script, json.dumps(NEEDED)], env=environment_of(python), stdin=subprocess.DEVNULL,
                capture_output=True, timeout=ANSWER_SECONDS, check=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            return ["Python"]
    if tuple(found["Python"]) < PYTHON:
        return ["Python"]
    return [name for name in NEEDED if not found[name]]


def describe(names: Sequence[str], sizes: dict[str, int] = SIZES) -> str:
    """The question before an installation: what is installed, how large it is, and where it goes."""
    lines = [f"• {name} ({_size(name, sizes)})" if name in sizes else f"• {name}" for name in names]
    total = sum(sizes.get(name, 0) for name in names)
    return "\n".join((
        _("RefaceCGAN needs Python packages that are not there yet:"),
        *lines,
        _("They are downloaded (about {total} MB) and installed into Slicer. Continue?").format(total=total),
    ))  # fmt: skip


def install(names: Sequence[str] | None = None, ask: Callable[[str], bool] | None = None) -> bool:
    """Install what is missing into Slicer's own Python; on the main thread alone, as pip's dialog needs it.

    names: by default what `missing` finds.  ask: gets the question of `describe`, by default a dialog of Slicer.
    Returns whether all is there now: False where the user declined. Raises EngineError, one sentence."""
    if threading.current_thread() is not threading.main_thread():
        raise EngineError(_("Packages can be installed on the main thread only; use the Install button."))
    python = python_of()
    names = list(missing(python) if names is None else names)
    if not names:
        return True
    if not is_own(python):
        message = _("{python} is not Slicer's own Python; install {names} there with its own tools.")
        raise EngineError(message.format(python=python, names=", ".join(names)), "input")
    if not (ask or _ask)(describe(names)):
        return False
    if "torch" in names and not _install_torch():
        return False
    if set(names) - {"torch"}:
        _install_requirements()
    if still := missing(python):
        message = _("{names} could not be installed; see the application's log, restart Slicer and try again.")
        raise EngineError(message.format(names=", ".join(still)))
    return True


def _found(needed: dict[str, tuple[str, tuple[int, int]]]) -> dict[str, Any]:
    """Which of the packages the running Python has in a version that will do, and its own version. It runs in any
    Python, alone: its source is sent there."""
    import importlib.metadata
    import importlib.util
    import re
    import sys

    found: dict[str, Any] = {"Python": list(sys.version_info[:2])}
    for name, (module, oldest) in needed.items():
        found[name] = importlib.util.find_spec(module) is not None
        try:
            version = re.findall(r"\d+", importlib.metadata.version(name))
            found[name] &= [int(part) for part in version[:2]] >= list(oldest)
        except importlib.metadata.PackageNotFoundError:  # Slicer's own packages may not say their version
            pass
    return found


def _size(name: str, sizes: dict[str, int]) -> str:
    if name == "torch":
        text = _("about {size} MB, several times as much for an NVIDIA graphics card")
    else:
        text = _("about {size} MB")
    return text.format(size=sizes[name])


def _ask(question: str) -> bool:
    import slicer

    return bool(slicer.util.confirmOkCancelDisplay(question, "RefaceCGAN"))


def _install_torch() -> bool:
    """By the PyTorch extension; False where the user stopped it."""
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError:
        message = _("The PyTorch extension is missing; install it in the Extensions Manager and restart Slicer.")
        raise EngineError(message, "input") from None
    oldest = ".".join(map(str, NEEDED["torch"][1]))
    try:
        return PyTorchUtilsLogic().installTorch(torchVersionRequirement=f">={oldest}") is not None
    except Exception as error:
        raise EngineError(_failed("torch", error)) from error


def _install_requirements() -> None:
    """What requirements.txt names, by Slicer's pip (asked already)."""
    try:
        try:
            from slicer.packaging import load_requirements, pip_ensure
        except ImportError:  # before Slicer 5.12
            from slicer.util import pip_install

            lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
            pip_install([line for line in lines if line and not line.startswith("#")])
        else:
            pip_ensure(load_requirements(REQUIREMENTS), prompt_install=False, requester="RefaceCGAN")
    except Exception as error:
        raise EngineError(_failed("nibabel", error)) from error


def _failed(names: str, error: Exception) -> str:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    message = _("{names} could not be installed ({why}); see the application's log, and whether you are online.")
    return message.format(names=names, why=why)
