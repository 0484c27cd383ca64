"""Anatomy: where the brain and the face of a scan are."""
