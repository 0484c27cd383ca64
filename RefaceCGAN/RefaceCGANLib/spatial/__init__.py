"""Grids, resampling and morphology."""
