"""Fixtures shared by all tests: where the heads and the model lie, and the skip when they are not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
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
from RefaceCGANLib.spatial.grid import axes_matrix, resample_axes
from RefaceCGANLib.training.template_space import WORKING_SPANS

REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = Path(os.environ.get("REFACECGAN_HEADS", REPOSITORY.parent / "shared" / "heads"))
MODEL = REPOSITORY / "RefaceCGAN" / "Resources" / "Models" / "default"


WHOLE = {"refacer", "result", "model_dir"}
"""Who asks for one of these runs the networks, and gets the mark `whole`."""
LOCATED = 12
"""Anatomies that are remembered; each has two masks of a whole scan."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WHOLE & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.whole)
        if item.get_closest_marker("heads") and not HEADS.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"{item.name}: the real heads are not in {HEADS}"))


@pytest.fixture(scope="session", autouse=True)
def each_head_is_located_once() -> Iterator[OrderedDict[bytes, Anatomy]]:
    """Brain and face follow from the voxels, the geometry and the weights: equal scans are located once a
    session. Which stages run, and what they say, is as ever."""
    found: OrderedDict[bytes, Anatomy] = OrderedDict()
    locate = Refacer.locate

    def remembered(self: Refacer, volume: Volume, defaced: str = "auto") -> Anatomy:
        files = self.model.card["files"]
        made_from = (
            volume.array.tobytes(),
            volume.affine.tobytes(),
            repr((volume.shape, files, defaced)).encode(),
        )
        key = hashlib.sha256(b"".join(made_from)).digest()
        if key not in found:
            found[key] = locate(self, volume, defaced)
            while len(found) > LOCATED:
                found.popitem(last=False)
        found.move_to_end(key)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refacer, "locate", remembered)
        yield found


def sampled(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """Parameters of a test: those of `kept` run always, the others in `make test-slow` alone."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture
def located_anew(each_head_is_located_once: OrderedDict[bytes, Anatomy]) -> Iterator[None]:
    """For a test that looks at how brain and face are found: nothing is remembered before it or after it."""
    each_head_is_located_once.clear()
    yield
    each_head_is_located_once.clear()


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
def sample_head() -> Path:
    """The shipped sample head, 1.5 mm."""
    return REPOSITORY / "Resources" / "SampleData" / "average_head.nii.gz"


@pytest.fixture(scope="session")
def head(sample_head: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole head at 2 mm, which is quicker than at 1.5 mm: the sample head, resampled."""
    sample = Volume.read(sample_head)
    values = resample_axes(sample.array, sample.spacing, 2.0)
    affine = sample.affine @ axes_matrix(sample.spacing, 2.0)
    path = tmp_path_factory.mktemp("head") / "average_head_2mm.nii.gz"
    Volume.from_array(sample.to_stored(values), affine).write(path)
    return path


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
