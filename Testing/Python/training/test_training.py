"""Training: losses, networks, examples, resuming, configurations, and the template from real heads."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from RefaceCGANLib import Volume
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.face_model.template import MODE_SPACING, Template
from RefaceCGANLib.generation.networks import Discriminator, Generator, NoiseDropout
from RefaceCGANLib.models.model import unpacked
from RefaceCGANLib.training import build_template as building
from RefaceCGANLib.training import ears as building_ears
from RefaceCGANLib.training import native_examples as native
from RefaceCGANLib.training import template_space as space
from RefaceCGANLib.training import training_config as config
from RefaceCGANLib.training.examples import Example, WorkingHead, condition_of, example
from RefaceCGANLib.training.portraits import portraits, skin_loss
from RefaceCGANLib.training.release import packed
from RefaceCGANLib.training.train_anatomy import GRIDS, PreparedHead, near_head, train_brain_check
from RefaceCGANLib.training.train_anatomy import example as anatomy_example
from RefaceCGANLib.training.train_anatomy import train as train_anatomy
from RefaceCGANLib.training.trainer import Trainer, l15

SHAPE = (32, 32, 24)
CONFIGS = Path(config.__file__).parent / "configs"
SETTINGS: dict[str, Any] = {
    "seed": 3,
    "iterations": 8,
    "reconstruction_iterations": 3,
    "learning_rate": 2e-3,
    "cosine_period": 1000,
    "loss_lambda": 0.015,
    "feature_matching": 1.0,
    "average_decay": 0.9,
    "save_every": 100,
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ball(radius: float, centre: tuple[float, ...] = (15.5, 15.5, 11.5)) -> np.ndarray:
    axes = [np.arange(n) - c for n, c in zip(SHAPE, centre, strict=True)]
    a, s, length = np.meshgrid(*axes, indexing="ij")
    return a**2 + s**2 + length**2 < radius**2


def small_template() -> Template:
    """A ball for a head, its front half the face."""
    head = ball(10)
    front = np.zeros(SHAPE, bool)
    front[18:] = True
    coarse = tuple(n // MODE_SPACING for n in SHAPE)
    rng = np.random.default_rng(0)
    return Template(
        affine=np.array([[0, 0, -2, 23], [2, 0, 0, -31], [0, 2, 0, -31], [0, 0, 0, 1.0]]),
        mean=np.where(head, 0.2, -1.0).astype(np.float16),
        head=head,
        brain=ball(5).astype(np.float16),
        face_region=front,
        window=front,
        weight=front.astype(np.float16),
        modes=rng.standard_normal((4, 3, *coarse)).astype(np.float16),
        mode_mean=np.zeros((3, *coarse), np.float16),
        relief_points=skin(10),
        relief_modes=rng.standard_normal((2, len(skin(10)))).astype(np.float16),
    )


def skin(radius: float) -> np.ndarray:
    """Points on the front of the ball."""
    directions = np.random.default_rng(2).standard_normal((60, 3))
    directions[:, 0] = np.abs(directions[:, 0]) + 0.3
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return ((np.array(SHAPE) - 1) / 2 + radius * directions).astype(np.float32)


def small_head(name: str = "one") -> WorkingHead:
    rng = np.random.default_rng(1)
    image = np.where(ball(10), rng.uniform(-0.5, 1.0, SHAPE), -1.0).astype(np.float16)
    shape = rng.standard_normal((3, *(n // 4 for n in SHAPE))).astype(np.float16)
    return WorkingHead(name, image, np.ones(SHAPE, bool), ball(6), shape, relief=np.zeros((2, 60), np.float16))


def small_networks(seed: int = 0) -> tuple[Generator, Discriminator]:
    torch.manual_seed(seed)
    generator = Generator(3, filters=4, levels=2, filters_max=8, residual_blocks=1, upsampling="resize", detail=2)
    return generator, Discriminator(3, filters=4, levels=2)


def draw(rng: np.random.Generator) -> Example:
    return example(small_head(), small_template(), rng)


def trainer(folder: Path, **changes: Any) -> Trainer:
    return Trainer(*small_networks(), draw, SETTINGS | changes, folder, torch.device("cpu"))


class TestLosses:
    def test_l15_by_hand(self) -> None:
        difference = torch.tensor([[1.0, -4.0], [9.0, 100.0]])
        region = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        # (1 + 8 + 27) ** (2 / 3)
        assert l15(difference, region).item() == pytest.approx(36 ** (2 / 3), rel=1e-5)

    def test_l15_of_no_difference_has_a_finite_gradient(self) -> None:
        difference = torch.zeros(5, requires_grad=True)
        l15(difference, torch.ones(5)).backward()
        assert difference.grad is not None
        assert torch.isfinite(difference.grad).all()

    def test_the_rate_falls_along_a_cosine_and_starts_again(self, tmp_path: Path) -> None:
        made = trainer(tmp_path, learning_rate=1.0, cosine_period=100)
        rates = []
        for made.step in (0, 25, 50, 99, 100, 150):
            rates.append(made.rate())
        falling = [0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * t)) for t in (0, 0.25, 0.5, 0.99)]
        assert rates == pytest.approx([*falling, falling[0], falling[2]])


class TestPortraits:
    def test_a_ball_faces_the_camera_in_the_middle(self) -> None:
        heads = torch.from_numpy(np.where(ball(10), 0.3, -1.0).astype(np.float32))[None, None]
        picture = portraits(heads, torch.zeros(1, 2))[0]
        assert picture.shape == (3, *SHAPE[1:])
        assert torch.allclose(picture.norm(dim=0), torch.ones(SHAPE[1:]), atol=1e-4)
        along_s, along_l, toward = picture[:, 15:17, 11:13].mean(dim=(1, 2)).tolist()
        assert toward > 0.95
        assert abs(along_s) < 0.1 and abs(along_l) < 0.1
        assert picture[0, 20, 11] * picture[0, 11, 11] < 0  # above and below the middle it leans apart

    def test_to_look_from_the_other_side_is_to_mirror_the_head(self) -> None:
        lopsided = ball(10) & (np.arange(SHAPE[2]) > 7)[None, None]
        heads = torch.from_numpy(np.where(lopsided, 0.3, -1.0).astype(np.float32))[None, None]
        side = torch.tensor([[0.5, 0.1]])
        seen, mirrored = portraits(heads, side), portraits(heads.flip(4), side * torch.tensor([-1.0, 1.0]))
        assert torch.allclose(seen[:, 2], mirrored[:, 2].flip(2), atol=1e-3)
        assert torch.allclose(seen[:, 1], -mirrored[:, 1].flip(2), atol=1e-3)

    def test_the_skin_loss_grows_with_the_distance_and_knows_its_mask(self) -> None:
        target = torch.from_numpy(np.where(ball(10), 0.3, -1.0).astype(np.float32))[None, None]
        known = torch.ones_like(target)
        shifted = [torch.roll(target, count, 2).requires_grad_() for count in (0, 1, 2)]
        losses = [skin_loss(face, target, known) for face in shifted]
        assert losses[0].item() == 0
        assert losses[0] < losses[1] < losses[2]
        assert skin_loss(shifted[2], target, 0 * known).item() == 0
        losses[1].backward()
        assert torch.isfinite(shifted[1].grad).all()


class TestRelease:
    def test_kernels_are_packed_to_a_part_in_a_hundred(self) -> None:
        state = {name: tensor.half() for name, tensor in small_networks()[0].state_dict().items()}
        small = packed(state)
        assert {tensor.dtype for name, tensor in small.items() if state.get(name, torch.ones(1)).dim() == 5} == {
            torch.int8
        }
        again = unpacked(small)
        assert again.keys() == state.keys()
        for name, tensor in state.items():
            most = tensor.float().abs().max()
            assert (again[name] - tensor.float()).abs().max() <= 0.01 * most, name


class TestNetworks:
    def test_dropout_of_one_seed_is_one_mask(self) -> None:
        layer, x = NoiseDropout(0.25), torch.ones(1, 8, 4, 4, 4)
        masks = []
        for seed in (1, 1, 2):
            layer.source = torch.Generator().manual_seed(seed)
            masks.append(layer(x))
        assert torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[0], masks[2])

    def test_dropout_keeps_the_expectation(self) -> None:
        layer = NoiseDropout(0.25)
        layer.source = torch.Generator().manual_seed(0)
        kept = layer(torch.ones(100_000))
        assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
        assert kept.mean().item() == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize("upsampling", ["resize", "transposed"])
    @pytest.mark.parametrize("detail", [0, 3])
    def test_the_generator_keeps_the_shape(self, upsampling: str, detail: int) -> None:
        network = Generator(2, 4, 3, 8, 1, upsampling=upsampling, detail=detail)
        face = network(torch.randn(1, 2, 16, 24, 8))
        assert face.shape == (1, 1, 16, 24, 8)
        assert face.abs().max() <= 1

    def test_the_discriminator_scores_patches(self) -> None:
        scores, features = Discriminator(3, 4, 3)(torch.randn(1, 2, 16, 24, 8), torch.randn(1, 1, 16, 24, 8))
        assert scores.shape == (1, 1, 2, 3, 1)
        assert [feature.shape[1] for feature in features] == [4, 8, 16]

    def test_the_default_generator_is_small(self) -> None:
        options = tomllib.loads((CONFIGS / "default.toml").read_text())["generator"]
        assert sum(parameter.numel() for parameter in Generator(**options).parameters()) < 10_000_000


class TestExamples:
    @pytest.mark.parametrize("seed", range(12))
    def test_the_face_is_emptied_and_nothing_else(self, seed: int) -> None:
        made = draw(np.random.default_rng(seed))
        defaced, region, prior = made.condition.unbind(1)
        assert made.condition.shape == (1, 3, *SHAPE)
        assert (defaced[region > 0.5] == -1).all()
        assert region.any() and not region.all()
        assert set(made.region.unique().tolist()) <= {0.0, 1.0}
        assert (made.loss_region >= made.region).all()
        for part in (made.condition, made.target, prior):
            assert torch.isfinite(part).all()
            assert part.abs().max() <= 1 + 1e-5

    @pytest.mark.parametrize("seed", range(12))
    def test_the_region_keeps_off_the_brain(self, seed: int) -> None:
        template, plain = small_template(), small_head()
        marked = WorkingHead(
            "marked", np.where(plain.brain, 1.0, -1.0).astype(np.float16), plain.valid, plain.brain,
            plain.shape, plain.relief,
        )  # fmt: skip
        made = example(marked, template, np.random.default_rng(seed))
        brain = made.target > 0  # the brain alone is bright, and it moved with the scan
        assert brain.any()
        assert not (brain & (made.condition[:, 1:2] > 0.5)).any()

    def test_defects_stay_out_of_the_loss(self) -> None:
        plain = small_head()
        valid = plain.valid.copy()
        valid[-4:] = False
        cut = WorkingHead("cut", plain.image, valid, plain.brain, plain.shape, plain.relief)
        made = example(cut, small_template(), np.random.default_rng(0))
        assert made.region[:, :, -1].sum() == 0
        assert made.loss_region[:, :, -1].sum() == 0
        assert made.condition[:, 1, -1].sum() > 0

    def test_the_condition_is_defaced_region_and_prior(self) -> None:
        image, prior = torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 4)
        region = (torch.rand(1, 1, 4, 4, 4) > 0.5).float()
        condition = condition_of(image, region, prior)
        assert torch.equal(condition[:, :1], torch.where(region > 0.5, -torch.ones(1), image))
        assert torch.equal(condition[:, 1:2], region)
        assert torch.equal(condition[:, 2:], prior)

    @pytest.mark.parametrize("seed", range(4))
    def test_the_free_face_has_the_same_scan_and_another_shape(self, seed: int) -> None:
        made = draw(np.random.default_rng(seed))
        assert made.free is not None and made.natural is not None
        assert torch.equal(made.free[:, :2], made.condition[:, :2])
        assert not torch.equal(made.free[:, 2], made.condition[:, 2])
        fixed = torch.from_numpy(small_template().weight == 0)[None, None]
        assert torch.equal(made.natural[fixed], made.target[fixed])  # only the face was bent

    def test_examples_are_joined_along_the_first_axis(self) -> None:
        made = [draw(np.random.default_rng(seed)) for seed in (1, 2)]
        both = Example.joined(made)
        assert both.condition.shape == (2, 3, *SHAPE)
        assert torch.equal(both.target[1:], made[1].target)
        paired = Example.joined([Example(one.condition, one.target, one.region, one.loss_region) for one in made])
        assert paired.free is None and paired.natural is None

    def test_a_seed_draws_one_example(self) -> None:
        made = []
        for _ in range(2):
            torch.manual_seed(5)
            made.append(draw(np.random.default_rng(5)))
        assert torch.equal(made[0].condition, made[1].condition)


class TestAnatomyExamples:
    def prepared(self) -> PreparedHead:
        template = small_template()
        rng = np.random.default_rng(0)
        image = np.where(template.head, rng.uniform(50, 100, SHAPE), 0.0)
        return PreparedHead("one", image.astype(np.float16), ball(6), template.affine)

    @pytest.mark.parametrize("seed", range(12))
    def test_an_example_is_finite_and_of_the_right_shapes(self, seed: int) -> None:
        torch.manual_seed(seed)
        template = small_template()
        image, brain, target, weight = anatomy_example(
            self.prepared(), template, near_head(template), np.random.default_rng(seed)
        )
        half = tuple(n // 2 for n in GRIDS[0])
        assert image.shape == brain.shape == (1, 1, *GRIDS[0])
        assert target.shape == (1, 3, *half) and weight.shape == (1, 1, *half)
        assert all(torch.isfinite(part).all() for part in (image, brain, target, weight))
        assert (weight.sum() > 0) == (brain.sum() > 0)  # neither in what is no head

    @pytest.mark.parametrize("train", [train_anatomy, train_brain_check])
    def test_training_runs_and_leaves_a_checkpoint(self, tmp_path: Path, train: Any) -> None:
        settings = {"seed": 1, "steps": 2, "learning_rate": 1e-3, "filters": [8, 8]}
        network = train([self.prepared()], small_template(), tmp_path, settings)
        assert (tmp_path / "checkpoint.pt").exists()
        again = train([self.prepared()], small_template(), tmp_path, settings)  # there is nothing left to do
        for a, b in zip(network.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b)


class TestTrainer:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_a_resumed_run_equals_an_uninterrupted_one(self, tmp_path: Path, channels_last: bool) -> None:
        folders = [tmp_path / name for name in ("whole", "parts")]
        for folder in folders:
            folder.mkdir()
        whole = trainer(folders[0], channels_last=channels_last)
        whole.run()
        trainer(folders[1], iterations=5, channels_last=channels_last).run()
        parts = trainer(folders[1], channels_last=channels_last)
        assert parts.step == 5
        parts.run()
        for name in ("generator", "average", "discriminator"):
            for a, b in zip(getattr(whole, name).parameters(), getattr(parts, name).parameters(), strict=True):
                assert torch.equal(a, b), name

    def test_the_loss_falls_on_one_example(self, tmp_path: Path) -> None:
        one = draw(np.random.default_rng(0))
        networks = small_networks()
        settings = SETTINGS | {"iterations": 75, "reconstruction_iterations": 75, "learning_rate": 1e-2}
        losses: list[float] = []
        made = Trainer(*networks, lambda rng: one, settings, tmp_path, torch.device("cpu"))
        made.run(lambda step, sums: losses.append(sums["L1.5"]))
        assert len(losses) == 3
        assert losses[2] < losses[1] < losses[0]
        assert losses[2] < 0.6 * losses[0]

    def test_batches_are_drawn_once_and_seen_as_often_as_wanted(self, tmp_path: Path) -> None:
        drawn: list[Example] = []

        def counted(rng: np.random.Generator) -> Example:
            drawn.append(draw(rng))
            return drawn[-1]

        settings = SETTINGS | {"iterations": 6, "echo": 3, "batch": 2, "skin_weight": 1.0, "portrait_weight": 1.0}
        made = Trainer(*small_networks(), counted, settings, tmp_path, torch.device("cpu"))
        made.run()
        assert made.step == 6
        assert len(drawn) == 2 * 2

    def test_both_discriminators_learn_and_the_generator_hears_them(self, tmp_path: Path) -> None:
        made = trainer(tmp_path, portrait_weight=1.0, skin_weight=1.0)
        losses = made.iterate(draw(np.random.default_rng(0)), adversarial=True)
        assert losses.keys() == {"L1.5", "skin", "D", "C", "G", "features", "P"}
        assert all(math.isfinite(value) for value in losses.values())

    def test_epochs_leave_weights_in_half_precision(self, tmp_path: Path) -> None:
        settings = {key: value for key, value in SETTINGS.items() if key != "iterations"}
        settings |= {"epochs": 4, "epoch_length": 2, "save_epochs": 2}
        made = Trainer(*small_networks(), draw, settings, tmp_path, torch.device("cpu"))
        made.run()
        assert made.step == 8
        assert sorted(path.name for path in tmp_path.glob("generator-*")) == [
            "generator-epoch02.pt",
            "generator-epoch04.pt",
        ]
        state = torch.load(tmp_path / "generator-epoch04.pt", weights_only=True)
        for name, kept in made.average.state_dict().items():
            assert state[name].dtype == torch.float16
            assert torch.equal(state[name], kept.half())

    def test_a_picture_shows_both_planes_of_four_images(self, tmp_path: Path) -> None:
        picture = trainer(tmp_path).picture(draw(np.random.default_rng(0)))
        assert picture.dtype == np.uint8
        assert picture.shape == (SHAPE[1] + SHAPE[0], 4 * SHAPE[0])

    def test_tensorboard_gets_losses_and_pictures(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        trainer(tmp_path, iterations=25, tensorboard=True, pictures_every=20).run()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert "loss/L1.5" in events.Tags()["scalars"]
        assert events.Tags()["images"] == ["faces"]


class TestNative:
    @pytest.fixture()
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        rng = np.random.default_rng(0)
        values = (ball(10) * rng.uniform(400, 900, SHAPE)).astype(np.int16)  # axes A, S, L
        face = ball(10) & (np.arange(SHAPE[0]) > 20)[:, None, None]
        affine = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        paths = tmp_path / "one.nii.gz", tmp_path / "one_face.nii.gz"
        for path, array in zip(paths, (values, face), strict=True):
            Volume.from_array(array, affine).write(path)
        return paths

    def test_a_block_is_defaced_in_the_face_alone(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        head = native.NativeHead.read(*files, tmp_path / "cache")
        for seed in range(5):
            made = native.example(head, (16, 16, 32), np.random.default_rng(seed), 2.0)
            assert made.condition.shape == made.target.shape == (1, 1, 16, 16, 32)
            assert made.region.sum() > 0
            assert (made.condition[made.region > 0.5] == -1).all()
            assert torch.equal(made.condition[made.region < 0.5], made.target[made.region < 0.5])
            assert made.loss_region[..., SHAPE[2] :].sum() == 0  # beyond the end of the scan

    def test_the_scale_does_not_depend_on_the_face(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        head = native.NativeHead.read(*files, tmp_path / "cache")
        volume, mask = Volume.read(files[0]), Volume.read(files[1])
        other = tmp_path / "other.nii.gz"
        volume.with_stored(np.where(mask.stored > 0, 5000, volume.stored).astype(np.int16)).write(other)
        same = native.NativeHead.read(other, files[1], tmp_path / "cache")
        assert np.array_equal(np.asarray(head.image)[~head.region], np.asarray(same.image)[~same.region])

    def test_an_empty_mask_is_refused(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        scan, mask = files
        empty = Volume.read(mask).stored * 0
        empty[0, 0, 0] = -1 if empty.dtype.kind == "i" else 0
        with pytest.raises(InputError, match="one"):
            bad = tmp_path / "one_bad.nii.gz"
            Volume.from_array(empty, Volume.read(mask).affine).write(bad)
            native.NativeHead.read(scan, bad, tmp_path / "other")

    def test_the_paper_s_way_trains_from_a_folder_of_scans(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        text = (CONFIGS / "paper.toml").read_text()
        for old, new in {
            "[128, 128, 128]": "[16, 16, 16]",
            "filters = 64": "filters = 4",
            "levels = 4": "levels = 2",
            "residual_blocks = 4": "residual_blocks = 1",
            "epochs = 50": "epochs = 7",
            "examples_per_head = 8": "examples_per_head = 1",
            'device = "auto"': 'device = "cpu"',
            'heads = ["heads"]': 'heads = ["."]',
            'validation = ["validation"]': 'validation = ["."]',
            "tensorboard = true": "tensorboard = false",
        }.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "paper.toml").write_text(text)
        config.run(tmp_path / "paper.toml")
        names = {path.name for path in (tmp_path / "paper").iterdir()}
        assert {"checkpoint.pt", "generator.pt", "generator-epoch07.pt", "training.json"} <= names
        assert json.loads((tmp_path / "paper" / "training.json").read_text())["heads_used"] == ["one"]


class TestConfig:
    GOOD = """
        kind = "generator"
        folder = "out"
        template = "template.npz"
        heads = "heads"
        device = "cpu"
        [generator]
        channels_in = 3
        filters = 4
        levels = 2
        filters_max = 8
        residual_blocks = 1
        upsampling = "resize"
        [discriminator]
        filters = 4
        levels = 2
        [training]
        iterations = 2
    """

    @pytest.fixture()
    def data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with a template and a working head, whose working grid is the whole template grid."""
        monkeypatch.setattr(space, "WORKING_SPANS", tuple(slice(0, n) for n in SHAPE))
        small_template().write(tmp_path / "template.npz")
        (tmp_path / "heads").mkdir()
        head = small_head()
        np.savez(
            tmp_path / "heads" / "one.npz", image=head.image, valid=head.valid, brain=head.brain,
            shape=head.shape, relief=head.relief,
        )  # fmt: skip
        return tmp_path

    def run(self, folder: Path, text: str) -> None:
        (folder / "train.toml").write_text(text)
        config.run(folder / "train.toml")

    def test_a_generator_trains_and_is_fine_tuned(self, data: Path) -> None:
        self.run(data, self.GOOD)
        weights = torch.load(data / "out" / "generator.pt", weights_only=True)
        tuned = self.GOOD.replace('"out"', '"tuned"').replace(
            "iterations = 2", "iterations = 1\nlearning_rate = 0.0"
        )
        self.run(data, 'init = "out/generator.pt"\n' + tuned)
        again = torch.load(data / "tuned" / "generator.pt", weights_only=True)
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ('kind = "generator"', 'kind = "painter"', ["template, anatomy, brain_check, tissue, generator"]),
            ('kind = "generator"', "", ["kind"]),
            ("filters = 4", "filtres = 4", ["generator.filtres"]),
            ("channels_in = 3", "", ["generator.channels_in", "missing"]),
            ("channels_in = 3", "channels_in = 1", ["generator.channels_in", "3"]),
            ("channels_in = 3", 'channels_in = "three"', ["generator.channels_in", "whole number"]),
            ("channels_in = 3", "channels_in = true", ["generator.channels_in", "whole number"]),
            ("channels_in = 3", "channels_in = 3\ndropout = 1.5", ["generator.dropout", "0.99"]),
            ("levels = 2", "levels = 5", ["levels", "divide"]),
            ('"resize"', '"nearest"', ["generator.upsampling"]),
            ('heads = "heads"', 'heads = "nowhere"', ["heads", "nowhere"]),
            ('heads = "heads"', "heads = 3", ["heads", "list"]),
            ('"template.npz"', '"missing.npz"', ["template", "missing.npz"]),
            ('"template.npz"', '"heads/one.npz"', ["template", "damaged"]),
            ('device = "cpu"', 'device = "abacus"', ["device", "abacus"]),
            ('device = "cpu"', 'device = "cpu"\nmasks = "{name}_face.nii.gz"', ["template", "masks"]),
            ('device = "cpu"', 'device = "cpu"\ninit = "template.npz"', ["init", "does not fit"]),
            ("iterations = 2", "", ["iterations or epochs"]),
            ("iterations = 2", "iterations = 2\nepochs = 1", ["iterations or epochs"]),
            ("iterations = 2", "iterations = 0", ["training.iterations", "at least 1"]),
            ("[discriminator]", "[discriminator", ["TOML"]),
        ],
    )
    def test_a_mistake_is_named_in_one_sentence(self, data: Path, old: str, new: str, words: list[str]) -> None:
        assert old in self.GOOD
        with pytest.raises(InputError) as caught:
            self.run(data, self.GOOD.replace(old, new))
        message = str(caught.value)
        assert all(word in message for word in words), message
        assert "\n" not in message and message.endswith(".")
        assert not list(data.glob("out/checkpoint.pt"))

    def test_the_anatomy_network_trains_and_is_fine_tuned(self, data: Path) -> None:
        template = small_template()
        (data / "prepared").mkdir()
        np.savez(
            data / "prepared" / "one.npz",
            image=np.where(template.head, 90.0, 0.0).astype(np.float16),
            brain=ball(6),
            index_to_template=template.affine,
        )
        text = """
            kind = "anatomy"
            folder = "anatomy"
            template = "template.npz"
            heads = "prepared/*.npz"
            device = "cpu"
            [training]
            steps = 1
            filters = [4, 4]
        """
        self.run(data, text)
        assert (data / "anatomy" / "anatomy.pt").exists()
        tuned = 'init = "anatomy/anatomy.pt"\n' + text.replace(
            '"anatomy"\n            template', '"tuned"\n            template'
        )
        self.run(data, tuned)
        assert (data / "tuned" / "anatomy.pt").exists()
        with pytest.raises(InputError, match=r"init .* does not fit"):
            self.run(data, tuned.replace("[4, 4]", "[4, 6]"))

    def test_a_template_is_built_from_folders_and_a_catalogue(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in (
            "train/a.nii.gz",
            "train/a_seg.nii.gz",
            "cut/b.nii.gz",
            "cut/b_seg.nii.gz",
            "mni.nii.gz",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        notes = [{"name": "b", "notes": "nose tip at/over anterior FOV edge"}]
        (tmp_path / "catalogue.json").write_text(json.dumps(notes))
        calls: list[Any] = []
        monkeypatch.setattr(building, "build_template", lambda *arguments: calls.append(arguments))
        text = """
            kind = "template"
            folder = "out"
            reference = "mni.nii.gz"
            heads = "train"
            others = ["cut"]
            catalogue = "catalogue.json"
        """
        self.run(tmp_path, text)
        made, reference, folder, workers = calls[0]
        assert [(head.name, head.group, head.average, head.face) for head in made] == [
            ("a", "train", True, "whole"),
            ("b", "cut", False, "clipped"),
        ]
        assert (reference, folder, workers) == (tmp_path / "mni.nii.gz", tmp_path / "out", None)
        with pytest.raises(InputError, match=r"labels is .* such a file"):
            self.run(tmp_path, text + '\nlabels = "{name}_brain.nii.gz"')

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.toml does not exist"):
            config.run(tmp_path / "none.toml")

    @pytest.mark.parametrize("name", ["template", "anatomy", "brain_check", "default", "paper"])
    def test_the_shipped_configurations_have_known_keys_alone(self, name: str) -> None:
        content = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
        config._checked(content, config.KEYS[content["kind"]], "")

    def test_labels_and_masks_are_no_heads(self, tmp_path: Path) -> None:
        for name in ("a.nii.gz", "a_seg.nii.gz", "b.mgz", "b_seg.nii.gz", "c.nii.gz", "note.txt"):
            (tmp_path / name).touch()
        settings = {"path": Path("x.toml"), "heads": [tmp_path], "labels": "{name}_seg.nii.gz"}
        pairs = config._pairs(settings, "heads", "labels")
        assert [(scan.name, labels.name) for scan, labels in pairs] == [
            ("a.nii.gz", "a_seg.nii.gz"),
            ("b.mgz", "b_seg.nii.gz"),
        ]


class TestTemplate:
    def test_blocks_have_aligned_centres(self) -> None:
        """The mean over blocks of a linear ramp is the ramp at the centres that `_coarser` gives."""
        index = np.stack(np.meshgrid(*map(np.arange, (8, 12, 4)), indexing="ij"))
        world = np.tensordot(space.GRID_AFFINE[:3, :3], index, 1)
        world += space.GRID_AFFINE[:3, 3].reshape(3, 1, 1, 1)
        coarse = space.coarser(space.GRID_AFFINE, 4)
        small = np.stack(np.meshgrid(*map(np.arange, (2, 3, 1)), indexing="ij"))
        expected = np.tensordot(coarse[:3, :3], small, 1) + coarse[:3, 3].reshape(3, 1, 1, 1)
        np.testing.assert_allclose(space.block_means(world, 4), expected)

    @pytest.mark.parametrize("spacing", [2.0, 4.0])
    def test_the_averaging_box_has_one_geometry(self, spacing: float) -> None:
        """Points [S, P, L] in LPS, turned to (A, S, L), lie where the RAS affine of that array says."""
        points = space.to_asl(space.reference_points(spacing) * [-1, -1, 1])
        index = np.stack(np.meshgrid(*map(np.arange, points.shape[:3]), indexing="ij"), -1)
        affine = space.reference_affine(spacing)
        np.testing.assert_allclose(index @ affine[:3, :3].T + affine[:3, 3], points)

    def test_the_inverse_of_a_field_undoes_it(self) -> None:
        from RefaceCGANLib.face_model.template import warp

        grid = space.coarser(space.GRID_AFFINE, 2)
        shape = (24, 24, 16)
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        waves = [np.sin(index[axis] / 4.0) for axis in range(3)]
        field = torch.from_numpy(2.0 * np.stack(waves).astype(np.float32))
        inverse = space.inverse_field(field, grid)
        to_voxels = torch.from_numpy(np.linalg.inv(grid[:3, :3]).astype(np.float32))
        left = inverse + warp(field, torch.einsum("ij,jasl->iasl", to_voxels, inverse))
        assert left[:, 3:-3, 3:-3, 3:-3].abs().max() < 0.05

    def test_an_affine_map_leaves_no_shape(self) -> None:
        matrix = np.eye(4)
        matrix[:3] += 0.05 * np.random.default_rng(0).standard_normal((3, 4))
        field = 0.1 * space.reference_points(4.0) + 3.0
        affine, rest = space.affine_part(field, matrix, np.ones(field.shape[:3]))
        assert np.abs(rest).max() < 1e-6
        assert affine[:3, :3] == pytest.approx(1.1 * matrix[:3, :3])

    def test_a_failed_registration_is_an_outlier(self) -> None:
        usual = np.linspace(-0.64, -0.56, 40)
        assert building.outliers(np.r_[usual, -0.41]).tolist() == [False] * 40 + [True]
        assert not building.outliers(np.array([-0.6, -0.6, 0.0])).any()  # too few to tell

    def test_the_notes_tell_which_faces_are_spoilt(self, tmp_path: Path) -> None:
        assert building.face_of("clean") == "whole"
        assert building.face_of("nose tip just touches anterior FOV edge (16 mm2)") == "whole"
        assert building.face_of("nose tip at/over anterior FOV edge (700 mm2 of skin)") == "clipped"
        assert building.face_of("dental/metal signal void destroys mouth/lower face") == "spoilt"
        assert building.face_of("motion/ghosting across eyes and cheeks") == "spoilt"

    def test_two_heads_of_one_name_are_refused(self, tmp_path: Path) -> None:
        head = building.HeadFiles("one", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
        with pytest.raises(InputError, match="several heads called one"):
            building.build_template([head, head], tmp_path / "r.nii.gz", tmp_path)

    @pytest.mark.heads
    @pytest.mark.slow
    def test_a_template_from_three_heads(
        self, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(building, "AFFINE_SAMPLING", 0.03)
        monkeypatch.setattr(building, "AFFINE_ITERATIONS", 40)
        monkeypatch.setattr(building, "AFFINE_SHRINK", (4, 2))
        monkeypatch.setattr(building, "AFFINE_SMOOTH_MM", (3.0, 1.5))
        monkeypatch.setattr(building, "DEMONS_COARSE", (10, 1.8))
        monkeypatch.setattr(building, "DEMONS_FINE", (1, 2.2))
        monkeypatch.setattr(building_ears, "MOST_EARS", 2)
        monkeypatch.setattr(building_ears, "DEFORMED", ((5, 3.0),))
        wanted = [("ixi014", "train"), ("ixi034", "train"), ("ixi013", "train-clipped")]
        files = [
            building.HeadFiles(
                name,
                heads / group / f"{name}.nii.gz",
                heads / group / f"{name}_seg.nii.gz",
                group,
                group == "train",
                "clipped" if group == "train-clipped" else "whole",
            )
            for name, group in wanted
        ]
        reference = heads.parent / "templates" / "mni152_2mm_extended.nii.gz"
        template = building.build_template(files, reference, tmp_path, workers=1)
        assert template.mean.shape == space.GRID_SHAPE
        face = (template.head & template.face_region).sum() * 0.008
        assert 200 < face < 1500  # ml
        assert (template.brain > 0.5)[template.face_region].mean() < 0.02
        assert template.modes.shape == (3 + 8, 3, 32, 34, 24)  # two heads and their mirror images; placements
        assert len(template.relief_points) > 3000
        assert template.relief_modes.shape == (3, len(template.relief_points))
        assert 0.3 < template.relief_modes.std() < 3  # mm
        cropped = template.crop(space.WORKING_SPANS)
        for name, group in wanted:
            prepared = PreparedHead.read(tmp_path / "prepared" / group / f"{name}.npz")
            brain = np.argwhere(prepared.brain).mean(axis=0)
            middle = prepared.index_to_template[:3] @ [*brain, 1.0]
            assert np.abs(middle - [0, -15, 5]).max() < 15, (name, middle)
            working = WorkingHead.read(tmp_path / "working" / group / f"{name}.npz")
            assert working.image.shape == cropped.mean.shape
            assert working.image.min() == -1 and working.image.max() == 1
            made = example(working, cropped, np.random.default_rng(0))
            assert torch.isfinite(made.condition).all()
        stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
        building.build_template(files, reference, tmp_path, workers=1)
        assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
