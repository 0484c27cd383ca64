"""RefaceCGAN: a new, anonymous face for a head MRI, with every brain voxel untouched.

>>> from RefaceCGANLib import Refacer, Volume
>>> refacer = Refacer.from_pretrained(device="auto")
>>> result = refacer.reface(Volume.read("head.nii.gz"), seed=7)
>>> result.volume.write("refaced.nii.gz")

Importing this package imports neither torch nor any reader; they load when first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .refacer import Refacer, Result
    from .volume.volume import Volume

__version__ = "0.1.0"
__all__ = ["Refacer", "Result", "Volume", "__version__"]

_HOMES = {"Refacer": "refacer", "Result": "refacer", "Volume": "volume.volume"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
