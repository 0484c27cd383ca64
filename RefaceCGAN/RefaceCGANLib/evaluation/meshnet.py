"""MeshNet: brainchop's fully convolutional networks (Masoud et al. 2023, JOSS 8(83), 5098), run in torch.

A folder holds one network as TensorFlow.js stores it: `model.json`, the list of layers, and `model.bin`, their
float32 weights one after the other. Nothing of brainchop's is shipped; the user names the folder. Images go in as
brainchop feeds them: conformed as by FreeSurfer, `conform`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..spatial.grid import sample
from ..volume.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 256
"""Voxels of 1 mm along each axis of the conformed grid."""
LIA = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Axes of the conformed grid: left, inferior, anterior."""
BRIGHT = 0.001
"""The conformed intensities end where this fraction of the nonzero voxels is brighter, as FreeSurfer's do."""
SLAB = 16
"""Planes that are activated, or scored, at once."""
ACTIVATIONS = ("elu", "gelu")
NORM_EPSILON = 1e-5


def conform(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The scan as FreeSurfer's `mri_convert --conform` makes it, for networks trained on that.

    Returns the image, uint8 (256, 256, 256) along left, inferior, anterior, 1 mm, trilinear, about the centre of
    the field of view, and its affine (4, 4) voxel index -> RAS+ mm. What lies further than 128 mm from the centre
    is cut off. 0 is the scan's minimum, 255 where a thousandth of the nonzero voxels is brighter.
    """
    import torch

    values = volume.array
    counts, edges = np.histogram(values, 1000)
    brighter = np.cumsum(counts[::-1])
    top = edges[-1 - np.searchsorted(brighter, BRIGHT * np.count_nonzero(values))]
    scaled = np.clip((values - edges[0]) * (255 / (top - edges[0])), 0, 255)
    centre = volume.affine @ np.r_[np.array(volume.shape) / 2, 1]
    affine = np.eye(4)
    affine[:3, :3] = LIA
    affine[:3, 3] = centre[:3] - LIA @ np.full(3, SIZE / 2)
    source = torch.from_numpy(scaled)[None]
    image = sample(source, np.linalg.inv(volume.affine) @ affine, (SIZE,) * 3)[0]
    return image.round_().to(torch.uint8).numpy(), affine


@contextmanager
def threads_of_torch(threads: int | None) -> Iterator[None]:
    """Set the number of torch's threads for a while; None: leave it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Layer:
    """kernel: (out, in, k, k, k).  bias: (out,).  normed: each channel is normalised over the volume."""

    kernel: Tensor
    bias: Tensor
    dilation: int
    normed: bool
    activation: str | None


class Network:
    """One MeshNet: dilated convolutions, each with an activation, and a last one that scores the classes."""

    def __init__(self, folder: Path) -> None:
        """Read the folder's model.json and model.bin. Raises InputError unless they are a MeshNet's."""
        try:
            model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            weights = np.fromfile(folder / "model.bin", "<f4")
        except (OSError, ValueError):
            raise InputError(
                f"{folder} holds no readable model.json and model.bin; give the folder of a brainchop model."
            ) from None
        try:
            self._layers = _layers(model, weights)
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(f"{folder} holds no MeshNet; give the folder of a brainchop model.") from None

    @property
    def classes(self) -> int:
        return len(self._layers[-1].kernel)

    def label(self, image: np.ndarray) -> np.ndarray:
        """The likeliest class of every voxel, uint8 (X, Y, Z). image: float32 (X, Y, Z), 0..1, air is 0.

        Around the image is air without end: activations are kept as differences from those in air, so a
        convolution's zeros stand for air, and a crop to the head alters next to nothing (0.1 % of the labels).
        Not so where channels are normalised over the volume: that is over the crop. Float32 throughout, 168
        bytes a voxel of the image for 21 channels; bfloat16 would alter 0.7 % of the labels.
        """
        import torch

        with torch.inference_mode():
            maps = torch.from_numpy(image)[None, None].contiguous(memory_format=torch.channels_last_3d)
            air = torch.zeros(1)
            *hidden, last = self._layers
            for layer in hidden:
                bias = layer.bias + layer.kernel.sum((2, 3, 4)) @ air
                maps = _convolve(maps, layer, bias)
                air = _activate(maps, layer, bias)
            bias = last.bias + last.kernel.sum((2, 3, 4)) @ air
            scores = (_convolve(part, last, bias) for part in maps.split(SLAB, 2))
            return torch.cat([part[0].argmax(0).to(torch.uint8) for part in scores]).numpy()

    def hidden(self, image: np.ndarray, layers: int) -> Iterator[Tensor]:
        """The activations of the first layers, one layer after the other: tensors (channels, X, Y, Z), which the
        next step overwrites; image as in `label`."""
        import torch

        maps = torch.from_numpy(image)[None, None].contiguous(memory_format=torch.channels_last_3d)
        air = torch.zeros(1)
        for layer in self._layers[:layers]:
            with torch.inference_mode():
                bias = layer.bias + layer.kernel.sum((2, 3, 4)) @ air
                maps = _convolve(maps, layer, bias)
                air = _activate(maps, layer, bias)
            yield maps[0]


def _layers(model: dict[str, Any], weights: np.ndarray) -> list[_Layer]:
    """The layers of a TensorFlow.js model. Raises ValueError, KeyError, ... where they are no MeshNet's."""
    import torch

    shapes = {item["name"]: item["shape"] for group in model["weightsManifest"] for item in group["weights"]}
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    if ends[-1] != len(weights):
        raise ValueError("model.bin does not hold the weights that model.json lists")
    arrays = {
        name: torch.from_numpy(part.reshape(shapes[name]))
        for name, part in zip(shapes, np.split(weights, ends[:-1]), strict=True)
    }
    layers: list[_Layer] = []
    first, *others = model["modelTopology"]["model_config"]["config"]["layers"]
    if first["class_name"] != "InputLayer":
        raise ValueError("no input layer")
    for entry in others:
        name, config = entry["config"]["name"], entry["config"]
        if entry["class_name"] == "Activation" and config["activation"] in ACTIVATIONS:
            layers[-1] = _Layer(**vars(layers[-1]) | {"activation": config["activation"]})
        elif entry["class_name"] == "Conv3D":
            kernel = arrays[f"{name}/kernel"].permute(4, 3, 0, 1, 2)  # from (k, k, k, in, out)
            bias = arrays.get(f"{name}/bias", torch.zeros(len(kernel)))
            kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
            # brainchop's exporter has no other way to say that a normalisation follows
            layers.append(_Layer(kernel, bias, config["dilation_rate"][0], name.endswith("_gn"), None))
        else:
            raise ValueError(f"a layer of class {entry['class_name']}")
    if layers[-1].kernel.shape[2:] != (1, 1, 1) or not all(layer.activation for layer in layers[:-1]):
        raise ValueError("other layers than a MeshNet's")
    return layers


def _convolve(maps: Tensor, layer: _Layer, bias: Tensor) -> Tensor:
    """(1, in, X, Y, Z) -> (1, out, X, Y, Z), zeros around."""
    from torch.nn import functional

    reach = layer.dilation * (layer.kernel.shape[2] // 2)
    return functional.conv3d(maps, layer.kernel, bias, padding=reach, dilation=layer.dilation)


def _activate(maps: Tensor, layer: _Layer, air: Tensor) -> Tensor:
    """Activate in place and take off what air has become, which is returned (out,); or normalise and activate.
    air: (out,), what the convolution made of air."""
    import torch
    from torch.nn import functional

    function: Callable[[Tensor], Tensor] = functional.elu if layer.activation == "elu" else functional.gelu
    mean, scale, off = torch.zeros_like(air), torch.ones_like(air), function(air)
    if layer.normed:
        variance, mean = torch.var_mean(maps[0], dim=(1, 2, 3), correction=0)
        scale, off = (variance + NORM_EPSILON).rsqrt(), torch.zeros_like(air)
    for part in maps[0].split(SLAB, 1):
        if layer.normed:
            part.sub_(mean.view(-1, 1, 1, 1)).mul_(scale.view(-1, 1, 1, 1))
        part.copy_(function(part)).sub_(off.view(-1, 1, 1, 1))
    return off
