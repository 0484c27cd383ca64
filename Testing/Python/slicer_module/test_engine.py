"""The engine as the panel and scripts use it: with a quick stand-in for the worker, and with the real one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parents[3] / "RefaceCGAN"
sys.path.insert(0, str(MODULE))

from RefaceCGANSlicer import child_process as child
from RefaceCGANSlicer import engine
from RefaceCGANSlicer.engine import Engine, EngineError

posix = pytest.mark.skipif(os.name == "nt", reason="asks the system for processes as POSIX does")
STAND_IN = """
import json, os, queue, shutil, subprocess, sys, threading, time
folder = sys.argv[1]
lines, given_up = queue.SimpleQueue(), set()

def say(**event):
    print(json.dumps(event), flush=True)

def listen():
    for line in sys.stdin:
        request = json.loads(line)
        given_up.update(request["ids"]) if request["command"] == "cancel" else lines.put(request)
    lines.put(None)

say(event="ready", version="0", python="3")
threading.Thread(target=listen, daemon=True).start()
while request := lines.get():
    number, command = request.pop("id"), request.pop("command")
    if command == "work":
        say(id=number, event="progress", stage="at it", fraction=0.1)
        while number not in given_up:
            time.sleep(0.01)
        say(id=number, event="error", kind="cancelled", message="Cancelled.")
    elif command == "echo":
        say(id=number, event="progress", stage="listen", fraction=0.5)
        say(id=number, event="done", **request)
    elif command == "refuse":
        say(id=number, event="error", kind="check", message="No.")
    elif command == "garbage":
        print("what a library prints\\n{\\n[1]\\n{}\\n" + "x" * 5000)
        say(id=99, event="done")
        say(id=number, event="done")
    elif command == "environment":
        say(id=number, event="done", environment=dict(os.environ))
    elif command == "flood":
        for _ in range(50000):
            sys.stderr.write("all is well, and more of the same\\n")
        say(id=number, event="done")
    elif command == "vanish":
        say(id=number, event="done", array=os.path.join(folder, "nothing.npy"))
    elif command == "die":
        sys.stderr.write("last words\\n")
        sys.stderr.flush()
        os._exit(3)
    elif command == "hang":
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(id=number, event="progress", stage=f"{os.getpid()} {grandchild.pid}", fraction=0.1)
        time.sleep(600)
