"""Re-identification: what a face recogniser sees, and whether it finds the person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from RefaceCGANLib import Refacer, Volume
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.evaluation.face_recognition import DETECTED, EYES_NOSE_MOUTH, Embedder, align
from RefaceCGANLib.evaluation.reidentification import (
    VIEWS,
    FaceModels,
    Look,
    distance,
    identification,
    nearest,
    portraits,
    rescan,
)
from scipy.stats import bootstrap

PEOPLE = ("ixi094", "ixi180", "ixi205")
See = Callable[[Volume, Volume], Look]


def look_of(*rows: list[float] | None, scores: float = 0.9) -> Look:
    """A look from embeddings, one for each view; None where there is no face."""
    length = max(len(row) for row in rows if row is not None)
    embeddings = [np.full(length, np.nan) if row is None else np.array(row) / np.linalg.norm(row) for row in rows]
    return Look(np.array([0.0 if row is None else scores for row in rows]), np.array(embeddings, np.float32))


def people(count: int, seed: int) -> dict[str, Look]:
    rows = np.random.default_rng(seed).normal(size=(count, 4, 64))
    return {f"p{number:02}": look_of(*row) for number, row in enumerate(rows)}


# --- looks and distances ----------------------------------------------------------------------------------


def test_the_distance_of_a_look_to_itself_is_0_and_of_opposite_faces_2() -> None:
    a, b = look_of([1, 2, 3], [0, 1, 0]), look_of([-1, -2, -3], [0, -1, 0])
    assert distance(a, a) == pytest.approx(0, abs=1e-6)
    assert distance(a, b) == pytest.approx(2)


def test_the_distance_is_the_mean_over_the_views_in_which_both_have_a_face() -> None:
    a, b = look_of([1, 0], [1, 0], None), look_of([0, 1], [1, 0], [1, 0])
    assert distance(a, b) == pytest.approx(0.5)
    assert distance(look_of(None, [1, 0]), look_of([1, 0], [0, 1])) == pytest.approx(1)
    assert np.isnan(distance(look_of(None, [1, 0]), look_of([1, 0], None)))


def test_a_look_survives_its_file(tmp_path: Path) -> None:
    look = look_of([1, 2], None)
    look.write(tmp_path / "look.npz")
    again = Look.read(tmp_path / "look.npz")
    np.testing.assert_array_equal(again.scores, look.scores)
    np.testing.assert_array_equal(again.embeddings, look.embeddings)


def test_a_broken_look_is_named(tmp_path: Path) -> None:
    (tmp_path / "look.npz").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"look\.npz holds no look"):
        Look.read(tmp_path / "look.npz")


# --- identification ---------------------------------------------------------------------------------------


def test_originals_find_themselves_first() -> None:
    gallery = people(12, 0)
    found = identification(gallery, gallery)
    assert list(found.columns) == ["scan", "rank", "auc", "own_distance"]
    assert list(found["scan"]) == list(gallery)
    assert (found["rank"] == 1).all() and (found["auc"] == 1).all()
    np.testing.assert_allclose(found["own_distance"], 0, atol=1e-6)


def test_shuffled_pairs_are_found_no_better_than_by_chance() -> None:
    gallery = people(40, 0)
    looks = list(gallery.values())
    order = np.random.default_rng(1).permutation(len(looks))
    found = identification({name: looks[i] for name, i in zip(gallery, order, strict=True)}, gallery)
    interval = bootstrap((found["auc"],), np.mean, rng=np.random.default_rng(2)).confidence_interval
    assert interval.low < 0.5 < interval.high


def test_rank_and_auc_count_the_others_that_are_nearer() -> None:
    gallery = {
        "own": look_of([1, 1]),
        "nearer": look_of([1, 0.1]),
        "same": look_of([1, -1]),
        "far": look_of([-1, 0]),
    }
    found = identification({"own": look_of([1, 0])}, gallery).iloc[0]
    assert found["rank"] == 2  # a tie is no better than the own one
    assert found["auc"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert found["own_distance"] == pytest.approx(1 - np.sqrt(0.5))


def test_a_face_that_is_not_detected_is_not_identified() -> None:
    gallery = people(3, 0)
    found = identification({"p00": look_of(None, None, None, [1.0] * 64)} | {"p01": gallery["p01"]}, gallery)
    assert found["rank"].notna().all()
    hidden = Look(np.zeros(4), np.full((4, 64), np.nan))
    found = identification({"p00": hidden, "p01": gallery["p01"]}, gallery).set_index("scan")
    assert found.loc["p00"].isna().all()
    assert found.loc["p01", "rank"] == 1


def test_an_original_without_a_face_is_out_of_the_running() -> None:
    gallery = people(3, 0)
    gallery["p02"] = Look(np.zeros(4), np.full((4, 64), np.nan))
    found = identification({"p00": gallery["p00"]}, gallery).iloc[0]
    assert (found["rank"], found["auc"]) == (1, 1)


def test_a_probe_without_an_original_is_named() -> None:
    with pytest.raises(InputError, match="p01 has no original"):
        identification(people(2, 0), people(1, 0))


def test_the_nearest_face_of_a_gallery() -> None:
    gallery = {"a": look_of([1, 0]), "b": look_of([1, 1]), "unseen": Look(np.zeros(1), np.full((1, 2), np.nan))}
    name, away = nearest(look_of([1, 0.9]), gallery)
    assert name == "b" and away < 0.01
    assert nearest(look_of([1, 0]), {"unseen": gallery["unseen"]})[0] == ""


# --- models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(heads: Path) -> tuple[Path, Path]:
    """Detector and embedder."""
    folder = heads.parent / "models" / "face"
    if not folder.is_dir():
        pytest.skip(f"the face models are not in {folder}")
    return folder / "yunet.onnx", folder / "MobileFaceNet.onnx"


@pytest.fixture(scope="module")
def models(networks: tuple[Path, Path]) -> FaceModels:
    return FaceModels(networks[0], {"mobilefacenet": networks[1]})


@pytest.fixture(scope="module")
def see(models: FaceModels) -> See:
    return lambda volume, reference: models.look(portraits(volume, reference))["mobilefacenet"]


@pytest.fixture(scope="module")
def scans(heads: Path) -> dict[str, Volume]:
    return {name: Volume.read(heads / "val" / f"{name}.nii.gz") for name in PEOPLE}


@pytest.fixture(scope="module")
def originals(scans: dict[str, Volume], see: See) -> dict[str, Look]:
    return {name: see(volume, volume) for name, volume in scans.items()}


@pytest.fixture(scope="module")
def picture(scans: dict[str, Volume]) -> np.ndarray:
    (frontal,) = portraits(scans["ixi180"], scans["ixi180"], ("frontal",))
    return frontal


def test_a_face_whose_points_lie_right_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_allclose(align(image, np.array(EYES_NOSE_MOUTH)), image / 255, atol=1e-5)


def test_a_face_is_turned_scaled_and_shifted_into_place() -> None:
    turn = np.radians(30)
    matrix = 1.7 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = np.array(EYES_NOSE_MOUTH) @ matrix.T + (120, 20)
    y, x = np.mgrid[:300, :300]
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 32) for px, py in points)
    face = align(np.repeat(np.uint8(np.clip(255 * dots, 0, 255))[..., None], 3, axis=2), points)
    for px, py in EYES_NOSE_MOUTH:
        assert face[round(py), round(px)].min() > 0.9
    assert face[5, 5].max() == 0


@pytest.mark.heads
def test_the_detector_finds_the_points_of_a_face_wherever_it_is(models: FaceModels, picture: np.ndarray) -> None:
    score, points = models.detect(picture)
    right_eye, left_eye, nose, right_mouth, left_mouth = points
    middle = picture.shape[1] / 2
    assert score > 0.8
    assert right_eye[0] < middle < left_eye[0] and right_mouth[0] < middle < left_mouth[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
    edge = picture[0, 0]
    moved = np.tile(edge, (450, 420, 1))  # no multiple of the strides
    moved[32 : 32 + len(picture), 32 : 32 + len(picture)] = picture
    again, there = models.detect(moved)
    assert again == pytest.approx(score, abs=0.01)
    np.testing.assert_allclose(there, points + 32, atol=2)


@pytest.mark.heads
def test_where_there_is_no_face_there_are_no_numbers(models: FaceModels, picture: np.ndarray) -> None:
    empty = np.full_like(picture, 40)
    look = models.look([picture, empty])["mobilefacenet"]
    assert look.scores[0] > DETECTED and look.scores[1] == 0
    assert np.linalg.norm(look.embeddings[0]) == pytest.approx(1, abs=1e-5)
    assert np.isnan(look.embeddings[1]).all()


@pytest.mark.heads
def test_colours_and_scale_are_as_the_embedder_wants_them(
    networks: tuple[Path, Path], picture: np.ndarray
) -> None:
    points = np.array(EYES_NOSE_MOUTH) * 2 + 80
    half = {"path": networks[1], "mean": 0.5, "std": 0.5}
    rgb, bgr = Embedder(half, 1), Embedder(half | {"colour": "bgr"}, 1)
    np.testing.assert_allclose(bgr(picture[..., ::-1], points), rgb(picture, points), atol=1e-5)
    assert np.abs(bgr(picture, points) - rgb(picture, points)).max() > 0.01
    usual = Embedder({"path": networks[1]}, 1)(picture, points)
    np.testing.assert_array_equal(usual, Embedder(networks[1], 1)(picture, points))
    assert np.abs(usual - rgb(picture, points)).max() > 0.01


@pytest.mark.heads
def test_unusable_models_are_named(networks: tuple[Path, Path], tmp_path: Path) -> None:
    detector, embedder = networks
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    for wrong, sentence in (
        ((tmp_path / "none.onnx", {}), "does not exist"),
        ((broken, {}), "no ONNX network"),
        ((embedder, {}), "no YuNet"),
        ((detector, {"a": {"path": embedder, "size": 160}}), "set its size"),
        ((detector, {"a": {"path": embedder, "color": "bgr"}}), "color"),
        ((detector, {"a": {"path": embedder, "colour": "hsv"}}), "hsv"),
    ):
        with pytest.raises(InputError, match=sentence):
            FaceModels(*wrong)


# --- portraits, re-scans, whole heads ---------------------------------------------------------------------


@pytest.mark.heads
def test_people_are_told_apart(originals: dict[str, Look]) -> None:
    assert all(look.scores.shape == (len(VIEWS),) and (look.scores > 0.6).all() for look in originals.values())
    found = identification(originals, originals)
    assert (found["rank"] == 1).all() and (found["auc"] == 1).all()
    assert distance(originals["ixi094"], originals["ixi180"]) > 0.4


@pytest.mark.heads
def test_a_re_scan_is_recognised(scans: dict[str, Volume], originals: dict[str, Look], see: See) -> None:
    again = {name: see(rescan(scans[name], np.random.default_rng(3)), scans[name]) for name in PEOPLE[:2]}
    found = identification(again, originals)
    assert (found["rank"] == 1).all()
    assert found["own_distance"].between(0.01, 0.4).all()


@pytest.mark.heads
def test_a_re_scan_holds_the_same_head_on_another_grid(scans: dict[str, Volume]) -> None:
    volume = scans["ixi180"]
    once, same, other = (rescan(volume, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once.stored, same.stored)
    assert once.shape != other.shape or not np.array_equal(once.stored, other.stored)
    assert once.stored.dtype == volume.stored.dtype and once.spacing != volume.spacing

    def tissue_ml(scan: Volume) -> float:
        level = 0.15 * float(np.percentile(volume.array, 99))
        return np.count_nonzero(scan.array > level) * float(np.prod(scan.spacing)) / 1000

    assert tissue_ml(once) == pytest.approx(tissue_ml(volume), rel=0.1)
    assert np.linalg.det(once.affine[:3, :3]) * np.linalg.det(volume.affine[:3, :3]) > 0


def ball(bump: float = 0.0) -> Volume:
    """A head like a ball of 80 mm radius, with a nose that sticks out by `bump` mm."""
    at = (np.indices((48, 48, 48)) - 23.5) * 4.0
    away = np.linalg.norm(at, axis=0) - bump * np.exp(-((at[0] ** 2 + at[2] ** 2) / 400)) * (at[1] > 0)
    values = 100 * np.clip(0.5 + (80 - away) / 6, 0, 1)
    return Volume.from_array(values.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))


def test_portraits_have_the_frame_of_the_original() -> None:
    before, after = (portraits(volume, ball(), ("left profile",), 96)[0] for volume in (ball(), ball(12)))
    front, back = slice(0, 32), slice(40, 96)  # the nose points to the left
    different = (before != after).any(axis=2)
    assert different[:, back].mean() < 0.01
    assert different[:, front].mean() > 0.05


def test_portraits_have_the_threshold_of_the_original() -> None:
    original = ball()
    brighter = original.with_stored(original.stored * np.float32(3))
    usual, same, wider = (
        portraits(volume, reference, ("frontal",), 96)[0]
        for volume, reference in ((original, original), (brighter, brighter), (brighter, original))
    )

    def area(picture: np.ndarray) -> int:
        return np.count_nonzero((picture != picture[0, 0]).any(axis=2))

    assert abs(area(same) - area(usual)) <= 2
    assert area(wider) > area(usual)


@pytest.mark.heads
def test_a_new_face_is_further_away_than_a_re_scan(
    scans: dict[str, Volume], originals: dict[str, Look], refacer: Refacer, see: See
) -> None:
    scan = scans["ixi180"]
    new = see(refacer.reface(scan, seed=7).volume, scan)
    assert new.scores[0] > 0.6
    assert distance(new, originals["ixi180"]) > 0.4  # see test_a_re_scan_is_recognised
