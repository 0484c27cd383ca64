"""Likeness: nobody gets a face that would be taken for their own, and how that is learned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from RefaceCGANLib import Refacer, Result
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.likeness import Likeness
from RefaceCGANLib.models import Model
from RefaceCGANLib.template import Template
from RefaceCGANLib.training import config
from RefaceCGANLib.training.likeness import AXES, Faces, fit


def test_only_what_a_recogniser_sees_counts() -> None:
    likeness = Likeness(seen=np.array([[1.0, 0, 0], [0, 2.0, 0]]), usual=np.array([0.5, 0, 0]))
    own = np.array([1.5, 0.0, 4.0])
    assert likeness.of(np.array([1.0, 0, -7]), own) == pytest.approx(1)
    assert likeness.of(np.array([-1.0, 0, 4]), own) == pytest.approx(-1)
    assert likeness.of(np.array([0.0, 3, 4]), own) == pytest.approx(0)
    assert likeness.of(np.zeros(3), own) == 0


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    likeness = Likeness(np.arange(6.0).reshape(2, 3), np.ones(3))
    likeness.write(tmp_path / "likeness.npz")
    again = Likeness.read(tmp_path / "likeness.npz")
    assert np.array_equal(again.seen, likeness.seen) and np.array_equal(again.usual, likeness.usual)


@pytest.mark.parametrize("seen", [1.0, 0.6])
def test_the_code_nearest_to_a_face_is_found_from_the_skin_that_is_seen(template: Template, seen: float) -> None:
    rng = np.random.default_rng(3)
    code = rng.standard_normal(template.modes_count)
    weight = template._relief_weight
    heights = (template.profiles[0] + code @ template.profiles[1:]) / np.maximum(weight, 1e-3)
    heights[(weight < 0.05) | (rng.random(len(heights)) > seen)] = np.nan
    found = template.code_of(heights)
    skin, wanted = (of @ template.profiles[1:] for of in (found, code))
    assert np.corrcoef(skin, wanted)[0, 1] > 0.95  # of both what differs from the average
    assert np.linalg.norm(found) < np.linalg.norm(code)  # a face is rather usual than not


def faces_of(rng: np.random.Generator, shown: np.ndarray, count: int = 60) -> list[Faces]:
    """Heads with 4 faces each, of which a recogniser sees `shown` (K, D) and the head itself."""
    heads = []
    for _ in range(count):
        codes = rng.standard_normal((4, len(shown)))
        seen = (codes @ shown + 5 * rng.standard_normal(shown.shape[1]))[:, None]
        seen += 0.05 * rng.standard_normal(seen.shape)
        heads.append(Faces(rng.standard_normal(len(shown)), codes, seen))
    return heads


def test_what_a_recogniser_sees_is_learned_from_faces_of_the_same_head() -> None:
    rng = np.random.default_rng(1)
    shown = np.zeros((10, 30))
    shown[:3] = rng.standard_normal((3, 30))  # of ten numbers of a code three show
    learned = fit(faces_of(rng, shown, 400))
    assert learned.seen.shape == (min(10, AXES), 10)
    tells = learned.seen.T @ learned.seen
    assert np.abs(tells[3:]).max() < 0.05 * tells[:3, :3].diagonal().min()
    true = Likeness(shown.T, np.zeros(10))
    pairs = rng.standard_normal((200, 2, 10))
    ours, theirs = (
        [of.of(*pair) for pair in pairs] for of in (replace(learned, usual=np.zeros(10)), true)
    )  # fmt: skip
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_faces_that_are_not_detected_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    shown = rng.standard_normal((6, 8))
    heads = faces_of(rng, shown)
    lost = [replace(head, seen=head.seen.copy()) for head in heads]
    for head in lost:
        head.seen[0] = np.nan
    without = [replace(head, codes=head.codes[1:], seen=head.seen[1:]) for head in heads]
    assert np.allclose(fit(lost).seen, fit(without).seen, atol=1e-6)


def test_faces_that_would_be_taken_for_the_original_are_refused(refacer: Refacer, result: Result) -> None:
    prepared, alike = result.prepared, refacer.model.likeness.of
    own = prepared.working.own
    assert own is not None
    drawn = [alike(refacer.shape(prepared, seed), own) for seed in range(8)]
    assert np.mean(drawn) <= refacer.likest and max(drawn) < 0
    first = Refacer(refacer.model, refacer.device)
    first.likest = 1.0
    assert max(alike(first.shape(prepared, seed), own) for seed in range(8)) > 0


def test_without_a_recogniser_the_skin_itself_is_compared(model_dir: Path, template: Template) -> None:
    card = Model.load(model_dir).card
    files = {role: entry for role, entry in card["files"].items() if role != "likeness"}
    plain = Model({**card, "files": files}, model_dir).likeness
    one, other = np.random.default_rng(1).standard_normal((2, template.modes_count))
    skins = [code @ template.profiles[1:] for code in (one, other)]
    cosine = skins[0] @ skins[1] / np.linalg.norm(skins[0]) / np.linalg.norm(skins[1])
    assert plain.of(one, other) == pytest.approx(cosine, abs=1e-4)


def test_a_damaged_file_is_told(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "likeness.npz").write_bytes(b"other")
    with pytest.raises(InputError, match=r"SHA-256 differs"):
        _ = Model.load(tmp_path / "model").likeness


def test_a_training_looks_at_every_head_once(
    head: Path, model_dir: Path, face_models: dict[str, str], tmp_path: Path
) -> None:
    text = f"""
        kind = "likeness"
        folder = "out"
        model = "{model_dir / "card.json"}"
        heads = "{head}"
        detector = "{face_models["detector"]}"
        recogniser = "{face_models["recogniser"]}"
        faces = 2
    """
    (tmp_path / "train.toml").write_text(text)
    config.run(tmp_path / "train.toml")
    learned = Likeness.read(tmp_path / "out" / "likeness.npz")
    (seen,) = (tmp_path / "out" / "faces").iterdir()
    faces = Faces.read(seen)
    difference = faces.codes[0] - faces.codes[1]  # all that two faces of one head can tell
    assert learned.seen[0] / np.linalg.norm(learned.seen[0]) == pytest.approx(
        difference / np.linalg.norm(difference) * np.sign(learned.seen[0] @ difference), abs=1e-2
    )
    (tmp_path / "out" / "likeness.npz").unlink()
    seen.touch()
    before = seen.stat().st_mtime_ns
    config.run(tmp_path / "train.toml")
    assert (tmp_path / "out" / "likeness.npz").exists() and seen.stat().st_mtime_ns == before
