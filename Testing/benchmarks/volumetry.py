"""Prints how well, how fast and in how much memory the built-in volumetry segments heads with DLMUSE labels.

    python Testing/benchmarks/volumetry.py shared/heads/val shared/models/volumetry [--threads 2] [--number 6]

Dice is counted on the labels' own grid: a region covers a voxel of 2 mm where it fills more than half of it.
DLMUSE's numbers are those of MUSE (Doshi et al. 2016), as NiChart_DLMUSE lists them, right and left.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from RefaceCGANLib import Volume
from RefaceCGANLib.evaluation.segmentation import Segmentation, dice
from RefaceCGANLib.evaluation.volumetry import Backend, MeshNet, TissueClasses
from RefaceCGANLib.spatial.grid import sample

CSF = (1, 4, 11, 46, 49, 50, 51, 52)
WM = (40, 41, 61, 62, *range(81, 96))
DLMUSE = {
    "TIV": tuple(range(1, 256)),
    "CSF": CSF,
    "GM": tuple(label for label in range(1, 256) if label not in (35, *CSF, *WM)),  # 35: brain stem
    "WM": WM,
    **{"thalamus": (59, 60), "caudate": (36, 37), "putamen": (57, 58), "pallidum": (55, 56)},
    **{"hippocampus": (47, 48), "amygdala": (31, 32)},
}
DEEP = tuple(DLMUSE)[4:]


def overlap(found: Segmentation, reference: Segmentation) -> dict[str, float]:
    """Region -> Dice on the reference's grid."""
    mapping = np.linalg.inv(found.affine) @ reference.affine
    result = {}
    for region, ids in found.regions.items():
        share = torch.from_numpy(np.isin(found.labels, ids).astype(np.float32))[None]
        inside = sample(share, mapping, reference.labels.shape)[0].numpy() > 0.5
        alone = Segmentation(inside.astype(np.uint8), reference.affine, {region: (1,)})
        result |= dice(alone, reference)
    return result


def measure(backend: Backend, scan: Path) -> dict[str, float]:
    volume, labels = Volume.read(scan), Volume.read(scan.with_name(scan.name.replace(".nii", "_seg.nii")))
    began, worked = time.perf_counter(), time.process_time()
    found = backend.segment(volume)
    times = {"seconds": time.perf_counter() - began, "processor seconds": time.process_time() - worked}
    found_dice = overlap(found, Segmentation(labels.stored, labels.affine, DLMUSE))
    if deep := [found_dice[region] for region in DEEP if region in found_dice]:
        found_dice["mean of the six"] = float(np.mean(deep))
    return found_dice | times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("models", type=Path, help="folder with model18cls/ and mindgrab/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--number", type=int, help="of heads; left out: all")
    parser.add_argument("--backends", nargs="+", default=["meshnet", "hmrf"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scans = [path for path in sorted(options.heads.glob("*.nii.gz")) if "_seg" not in path.name]
    made = {
        "meshnet": lambda: MeshNet(options.models / "model18cls", options.threads),
        "hmrf": lambda: TissueClasses(options.models / "mindgrab", options.threads),
    }
    for name in options.backends:
        backend = made[name]()
        rows = {}
        for scan in scans[: options.number]:
            rows[scan.name.split(".")[0]] = measure(backend, scan)
            print(
                name,
                scan.name,
                {key: round(value, 3) for key, value in list(rows.values())[-1].items()},
                flush=True,
            )
        table = pd.DataFrame(rows).T
        print(f"\n{name}, {len(table)} heads, {options.threads} threads\n")
        print(
            pd.DataFrame({"mean": table.mean(), "worst": table.min(), "highest": table.max()}).round(3).to_string()
        )
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