shutil.rmtree(folder, ignore_errors=True)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The engine with a stand-in for the worker that starts at once; its private folders lie in tmp_path."""
    package = tmp_path / "package" / "RefaceCGANLib"
    (package / "app").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "app" / "__init__.py").touch()
    (package / "app" / "worker.py").write_text(STAND_IN)
    monkeypatch.setattr(engine, "PACKAGE", package.parent)
    made = Engine(sys.executable, tmp_path)
    yield made
    made.stop()
    assert private_folders(tmp_path) == []


def private_folders(place: Path) -> list[Path]:
    return sorted(place.glob(f"{child.PREFIX}*"))


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process has ended, or does so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
            return True
        time.sleep(0.02)
    return False


def poll_until(made: Engine, condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        made.poll()
        time.sleep(0.01)


def hanging(made: Engine, **callbacks) -> tuple[int, list[int]]:
    """A request that never ends, and the processes that serve it."""
    said = []
    number = made.request("hang", on_progress=lambda stage, _: said.append(stage), **callbacks)
    poll_until(made, lambda: said)
    return number, [int(part) for part in said[0].split()]


# --- requests ---------------------------------------------------------------------------------------------


def test_arrays_go_there_and_come_back_and_leave_no_file(stand_in, tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 1, 0)
    mask = voxels > 5
    number = stand_in.request("echo", volume=voxels, mask=mask, affine=np.eye(4), seed=np.int64(7), name="head")
    answer = stand_in.wait(number, 20)
    assert answer["volume"].dtype == np.int16
    assert np.array_equal(answer["volume"], voxels)
    assert answer["mask"].dtype == np.uint8
    assert np.array_equal(answer["mask"], mask)
    assert (answer["affine"], answer["seed"], answer["name"]) == (np.eye(4).tolist(), 7, "head")
    (folder,) = private_folders(tmp_path)
    assert [path.name for path in folder.iterdir()] == [child.LOCK]


@posix
def test_nobody_else_may_look_into_the_private_folder(stand_in, tmp_path):
    stand_in.start()
    (folder,) = private_folders(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_callbacks_run_inside_poll_and_requests_keep_their_order(stand_in):
    heard = []
    for seed in range(3):
        stand_in.request(
            "echo",
            on_progress=lambda stage, fraction: heard.append((stage, fraction)),
            on_done=lambda answer: heard.append(answer["seed"]),
            on_error=heard.append,
            seed=seed,
        )
    time.sleep(0.3)
    assert heard == []
    poll_until(stand_in, lambda: len(heard) == 6)
    assert heard == [("listen", 0.5), 0, ("listen", 0.5), 1, ("listen", 0.5), 2]


def test_a_callback_may_ask_again(stand_in):
    heard = []

    def again(answer):
        heard.append(answer["seed"])
        stand_in.request("echo", on_done=lambda answer: heard.append(answer["seed"]), seed=2)

    stand_in.request("echo", on_done=again, seed=1)
    poll_until(stand_in, lambda: heard == [1, 2])


def test_a_callback_that_fails_is_not_swallowed_and_the_engine_goes_on(stand_in):
    def broken(answer):
        raise ZeroDivisionError

    heard = []
    stand_in.request("echo", on_done=broken)
    stand_in.request("echo", on_done=heard.append)
    with pytest.raises(ZeroDivisionError):
        poll_until(stand_in, lambda: heard)
    poll_until(stand_in, lambda: heard)


def test_an_error_of_the_worker_is_raised_or_told_with_its_kind(stand_in):
    with pytest.raises(EngineError, match=r"^No\.$") as caught:
        stand_in.wait(stand_in.request("refuse"), 20)
    assert caught.value.kind == "check"
    heard = []
    stand_in.request("refuse", on_error=heard.append)
    poll_until(stand_in, lambda: heard)
    assert (str(heard[0]), heard[0].kind) == ("No.", "check")


def test_waiting_keeps_the_window_alive(stand_in):
    calls = []
    stand_in.wait(stand_in.request("echo"), 20, process_events=lambda: calls.append(1))
    assert calls


def test_waiting_ends_in_time(stand_in):
    number, _ = hanging(stand_in)
    with pytest.raises(EngineError, match="in time") as caught:
        stand_in.wait(number, 0.1)
    assert caught.value.kind == "timeout"


def test_poll_does_not_block_while_the_engine_works(stand_in):
    hanging(stand_in)
    began = time.monotonic()
    for _ in range(10):
        stand_in.poll()
    assert time.monotonic() - began < 1


# --- what goes wrong --------------------------------------------------------------------------------------


def test_lines_that_are_no_answer_are_ignored_and_logged(stand_in, caplog):
    with caplog.at_level(logging.WARNING):
        assert stand_in.wait(stand_in.request("garbage"), 20) == {}
    assert "what a library prints" in caplog.text
    assert "answered nobody" in caplog.text
    assert max(map(len, caplog.messages)) < 500


def test_a_flood_on_stderr_neither_blocks_nor_reaches_the_log(stand_in, caplog):
    with caplog.at_level(logging.INFO):
        stand_in.wait(stand_in.request("flood"), 20)
        with pytest.raises(EngineError):
            stand_in.wait(stand_in.request("die"), 20)
    assert "last words" in caplog.text
    assert caplog.text.count("all is well") < child.LAST_LINES


def test_a_crash_fails_all_that_was_asked_and_the_next_request_restarts(stand_in, tmp_path):
    heard = []
    stand_in.request("die", on_error=heard.append)
    stand_in.request("echo", on_done=heard.append, on_error=heard.append)
    poll_until(stand_in, lambda: len(heard) == 2)
    assert [error.kind for error in heard] == ["crash", "crash"]
    assert "ended unexpectedly" in str(heard[0])
    assert not stand_in.running
    assert private_folders(tmp_path) == []
    assert stand_in.wait(stand_in.request("echo", seed=5), 20)["seed"] == 5


@posix
def test_a_killed_engine_is_one_sentence_and_the_next_request_restarts(stand_in):
    heard = []
    _, (pid, grandchild) = hanging(stand_in, on_error=heard.append)
    os.kill(pid, signal.SIGKILL)
    poll_until(stand_in, lambda: heard)
    assert gone(grandchild)
    assert heard[0].kind == "memory"
    assert "killed, as happens when memory runs out" in str(heard[0])
    assert stand_in.wait(stand_in.request("echo", seed=5), 20)["seed"] == 5


@posix
def test_an_engine_that_was_killed_while_idle_is_restarted_unnoticed(stand_in):
    environment = stand_in.wait(stand_in.request("environment"), 20)["environment"]
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(engine.PACKAGE)
    stand_in._child.process.kill()
    stand_in._child.process.wait()
    assert stand_in.wait(stand_in.request("echo", seed=5), 20)["seed"] == 5


def test_a_python_that_cannot_be_run_is_told_by_on_error(tmp_path):
    made, heard = Engine(str(tmp_path / "no-python"), tmp_path), []
    made.request("echo", on_error=heard.append)
    assert heard == []  # not before poll
    made.poll()
    assert "no-python cannot be run" in str(heard[0])
    with pytest.raises(EngineError, match="cannot be run"):
        made.start()
    assert private_folders(tmp_path) == []


def test_a_python_without_the_packages_says_what_is_missing(stand_in):
    (engine.PACKAGE / "RefaceCGANLib" / "app" / "worker.py").write_text("import nothing_of_that_name")
    with pytest.raises(EngineError, match=r"cannot start .*No module named 'nothing_of_that_name'"):
        stand_in.wait(stand_in.request("echo"), 20)


def test_an_answer_whose_file_is_lost_is_an_error(stand_in):
    with pytest.raises(EngineError, match="cannot be read"):
        stand_in.wait(stand_in.request("vanish"), 20)


# --- cancel, stop, and the end of everything --------------------------------------------------------------


@posix
def test_cancel_keeps_the_process_and_nothing_of_what_was_cancelled_is_heard(stand_in, tmp_path):
    heard, progress = [], []
    for command in ("work", "echo"):
        stand_in.request(
            command, on_progress=lambda *said: progress.append(said), on_done=heard.append, on_error=heard.append
        )
    poll_until(stand_in, lambda: progress)
    process = stand_in._child.process.pid
    stand_in.cancel()
    assert stand_in.busy
    poll_until(stand_in, lambda: not stand_in.busy)
    assert heard == [] and len(progress) == 1
    assert stand_in.wait(stand_in.request("echo", seed=5), 20)["seed"] == 5
    assert stand_in._child.process.pid == process
    (folder,) = private_folders(tmp_path)
    assert [path.name for path in folder.iterdir()] == [child.LOCK]


def test_one_request_can_be_cancelled_and_a_lasting_one_outlives_a_cancel_of_all(stand_in):
    heard = []
    number = stand_in.request("work", on_error=heard.append)
    stand_in.request("echo", on_done=lambda answer: heard.append(answer["seed"]), seed=1)
    stand_in.cancel(number)
    poll_until(stand_in, lambda: heard)
    stand_in.request("work", on_error=heard.append)
    stand_in.request("echo", on_done=lambda answer: heard.append(answer["seed"]), lasting=True, seed=2)
    stand_in.request("echo", on_done=lambda answer: heard.append(answer["seed"]), seed=3)
    stand_in.cancel()
    poll_until(stand_in, lambda: not stand_in.busy)
    assert heard == [1, 2]


@posix
def test_a_process_that_does_not_let_go_is_killed_with_its_children(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LET_GO", 0.2)
    heard = []
    _, pids = hanging(stand_in, on_done=heard.append, on_error=heard.append)
    stand_in.cancel()
    stand_in.request("echo", on_error=heard.append)  # behind what hangs
    poll_until(stand_in, lambda: heard)
    assert all(gone(pid) for pid in pids)
    assert [error.kind for error in heard] == ["memory"]  # it was killed
    assert private_folders(tmp_path) == []
    assert stand_in.wait(stand_in.request("echo", seed=5), 20)["seed"] == 5


@posix
def test_stop_kills_the_children_too_and_leaves_nothing(stand_in, tmp_path):
    heard = []
    _, pids = hanging(stand_in, on_done=heard.append, on_error=heard.append)
    stand_in.request("echo", on_done=heard.append, on_error=heard.append, volume=np.zeros((9, 9, 9)))
    began = time.monotonic()
    stand_in.stop()
    assert time.monotonic() - began < 1
    assert all(gone(pid) for pid in pids)
    assert private_folders(tmp_path) == []
    stand_in.poll()
    assert heard == []
    assert stand_in.wait(stand_in.request("echo", seed=5), 20)["seed"] == 5


def test_cancel_while_waiting_ends_the_wait(stand_in):
    number, _ = hanging(stand_in)
    with pytest.raises(EngineError) as caught:
        stand_in.wait(number, 20, process_events=stand_in.cancel)
    assert caught.value.kind == "cancelled"


def test_cancel_and_stop_without_a_process_do_nothing(stand_in):
    stand_in.cancel()
    stand_in.stop()
    assert not stand_in.running


@posix
def test_an_engine_that_is_deleted_takes_its_process_along(stand_in, tmp_path):
    other = Engine(sys.executable, tmp_path)
    _, pids = hanging(other)
    del other
    assert all(gone(pid) for pid in pids)
    assert private_folders(tmp_path) == []


def test_leftovers_of_a_dead_process_are_swept_and_those_of_a_living_one_kept(stand_in, tmp_path):
    other = Engine(sys.executable, tmp_path)
    other.start()
    (living,) = private_folders(tmp_path)
    dead, fresh = tmp_path / f"{child.PREFIX}dead", tmp_path / f"{child.PREFIX}fresh"
    for folder in (dead, fresh):
        folder.mkdir()
        (folder / child.LOCK).touch()
        (folder / "voxels.npy").touch()
    for folder in (dead, living):
        os.utime(folder, (0, 0))
    stand_in.start()
    assert not dead.exists()
    assert living.exists()
    assert fresh.exists()  # may just be in the making
    assert other.wait(other.request("echo", seed=1), 20)["seed"] == 1
    other.stop()
    os.utime(fresh, (0, 0))
    child.sweep(tmp_path)
    assert not fresh.exists()


@posix
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"], ids=["ends", "is killed"])
def test_the_real_worker_ends_with_its_parent_and_leaves_nothing(tmp_path, end):
    """It is loading torch at that moment."""
    script = (
        "import os, sys, time\nfrom RefaceCGANSlicer.engine import Engine\n"
        "made = Engine(sys.executable, sys.argv[1])\nmade.start()\n"
        "while not made._child.ready: made.poll(); time.sleep(0.05)\n"
        f"print(made._child.process.pid, flush=True)\n{end}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=MODULE, capture_output=True, text=True, check=False
    )
    assert gone(int(done.stdout), 20)
    assert private_folders(tmp_path) == []


@posix
def test_the_real_worker_is_cancelled_and_goes_on_warm_and_is_restarted_when_killed(tmp_path, model_dir, head):
    from RefaceCGANLib import Volume

    volume, made, stages = Volume.read(head), Engine(sys.executable, tmp_path), []

    def reface(until, **callbacks):
        stages.clear()
        tell = {"on_progress": lambda stage, _: stages.append(stage)}
        made.request("load", model=model_dir, device="cpu", threads=1, **tell)
        made.request(
            "reface", **tell,
            volume=volume.stored, affine=volume.affine, seed=7, **callbacks,
        )  # fmt: skip
        poll_until(made, lambda: until in stages, 60)

    try:
        heard = []
        for until in ("load", "locate", "generate"):  # while torch is imported, and in the midst of two stages
            reface(until, on_done=heard.append, on_error=heard.append)
            process, began = made._child.process.pid, time.monotonic()
            made.cancel()
            assert time.monotonic() - began < 1
            assert made.wait(made.request("drop"), 60) == {}
            assert made._child.process.pid == process
        (folder,) = private_folders(tmp_path)
        assert [path.name for path in folder.iterdir()] == [child.LOCK] and heard == []
        number = made.request("reface", volume=volume.stored, affine=volume.affine, seed=7)
        assert (made.wait(number, 60)["refaced"] != volume.stored).any()
        made.request("drop", on_error=heard.append)
        os.kill(made._child.process.pid, signal.SIGKILL)
        poll_until(made, lambda: heard)
        assert heard[0].kind == "memory"
        assert made.wait(made.request("drop"), 60) == {}
    finally:
        made.stop()
    assert private_folders(tmp_path) == []


# --- which Python -----------------------------------------------------------------------------------------


def test_the_variable_goes_before_the_setting_and_that_before_slicers_own():
    variable = {engine.VARIABLE: "/opt/a/python"}
    assert engine.python_of(variable, "/opt/b/python") == "/opt/a/python"
    assert engine.python_of({}, "/opt/b/python") == "/opt/b/python"
    assert engine.python_of({}, "") == sys.executable  # outside the application


@posix
def test_the_folder_of_an_environment_names_its_python(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    assert engine.python_of({engine.VARIABLE: str(tmp_path)}) == str(python)


class Application:
    """What the engine asks of slicer.app."""

    def __init__(self, home: Path) -> None:
        self.slicerHome = str(home)


@posix
def test_in_the_application_pythonslicer_runs_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_application", lambda: Application(tmp_path))
    python = tmp_path / "bin" / "PythonSlicer"
    python.parent.mkdir()
    python.touch(mode=0o755)
    assert engine.python_of({}, "") == str(python)
    assert engine.is_own(str(tmp_path / "bin" / ".." / "bin" / "PythonSlicer"))
    python.unlink()
    elsewhere = tmp_path / "path" / "PythonSlicer"
    elsewhere.parent.mkdir()
    elsewhere.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(elsewhere.parent))
    assert engine.python_of({}, "") == str(elsewhere)


def test_slicers_own_python_keeps_slicers_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/slicer/python")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/slicer/lib")
    environment = engine.environment_of(sys.executable)
    assert environment["PYTHONPATH"] == os.pathsep.join([str(engine.PACKAGE), "/slicer/python"])
    assert environment["LD_LIBRARY_PATH"] == "/slicer/lib"


def test_another_python_gets_the_environment_from_before_slicer(monkeypatch):
    before = {"PATH": "/usr/bin", "PYTHONHOME": "/slicer", "PYTHONPATH": "/slicer/python"}
    monkeypatch.setattr(engine, "_startup_environment", lambda: dict(before))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/slicer/lib")
    environment = engine.environment_of("/opt/other/bin/python")
    assert environment == {"PATH": "/usr/bin", "PYTHONPATH": str(engine.PACKAGE)}
