"""Volumetry: segmentations and their overlap, the built-in backends, other people's programs, volumes as CSV."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from RefaceCGANLib import Volume
from RefaceCGANLib.errors import CheckError, InputError
from RefaceCGANLib.evaluation import meshnet, volumetry
from RefaceCGANLib.evaluation.meshnet import Network, conform
from RefaceCGANLib.evaluation.segmentation import Segmentation, dice
from RefaceCGANLib.evaluation.volumetry import (
    REGIONS,
    MeshNet,
    TissueClasses,
    backend_of,
    read_volumes_csv,
)
from torch.nn import functional

TILTED = np.array([[0.0, 0.3, -2.0, 70.0], [-2.0, 0.1, 0.0, 90.0], [0.1, 2.0, 0.3, -60.0], [0.0, 0.0, 0.0, 1.0]])
"""2 mm voxels, axes along posterior, superior, left, a little oblique."""


# --- segmentations ----------------------------------------------------------------------------------------


def labelled(labels: list[int], **regions: tuple[int, ...]) -> Segmentation:
    return Segmentation(np.array(labels, dtype=np.uint8).reshape(-1, 1, 1), np.diag([10.0, 10, 10, 1]), regions)


def test_volumes_are_in_ml_and_regions_may_share_labels() -> None:
    found = labelled([0, 1, 1, 2, 5], TIV=(1, 2, 3), WM=(1,), GM=(2, 3), amygdala=(4,))
    assert found.volumes() == pytest.approx({"TIV": 3.0, "WM": 2.0, "GM": 1.0, "amygdala": 0.0})


def test_dice_of_regions_both_know_agrees_with_counting() -> None:
    a = labelled([1, 1, 1, 2, 0, 0], WM=(1,), GM=(2,), TIV=(1, 2), CSF=(9,), thalamus=(1,))
    b = labelled([7, 7, 0, 7, 8, 0], WM=(7,), GM=(8,), TIV=(7, 8), CSF=(9,))
    found = dice(a, b)
    assert list(found) == ["WM", "GM", "TIV", "CSF"]
    assert np.isnan(found.pop("CSF"))  # neither has any
    assert found == pytest.approx({"WM": 2 * 2 / (3 + 3), "GM": 0.0, "TIV": 2 * 3 / (4 + 4)})


def test_a_segmentation_against_itself_has_dice_1() -> None:
    found = labelled([0, 1, 2, 2], WM=(1,), GM=(2,))
    assert dice(found, found) == {"WM": 1.0, "GM": 1.0}


def test_dice_across_grids_is_refused() -> None:
    a = labelled([0, 1], WM=(1,))
    shifted = Segmentation(a.labels, a.affine + np.eye(4)[:, [1, 2, 3, 0]], a.regions)
    for other in (labelled([0, 1, 1], WM=(1,)), shifted):
        with pytest.raises(InputError, match="different grids"):
            dice(a, other)


def test_a_segmentation_is_read_as_it_was_written(tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    found = Segmentation(labels, TILTED, {"TIV": (1, 2), "thalamus": (59,)})
    found.write(tmp_path / "labels.nii.gz")
    again = Segmentation.read(tmp_path / "labels.nii.gz")
    assert np.array_equal(again.labels, labels) and again.labels.dtype == np.uint8
    assert np.allclose(again.affine, TILTED) and again.regions == found.regions
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]


def test_another_file_is_no_segmentation(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b")
    for name in ("scan.nii.gz", "broken.nii.gz", "missing.nii.gz"):
        with pytest.raises(InputError, match=f"{name} is no segmentation"):
            Segmentation.read(tmp_path / name)


# --- conforming -------------------------------------------------------------------------------------------


def ball(
    radius: float, value: float, shape: tuple[int, int, int], affine: np.ndarray, at: Any = None
) -> np.ndarray:
    """float32: `value` inside the ball of `radius` mm about `at` (RAS mm; left out: the centre), 0 outside."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    distance = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - (middle if at is None else at), axis=-1)
    return np.where(distance < radius, np.float32(value), np.float32(0))


def test_conforming_keeps_everything_in_its_place() -> None:
    at = np.array([12.0, -5.0, 20.0])
    volume = Volume.from_array(ball(25, 300, (80, 90, 70), TILTED, at), TILTED)
    image, affine = conform(volume)
    assert image.shape == (256, 256, 256) and image.dtype == np.uint8
    assert nib.aff2axcodes(affine) == ("L", "I", "A") and np.allclose(np.abs(np.linalg.det(affine)), 1)
    seen = np.argwhere(image > 127)
    assert np.allclose(seen.mean(0) @ affine[:3, :3].T + affine[:3, 3], at, atol=0.1)
    assert len(seen) == pytest.approx(4 / 3 * np.pi * 25**3, rel=0.01)


