"""The intensity rule: winsorise, scale to [-1, 1], and back."""

from __future__ import annotations

import numpy as np
import pytest
from RefaceCGANLib.errors import CheckError
from RefaceCGANLib.intensity import IntensityScale


def test_normalise_and_restore_are_inverse_inside_the_range():
    scale = IntensityScale(10.0, 250.0)
    values = np.linspace(10, 250, 50, dtype=np.float32)
    assert np.allclose(scale.restore(scale.normalise(values)), values, atol=1e-3)
    assert scale.normalise(np.array([10.0, 130.0, 250.0])).tolist() == [-1.0, 0.0, 1.0]


def test_normalise_winsorises_both_ends():
    assert IntensityScale(0.0, 100.0).normalise(np.array([-50.0, 900.0])).tolist() == [-1.0, 1.0]


def test_coefficients_do_not_depend_on_the_face():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 100, (20, 20, 20)).astype(np.float32)
    face = np.zeros(values.shape, bool)
    face[12:] = True
    ring = np.zeros(values.shape, bool)
    ring[4:16] = True
    before = IntensityScale.measure(values, ring, ~face)
    values[face] = 5000.0
    assert IntensityScale.measure(values, ring, ~face) == before


def test_a_scan_without_contrast_is_refused():
    flat = np.ones((4, 4, 4))
    with pytest.raises(CheckError, match="same intensity"):
        IntensityScale.measure(flat, flat > 0, flat > 0)
