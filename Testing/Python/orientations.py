"""The 48 ways in which a scan may be stored: its axes in any order, each in either direction."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from RefaceCGANLib.volume.volume import Volume

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def reoriented(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same scan stored with its axes permuted and flipped: one of the 48 orientations."""
    array = np.transpose(volume.stored, order)
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (old, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[old, axis] = sign
        if sign < 0:
            array = np.flip(array, axis)
            matrix[old, 3] = volume.stored.shape[old] - 1
    turned = Volume.from_array(np.ascontiguousarray(array), volume.affine @ matrix)
    return replace(turned, slope=volume.slope, intercept=volume.intercept)
