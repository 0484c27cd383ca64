"""Rendering: the skin as a surface and as a picture."""
