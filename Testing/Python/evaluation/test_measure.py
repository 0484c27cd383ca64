"""The command that measures folders: all attackers and the realism, each scan once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from RefaceCGANLib import Volume
from RefaceCGANLib.evaluation import made_or_real, measure
from RefaceCGANLib.evaluation.face_recognition import Look
from RefaceCGANLib.evaluation.skin_shape import CENTRE
from scipy import ndimage

SHAPE, PEOPLE = (40, 40, 40), 14
HEAD = (slice(6, 34),) * 3
FACE = (slice(6, 34), slice(18, 34), slice(6, 34))


def person(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.abs(random.normal(0, 2, SHAPE))
    values[HEAD] = 100 + random.normal(0, 15, (28, 28, 28))
    return values.astype(np.float32)


class Models:
    """In place of the face models: an embedding for each person by the head's brightness."""

    looked: ClassVar[Counter[str]] = Counter()

    def __init__(self, *_: object) -> None:
        pass

    def look(self, pictures: list[float]) -> dict[str, Look]:
        Models.looked["look"] += 1
        rows = np.random.default_rng(int(1e6 * pictures[0])).standard_normal((2, 16))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return {"look": Look(np.ones(2, np.float32), rows.astype(np.float32))}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Originals, and outputs: the same with a smooth face. What is slow is replaced."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    for seed in range(PEOPLE):
        values = person(seed)
        smooth = values.copy()
        smooth[FACE] = ndimage.gaussian_filter(values, 1.5)[FACE]
        for name, content in (("originals", values), ("outputs", smooth)):
            (tmp_path / name).mkdir(exist_ok=True)
            Volume.from_array(content, affine).write(tmp_path / name / f"p{seed:02}.nii.gz")
    place = affine.copy()
    place[:3, 3] = np.array(CENTRE) - 60
    Models.looked.clear()
    monkeypatch.setattr(measure, "FaceModels", Models)
    monkeypatch.setattr(measure, "place_in_template", lambda volume: place)
    monkeypatch.setattr(measure, "portraits", lambda volume, reference: [float(volume.array[20, 20, 2:20].mean())])
    monkeypatch.setattr(made_or_real, "TREES", 20)
    arguments = [f"--{name}={tmp_path / name}" for name in ("originals", "outputs", "cache")]
    return [*arguments, "--detector=d.onnx", "--recogniser=r.onnx", f"--json={tmp_path / 'numbers.json'}"]


def test_folders_are_measured_once(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.main(folders)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said if "AUC" in line] == [
        "standard, recogniser", "informed, distance of the skins", "informed, correlation of the skins",
        "learned, recogniser", "learned, skin", "learned, both", "made or real, renders", "worst",
        "made or real, slices, texture",
    ]  # fmt: skip
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["standard, recogniser"]["people"] == PEOPLE
    assert numbers["slices, texture"]["auc"] > 0.9 and numbers["fine_texture"][0] < 0.7
    assert Models.looked["look"] == 2 * PEOPLE
    measure.main([*folders, "--no-realism"])
    assert Models.looked["look"] == 2 * PEOPLE  # the cache has them
    assert "slices" not in capsys.readouterr().out
