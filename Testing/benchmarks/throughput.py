"""Scans an hour: a data set with one process, with two, and niimath's refacing in two shell loops.

    python Testing/benchmarks/throughput.py [--scans N]

Runs on the real heads in ../shared/heads/val and prints a table. The three are run one after the other on the same
machine, which should be free; every run starts from nothing and ends with all scans on disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

SHARED = Path(os.environ.get("REFACECGAN_HEADS", Path(__file__).resolve().parents[3] / "shared" / "heads")).parent
AFNI = SHARED / "templates" / "afni"
NIIMATH = shutil.which("niimath") or shutil.which("niimath", path=str(Path(sys.executable).parent))
SCANS, MACHINES = 100_000, 100
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Scans an hour on this machine.")
    parser.add_argument("--scans", type=int, default=10, help="so many heads, each a person (default: 10)")
    count = parser.parse_args().scans
    heads = [path for path in sorted((SHARED / "heads" / "val").glob("*.nii.gz")) if "_seg" not in path.name][
        :count
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        for head in heads:
            place = source / head.name.split(".")[0]
            place.mkdir(parents=True)
            shutil.copy(head, place / "t1.nii.gz")
        rows = [
            ("RefaceCGAN, --jobs 1", *measured(data_set(source, Path(folder) / "one", 1))),
            ("RefaceCGAN, --jobs 2", *measured(data_set(source, Path(folder) / "two", 2))),
        ]
        if NIIMATH:
            rows.append(("niimath -reface, 2 loops", *measured(niimath(source, Path(folder)))))
    print("| run | scans an hour | seconds a scan | peak memory |\n|---|---|---|---|")
    for name, seconds, memory in rows:
        each = seconds / len(heads)
        print(f"| {name} | {3600 / each:.0f} | {each:.1f} | {memory / 2**30:.1f} GiB |")
    one, two = rows[0][1], rows[1][1]
    hours = SCANS * two / len(heads) / MACHINES / 3600
    print(
        f"\nTwo processes are {one / two:.2f} times as fast as one; {SCANS} scans take {hours:.1f} hours on ",
        end="",
    )
    print(f"{MACHINES} such machines ({hours * MACHINES:.0f} machine hours).")


def data_set(source: Path, output: Path, jobs: int) -> list[str]:
    options = ["--device", "cpu", "--jobs", str(jobs), "--progress", "none"]
    return [sys.executable, "-m", "RefaceCGANLib", "dataset", str(source), str(output), *options]


def niimath(source: Path, folder: Path) -> list[str]:
    """Two shell loops at a time, each over one half of the heads."""
    names = ("MNI152_2009_SSW.nii.gz", "refacer_shell_sym212.nii.gz", "MNI152_2009_SSW_weight.nii.gz")
    parts = " ".join(f'"{AFNI / name}"' for name in names)
    call = f'"{NIIMATH}" "$1" -reface {parts} "{folder}/$(basename $(dirname $1))_niimath"'
    return ["bash", "-c", f"ls {source}/*/t1.nii.gz | xargs -P 2 -n 1 bash -c '{call}' _"]


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds, and the most bytes of memory that the program and its children had at a time."""
    began, peak = time.perf_counter(), 0
    program = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            try:
                top = psutil.Process(program.pid)
                peak = max(peak, sum(one.memory_info().rss for one in (top, *top.children(recursive=True))))
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    status = program.wait()
    ended.set()
    thread.join()
    if status:
        raise SystemExit(f"{command[0]} ended with status {status}.")
    return time.perf_counter() - began, peak


if __name__ == "__main__":
    main()
