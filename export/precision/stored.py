"""The quantised layers of a model folder: where they are stored, and one at a time as graphs hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.precision.checkpoints import Repacked, check_layer, group_layers, repack
from edgeprune.exporter.precision.quantisers import Scheme
from edgeprune.exporter.weights import StoredTensor, checkpoint_files, read_header, rename_map
from edgeprune.fields import shown

Layers = dict[str, dict[str, StoredTensor]]


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
    tensors = {}
    for part, tensor in layer.items():
        with safe_open(folder / tensor.file, framework="pt") as file:
            tensors[part] = file.get_tensor(tensor.key)
    return repack(scheme, name, tensors, shape)
