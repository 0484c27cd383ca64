"""Volumes: head scans read from and written to files."""
