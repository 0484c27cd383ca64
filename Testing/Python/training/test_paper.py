"""The paper's model, from training to evaluation: the steps around its generator, and all of it on real heads."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from RefaceCGANLib import Refacer, Volume, paper
from RefaceCGANLib.errors import CheckError, InputError
from RefaceCGANLib.intensity import IntensityScale
from RefaceCGANLib.models.model import Model
from RefaceCGANLib.training import native_examples, training_config
from RefaceCGANLib.training.paper_trainer import difference, logistic

CONFIGS = Path(training_config.__file__).parent / "configs"
TRAINED = ["ixi094", "ixi612"]
HEADS = """
kind = "generator"
folder = "trained"
heads = ["heads"]
validation = ["validation"]
masks = "{name}_face.nii.gz"
sub_volume = [32, 32, 32]
resampled = 0.3
mirror = true
device = "cpu"
[generator]
channels_in = 1
filters = 4
levels = 3
filters_max = 8
residual_blocks = 1
[discriminator]
filters = 4
[training]
epochs = 6
stop_epoch = 4
examples_per_head = 10
save_epochs = 2
workers = 0
"""


class TestSteps:
    def test_a_closed_mask_has_no_holes_and_loses_nothing(self) -> None:
        mask = np.zeros((9, 9, 9), bool)
        mask[2:7, 2:7, 0:5] = True
        holed = mask.copy()
        holed[4, 4, 2] = False
        assert np.array_equal(paper.closed(holed), mask)
        assert np.array_equal(paper.closed(mask), mask)
        assert not paper.closed(np.zeros((3, 3, 3), bool)).any()

    def test_what_is_dark_becomes_air_and_nothing_else_changes(self) -> None:
        region = np.zeros((7, 7, 7), bool)
        region[1:6, 1:6, 1:6] = True
        face = np.full(region.shape, -1.0, np.float32)
        face[1:3] = 0.5
        face[4, 3, 3] = 0.9  # a voxel alone in the air
        face[5, 5, 5] = 2 * 4 / 255 - 1  # just above the paper's 3 of 255, at the border
        made = paper.compose(face[region], region, IntensityScale(10.0, 110.0))
        values = np.zeros(region.shape)
        values[region] = made.values
        assert np.allclose(values[1:3][region[1:3]], 85)
        assert made.air_mask[4, 3, 3] and values[4, 3, 3] == 0
        assert not made.air_mask[5, 5, 5] and not made.air_mask[1:3].any() and not (made.air_mask & ~region).any()
        assert (values[made.air_mask] == 0).all()

    def test_the_scale_is_the_training_sets_and_knows_no_units(self) -> None:
        rng = np.random.default_rng(0)
        values = np.where(np.arange(1000) < 600, rng.uniform(0, 2, 1000), rng.uniform(80, 120, 1000))
        outside = np.ones(1000, bool)
        seen = paper.scale_of(values, outside, 2.0).normalise(values)
        other = paper.scale_of(7 * values, outside, 2.0).normalise(7 * values)
        assert np.allclose(seen, other, atol=1e-5)
        assert np.median(seen[600:]) == pytest.approx(0, abs=0.02)  # tissue at half of the upper limit
        with pytest.raises(CheckError):
            paper.scale_of(np.ones(10), np.ones(10, bool), 2.0)

    def test_the_logistic_loss_by_hand(self) -> None:
        score = torch.tensor([0.0, 2.0])
        assert logistic(score, True).item() == pytest.approx((math.log(2) + math.log1p(math.exp(-2))) / 2)
        assert logistic(score, False).item() == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 2)

    def test_the_difference_by_hand(self) -> None:
        face, target = torch.full((2, 1, 2, 2, 2), 4.0), torch.zeros(2, 1, 2, 2, 2)
        known = torch.zeros(2, 1, 2, 2, 2)
        known[..., 0] = 1
        assert difference(face, target, known, 1).item() == pytest.approx(4)
        assert difference(face, target, known, 1.5).item() == pytest.approx((4 * 8) ** (2 / 3), rel=1e-4)

    def test_a_resampled_block_shows_less_of_the_head(self) -> None:
        image = np.zeros((40, 40, 40), np.float16)
        image[10:30, 10:30, 10:30] = 1
        region = np.zeros(image.shape, bool)
        region[18:22, 18:22, 18:22] = True
        box = np.array([[19.5] * 3, [18.5] * 3])
        head = native_examples.NativeHead(image, region, box, (2.0, 2.0, 2.0))
        rng = np.random.default_rng(0)
        own = native_examples.example(head, (32, 32, 32), rng, 1.0)
        finer = native_examples.example(head, (32, 32, 32), rng, 1.0, spacing=1.0)
        assert own.region.sum() == 64 and finer.region.sum() == pytest.approx(8 * 64, rel=0.35)
        assert (own.target > 0).sum() == 20**3 and (finer.target > 0).all()
        for made in (own, finer):
            assert (made.condition[made.region > 0.5] == -1).all() and made.loss_region.all()


@pytest.mark.parametrize("name", ["paper", "vox2vox"])
def test_the_shipped_configurations_differ_as_the_paper_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text((CONFIGS / f"{name}.toml").read_text())
    settings = training_config.read(tmp_path / "c.toml")
    generator, training = settings["generator"], settings["training"]
    blocks = 4 if name == "paper" else 0
    assert (generator["residual_blocks"], generator["dropout"] > 0) == (blocks, name == "paper")
    assert training["reconstruction"] == ("L1.5" if name == "paper" else "L1")
    assert (training["epochs"], training["stop_epoch"], training["save_epochs"]) == (50, 35, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, refacer: Refacer, heads: Path) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    for name, place in zip(TRAINED, ("heads", "validation"), strict=True):
        (folder / place).mkdir()
        scan = Volume.read(heads / "val" / f"{name}.nii.gz")
        found = refacer.locate(scan)
        region = np.ascontiguousarray(found.view.to_native(found.face_region))
        scan.write(folder / place / f"{name}.nii.gz")
        mask = scan.with_stored(region.astype(scan.stored.dtype))
        mask.write(folder / place / f"{name}_face.nii.gz")
    (folder / "tiny.toml").write_text(HEADS)
    training_config.run(folder / "tiny.toml")
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, refacecgan: Callable) -> Path:
    checkpoint = folder / "trained" / "checkpoint.pt"
    call = refacecgan("export", checkpoint, folder / "tiny", "--licence", "CC BY-SA 3.0")
    assert call.status == 0, call.err
    return folder / "tiny"


@pytest.mark.heads
class TestWhole:
    """A tiny model of two real heads; its faces are none, so its checks are forced."""

    def test_training_stops_early_and_is_validated(self, folder: Path) -> None:
        losses = json.loads((folder / "trained" / "validation.json").read_text())
        assert list(losses) == ["2", "4"] and all(loss > 0 for loss in losses.values())
        state = torch.load(folder / "trained" / "checkpoint.pt", weights_only=True)
        assert state["step"] == 4 * 10

    def test_the_card_tells_what_it_is_and_nothing_is_copied(self, exported: Path) -> None:
        assert {path.name for path in exported.iterdir()} == {"card.json", "generator.pt", "LICENSE.txt"}
        card = json.loads((exported / "card.json").read_text())
        assert card["id"] == "tiny" and card["licence"] == "CC BY-SA 3.0" and card["training"]["heads"] == 1
        model, default = Model.load(exported), Model.load()
        assert model.native and model.size < 100_000
        assert model.card["files"]["anatomy"]["sha256"] == default.card["files"]["anatomy"]["sha256"]

    def test_changed_weights_are_refused(self, exported: Path, tmp_path: Path) -> None:
        for path in exported.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "generator.pt").write_bytes(b"other")
        with pytest.raises(InputError, match="SHA-256"):
            _ = Model.load(tmp_path).generator

    def test_it_runs_on_the_scans_own_grid(self, exported: Path, heads: Path) -> None:
        refacer = Refacer.from_pretrained(exported, "cpu")
        original = Volume.read(heads / "val" / "ixi094.nii.gz")  # larger than its sub-volumes
        result = refacer.reface(original, seed=3, force=True)
        after, before = result.volume.stored, original.stored
        assert result.report["model"] == "tiny" and result.report["brain_voxels_changed"] == 0
        assert np.array_equal(after[~result.face_region], before[~result.face_region])
        assert np.array_equal(refacer.reface(result, seed=3, force=True).volume.stored, after)
        assert not np.array_equal(refacer.reface(result, seed=4, force=True).volume.stored, after)
        hidden = before.copy()
        hidden[result.face_region] = before.max()  # blind to the owner
        again = refacer.reface(original.with_stored(hidden), seed=3, force=True, face_region=result.face_region)
        assert np.array_equal(again.volume.stored, after)

    def test_it_may_work_at_a_voxel_size_of_its_own(self, exported: Path, heads: Path) -> None:
        model = Model.load(exported)
        coarse = Model(model.card | {"working_grid": model.card["working_grid"] | {"spacing_mm": 4.0}}, model.path)
        result = Refacer.from_pretrained(coarse, "cpu").reface(
            Volume.read(heads / "val" / "ixi094.nii.gz"), seed=3, force=True
        )
        assert result.prepared.network_input.scan.shape == (60, 60, 45)
        after, region = result.volume.stored, result.face_region
        assert np.array_equal(after[~region], result.original.stored[~region])
        assert len(np.unique(after[region])) > 20  # something is painted

    def test_the_evaluation_takes_it(
        self, exported: Path, folder: Path, refacecgan: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("RefaceCGANLib.checks.FACE_RATIO", (0.0, 100.0))  # its faces are none
        (folder / "study.toml").write_text(
            'originals = ["heads/ixi094.nii.gz"]\noutput = "study"\nworkers = 1\n'
            '[[tool]]\nname = "tiny"\nkind = "reface"\nmodel = "tiny/card.json"\nseeds = [1]\n'
        )
        call = refacecgan("evaluate", folder / "study.toml", "--progress", "none")
        assert call.status == 0, call.err
        with (folder / "study" / "table.csv").open(encoding="utf-8") as file:
            values = {row["measure"]: row["value"] for row in csv.DictReader(file) if row["tool"] == "tiny"}
        assert float(values["brain_voxels_changed"]) == 0 and "fine_texture" in values


@pytest.mark.heads
def test_the_shipped_model_gives_a_head_a_face(heads: Path, refacecgan: Callable, tmp_path: Path) -> None:
    assert Model.load("paper").size < 4e6
    head, report = heads / "val" / "ixi353.nii.gz", tmp_path / "report.json"
    call = refacecgan("reface", head, tmp_path / "new.nii.gz", "--model", "paper", "--seed", 1, "--report", report)
    assert call.status == 0, call.err
    content = json.loads(report.read_text())
    assert content["model"] == "paper" and content["brain_voxels_changed"] == 0
    brain = Volume.read(head.with_name("ixi353_seg.nii.gz")).stored > 0
    before, after = Volume.read(head).stored, Volume.read(tmp_path / "new.nii.gz").stored
    assert np.array_equal(before[brain], after[brain]) and not np.array_equal(before, after)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "training.json is not there"),
        ({"training.json": "[]"}, "no record"),
        ({"training.json": '{"generator": {}, "heads_used": [], "training": {}, "sub_volume": null}'}, "own grid"),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_nothing(
    refacecgan: Callable, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    (tmp_path / "run").mkdir()
    for name, text in files.items():
        (tmp_path / "run" / name).write_text(text)
    call = refacecgan("export", tmp_path / "run" / "checkpoint.pt", tmp_path / "model")
    assert call.status == 2 and len(call.err) == 1 and words in call.err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_is_exported_over_a_folder(refacecgan: Callable, tmp_path: Path) -> None:
    call = refacecgan("export", tmp_path / "checkpoint.pt", tmp_path)
    assert call.status == 2 and "already" in call.err[0]
