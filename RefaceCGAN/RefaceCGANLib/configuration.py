"""Configurations: TOML files that a user wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from .errors import InputError


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises InputError where it is missing, no text, or not valid."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text; give a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no valid TOML: {error}.") from error
