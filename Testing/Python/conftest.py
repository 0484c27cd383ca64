"""Fixtures shared by all tests: where the heads and the model lie, and the skip when they are not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from RefaceCGANLib import Refacer, Result, Volume, checks
from RefaceCGANLib.anatomy.location import Anatomy
from RefaceCGANLib.app import command_line as cli
from RefaceCGANLib.errors import RefaceError
from RefaceCGANLib.face_model.template import Template
from RefaceCGANLib.models.model import Model
from RefaceCGANLib.training.build_template import WORKING_SPANS

REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = Path(os.environ.get("REFACECGAN_HEADS", REPOSITORY.parent / "shared" / "heads"))
MODEL = REPOSITORY / "RefaceCGAN" / "Resources" / "Models" / "default"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HEADS.is_dir():
        return
    for item in items:
        if item.get_closest_marker("heads"):
            item.add_marker(pytest.mark.skip(reason=f"{item.name}: the real heads are not in {HEADS}"))


@pytest.fixture(scope="session")
def heads() -> Path:
    """Folder with train/, val/ and native/ (tests that use it carry the mark `heads`)."""
    return HEADS


@pytest.fixture(scope="session")
def model_dir() -> Iterator[Path]:
    """Folder of the default model, or of the one in REFACECGAN_TEST_MODEL, whose faces may be poor."""
    elsewhere = os.environ.get("REFACECGAN_TEST_MODEL")
    if (MODEL / "card.json").is_file():
        yield MODEL
    elif elsewhere:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checks, "FACE_RATIO", (0.0, 100.0))
            yield Path(elsewhere)
    else:
        pytest.skip(f"there is no model in {MODEL}, and REFACECGAN_TEST_MODEL names none")


@pytest.fixture(scope="session")
def refacer(model_dir: Path) -> Refacer:
    """The model, loaded once, on the processor."""
    return Refacer.from_pretrained(model_dir, device="cpu")


@pytest.fixture(scope="session")
def located_once() -> Iterator[None]:
    """For tests of whole data sets: in this process, brain and face of one scan are found once, which takes most
    of the time of a run and comes to the same each time."""
    found: dict[bytes, Anatomy | RefaceError] = {}
    locate = Refacer.locate

    def remembered(self: Refacer, volume: Volume, defaced: str = "auto") -> Anatomy:
        content = repr(
            (volume.shape, volume.affine.tolist(), volume.slope, volume.intercept, defaced, self.model.id)
        )
        key = hashlib.sha256(np.ascontiguousarray(volume.stored).tobytes() + content.encode()).digest()
        if key not in found:
            try:
                found[key] = locate(self, volume, defaced)
            except RefaceError as error:
                found[key] = error
        result = found[key]
        if isinstance(result, RefaceError):
            raise result
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refacer, "locate", remembered)
        yield


@pytest.fixture(scope="session")
def template() -> Template:
    """The shipped template, on the working grid."""
    return Model.load(MODEL).template.crop(WORKING_SPANS)


@pytest.fixture(scope="session")
def head() -> Path:
    """A whole head at 2 mm: the sample head, or a real one while that is missing."""
    sample = REPOSITORY / "Resources" / "SampleData" / cli.SAMPLE_HEAD
    real = HEADS / "val" / "ixi094.nii.gz"
    for path in (sample, real):
        if path.is_file():
            return path
    pytest.skip(f"there is neither {sample} nor {real}")


@pytest.fixture(scope="session")
def face_models() -> dict[str, str]:
    """The ONNX files of a face detector and of a face recogniser."""
    folder = HEADS.parent / "models" / "face"
    files = {"detector": folder / "yunet.onnx", "recogniser": folder / "MobileFaceNet.onnx"}
    if not all(path.is_file() for path in files.values()):
        pytest.skip(f"the face models are not in {folder}")
    pytest.importorskip("onnxruntime")
    return {name: str(path) for name, path in files.items()}


@pytest.fixture(scope="session")
def result(refacer: Refacer, head: Path) -> Result:
    """The head, refaced with seed 7."""
    return refacer.reface(Volume.read(head), seed=7)


@dataclass(frozen=True)
class Call:
    """What a call of the command line came to."""

    status: int
    out: list[str]
    err: list[str]


@pytest.fixture(scope="session")
def refacecgan() -> Callable[..., Call]:
    """Call the command line in this process: refacecgan("reface", path, ...)."""

    def call(*arguments: object) -> Call:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main([str(argument) for argument in arguments])
        return Call(status, out.getvalue().splitlines(), err.getvalue().splitlines())

    return call


@pytest.fixture
def world() -> Iterator[Any]:
    """The panel of the Slicer module over the real .ui, in a scene of its own (`panel_world.World`)."""
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    pytest.importorskip("PySide6", reason="PySide6 is not installed")
    from panel_world import made_world

    with made_world() as made:
        yield made
