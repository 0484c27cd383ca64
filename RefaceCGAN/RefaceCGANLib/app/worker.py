"""The warm child process of the Slicer module: `python -m RefaceCGANLib.app.worker FOLDER`, JSON lines in and out.

torch and the model are loaded once, as soon as the process starts, and the last head is kept, so that another
face on it costs one pass of the generator. A request is a line on stdin, its answers are lines on stdout:

    {"id": 1, "command": "reface", "volume": "/folder/a.npy", "affine": [[...], ...], "seed": 7}
    {"id": 1, "event": "progress", "stage": "locate", "fraction": 0.05}
    {"id": 1, "event": "done", "refaced": "/folder/b.npy", "seed": 7, "report": {...}, ...}
    {"id": 1, "event": "error", "kind": "check", "message": "One sentence."}

The first line is {"event": "ready", "version": ..., "python": ...}. Requests are worked off one by one, in
their order. {"command": "cancel", "ids": [1]} is no request: those that it names are given up at once, also the
one under way, and answered with an error of the kind "cancelled"; model and head stay in memory. `Worker` has a
method for each command, whose arguments and answer its docstring gives. Arrays travel as .npy files in FOLDER, in
native order (I, J, K); who reads one removes it. What a library prints goes to stderr. When stdin closes, which it
does when the parent dies, the process removes FOLDER and ends at once.
"""

from __future__ import annotations

import _thread
import hashlib
import inspect
import itertools
import json
import logging
import os
import queue
import secrets
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import __version__
from ..errors import Cancelled, InputError
from ..models.model import DEFAULT, Model
from ..progress import WORKER_LOADED, Progress, another_face, part, prepared_only
from ..report import rounded
from ..seeds import chosen_seed
from ..volume.volume import Volume
from . import service

if TYPE_CHECKING:
    from ..evaluation.reidentification import Recogniser
    from ..refacer import Prepared, Refacer

log = logging.getLogger(__name__)

DEFACED = ("auto", "yes", "no")
NUDGE_SECONDS = 0.02
"""Seconds between two interrupts of a request that was cancelled, until it ends."""


class Interrupted(Cancelled):
    """Something more urgent was asked for, or nobody wants the answer any more."""


