"""Time and memory of the whole command, beside `niimath -reface` and `-deface` on the same files.

    make benchmark           (or: python Testing/benchmarks/speed.py [--heads FOLDER] [--templates FOLDER])

Each program is run file to file, from a cold start, with one and with two threads; the best of three runs is
shown. Then one warm Refacer, stage by stage. Prints Markdown tables; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"


def measure(command: list[str], threads: int) -> tuple[float, float]:
    """Wall-clock seconds and peak memory (MB) of one command."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    script = (
        "import resource, subprocess, sys; "
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE); "
        "sys.stderr.buffer.write(code.stderr) if code.returncode else None; "
        "print(code.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *command], env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    status, peak = done.stdout.split()
    if status != "0":
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return seconds, int(peak) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=Path, default=SHARED / "heads" / "native")
    parser.add_argument("--templates", type=Path, default=SHARED / "templates" / "afni")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    niimath = shutil.which("niimath", path=str(Path(sys.executable).parent)) or shutil.which("niimath")
    template, shell, weight = (
        str(options.templates / name)
        for name in ("MNI152_2009_SSW.nii.gz", "refacer_shell_sym212.nii.gz", "MNI152_2009_SSW_weight.nii.gz")
    )
    print("| command | scan | threads | seconds | peak memory (MB) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out, keep = str(Path(folder) / "out.nii.gz"), str(Path(folder) / "keep.nii.gz")
        _keep_mask(shell, keep)
        for scan in ("adi", "uih1"):
            source = str(options.heads / f"{scan}.nii.gz")
            for threads in (1, 2):
                ours = [sys.executable, "-m", "RefaceCGANLib"]
                commands = {
                    "refacecgan reface": [
                        *ours,
                        "reface",
                        source,
                        out,
                        "--seed",
                        "1",
                        "--threads",
                        str(threads),
                    ],
                    "refacecgan deface": [*ours, "deface", source, out, "--threads", str(threads)],
                }
                if niimath:
                    commands["niimath -reface"] = [
                        niimath,
                        source,
                        "-p",
                        str(threads),
                        "-reface",
                        template,
                        shell,
                        weight,
                        out,
                    ]
                    commands["niimath -deface"] = [
                        niimath,
                        source,
                        "-p",
                        str(threads),
                        "-deface",
                        template,
                        keep,
                        out,
                    ]
                for name, command in commands.items():
                    runs = []
                    for _ in range(options.repeats):
                        Path(out).unlink(missing_ok=True)
                        runs.append(measure(command, threads))
                    seconds, peak = min(runs)
                    print(f"| {name} | {scan} | {threads} | {seconds:.2f} | {peak:.0f} |", flush=True)
    stages(options.heads / "adi.nii.gz")


def _keep_mask(shell: str, path: str) -> None:
    """`niimath -deface` keeps what is 1: where AFNI's shell is 0."""
    import nibabel as nib
    import numpy as np

    image = nib.load(shell)
    keep = (np.asarray(image.dataobj) == 0).astype(np.uint8)
    nib.Nifti1Image(keep, image.affine).to_filename(path)


def stages(scan: Path) -> None:
    """One warm Refacer on a loaded scan, stage by stage, on all cores."""
    from RefaceCGANLib import Refacer, Volume

    refacer, volume = Refacer.from_pretrained(device="cpu"), Volume.read(scan)
    refacer.reface(volume, seed=0)
    runs = []
    for seed in range(1, 6):
        began = time.perf_counter()
        result = refacer.reface(volume, seed=seed)
        first = time.perf_counter() - began
        began = time.perf_counter()
        refacer.reface(result, seed=seed + 100)
        runs.append((first, time.perf_counter() - began, result.report["seconds"]))
    runs.sort(key=lambda run: run[0])
    first, _, seconds = runs[len(runs) // 2]
    again = sorted(run[1] for run in runs)[len(runs) // 2]
    print("\n| stage (warm, median of 5) | seconds |\n|---|---|")
    for stage, value in seconds.items():
        print(f"| {stage} | {value:.2f} |")
    print(f"| **reface, all stages** | {first:.2f} |\n| **another seed** | {again:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory of this process: {peak:.0f} MB. {json.dumps({'threads': os.cpu_count()})}")


if __name__ == "__main__":
    main()
