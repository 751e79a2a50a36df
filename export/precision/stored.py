"""The quantised layers of a model folder: where they are stored, and one at a time as graphs hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.precision.blocks import BlockForm, Blocks, unpacked
from edgeprune.exporter.precision.checkpoints import (
    Repacked,
    check_layer,
    dequantise,
    frame,
    group_layers,
    repack,
    without_zeros,
)
from edgeprune.exporter.precision.quantisers import Scheme, read_quantization
from edgeprune.exporter.weights import (
    StoredTensor,
    checkpoint_files,
    locate,
    read_header,
    read_tensor,
    rename_map,
)
from edgeprune.fields import shown
from edgeprune.json_file import read_json

Layers = dict[str, dict[str, StoredTensor]]
_VALUES = ("qweight", "weight_packed", "weight")


@dataclass(frozen=True)
class LayerForm:
    """What a quantised layer becomes in a bundle.

    Attributes:
        form: its kind and block.
        shape: (K, N), input and output features.
        scale: the type in which the checkpoint has scales.
        corrected: whether it has zero points, and so a correction.
        order: tells orders of input features apart; None where they are in order.
    """

    form: BlockForm
    shape: tuple[int, int]
    scale: torch.dtype
    corrected: bool
    order: str | None


class QuantisedLayers:
    """The quantised layers of a checkpoint.

    Args:
        model: as the config makes it; it may be fake.
        folder: the model.
        scheme: as `read_quantization` found it.

    Raises:
        InputError, UnsupportedModelError: as `find_layers` and `repack`.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, scheme: Scheme | None) -> None:
        self._folder, self._scheme = folder, scheme
        self._layers = find_layers(model, folder, scheme)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._shapes: dict[str, tuple[int, int]] = {}
        self.forms: dict[str, LayerForm] = {}
        for name, layer in self._layers.items():
            n, k = parameters[name].shape
            self._shapes[name] = (n, k)
            parts: dict[str, Any] = {
                part: tensor if part in _VALUES else _read(folder, tensor) for part, tensor in layer.items()
            }
            assert scheme is not None  # `find_layers` has seen to it
            self.forms[name] = _form(frame(scheme, name, parts, (n, k)))

    @classmethod
    def of(cls, model: PreTrainedModel, folder: Path) -> QuantisedLayers:
        """Of a model folder; none where it is not quantised."""
        return cls(model, folder, read_quantization(folder, read_json(folder / "config.json")))

    def blocks(self, name: str, scale: torch.dtype) -> Blocks:
        """A layer in the form of graphs, without zero points.

        Args:
            name: one of `forms`.
            scale: the type of its scales and its correction.

        Raises:
            InputError, UnsupportedModelError: as `repack`, and of scales that the type cannot hold.
        """
        layer, correction = without_zeros(self._load(name))
        values = unpacked(torch.from_numpy(layer.values), self.forms[name].form.kind)
        k, n = layer.shape
        scales = _floats(layer.scale)
        held = scales.to(scale)
        if bool(held.isinf().any()) or bool(((held == 0) & (scales != 0)).any()):
            raise InputError(
                f"the checkpoint scales {shown(name)} by values that {scale} cannot hold: compute in a "
                "wider type"
            )
        return Blocks(
            values[: k * n].reshape(k, n),
            held,
            None if correction is None else torch.from_numpy(correction).to(scale),
            None if layer.order is None else torch.from_numpy(layer.order),
        )

    def weight(self, name: str) -> torch.Tensor:
        """The weight that a layer stands for, float32 [N, K]."""
        return torch.from_numpy(dequantise(self._load(name)))

    def _load(self, name: str) -> Repacked:
        assert self._scheme is not None
        return load_layer(self._folder, self._scheme, name, self._layers[name], self._shapes[name])


def _form(layer: Repacked) -> LayerForm:
    kind = layer.kind
    return LayerForm(
        BlockForm("int4" if kind == "uint4" else "int8" if kind == "uint8" else kind, layer.block),
        layer.shape,
        _floats(layer.scale).dtype,
        layer.zero is not None,
        None if layer.order is None else hashlib.sha256(layer.order.tobytes()).hexdigest(),
    )


def _floats(scale: NDArray[Any]) -> torch.Tensor:
    """Scales bit by bit; torch knows no array of numpy's bfloat16."""
    if scale.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(scale.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(scale)


@torch.no_grad()
def fill(model: PreTrainedModel, folder: Path) -> None:
    """Gives a model, as it is built from a quantised folder's config, its weights, dequantised.

    Raises:
        InputError, UnsupportedModelError: as `QuantisedLayers` and `locate`.
    """
    layers = QuantisedLayers.of(model, folder)
    plain = locate(model, folder, layers.forms)
    for name, parameter in model.named_parameters():
        parameter.copy_(read_tensor(folder, plain[name]) if name in plain else layers.weight(name))


def find_layers(model: PreTrainedModel, folder: Path, scheme: Scheme | None) -> Layers:
    """The quantised layers of a checkpoint, by the name of the weight that each stands for.

    Their shapes are checked; nothing but headers is read. Hand the names to `weights.locate`, which finds the
    other weights.

    Args:
        model: as the config makes it; it may be fake.
        folder: the model.
        scheme: as `read_quantization` found it.

    Raises:
        InputError: layers without a scheme, or tensors that do not belong to the model.
        UnsupportedModelError: what is quantised is not a linear layer of its own.
    """
    stored: dict[str, StoredTensor] = {}
    for file in checkpoint_files(folder):
        stored.update(read_header(file))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    grouped = group_layers(stored, rename_map(model, stored))
    layers = {name: layer for name, layer in grouped.items() if name in parameters}
    for name, layer in layers.items():
        if scheme is None:
            raise InputError(
                f"the checkpoint in {folder} stores {shown(name)} quantised, and config.json does not say "
                "how: expected a quantization_config; download the model again"
            )
        if name in tied or not isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Linear):
            raise UnsupportedModelError(
                f"the checkpoint stores {shown(name)} quantised, which is not a linear layer of its own: "
                "export the original model, from before quantisation"
            )
        n, k = parameters[name].shape
        check_layer(scheme, name, layer, (n, k))
    return layers


def load_layer(
    folder: Path, scheme: Scheme, name: str, layer: Mapping[str, StoredTensor], shape: tuple[int, int]
) -> Repacked:
    """One of the layers that `find_layers` found, repacked; `shape` [N, K] is its weight's.

    Raises:
        InputError, UnsupportedModelError: as `repack`.
    """
    return repack(scheme, name, {part: _read(folder, tensor) for part, tensor in layer.items()}, shape)


def _read(folder: Path, tensor: StoredTensor) -> torch.Tensor:
    with safe_open(folder / tensor.file, framework="pt") as file:
        found: torch.Tensor = file.get_tensor(tensor.key)
    return found
