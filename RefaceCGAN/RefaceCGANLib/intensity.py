"""The intensity rule: winsorise, scale linearly to [-1, 1], and back (Molchanova et al. 2023, section 2.2).

The two coefficients are read from voxels that the refaced scan still has (the tissue around the brain, and
the air), never from the face: the same head gives the same coefficients before and after refacing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import CheckError

LOW_PERCENTILE = 1.0
"""Of all voxels outside the face region: the level of air."""
HIGH_PERCENTILE = 99.5
"""Of the voxels in the ring: brain, skull and scalp within `RING_MM` of the brain, outside the face region."""
RING_MM = 16.0


@dataclass(frozen=True)
class IntensityScale:
    """Linear map between real values and the networks' range: low -> -1 (air), high -> 1 (brightest tissue)."""

    low: float
    high: float

    @classmethod
    def measure(cls, values: np.ndarray, around_brain: np.ndarray, outside_face: np.ndarray) -> IntensityScale:
        """Read the coefficients. values, around_brain and outside_face (both bool): same shape, any grid.

        Raises CheckError where the tissue around the brain is not brighter than the air."""
        ring = values[around_brain & outside_face]
        if ring.size == 0:
            raise CheckError("No tissue was found around the brain; give a scan of the whole head.")
        low = float(np.percentile(values[outside_face], LOW_PERCENTILE))
        high = float(np.percentile(ring, HIGH_PERCENTILE))
        if not high > low:
            raise CheckError("Head and background have the same intensity; give a scan that shows the head.")
        return cls(low, high)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Real values -> [-1, 1] float32, winsorised at both ends."""
        scaled = (values.astype(np.float32) - self.low) * np.float32(2.0 / (self.high - self.low)) - 1.0
        return np.clip(scaled, -1.0, 1.0, out=scaled)

    def restore(self, values: np.ndarray) -> np.ndarray:
        """[-1, 1] -> real values, float32: the inverse of `normalise` inside the range."""
        restored = (np.asarray(values, np.float32) + 1.0) * np.float32((self.high - self.low) / 2.0) + self.low
        return restored.astype(np.float32)