def test_conformed_grids_agree_with_nibabel() -> None:
    from nibabel.processing import conform as nibabels

    values = np.random.default_rng(0).random((20, 24, 22), dtype=np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    theirs = nibabels(nib.Nifti1Image(values, affine), order=1, orientation="LIA")
    ours = conform(Volume.from_array(values, affine))
    # nibabel puts the middle of a voxel where FreeSurfer puts its border
    assert np.allclose(theirs.affine[:3, :3], ours[1][:3, :3])
    assert np.abs(theirs.affine[:3, 3] - ours[1][:3, 3]).max() <= 1.5


def test_a_thousandth_of_the_nonzero_voxels_is_brighter_than_255() -> None:
    values = np.zeros((100, 100, 100), dtype=np.float32)
    values[:, :, :50] = np.linspace(1, 1000, 500_000, dtype=np.float32).reshape(100, 100, 50)
    values[0, 0, 0] = 50_000 / 50  # no outlier moves the top by more than its own histogram bin
    image, _ = conform(Volume.from_array(values, np.diag([-1.0, 1.0, 1.0, 1.0])))
    assert image.max() == 255
    assert 0.0005 < np.mean(image[image > 0] == 255) < 0.004


# --- networks ---------------------------------------------------------------------------------------------


def write_model(folder: Path, layers: list[tuple[torch.Tensor, torch.Tensor | None, int, str | None]]) -> Path:
    """A TensorFlow.js model of layers (kernel (out, in, k, k, k), bias, dilation, activation), without bias: one
    whose channels are normalised."""
    folder.mkdir()
    entries: list[dict[str, Any]] = [{"class_name": "InputLayer", "config": {"name": "input"}}]
    shapes, weights = [], []
    for number, (kernel, bias, dilation, activation) in enumerate(layers):
        name = f"conv3d_{number}" + ("_gn" if bias is None else "")
        entries.append({"class_name": "Conv3D", "config": {"name": name, "dilation_rate": [dilation] * 3}})
        if activation:
            entries.append(
                {"class_name": "Activation", "config": {"name": f"a{number}", "activation": activation}}
            )
        stored = kernel.permute(2, 3, 4, 1, 0).contiguous()
        shapes.append({"name": f"{name}/kernel", "shape": list(stored.shape)})
        weights.append(stored.numpy().ravel())
        if bias is not None:
            shapes.append({"name": f"{name}/bias", "shape": list(bias.shape)})
            weights.append(bias.numpy())
    topology = {"model_config": {"config": {"layers": entries}}}
    model = {"modelTopology": topology, "weightsManifest": [{"paths": ["model.bin"], "weights": shapes}]}
    (folder / "model.json").write_text(json.dumps(model))
    np.concatenate(weights).astype("<f4").tofile(folder / "model.bin")
    return folder


def random_layers(normed: bool) -> list[tuple[torch.Tensor, torch.Tensor | None, int, str | None]]:
    chance = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    hidden = [(1, 5, 1), (5, 5, 4), (5, 6, 2)]
    layers: list[tuple[torch.Tensor, torch.Tensor | None, int, str | None]] = [
        (draw(n, m, 3, 3, 3) / 4, None if normed else draw(n), dilation, "gelu" if normed else "elu")
        for m, n, dilation in hidden
    ]
    return [*layers, (draw(4, 6, 1, 1, 1), draw(4), 1, None)]


def plainly(
    layers: list[tuple[torch.Tensor, torch.Tensor | None, int, str | None]], image: np.ndarray
) -> np.ndarray:
    """The same network in one go, zeros around."""
    maps = torch.from_numpy(image)[None, None]
    for kernel, bias, dilation, activation in layers:
        maps = functional.conv3d(
            maps, kernel, bias, padding=dilation * (len(kernel[0, 0]) // 2), dilation=dilation
        )
        if bias is None:
            maps = functional.group_norm(maps, maps.shape[1])
        if activation:
            maps = functional.elu(maps) if activation == "elu" else functional.gelu(maps)
    return maps[0].argmax(0).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Three slabs thick, bright in the middle."""
    values = np.zeros((41, 19, 23), dtype=np.float32)
    values[3:-3, 2:-2, 2:-2] = np.random.default_rng(1).random((35, 15, 19))
    return values


def test_a_crop_of_the_head_is_labelled_as_the_head_in_endless_air(tmp_path: Path, image: np.ndarray) -> None:
    layers = random_layers(normed=False)
    found = Network(write_model(tmp_path / "model", layers)).label(image)
    whole = plainly(layers, np.pad(image, 16))[16:-16, 16:-16, 16:-16]
    inside = (slice(7, -7), slice(7, -7), slice(7, -7))  # out of reach of what the crop's border alters
    assert len(np.unique(found)) > 1
    assert np.array_equal(found[inside], whole[inside])


def test_a_normalising_network_agrees_with_plain_layers(tmp_path: Path, image: np.ndarray) -> None:
    layers = random_layers(normed=True)
    found = Network(write_model(tmp_path / "model", layers)).label(image)
    assert len(np.unique(found)) > 1
    assert np.mean(found == plainly(layers, image)) > 0.999


def test_the_image_is_left_as_it_was(tmp_path: Path, image: np.ndarray) -> None:
    before = image.copy()
    Network(write_model(tmp_path / "model", random_layers(normed=True))).label(image)
    assert np.array_equal(image, before)


def test_a_folder_without_a_meshnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable model"):
        Network(tmp_path / "missing")
    folder = write_model(tmp_path / "model", random_layers(normed=False))
    (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-4])
    with pytest.raises(InputError, match="holds no MeshNet"):
        Network(folder)
    (folder / "model.json").write_text('{"modelTopology": {}}')
    with pytest.raises(InputError, match="holds no MeshNet"):
        Network(folder)


@pytest.mark.heads
def test_brainchops_models_are_read(heads: Path) -> None:
    folder = heads.parent / "models" / "volumetry"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    MeshNet(folder / "model18cls")
    TissueClasses(folder / "mindgrab")
    with pytest.raises(InputError, match="a network of 2 classes; give brainchop's model18cls"):
        MeshNet(folder / "mindgrab")


# --- the built-in backends --------------------------------------------------------------------------------


def threshold_model(folder: Path, classes: int, limit: float) -> Path:
    """A network that gives class 1 to whatever is brighter than `limit` (0..1), else 0."""
    one = torch.zeros(2, 1, 3, 3, 3)
    one[0, 0, 1, 1, 1] = 1
    last = torch.zeros(classes, 2, 1, 1, 1)
    last[1, 0] = 1
    return write_model(
        folder,
        [(one, torch.zeros(2), 1, "elu"), (last, torch.tensor([limit] + [0.0] * (classes - 1)), 1, None)],
    )


@pytest.fixture(scope="module")
def shape() -> tuple[int, int, int]:
    return 64, 72, 60


def test_meshnet_keeps_the_largest_part_on_the_conformed_grid(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    brain = ball(40, 100, shape, TILTED) + ball(5, 90, shape, TILTED, TILTED[:3, :3] @ (8, 8, 8) + TILTED[:3, 3])
    backend = MeshNet(threshold_model(tmp_path / "model", 18, 0.5), threads=1)
    volume = Volume.from_array(brain, TILTED)
    found, again = backend.segment(volume), backend.segment(volume)
    ml = found.volumes()
    assert tuple(ml) == REGIONS and found.labels.shape == (256, 256, 256)
    assert ml["WM"] == ml["TIV"] == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.02)
    assert ml["GM"] == ml["thalamus"] == 0
    assert np.array_equal(found.labels, again.labels) and dice(found, again)["WM"] == 1


def test_a_scan_without_a_brain_is_named(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    backend = MeshNet(threshold_model(tmp_path / "model", 18, 2.0))
    with pytest.raises(CheckError, match="No brain was found"):
        backend.segment(Volume.from_array(ball(40, 100, shape, TILTED), TILTED))


def test_threads_are_given_back(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    before = torch.get_num_threads()
    with meshnet.threads_of_torch(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def nested(shape: tuple[int, int, int]) -> Volume:
    """WM (100) inside GM (65) inside CSF (30), balls of 28, 38 and 44 mm, under a bias field and noise."""
    tissue = 30 * (ball(44, 1, shape, TILTED)) + 35 * ball(38, 1, shape, TILTED) + 35 * ball(28, 1, shape, TILTED)
    slope = np.linspace(0.8, 1.2, shape[1], dtype=np.float32)[None, :, None]
    noise = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    return Volume.from_array(np.where(tissue > 0, tissue * slope + noise, 0), TILTED)


@pytest.fixture(scope="module")
def tissues(nested: Volume, tmp_path_factory: pytest.TempPathFactory) -> list[Segmentation]:
    model = write_mindgrab(tmp_path_factory.mktemp("models") / "model")
    backend = TissueClasses(model, threads=1)
    return [backend.segment(nested), backend.segment(nested)]


def write_mindgrab(folder: Path) -> Path:
    return threshold_model(folder, 2, 0.5)


def test_tissue_classes_find_the_tissues_under_a_bias_field(tissues: list[Segmentation]) -> None:
    def sphere(cm: float) -> float:
        return 4 / 3 * np.pi * cm**3

    ml = tissues[0].volumes()
    assert ml["WM"] == pytest.approx(sphere(2.8), rel=0.05)
    assert ml["GM"] == pytest.approx(sphere(3.8) - sphere(2.8), rel=0.07)
    assert ml["CSF"] == pytest.approx(sphere(4.4) - sphere(3.8), rel=0.12)
    assert ml["TIV"] == pytest.approx(ml["CSF"] + ml["GM"] + ml["WM"])


def test_tissue_classes_are_the_same_each_time_on_the_scans_grid(
    tissues: list[Segmentation], nested: Volume
) -> None:
    first, second = tissues
    assert np.array_equal(first.labels, second.labels) and first.volumes() == second.volumes()
    assert first.labels.shape == nested.shape and np.array_equal(first.affine, nested.affine)


# --- other people's programs ------------------------------------------------------------------------------

FAKE = """#!{python}
import json, pathlib, sys, time
import nibabel as nib, numpy as np
pathlib.Path({record!r}).write_text(json.dumps(sys.argv[1:]))
scan = nib.load(sys.argv[sys.argv.index({flag!r}) + 1])
def write(path, values):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(scan.shape, np.int32)
    for number, value in enumerate(values):
        labels[number, :5, :2] = value
    kind = nib.MGHImage if path.name.endswith("mgz") else nib.Nifti1Image
    nib.save(kind(labels, scan.affine), path)
given = dict(zip(sys.argv[1:], sys.argv[2:]))
{body}
"""


@pytest.fixture
def scan() -> Volume:
    return Volume.from_array(
        np.random.default_rng(0).random((16, 18, 20), dtype=np.float32), np.diag([-2.0, 2, 5, 1])
    )


class Fakes:
    """Programs that record how they are called, alone on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, flag: str, body: str) -> None:
        record = str(self.folder / "called.json")
        path = self.folder / name
        path.write_text(FAKE.format(python=sys.executable, record=record, flag=flag, body=body))
        path.chmod(0o755)

    @property
    def called(self) -> list[str]:
        """The arguments of the last call, folders left off."""
        arguments = json.loads((self.folder / "called.json").read_text())
        return [Path(text).name if text.startswith("/") else text for text in arguments]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Fakes(tmp_path)


def test_fsl_anat(fakes: Fakes, scan: Volume) -> None:
    fakes.put(
        "fsl_anat",
        "-i",
        """
folder = given["-o"] + ".anat/"
write(folder + "T1_fast_seg.nii.gz", [1, 2, 3, 3, 0])
write(folder + "T1_subcort_seg.nii.gz", [0, 0, 10, 54, 53])""",
    )
    ml = backend_of({"name": "fsl_anat"}).segment(scan).volumes()
    assert fakes.called == ["-i", "scan.nii.gz", "-o", "result", "--nocrop"]
    row = 10 * 20 / 1000  # ten voxels of 20 mm3 for each of the fake's rows
    others = dict.fromkeys(("caudate", "putamen", "pallidum"), 0.0)
    deep = {"thalamus": row, "hippocampus": row, "amygdala": row}
    assert ml == pytest.approx({"TIV": 4 * row, "CSF": row, "GM": row, "WM": 2 * row, **deep, **others})


def test_mri_synthseg(fakes: Fakes, scan: Volume) -> None:
    fakes.put("mri_synthseg", "--i", 'write(given["--o"], [2, 41, 3, 24, 10, 49, 18, 60])')
    ml = backend_of({"name": "mri_synthseg", "threads": 2}).segment(scan).volumes()
    assert fakes.called == ["--i", "scan.nii.gz", "--o", "result.nii.gz", "--threads", "2", "--cpu"]
    row = 10 * 20 / 1000
    assert set(ml) == set(REGIONS)
    assert (ml["TIV"], ml["WM"], ml["GM"], ml["CSF"]) == pytest.approx((8 * row, 3 * row, 4 * row, row))
    assert (ml["thalamus"], ml["amygdala"], ml["caudate"]) == pytest.approx((2 * row, row, 0))


def test_fastsurfer(fakes: Fakes, scan: Volume) -> None:
    body = 'write(given["--sd"] + "/" + given["--sid"] + "/mri/aseg.auto_noCCseg.mgz", [17, 53, 2])'
    fakes.put("run_fastsurfer.sh", "--t1", body)
    ml = backend_of({"name": "fastsurfer"}).segment(scan).volumes()
    assert fakes.called[:2] == ["--t1", "scan.nii.gz"] and fakes.called[4:6] == ["--sid", "result"]
    alone = ["--seg_only", "--no_cereb", "--no_hypothal", "--no_biasfield", "--vox_size", "1"]
    assert fakes.called[6:] == [*alone, "--threads", "1", "--device", "cpu"]
    assert ml["hippocampus"] == pytest.approx(2 * 10 * 20 / 1000)


def test_a_program_reads_the_scan_along_right_anterior_superior(fakes: Fakes, scan: Volume) -> None:
    fakes.put("mri_synthseg", "--i", 'write(given["--o"], [2])')
    affine = backend_of({"name": "mri_synthseg"}).segment(scan).affine
    assert np.allclose(affine, [[2, 0, 0, -30], [0, 2, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["fsl_anat", "mri_synthseg", "fastsurfer"])
def test_a_missing_program_is_named_with_how_to_get_it(fakes: Fakes, name: str) -> None:
    with pytest.raises(InputError, match=r"not on the PATH; install F\w+ .*https://"):
        backend_of({"name": name})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no memory')", "mri_synthseg failed with status 1: no memory"),
        ("pass", "mri_synthseg wrote no result.nii.gz"),
        ("time.sleep(60)", "mri_synthseg took longer than 3 s; raise time_limit"),
    ],
)
def test_a_program_that_fails_is_named(fakes: Fakes, scan: Volume, body: str, said: str) -> None:
    fakes.put("mri_synthseg", "--i", body)
    limit = 3.0 if "sleep" in body else 100.0
    with pytest.raises(InputError, match=said):
        backend_of({"name": "mri_synthseg", "time_limit": limit}).segment(scan)


# --- configuration and CSV --------------------------------------------------------------------------------


def test_a_backend_is_made_of_its_table(tmp_path: Path) -> None:
    weights = str(threshold_model(tmp_path / "a", 18, 0.5))
    assert isinstance(backend_of({"name": "meshnet", "weights": weights}), MeshNet)
    weights = str(threshold_model(tmp_path / "b", 2, 0.5))
    assert isinstance(backend_of({"name": "hmrf", "weights": weights, "threads": 1}), TissueClasses)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "morphobox"}, "There is no volumetry morphobox; choose from meshnet, hmrf, fsl_anat"),
        ({}, "There is no volumetry None"),
        ({"name": "meshnet"}, "meshnet needs weights"),
        ({"name": "meshnet", "weights": "x", "colour": 1}, "takes no colour; it takes weights, threads"),
    ],
)
def test_an_unusable_table_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        backend_of(table)


