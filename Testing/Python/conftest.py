"""Fixtures shared by all tests: where the real heads lie, and the skip when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = Path(os.environ.get("REFACECGAN_HEADS", REPOSITORY.parent / "shared" / "heads"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HEADS.is_dir():
        return
    for item in items:
        if item.get_closest_marker("heads"):
            item.add_marker(pytest.mark.skip(reason=f"{item.name}: the real heads are not in {HEADS}"))


@pytest.fixture(scope="session")
def heads() -> Path:
    """Folder with train/, val/ and native/ (tests that use it carry the mark `heads`)."""
    return HEADS
