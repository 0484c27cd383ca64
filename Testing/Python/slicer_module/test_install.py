"""What the engine's Python lacks, and its installation: with fakes of Slicer's pip and the PyTorch extension."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "RefaceCGAN"))

from RefaceCGANSlicer import engine, install
from RefaceCGANSlicer.engine import EngineError


@pytest.fixture
def lacking(monkeypatch):
    """The names that this Python lacks from now on; what is installed is taken off them."""
    names: set[str] = set()
    found = install._found
    monkeypatch.setattr(install, "_found", lambda needed: {**found(needed), **dict.fromkeys(names, False)})
    monkeypatch.delenv(engine.VARIABLE, raising=False)
    return names


@pytest.fixture
def slicer_pip(monkeypatch, lacking):
    """Fakes of slicer.packaging and of the PyTorch extension; returns what was asked of them."""
    asked = []

    def pip_ensure(requirements, **options):
        asked.append(("pip_ensure", requirements, options))
        lacking.difference_update(("nibabel",))

    class Logic:
        def installTorch(self, **options):
            asked.append(("installTorch", options))
            lacking.discard("torch")
            return types.ModuleType("torch")

    packaging = types.ModuleType("slicer.packaging")
    packaging.load_requirements = lambda path: Path(path).read_text().split("\n")[1:-1]
    packaging.pip_ensure = pip_ensure
    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "slicer", types.ModuleType("slicer"))
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    return asked


def test_nothing_is_missing_where_the_engine_runs(lacking):
    assert install.missing(sys.executable) == []


def test_what_is_missing_is_named_as_pip_names_it(lacking):
    lacking.update(("SimpleITK", "torch"))
    assert install.missing(sys.executable) == ["torch", "SimpleITK"]


def test_looking_imports_nothing():
    script = (
        "import sys; from RefaceCGANSlicer import install; install.missing(sys.executable);"
        "print([name for name in ('torch', 'nibabel', 'SimpleITK', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY / "RefaceCGAN", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_another_python_is_asked_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(install, "is_own", lambda python: False)
    assert install.missing(sys.executable) == []
    monkeypatch.setitem(install.NEEDED, "no-such-package", ("no_such_package", (1, 0)))
    assert install.missing(sys.executable) == ["no-such-package"]


def test_an_old_version_counts_as_missing(monkeypatch):
    monkeypatch.setitem(install.NEEDED, "numpy", ("numpy", (999, 0)))
    assert install.missing(sys.executable) == ["numpy"]


def test_a_package_that_does_not_say_its_version_is_taken(monkeypatch):
    monkeypatch.setitem(install.NEEDED, "no-such-distribution", ("json", (1, 0)))
    assert install.missing(sys.executable) == []


@pytest.mark.parametrize("python", ["/no/such/python", sys.prefix], ids=["absent", "a folder"])
def test_a_python_that_cannot_be_run_is_missing_itself(python):
    assert install.missing(python) == ["Python"]


def test_a_python_that_is_too_old_is_missing_itself(monkeypatch):
    monkeypatch.setattr(install, "PYTHON", (99, 0))
    assert install.missing(sys.executable) == ["Python"]


def test_the_question_names_everything_with_its_size():
    question = install.describe(["torch", "nibabel"], {"torch": 190, "nibabel": 4})
    assert "torch (about 190 MB, several times as much for an NVIDIA graphics card)" in question
    assert "nibabel (about 4 MB)" in question
    assert "about 194 MB" in question


def test_requirements_name_what_slicer_lacks_and_torch_is_not_among_them():
    lines = [line for line in install.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    named = {re.split("[>=<]", line)[0]: line for line in lines}
    assert set(named) == {"nibabel", "scikit-image"}
    for name, line in named.items():
        assert line == f"{name}>={'.'.join(map(str, install.NEEDED[name][1]))}"


def test_requirements_are_those_of_the_package():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for name, (_, oldest) in install.NEEDED.items():
        assert f"{name}>={'.'.join(map(str, oldest))}" in project["dependencies"]


def test_torch_comes_by_its_extension_and_the_rest_by_slicers_pip(slicer_pip, lacking):
    lacking.update(("torch", "nibabel"))
    questions = []
    assert install.install(ask=lambda question: questions.append(question) or True)
    assert len(questions) == 1  # and not once more for each
    assert "torch" in questions[0]
    assert slicer_pip == [
        ("installTorch", {"torchVersionRequirement": ">=2.4"}),
        (
            "pip_ensure",
            ["nibabel>=5.2", "scikit-image>=0.25"],
            {"prompt_install": False, "requester": "RefaceCGAN"},
        ),
    ]


def test_only_what_is_missing_is_installed(slicer_pip, lacking):
    lacking.add("nibabel")
    assert install.install(ask=lambda question: True)
    assert [name for name, *_ in slicer_pip] == ["pip_ensure"]


def test_nothing_is_asked_where_nothing_is_missing(slicer_pip):
    assert install.install(ask=lambda question: pytest.fail("asked"))
    assert slicer_pip == []


def test_nothing_is_installed_if_the_user_declines(slicer_pip, lacking):
    lacking.add("torch")
    assert not install.install(ask=lambda question: False)
    assert slicer_pip == []


def test_before_slicer_512_it_is_pip_install(slicer_pip, lacking, monkeypatch):
    lacking.add("nibabel")
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    util = types.ModuleType("slicer.util")
    util.pip_install = lambda names: (slicer_pip.append(names), lacking.clear())
    monkeypatch.setitem(sys.modules, "slicer.util", util)
    assert install.install(ask=lambda question: True)
    assert slicer_pip == [["nibabel>=5.2", "scikit-image>=0.25"]]


def test_without_the_pytorch_extension_it_says_where_to_get_it(slicer_pip, lacking, monkeypatch):
    lacking.add("torch")
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(EngineError, match="Extensions Manager"):
        install.install(ask=lambda question: True)


def test_what_pip_says_is_one_sentence(slicer_pip, lacking, monkeypatch):
    lacking.add("nibabel")

    def fail(*_, **__):
        raise subprocess.CalledProcessError(1, "pip install")

    monkeypatch.setattr(sys.modules["slicer.packaging"], "pip_ensure", fail)
    with pytest.raises(EngineError, match=r"could not be installed .*pip install") as caught:
        install.install(ask=lambda question: True)
    assert "\n" not in str(caught.value)


def test_an_installation_that_changed_nothing_is_an_error(slicer_pip, lacking, monkeypatch):
    lacking.add("nibabel")
    monkeypatch.setattr(sys.modules["slicer.packaging"], "pip_ensure", lambda *_, **__: None)
    with pytest.raises(EngineError, match="nibabel could not be installed"):
        install.install(ask=lambda question: True)


def test_nothing_is_installed_into_another_python(slicer_pip, lacking, monkeypatch):
    lacking.add("torch")
    monkeypatch.setattr(install, "is_own", lambda python: False)
    with pytest.raises(EngineError, match="is not Slicer's own Python; install torch there"):
        install.install(["torch"], ask=lambda question: pytest.fail("asked"))
    assert slicer_pip == []


def test_only_the_main_thread_may_install(slicer_pip):
    caught = []

    def elsewhere():
        try:
            install.install()
        except EngineError as error:
            caught.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in caught[0]
