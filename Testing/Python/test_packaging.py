"""What makes it an extension: CMake's lists, the descriptions for the catalogue, icons, imports and the README."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from RefaceCGANLib.app import command_line as cli

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "RefaceCGAN"
SAMPLE = {f"Resources/SampleData/{name}" for name in ("average_head.nii.gz", "sharp_head.nii.gz", "README.md")}
OURS = {"RefaceCGANLib", "RefaceCGANSlicer"}
IN_SLICER = {"slicer", "qt", "ctk", "vtk", "numpy", "scipy", "SimpleITK"}
NETWORKS = re.compile(r"RefaceCGANLib\.(generation\.networks|training\.)")
"""These modules are torch through and through; nobody may import them at file scope but they themselves."""


def shipped() -> list[str]:
    """What a user needs of the module's folder."""
    files = (path for path in MODULE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = (path.relative_to(MODULE).as_posix() for path in files)
    return sorted(name for name in names if name != "CMakeLists.txt" and not Path(name).name.startswith("."))


def listed(variable: str) -> list[str]:
    """A list in the module's CMakeLists.txt."""
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.search(rf"^set\({variable}\s([^)]*)\)", text, re.MULTILINE)[1].split()


@pytest.fixture(scope="module")
def extension() -> dict[str, str]:
    """The extension's fields in the top CMakeLists.txt, each on one line as the catalogue's checks want it."""
    lines = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r'set\(EXTENSION_(\w+) "([^"]+)"\)', line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


# --- CMake ------------------------------------------------------------------------------------------------


def test_every_file_of_the_module_is_listed():
    scripts, resources = listed("MODULE_PYTHON_SCRIPTS"), listed("MODULE_PYTHON_RESOURCES")
    assert sorted(scripts + resources) == shipped()
    assert all(name.endswith(".py") for name in scripts)  # CTK would append it to any other
    assert not any(name.endswith(".py") for name in resources)


SLICER = {
    "SlicerConfig.cmake": """
        set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
        set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake)
        set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/CPack.cmake)
        set(Slicer_QTSCRIPTEDMODULES_LIB_DIR modules)
    """,
    "UseSlicer.cmake": """
        function(say name value)
          file(APPEND ${CMAKE_BINARY_DIR}/said.txt "${name}=${value}\n")
        endfunction()
        function(slicerMacroBuildScriptedModule)
          cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
          if(MY_UNPARSED_ARGUMENTS)
            message(FATAL_ERROR "Unknown arguments: ${MY_UNPARSED_ARGUMENTS}")
          endif()
          foreach(file ${MY_SCRIPTS} ${MY_RESOURCES})
            if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
              message(FATAL_ERROR "There is no ${file}")
            endif()
            configure_file(${file} ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${file} COPYONLY)
          endforeach()
          install(DIRECTORY ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/ DESTINATION modules)
          say(module ${MY_NAME})
          say(generic_tests ${MY_WITH_GENERIC_TESTS})
        endfunction()
        function(slicer_add_python_unittest)
          cmake_parse_arguments(MY "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
          say(unittest ${MY_SCRIPT})
        endfunction()
    """,
    "GenerateConfig.cmake": """
        get_cmake_property(names VARIABLES)
        list(FILTER names INCLUDE REGEX "^EXTENSION_")
        foreach(name ${names})
          say(${name} ${${name}})
        endforeach()
    """,
    "CPack.cmake": "say(packaged ${PROJECT_NAME})",
}
"""Stands in for Slicer's CMake package: what it is told goes to said.txt, and a module's files are copied to a
folder that is then installed, as by Slicer's and CTK's macros. EXTENSION_ values are unquoted there, too."""


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The extension, configured with the stand-in for Slicer and installed: build/ and installed/."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)
    if cmake is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path_factory.mktemp("packaging")
    for name, text in SLICER.items():
        (folder / name).write_text(text)
    no_compiler = [f"-DCMAKE_{c}_{what}" for c in ("C", "CXX") for what in ("COMPILER=true", "COMPILER_FORCED=ON")]
    options = [*no_compiler, f"-DSlicer_DIR={folder}", "-DBUILD_TESTING=ON", "--no-warn-unused-cli"]
    steps = [
        [cmake, "-S", REPOSITORY, "-B", folder / "build", *options],
        [cmake, "--install", folder / "build", "--prefix", folder / "installed"],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_what_is_installed_is_the_module_and_the_sample_head(build):
    module = build / "installed" / "modules"
    installed = {path.relative_to(module).as_posix() for path in module.rglob("*") if path.is_file()}
    assert installed == {*shipped(), *SAMPLE}
    for name in installed:
        source = REPOSITORY if name in SAMPLE else MODULE
        assert (module / name).read_bytes() == (source / name).read_bytes(), name


def test_an_installed_module_finds_its_model(build):
    module = build / "installed" / "modules"
    code = "from RefaceCGANLib.models.model import Model\nprint(Model.load().path)"
    done = subprocess.run([sys.executable, "-c", code], cwd=module, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == module / "Resources" / "Models" / "default", done.stderr


def test_cmake_tells_slicer_the_name_the_fields_and_the_test(build, extension):
    lines = (build / "build" / "said.txt").read_text(encoding="utf-8").splitlines()
    said = dict(line.split("=", 1) for line in lines)
    assert said.pop("packaged") == said.pop("module") == "RefaceCGAN"
    assert said.pop("unittest") == "RefaceCGAN.py"
    assert said.pop("generic_tests") == "TRUE"
    assert {name.removeprefix("EXTENSION_").lower(): value for name, value in said.items()} == extension


# --- the catalogue ----------------------------------------------------------------------------------------


def test_the_fields_are_complete_and_survive_cmake(extension):
    assert set(extension) == {
        "homepage", "category", "contributors", "description", "iconurl", "screenshoturls", "depends"
    }  # fmt: skip
    assert not any(";" in value for value in extension.values())  # Slicer hands them on as CMake lists
    assert "CC BY-SA 3.0" in extension["description"]


def test_s4ext_says_what_cmake_says(extension):
    lines = (REPOSITORY / "RefaceCGAN.s4ext").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    source = {"scm": "git", "scmurl": extension["homepage"], "scmrevision": "main", "build_subdirectory": "."}
    assert fields == {**extension, **source, "enabled": "1"}


def test_the_entry_for_the_extensions_index_says_what_cmake_says(extension):
    entry = json.loads((REPOSITORY / "Resources" / "RefaceCGAN.json").read_text(encoding="utf-8"))
    schema = entry.pop("$schema")
    assert re.fullmatch(r"https://\S+/slicer-extension-catalog-entry-schema-v1\.0\.\d\.json#", schema)
    assert entry.pop("tier") in (1, 3, 5)
    assert entry == {
        "build_dependencies": extension["depends"].split(),
        "build_subdirectory": ".",
        "category": extension["category"],
        "scm_revision": "main",
        "scm_url": extension["homepage"],
    }


def test_pictures_of_the_catalogue_are_in_the_repository(extension):
    raw = extension["homepage"].replace("https://github.com", "https://raw.githubusercontent.com") + "/main/"
    for url in [extension["iconurl"], *extension["screenshoturls"].split()]:
        assert url.startswith(raw)
        assert (REPOSITORY / url.removeprefix(raw)).suffix in (".png", ".jpg")
        assert (REPOSITORY / url.removeprefix(raw)).is_file()


@pytest.mark.parametrize("icon", ["Resources/RefaceCGAN.png", "RefaceCGAN/Resources/Icons/RefaceCGAN.png"])
def test_icons_are_128_pixels_wide_and_transparent(icon):
    content = (REPOSITORY / icon).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, _bits, colour = struct.unpack(">IIBB", content[16:26])
    assert (width, height) == (128, 128)
    assert colour == 6  # red, green, blue, alpha


# --- the wheel (built and tried by `make wheel`) ----------------------------------------------------------


def test_the_wheel_holds_every_package_and_both_licences():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    library = MODULE / "RefaceCGANLib"
    found = {path.parent.relative_to(MODULE).as_posix().replace("/", ".") for path in library.rglob("__init__.py")}
    assert found == {name for name in settings["tool"]["setuptools"]["packages"] if "._" not in name}
    patterns = settings["project"]["license-files"]
    texts = [path.read_text(encoding="utf-8") for pattern in patterns for path in REPOSITORY.glob(pattern)]
    for words in ("Apache License", "Attribution-ShareAlike 3.0 Unported", "Computed from the IXI dataset"):
        assert any(words in text for text in texts), words


# --- imports ----------------------------------------------------------------------------------------------


def imports(source: Path, everywhere: bool = False) -> set[str]:
    """The modules that a file imports when it is itself imported, or everywhere in it, by their full names."""

    def run(nodes: Iterator[ast.AST]) -> Iterator[ast.AST]:
        for node in nodes:
            yield node
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                yield from run(iter(node.orelse))
            elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from run(ast.iter_child_nodes(node))

    package = source.relative_to(MODULE).parent.parts
    names = set()
    for node in run(iter([ast.parse(source.read_text(encoding="utf-8"))])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names - {name for name in names if name.startswith("__future__")}


@pytest.mark.parametrize("name", [name for name in shipped() if name.endswith(".py")])
def test_a_module_imports_only_what_slicer_brings_along(name):
    """Else it cannot be imported before the engine's packages are installed, and Slicer starts slowly."""
    found = imports(MODULE / name)
    is_network = NETWORKS.match(name.removesuffix(".py").replace("/", ".")) and not name.endswith("__init__.py")
    allowed = OURS | IN_SLICER | sys.stdlib_module_names | ({"torch"} if is_network else set())
    assert {module.split(".")[0] for module in found} <= allowed
    if not is_network:
        assert not [module for module in found if NETWORKS.match(module)]


@pytest.mark.parametrize("name", [name for name in shipped() if re.match(r"RefaceCGANLib/.*\.py", name)])
def test_the_library_never_imports_slicer(name):
    found = {module.split(".")[0] for module in imports(MODULE / name, everywhere=True)}
    assert not found & {"slicer", "qt", "ctk", "RefaceCGANSlicer"}


# --- the README -------------------------------------------------------------------------------------------

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.parametrize("line", re.findall(r"^    refacecgan ([^#\n]*\w)", README, re.MULTILINE))
def test_commands_of_the_readme_are_understood(line):
    cli.make_parser().parse_args(shlex.split(line))
