"""Which new face each person of a run has: the one their identity key gives, or the second, the third ..."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..report import write_json
from .records import FOLDER

FACES = "faces.json"
"""In the output's own folder: by subject, how many other faces were asked for."""


def read_faces(output: Path) -> dict[str, int]:
    """How many other faces each person got after the first one; who is not in it has the first one.

    Raises InputError where that is damaged: everybody would get the wrong face."""
    path = output / FOLDER / FACES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(type(n) is int and n >= 0 for n in content.values()):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged; put it back or choose another output.") from error
    return content


def write_faces(output: Path, numbers: Mapping[str, int]) -> None:
    """Raises InputError where it cannot be written."""
    write_json(dict(sorted(numbers.items())), output / FOLDER / FACES)


def identity_of(subject: str, number: int) -> str:
    """The identity (`refacer.seed_of`) of a person's face: the subject itself, then "subject face 2" and so on."""
    return f"{subject} face {number + 1}" if number else subject