class Cancellation:
    """Ends the request under way from another thread, by an exception in the main thread, so that the process with
    all that it has loaded goes on. Never inside an import, which cannot be repeated for every package, nor in the
    functions of `protected`: there it waits until they are done."""

    def __init__(self) -> None:
        self.protected: set[CodeType] = set()
        self._unwanted: set[int] = set()
        self._current: int | None = None

    def listen(self) -> None:
        """To be called on the main thread, before the first request."""
        signal.signal(signal.SIGINT, self._interrupt)

    def cancel(self, numbers: Sequence[int]) -> None:
        """Give up requests; returns at once. Numbers of requests that have been answered do no harm."""
        self._unwanted.update(numbers)
        threading.Thread(target=self._nudge, daemon=True).start()

    def begin(self, number: int | None) -> None:
        """A request is begun. Raises Interrupted where it was given up before."""
        self._current = number
        self._check()

    def end(self) -> None:
        """The request is done: nothing interrupts what follows."""
        self._current = None

    def _nudge(self) -> None:
        while self._current in self._unwanted:
            _thread.interrupt_main(signal.SIGINT)
            time.sleep(NUDGE_SECONDS)

    def _interrupt(self, _signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            code = frame.f_code
            if code in self.protected or code.co_filename.startswith("<frozen importlib"):
                return  # the next interrupt follows shortly
            frame = frame.f_back
        self._check()

    def _check(self) -> None:
        if self._current is not None and self._current in self._unwanted:
            raise Interrupted("Cancelled.")


class Worker:
    """What the process keeps: the model, the head that was refaced last, and how the last original looks.

    wanted: whether another request waits; what only informs then gives way to it.  cancellation: what gives
    requests up."""

    def __init__(
        self,
        folder: Path,
        wanted: Callable[[], bool] = lambda: False,
        cancellation: Cancellation | None = None,
    ) -> None:
        self._folder, self._wanted = folder, wanted
        self._cancellation = cancellation or Cancellation()
        self._cancellation.protected |= {
            method.__code__ for method in (Worker.save, Worker.save_dicom, Worker.drop)
        }  # files and memory stay whole
        self._written: list[str] = []  # the files of the answer that is being made
        self._name = DEFAULT
        self._model: Model | None = None
        self._device = "auto"
        self._threads: int | None = None
        self._refacer: Refacer | None = None
        self._loaded = False
        self._warm = False  # nothing is left to do while nobody asks for anything
        self._head: Prepared | None = None
        self._head_of = b""  # digest of what the head was made from
        self._corrected: Prepared | None = None  # the head with a face region edited by hand
        self._recogniser: tuple[tuple[str, str, int], Recogniser] | None = None  # and what it was made from

    def load(
        self, progress: Progress, model: str = DEFAULT, device: str = "auto", threads: int | None = None
    ) -> dict[str, Any]:
        """Load a model (id, or path of a card) for what follows; nothing is done twice. Another model forgets the
        head, another device or number of threads does not.

        Answers model (id), device, threads and card. Raises InputError as `Refacer.from_pretrained` does."""
        if model != self._name:
            self.drop(progress)
            self._name, self._model = model, None
        if self._model is None or (device, threads) != (self._device, self._threads):
            self._device, self._threads = device, threads
            self._refacer, self._loaded, self._warm = None, False, False
        refacer, _ = self._ready(progress)
        import torch

        return {
            "model": refacer.model.id,
            "device": str(refacer.device),
            "threads": torch.get_num_threads(),
            "card": refacer.model.card,
        }

    def prepare(
        self, progress: Progress, volume: str, affine: list[list[float]], defaced: str = "auto"
    ) -> dict[str, Any]:
        """Find brain and face of a scan ahead of time: what follows for the same scan takes them from here.
        Arguments as of `reface`.

        Answers already_defaced (bool) and upright, see `reface`. Raises CheckError and InputError."""
        refacer, progress = self._ready(progress)
        head = self._prepare(refacer, prepared_only(progress), volume, affine, defaced)
        return {"already_defaced": head.anatomy.already_defaced, "upright": _upright(head)}

    def reface(
        self,
        progress: Progress,
        volume: str,
        affine: list[list[float]],
        seed: int | None = None,
        dropout: float | None = None,
        defaced: str = "auto",
    ) -> dict[str, Any]:
        """Reface a scan and keep the head. volume: path of its real values (I, J, K); affine: (4, 4) voxel index
        -> RAS+ mm; seed: drawn by chance by default; defaced: auto, yes or no.

        Answers refaced, face_region, air_mask and brain_mask (paths; masks are uint8), seed, report and upright:
        the rotation (3, 3) from the scan's RAS axes to the head's own (its right, its front, its crown).
        Raises CheckError and InputError as `Refacer.reface` does; after a CheckError about the face, `another`
        may still be asked for."""
        refacer, progress = self._ready(progress)
        seed = chosen_seed(seed)
        head = self._prepare(refacer, progress, volume, affine, defaced)
        return self._draw(refacer, head, seed, dropout, progress, head.seconds)

    def another(
        self,
        progress: Progress,
        seed: int | None = None,
        dropout: float | None = None,
        face_region: str | None = None,
    ) -> dict[str, Any]:
        """Draw another face on the head that is kept. face_region: path of a mask (I, J, K) to draw it in, from
        here on, instead of the region that was found.

        Answers what `reface` does. Raises InputError where no head is kept, or for an unusable face region."""
        refacer, progress = self._ready(progress)
        seed = chosen_seed(seed)
        if self._head is None:
            raise InputError("There is no head to draw another face on; reface one first.")
        seconds = {}
        if face_region is not None:
            progress("deface", 0.0)
            began = time.perf_counter()
            self._corrected = refacer.with_region(self._head, self._read(face_region) != 0)
            seconds = {"deface": time.perf_counter() - began}
        head = self._corrected or self._head
        return self._draw(refacer, head, seed, dropout, another_face(progress), seconds)

    def deface(
        self, progress: Progress, volume: str, affine: list[list[float]], defaced: str = "auto"
    ) -> dict[str, Any]:
        """Empty the face region of a scan, draw no face, and keep the head.

        Answers defaced, face_region and brain_mask (paths; masks are uint8) and a report with the checks.
        Raises CheckError and InputError."""
        refacer, progress = self._ready(progress)
        head = self._prepare(refacer, prepared_only(progress), volume, affine, defaced)
        done = service.deface(refacer, head)
        return {
            "defaced": self._write(done.volume.stored),
            "face_region": self._write(done.face_region),
            "brain_mask": self._write(done.brain_mask),
            "report": done.report,
        }

    def recognise(
        self,
        progress: Progress,
        original: str,
        refaced: str,
        affine: list[list[float]],
        detector: str,
        recogniser: str,
        limit: float,
    ) -> dict[str, Any]:
        """Find out whether a face recogniser takes a refaced scan for its original; needs no model and leaves the
        head that is kept alone. original, refaced: paths of real values (I, J, K); affine: (4, 4) voxel index ->
        RAS+ mm; detector, recogniser: ONNX files, limit: see `evaluation.reidentification.Recogniser`.

        Answers check, the entry for the report. An error of kind "cancelled" where another request comes in
        between. Raises InputError, also where ONNX Runtime or OpenGL is missing."""
        from ..evaluation.reidentification import Recogniser

        before, after = (Volume.from_array(self._read(path), np.array(affine)) for path in (original, refaced))
        made_from = detector, recogniser, self._threads or _processors()
        if self._recogniser is None or self._recogniser[0] != made_from:
            self._recogniser = made_from, Recogniser(Path(detector), Path(recogniser), made_from[2])
        return {"check": self._recogniser[1].check(before, after, limit, self._give_way)}

    def skin(
        self,
        progress: Progress,
        volume: str,
        affine: list[list[float]],
        threshold: float | None = None,
        quick: bool = False,
        upright: list[list[float]] | None = None,
        picture: int = 0,
    ) -> dict[str, Any]:
        """Make the skin of a scan for a 3D view; needs no model and leaves the head that is kept alone. volume,
        affine: as of `reface`; threshold: where the skin begins, by default found in the scan; quick: from
        voxels of `surface.COARSE_MM`; picture: size in pixels of a picture from the front, 0 for none; upright:
        as `reface` answers it, where the front is not that of the scan's axes.

        Answers points, triangles, normals (paths, see `surface.Surface`), threshold, darkest and brightest
        (percentiles 0.5 and 99.9 of the scan), and picture: the path of a (H, W, 3) uint8, or None where OpenGL is
        missing. Raises InputError for a scan that shows no head or nothing as bright as the threshold."""
        from ..rendering import skin_surface as surface

        array, matrix = np.ascontiguousarray(self._read(volume)), np.array(affine, dtype=float)
        if threshold is None:
            threshold = surface.skin_threshold(array, np.linalg.norm(matrix[:3, :3], axis=0).tolist())
        darkest, brightest = np.percentile(array[::4, ::4, ::4], (0.5, 99.9))
        made = surface.skin_surface(*(surface.coarse(array, matrix) if quick else (array, matrix)), threshold)
        drawn = None
        if picture:
            facing = made if upright is None else surface.turned(made, np.array(upright))
            try:
                drawn = self._write(surface.render(facing, ("frontal",), (picture, picture))[0])
            except InputError as error:  # no OpenGL: a head without a picture is better than none
                log.warning("%s", error)
        return {
            **{name: self._write(getattr(made, name)) for name in ("points", "triangles", "normals")},
            **{"threshold": threshold, "darkest": float(darkest), "brightest": float(brightest), "picture": drawn},
        }

    def save(
        self,
        progress: Progress,
        path: str,
        volume: str,
        affine: list[list[float]],
        face_region: str | None = None,
        report: dict[str, Any] | None = None,
        source: str | None = None,
        picture: bool = False,
        protected: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Write a refaced scan and what belongs to it, all or nothing: see `saving.write`. volume, affine: as of
        `reface`; face_region: path of the mask (I, J, K) to write beside it, None for none.

        Answers files, the names of what was written. Needs no model and leaves the head that is kept alone. Raises
        InputError as `saving.write` does."""
        from . import saving

        matrix = np.array(affine, dtype=float)
        scan = Volume.from_array(self._read(volume), matrix)
        region = None if face_region is None else Volume.from_array(self._read(face_region), matrix)
        origin = Path(source) if source else None
        written = saving.write(path, scan, region, report, origin, picture, [Path(each) for each in protected])
        return {"files": [file.name for file in vars(written).values() if file]}

    def save_dicom(
        self,
        progress: Progress,
        folder: str,
        volume: str,
        affine: list[list[float]],
        face_region: str,
        sources: Sequence[str],
        uid_key: str,
        seed: int | None,
    ) -> dict[str, Any]:
        """Write a refaced scan as the DICOM series of its original: see `saving.write_dicom`. volume, affine: as
        of `reface`; face_region: path of the mask (I, J, K); sources: files of the series; uid_key: hexadecimal.

        Answers files, the name of the folder, and warnings. Needs no model and leaves the head that is kept alone.
        Raises InputError."""
        from . import saving

        scan = Volume.from_array(self._read(volume), np.array(affine, dtype=float))
        region, files = self._read(face_region) != 0, [Path(each) for each in sources]
        written, warnings = saving.write_dicom(folder, scan, region, files, bytes.fromhex(uid_key), seed)
        return {"files": [written.name], "warnings": warnings}

    def review_scan(
        self, progress: Progress, output: str, path: str, originals: str | None = None
    ) -> dict[str, Any]:
        """Read one scan of a finished run over a data set and, where it is at hand, its original. output: folder
        of the run; path: of the scan, as in the plan; originals: input of the run, None where that is not known.

        Answers scan (path, real values (I, J, K) float32), scan_affine (4, 4), original and original_affine (None
        where it is not there) and why (it is not). Needs no model and leaves the head that is kept alone. Raises
        InputError."""
        from ..dataset.review import read_scan

        scan, original, why = read_scan(Path(output), path, Path(originals) if originals else None)
        return {
            "scan": self._write(scan.array),
            "scan_affine": scan.affine.tolist(),
            "original": self._write(original.array) if original else None,
            "original_affine": original.affine.tolist() if original else None,
            "why": why,
        }

    def another_person(
        self, progress: Progress, output: str, originals: str, subject: str, key_file: str | None = None
    ) -> dict[str, Any]:
        """Give a person of a finished run another face in all series, or in none: see `dataset.another_face`.
        output, originals: output and input of the run; subject: as in the plan; key_file: None for beside the
        output.

        Answers series (how many) and warnings. Raises InputError and CheckError."""
        from ..dataset.another_face import WHOLE, another_face

        self._cancellation.protected |= WHOLE
        key = Path(key_file) if key_file else None
        made = another_face(
            Path(originals),
            Path(output),
            subject,
            key,
            lambda done, count: progress("series", done / max(count, 1)),
        )
        return {"series": len(made), "warnings": [warning for one in made for warning in one.row.warnings]}

    def _give_way(self) -> None:
        if self._wanted():
            raise Interrupted("Another request came in between.")

    def drop(self, progress: Progress) -> dict[str, Any]:
        """Forget the head."""
        self._head = self._corrected = None
        self._head_of = b""
        return {}

    def handle(self, request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Work off one request; whatever happens, exactly one `done` or `error` is answered."""
        number, command = request.pop("id", None), request.pop("command", None)
        stop = self._cancellation

        def progress(stage: str, fraction: float) -> None:
            fraction = round(min(max(fraction, 0.0), 1.0), 3)
            answer({"id": number, "event": "progress", "stage": stage, "fraction": fraction})

        self._written = []
        try:
            stop.begin(number)
            if command not in COMMANDS:
                raise InputError(f"There is no command {command!r}; the commands are {', '.join(COMMANDS)}.")
            method = getattr(self, command)
            try:
                inspect.signature(method).bind(progress, **request)
            except TypeError as error:
                raise InputError(f"The command {command} cannot be called like this: {error}.") from None
            done = method(progress, **request)
            stop.end()
        except Exception as error:
            stop.end()
            failure = service.explain(error)
            if failure.kind == "crash":
                log.exception("%s failed", command)
            for path in (*self._written, *(value for value in request.values() if _is_array(value))):
                Path(path).unlink(missing_ok=True)
            answer({"id": number, "event": "error", "kind": failure.kind, "message": failure.sentence})
        else:
            answer({"id": number, "event": "done", **done})

    def preload(self) -> None:
        """Load the model and warm it up, once, until a request is wanted, which then loads what is missing."""
        if self._warm:
            return
        try:
            for _ in itertools.chain(self.loading_steps(), self.warm_up_steps()):
                if self._wanted():
                    return
        except Exception as error:  # the next request will say it
            log.warning("%s", error)
        self._warm = True

    def loading_steps(self) -> Iterator[float]:
        """Load what is not in memory yet, step by step; yields how much of it is there (0..1)."""
        if self._model is None:
            self._model = Model.load(self._name)  # torch takes two seconds: refuse an unknown model first
        yield 0.0
        import torch

        yield 0.6
        if self._refacer is None:
            from ..refacer import Refacer

            torch.set_num_threads(self._threads or _processors())
            self._refacer = Refacer.from_pretrained(self._model, self._device)
        for share, name in zip((0.7, 0.8, 0.9), service.TO_REFACE, strict=True):
            yield share
            getattr(self._refacer.model, name)
        self._loaded = True

    def warm_up_steps(self) -> Iterator[None]:
        """What the first scan would have to import, compile and allocate, step by step."""
        import scipy.ndimage
        import scipy.sparse  # noqa: F401
        import SimpleITK  # noqa: F401
        import torch

        from ..anatomy.location import bfloat16

        assert self._refacer is not None
        model, device = self._refacer.model, self._refacer.device
        yield
        with torch.inference_mode(), bfloat16("cpu"):
            model.anatomy(torch.zeros(1, 1, *(4 * model.anatomy.multiple,) * 3))
        yield
        shape = (1, len(model.card["condition"]), *model.card["sub_volume"]["shape"])
        model.generator.set_dropout(float(model.card["dropout"]), torch.Generator())
        with torch.inference_mode(), bfloat16(device):
            model.generator.to(device)(torch.zeros(shape, device=device))

    def _ready(self, progress: Progress) -> tuple[Refacer, Progress]:
        """The refacer with its weights in memory, and where to tell the progress of what follows."""
        if not self._loaded:
            for share in self.loading_steps():
                progress("load", WORKER_LOADED * share)
            progress = part(progress, WORKER_LOADED, 1.0)
        assert self._refacer is not None
        return self._refacer, progress

    def _prepare(
        self, refacer: Refacer, progress: Progress, volume: str, affine: list[list[float]], defaced: str
    ) -> Prepared:
        if defaced not in DEFACED:
            raise InputError(f"{defaced!r} does not say whether the face was removed; give auto, yes or no.")
        stored, self._corrected = self._read(volume), None
        made_from = (stored.dtype.str, stored.shape, affine, defaced)
        digest = hashlib.sha256(stored.tobytes("A") + repr(made_from).encode()).digest()
        if self._head is None or digest != self._head_of:
            self.drop(progress)  # the memory of two heads may not be there
            scan = Volume.from_array(stored, np.array(affine, dtype=float)).check()
            self._head, self._head_of = refacer.prepare(scan, defaced, progress), digest
        return self._head

    def _draw(
        self,
        refacer: Refacer,
        head: Prepared,
        seed: int,
        dropout: float | None,
        progress: Progress,
        seconds: dict[str, float],
    ) -> dict[str, Any]:
        result = refacer.reface(head, seed, dropout, progress=progress)
        return {
            "refaced": self._write(result.volume.stored),
            "face_region": self._write(result.face_region),
            "air_mask": self._write(result.air_mask),
            "brain_mask": self._write(result.brain_mask),
            "seed": seed,
            "upright": _upright(head),
            "report": {**result.report, "seconds": {**rounded(seconds), **result.report["seconds"]}},
        }

    def _read(self, path: str) -> np.ndarray:
        array: np.ndarray = np.load(path, allow_pickle=False)
        os.unlink(path)
        return array

    def _write(self, array: np.ndarray) -> str:
        path = self._folder / f"{secrets.token_hex(8)}.npy"
        self._written.append(str(path))
        np.save(path, array.astype(np.uint8) if array.dtype == bool else array, allow_pickle=False)
        return str(path)


COMMANDS = (
    *("load", "prepare", "reface", "another", "deface", "recognise", "skin", "save", "drop"),
    *("save_dicom", "review_scan", "another_person"),
)
"""And `quit`, which ends the process once all that was asked before is done."""


def _is_array(value: object) -> bool:
    """Whether a value of a request is the path of an array."""
    return isinstance(value, str) and value.endswith(".npy")


def _upright(head: Prepared) -> list[list[float]]:
    """The rotation (3, 3) nearest to how a head was aligned to the average one: from the scan's RAS axes to the
    head's own."""
    matrix = head.anatomy.to_template @ np.linalg.inv(head.anatomy.view.asl_affine)
    left, _, right = np.linalg.svd(matrix[:3, :3])
    rotation: list[list[float]] = (left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right).tolist()
    return rotation


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Serve until stdin closes or `quit` comes."""
    folder = Path(sys.argv[1])
    lines, answers = private_streams()
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits leaves the processor to the window
    logging.basicConfig(level=logging.WARNING)

    def answer(event: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(event) + "\n")
            answers.flush()
        except OSError:  # nobody listens any more
            _leave(folder)

    cancellation = Cancellation()

    def listen() -> None:
        for line in lines:
            given_up = _cancelled(line)
            if given_up is None:
                requests.put(line)
            else:
                cancellation.cancel(given_up)
        _leave(folder)

    cancellation.protected.add(answer.__code__)  # a line is said whole
    cancellation.listen()
    threading.Thread(target=listen, daemon=True).start()
    answer({"event": "ready", "version": __version__, "python": sys.version.split()[0]})
    worker = Worker(folder, lambda: not requests.empty(), cancellation)
    while True:
        worker.preload()
        line = requests.get()
        try:
            request = dict(json.loads(line))
        except (ValueError, TypeError):
            message = "A request could not be understood; each is one line of JSON."
            answer({"id": None, "event": "error", "kind": "input", "message": message})
            continue
        if request.get("command") == "quit":
            answer({"id": request.get("id"), "event": "done"})
            _leave(folder)
        number = request.get("id")
        try:
            worker.handle(request, answer)
        except Interrupted as error:  # while another error was being answered
            answer({"id": number, "event": "error", "kind": "cancelled", "message": str(error)})


def _cancelled(line: str) -> list[int] | None:
    """The requests that a line gives up; None for a line that is a request."""
    if '"cancel"' not in line:
        return None
    try:
        said = json.loads(line)
        return list(said["ids"]) if said["command"] == "cancel" else None
    except (ValueError, TypeError, KeyError):
        return None


def private_streams() -> tuple[IO[str], IO[str]]:
    """stdin and stdout for the protocol alone: for everybody else stdin is empty and stdout is stderr, also
    for what a library prints past Python."""
    lines = os.fdopen(os.dup(0), "r", encoding="utf-8", errors="replace", newline="\n")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return lines, answers


def _leave(folder: Path) -> NoReturn:
    """End the process, whatever its threads are doing, and leave nothing behind."""
    for _ in range(5):  # a thread may just be writing a file
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.05)
    os._exit(0)


if __name__ == "__main__":
    main()
