"""Attackers find what is there to be found, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from RefaceCGANLib.evaluation import attackers
from RefaceCGANLib.evaluation.attackers import correlation, judged, learned, learned_by_chance, nearness, standard

PEOPLE, SEEDS, VIEWS, LENGTH = 60, 3, 2, 16


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def originals(random: np.random.Generator) -> np.ndarray:
    """(G, V, D), more people than are refaced."""
    return unit(random.standard_normal((PEOPLE + 20, VIEWS, LENGTH)))


def leaking(originals: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """Refaced embeddings in which the owner's are turned around by one fixed rotation, in `share` of the variance:
    nothing that a recogniser sees, all that a regression needs."""
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((LENGTH, LENGTH)))[0]
    noise = unit(random.standard_normal((SEEDS, PEOPLE, VIEWS, LENGTH)))
    return unit(np.sqrt(share) * originals[:PEOPLE] @ turn + np.sqrt(1 - share) * noise)


def test_two_copies_of_one_person_are_found_by_all(originals: np.ndarray) -> None:
    copies = originals[None, :PEOPLE]
    flat = attackers.joined(copies), attackers.joined(originals)
    for name, scores in (
        ("standard", standard(copies, originals)), ("nearness", nearness(*flat)),
        ("correlation", correlation(*flat)),
    ):  # fmt: skip
        attack = judged(name, scores)
        assert attack.auc == attack.found == 1 and attack.rank_1_percent == 100 and not attack.reversed
        assert attack.gallery == PEOPLE + 20
    assert judged("learned", learned(*flat), learned=True).auc > 0.95


def test_strangers_are_found_by_none(random: np.random.Generator) -> None:
    aucs = []
    for _ in range(8):
        originals = unit(random.standard_normal((PEOPLE + 20, VIEWS, LENGTH)))
        strangers = unit(random.standard_normal((SEEDS, PEOPLE, VIEWS, LENGTH)))
        flat = attackers.joined(strangers), attackers.joined(originals)
        scores = standard(strangers, originals), nearness(*flat), correlation(*flat), learned(*flat)
        attacks = [judged("any", part, learned=True, resamples=200) for part in scores]
        assert sum(attack.low < 0.5 < attack.high for attack in attacks) >= 2
        aucs.append([attack.auc for attack in attacks])
    assert np.mean(aucs, axis=0) == pytest.approx([0.5] * 4, abs=0.05)


def test_shuffled_people_are_not_found(originals: np.ndarray, random: np.random.Generator) -> None:
    """The pairs are wrong, so there is nothing to learn, however much each scan tells of its owner."""
    refaced = attackers.joined(leaking(originals, random, 0.9))
    aucs = learned_by_chance(refaced, attackers.joined(originals), 10)
    assert aucs.mean() == pytest.approx(0.5, abs=0.05) and aucs.max() < 0.7
    assert judged("learned", learned(refaced, attackers.joined(originals)), learned=True).auc > 0.9


def test_only_the_learned_attacker_finds_what_was_turned_around(
    originals: np.ndarray, random: np.random.Generator
) -> None:
    refaced = leaking(originals, random, 0.5)
    naive = judged("standard", standard(refaced, originals))
    clever = judged("learned", learned(attackers.joined(refaced), attackers.joined(originals)), learned=True)
    assert naive.found < 0.7 < 0.75 < clever.auc
    assert attackers.worst([naive, clever]) is clever


def test_the_least_alike_is_found_too(originals: np.ndarray) -> None:
    attack = judged("standard", standard(-originals[None, :PEOPLE], originals))
    assert attack.auc == 0 and attack.found == 1 and attack.reversed and attack.rank_1_percent == 100
    assert (attack.found_low, attack.found_high) == (1, 1)


def test_a_learned_attacker_judges_nobody_whom_it_learned_from(
    originals: np.ndarray, random: np.random.Generator
) -> None:
    refaced = attackers.joined(leaking(originals, random, 0.5))
    scores = learned(refaced, attackers.joined(originals), folds=5)
    compared = np.isfinite(scores[0])
    assert (compared.sum(axis=1) == PEOPLE // 5 + 20).all() and compared[:, PEOPLE:].all()
    assert (compared[:, :PEOPLE] == compared[:, :PEOPLE].T).all() and compared.diagonal().all()
    some = learned(refaced, attackers.joined(originals), people=15, folds=5)
    assert some.shape == (SEEDS, 15, PEOPLE + 20)
    assert np.isnan(some[:, :, 15:PEOPLE]).all() and np.isfinite(some[:, :, PEOPLE:]).all()


def test_faces_that_are_not_detected_are_left_out(originals: np.ndarray) -> None:
    refaced = originals[None, :PEOPLE].copy()
    refaced[:, 0] = np.nan
    refaced[:, 1, 0] = np.nan
    attack = judged("standard", standard(refaced, originals))
    assert attack.people == PEOPLE - 1 and attack.auc == 1
    assert attack.rank_1_percent == pytest.approx(100 * (PEOPLE - 1) / PEOPLE)
    flat = attackers.joined(refaced), attackers.joined(originals)
    assert judged("learned", learned(*flat), learned=True).people == PEOPLE - 1


def test_a_seed_that_is_missing_does_not_count(originals: np.ndarray) -> None:
    refaced = np.stack([originals[:PEOPLE]] * 2)
    refaced[1, 10:] = np.nan
    flat = attackers.joined(refaced), attackers.joined(originals)
    for scores in (standard(refaced, originals), nearness(*flat), correlation(*flat)):
        attack = judged("any", scores)
        assert (attack.auc, attack.rank_1_percent, attack.gallery) == (1, 100, PEOPLE + 20)


def test_auc_and_rank_by_hand() -> None:
    scores = np.array([[[3.0, 1, 2, 4], [5, 5, 0, np.nan]]])
    attack = judged("by hand", scores, np.array([0, 1]), learned=True)
    assert attack.auc == pytest.approx((2 / 3 + (1 + 0.5) / 2) / 2)
    assert attack.rank_1_percent == 50 and attack.people == 2
