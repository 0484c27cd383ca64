"""Records: what a run has finished, one small file for each series, so that the next run does not do it again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..volume.volume import atomic_path
from .plan import Outcome, Row

FOLDER = ".refacecgan"
"""In the output: the records, the lock, and which key was used."""

NAMES = {"fingerprint", "row", "outputs", "facts", "image", "sources"}
"""What a record holds."""


class Records:
    """The records in an output folder. A record appears after all outputs it names are in their places."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / FOLDER / "records"

    def _path(self, series: str) -> Path:
        name = hashlib.sha256(series.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def load(self, series: str, fingerprint: str) -> Outcome | None:
        """What was done to a series, if it was done from just these inputs and the outputs are still there."""
        content = self._read(self._path(series))
        if content is None or content["fingerprint"] != fingerprint:
            return None
        for name, size in content["outputs"].items():
            try:
                if os.path.getsize(self.output / name) != size:
                    return None
            except OSError:
                return None
        return self._outcome(content)

    def find(self, series: str) -> Outcome | None:
        """What was done to a series by the last run that finished it."""
        content = self._read(self._path(series))
        return None if content is None else self._outcome(content)

    def forget(self, series: str) -> None:
        """Remove the outputs that an earlier run made of a series, and their record."""
        path = self._path(series)
        content = self._read(path)
        if content is None:
            return
        for name in content["outputs"]:
            with suppress(OSError):
                (self.output / name).unlink()
        with suppress(OSError):
            path.unlink()

    def forget_others(self, paths: Iterable[str]) -> None:
        """Remove the outputs and records of what is not among the paths: it has left the input."""
        here = set(paths)
        for outcome in self.all():
            if outcome.row.path not in here:
                self.forget(outcome.row.path)

    def store(self, outcome: Outcome, fingerprint: str) -> None:
        """Raises InputError where that cannot be written."""
        path = self._path(outcome.row.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "fingerprint": fingerprint,
            "row": asdict(outcome.row),
            "outputs": {name: os.path.getsize(self.output / name) for name in outcome.outputs},
            "facts": outcome.facts,
            "image": outcome.image,
            "sources": outcome.sources,
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="ascii")

    def adopt(self, other: Records, series: str) -> None:
        """Take over the outputs and the record of a series from an output on the same disk. Raises OSError."""
        content = self._read(other._path(series))
        assert content is not None
        for name in content["outputs"]:
            (self.output / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(other.output / name, self.output / name)
        self._path(series).parent.mkdir(parents=True, exist_ok=True)
        os.replace(other._path(series), self._path(series))

    def all(self) -> list[Outcome]:
        """Everything that is finished, of this run and of those before, in the order of the paths."""
        found = []
        for path in self.folder.glob("*/*.json"):
            content = self._read(path)
            if content is not None:
                found.append(self._outcome(content))
        return sorted(found, key=lambda outcome: outcome.row.path)

    @staticmethod
    def _outcome(content: dict[str, Any]) -> Outcome:
        row = content["row"]
        return Outcome(
            Row(**{**row, "warnings": tuple(row["warnings"])}), tuple(content["outputs"]), content["facts"],
            tuple(content["image"]), tuple(content["sources"]),
        )  # fmt: skip

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="ascii"))
            return content if set(content) >= NAMES else None
        except (OSError, ValueError):
            return None