def test_volumes_of_another_program_are_read(tmp_path: Path) -> None:
    path = tmp_path / "volumes.csv"
    path.write_text("ml,scan,tool,region,note\n1400.5,007,original,TIV,x\n1399,007,reface,TIV,\n")
    expected = {
        "scan": ["007", "007"],
        "tool": ["original", "reface"],
        "region": ["TIV"] * 2,
        "ml": [1400.5, 1399.0],
    }
    pd.testing.assert_frame_equal(read_volumes_csv(path), pd.DataFrame(expected), check_dtype=False)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("scan,tool,region\na,original,TIV", "has no column ml"),
        ("scan,tool,region,ml\na,original,cortex,5", "names the region cortex"),
        ("scan,tool,region,ml\na,original,TIV,many", "no number of ml"),
        ("scan,tool,region,ml\na,original,TIV,-1", "no number of ml"),
        ("scan,tool,region,ml\na,,TIV,1", "empty cell"),
        ("scan,tool,region,ml\na,original,TIV,1\na,original,TIV,2", "gives a volume twice"),
        ("", "no readable CSV"),
    ],
)
def test_an_unusable_csv_is_refused(tmp_path: Path, rows: str, said: str) -> None:
    path = tmp_path / "volumes.csv"
    path.write_text(rows)
    with pytest.raises(InputError, match=said):
        read_volumes_csv(path)


def test_a_missing_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable CSV"):
        volumetry.read_volumes_csv(tmp_path / "missing.csv")
