"""The risk of one scan: what is told is measured, and what cannot be told is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from RefaceCGANLib import Result, Volume
from RefaceCGANLib.evaluation.face_recognition import Look
from RefaceCGANLib.evaluation.measure import Cohort, Seen
from RefaceCGANLib.evaluation.paper_skin import paper_surface
from RefaceCGANLib.evaluation.risk import LIMITS, of_cohort, risk, sentences
from RefaceCGANLib.evaluation.skin_shape import CENTRE, rays, skin_distances, skin_left_percent
from RefaceCGANLib.models.model import Model
from RefaceCGANLib.rendering.skin_surface import skin_surface


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """40 people, 30 of them refaced with two seeds; half of each face is left."""
    random = np.random.default_rng(0)

    def seen(rows: np.ndarray, skin: np.ndarray) -> Seen:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return Seen(Look(np.ones(len(rows), np.float32), rows.astype(np.float32)), skin.astype(np.float32))

    looks, skins = random.standard_normal((40, 2, 24)), random.normal(70, 5, (40, 30))
    originals = {f"p{i:02}": seen(looks[i], skins[i]) for i in range(40)}
    outputs = {
        f"p{i:02}": [seen(looks[i] + random.standard_normal((2, 24)), random.normal(70, 5, 30)) for _ in range(2)]
        for i in range(30)
    }
    return Cohort.of(outputs, originals)


@pytest.fixture
def card(cohort: Cohort, model_dir: Path, tmp_path: Path) -> Model:
    """The model with what was measured on that cohort in its card."""
    recogniser = tmp_path / "net.onnx"
    recogniser.write_bytes(b"network")
    model = Model.load(model_dir)
    return replace(model, card=model.card | {"risk": of_cohort(cohort, recogniser, "made up")})


def test_the_card_carries_distributions_and_attackers(card: Model) -> None:
    carried = json.loads(json.dumps(card.card["risk"]))
    assert (carried["people"], carried["gallery"]) == (30, 40)
    for name in ("to_own_original", "to_other_originals", "between_originals"):
        assert carried[name] == sorted(carried[name]) and len(carried[name]) == len(carried["percentiles"])
    assert carried["to_own_original"][3] < 0.5 < carried["to_other_originals"][3]
    worst = carried["worst_attacker"]
    assert worst["attacker"] == "standard, recogniser" and worst["auc"] > 0.9
    assert carried["learned_attacker"]["attacker"].startswith("learned")


def test_it_tells_what_is_kept_and_what_is_not_known(result: Result, card: Model) -> None:
    found = risk(result.original, result.volume, card)
    assert found["face_tissue_kept_percent"] < 5 and found["brain_changed_ml"] == 0
    assert 0 <= found["face_skin_in_place_percent"] < 30
    assert found["head_replaced_ml"] > 100 < found["head_kept_ml"]
    said = sentences(found)
    assert any("no distance was measured" in line for line in said)
    assert any("an attacker who learned from other people's pairs" in line for line in said)
    assert said[-1] == LIMITS and not any("anonym" in line.lower() for line in said)
    nothing = risk(result.original, result.original, replace(card, card=card.card | {"risk": None}))
    assert nothing["face_tissue_kept_percent"] == nothing["face_skin_in_place_percent"] == 100
    assert nothing["head_replaced_ml"] == 0
    assert any("carries no figure of a learned attacker" in line for line in sentences(nothing))


def test_a_distance_is_set_against_the_cohort(card: Model) -> None:
    numbers = {"head_replaced_ml": 300.0, "head_kept_ml": 3000.0, "face_tissue_kept_percent": 1.0}
    numbers |= {"brain_changed_ml": 0.0, "distance": 0.2}
    found = numbers | {
        "face_skin_in_place_percent": None, "model": "default", "cohort": card.card["risk"],
        "faces_detected": [0.9, 0.9], "recogniser_of_cohort": True,
    }  # fmt: skip
    said = " ".join(sentences(found))
    assert "Distance between the two faces by the recogniser: 0.20." in said
    assert "nearer to its original than 100 % of refaced scans are to another person's" in said
    assert "an unknown share" in said
    assert "another recogniser" in " ".join(sentences(found | {"recogniser_of_cohort": False}))
    assert "found no face" in " ".join(sentences(found | {"distance": None}))


def test_the_command_tells_the_distance(
    refacecgan: Callable, result: Result, head: Path, face_models: dict[str, str], tmp_path: Path
) -> None:
    refaced, report = tmp_path / "refaced.nii.gz", tmp_path / "risk.json"
    result.volume.write(refaced)
    models = ["--detector", face_models["detector"], "--recogniser", face_models["recogniser"]]
    call = refacecgan("risk", head, refaced, *models, "--report", report, "--progress", "none")
    assert call.status == 0, call.err
    assert any(line.startswith("Distance between the two faces") for line in call.out)
    assert json.loads(report.read_text())["distance"] > 0.1
    call = refacecgan("risk", head, refaced, "--detector", face_models["detector"])
    assert call.status == 2 and "both --detector and --recogniser" in call.err[-1]
    Volume.from_array(np.arange(8000.0).reshape(20, 20, 20), np.eye(4)).write(tmp_path / "other.nii.gz")
    call = refacecgan("risk", head, tmp_path / "other.nii.gz", "--report", tmp_path / "none.json")
    assert call.status == 2 and "another grid" in call.err[-1] and not (tmp_path / "none.json").exists()


# --- the skin along rays ----------------------------------------------------------------------------------


def ball(radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(96) * 2.0] * 3, indexing="ij"), axis=-1)
    return np.where(np.linalg.norm(grid - 96.0, axis=-1) < radius, 100.0, 0.0)


def test_skin_distances_of_a_ball_are_its_radius() -> None:
    place = np.diag([2.0, 2.0, 2.0, 1.0])
    place[:3, 3] = np.array(CENTRE) - 96
    small, large = (skin_distances(ball(radius), place, 50.0) for radius in (60.0, 70.0))
    assert small.shape == (len(rays()),)
    assert small == pytest.approx(60, abs=1.5) and large - small == pytest.approx(10, abs=1.5)
    assert skin_left_percent(small, small) == 100 and skin_left_percent(small, large) == 0
    cut = place.copy()
    cut[1, 3] -= 60  # the front is outside the field of view
    assert np.isnan(skin_distances(ball(60.0), cut, 50.0)).mean() > 0.3


@pytest.mark.parametrize("flip", [1, -1])
def test_the_papers_surface_is_the_skin_and_looks_outward(flip: int) -> None:
    values = ball(60.0) + np.abs(np.random.default_rng(0).normal(0, 3, (96,) * 3))
    affine = np.diag([2.0 * flip, 2.0, 2.0, 1.0])
    volume = Volume.from_array(values.astype(np.float32), affine)
    paper, ours = paper_surface(volume), skin_surface(values, affine)
    a, b, c = (paper.points[paper.triangles[:, i]].astype(float) for i in range(3))
    assert (a * np.cross(b, c)).sum() / 6 == pytest.approx(4 / 3 * np.pi * 60**3, rel=0.15)
    assert np.ptp(paper.points, axis=0) == pytest.approx(np.ptp(ours.points, axis=0), abs=3)
    away = paper.points - np.array([96.0 * flip, 96, 96])
    assert (np.sum(paper.normals * away, axis=1) > 0).mean() > 0.95


def test_the_command_draws_as_the_paper(refacecgan: Callable, head: Path, tmp_path: Path) -> None:
    picture = tmp_path / "paper.png"
    call = refacecgan("render", head, picture, "--method", "paper", "--size", "64x64", "--progress", "none")
    assert call.status == 0 and picture.stat().st_size > 1000, call.err
    call = refacecgan("render", head, picture, "--method", "paper", "--threshold", "300")
    assert call.status == 2 and "between 0 and 255" in call.err[-1]
