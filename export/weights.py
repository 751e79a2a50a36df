"""Weights as a checkpoint stores them: in which files, under which names, where; without loading them."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import logging

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.precision.checkpoints import as_weight, of_weight
from edgeprune.fields import shown
from edgeprune.files import open_regular
from edgeprune.json_file import parse_json, read_json

_INDEX_SUFFIX = ".safetensors.index.json"
_INDEX = f"model{_INDEX_SUFFIX}"
_SINGLE = "model.safetensors"
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SAFETENSORS_NAMES = {dtype: name for name, dtype in _FLOATS.items()}
# Those of quantised weights, too; what has no name here can only be refused, whatever it is.
_DTYPES = {
    **_FLOATS,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a safetensors file: `offset` is absolute, in bytes."""

    file: str
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that transformers loads.

    That is what config.json names, else the single file, else the files of the index.

    Raises:
        InputError: there are none, or the config or an index names one that is missing.
    """
    config = folder / "config.json"
    if (named := _named_by_config(config)) is not None:
        found, source = named, config
    elif (folder / _SINGLE).is_file():
        found, source = _SINGLE, folder
    elif (folder / _INDEX).is_file():
        found, source = _INDEX, folder
    else:
        raise InputError(
            f"{folder} has no {_SINGLE} and no {_INDEX}{_found_instead(folder)}: save the model with "
            "save_pretrained, which writes safetensors"
        )
    names = [found]
    if found.endswith(_INDEX_SUFFIX) and os.path.isfile(folder / found):
        source = folder / found
        names = _named_by(source)
    for name in names:
        if not os.path.isfile(folder / name):
            raise InputError(f"{source} names {name}, which is missing: download the model again")
    return [folder / name for name in names]


def _named_by_config(path: Path) -> str | None:
    """The file of weights that a config names in place of the usual one; it may be an index."""
    try:
        raw = read_json(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid ({error}): download the model again") from error
    name = raw.get("transformers_weights") if isinstance(raw, dict) else None
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", _INDEX_SUFFIX)):
        raise InputError(
            f"{path} names {shown(repr(name))} as transformers_weights, which is no safetensors file: save "
            "the model with save_pretrained, which writes safetensors"
        )
    _check_inside(path, name)
    return name


def _found_instead(folder: Path) -> str:
    """What looks like weights in other forms, for a message."""
    for pattern, what in (
        ("*.bin", "is a pickle, which is never loaded"),
        ("*.pt*", "is a pickle, which is never loaded"),
        ("*.gguf", "is quantised"),
        ("*.safetensors", "is not called so, and transformers does not load it"),
    ):
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f" ({shown(found[0])} {what})"
    return ""


def _named_by(index: Path) -> list[str]:
    """The files that a checkpoint's index names."""
    try:
        raw = read_json(index, "the index")
        names = sorted(set(raw["weight_map"].values()))
        if not names:
            raise ValueError("it names no file")
        if not isinstance(raw["metadata"], dict):
            raise ValueError("its metadata are no object")
        stems = [name.removesuffix(".safetensors") for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not a valid index ({error}): download the model again") from error
    for name, stem in zip(names, stems, strict=True):
        _check_inside(index, name)
        if stem == name:
            raise InputError(
                f"{index} names {name!r}, which is not a safetensors file: save the model with "
                "save_pretrained, which writes safetensors"
            )
    return names


def _check_inside(source: Path, name: str) -> None:
    """Files of weights are copied into the bundle, so they must be the model's own."""
    if Path(name).name != name or "\\" in name or not name.isprintable():
        raise InputError(f"{source} names {shown(name)!r}, which leaves the folder: do not use this model")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by key, from its header alone.

    Raises:
        InputError: the file is truncated or not in the safetensors format.
    """
    try:
        with open_regular(path, "the checkpoint") as file:
            # As strict as whatever loads it: sizes, gaps, overlaps and types are the format's own to check.
            with safe_open(path, framework="pt"):
                pass
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({shown(error)}): download or copy it again"
        ) from error
    header.pop("__metadata__", None)
    return {key: _stored(path.name, key, entry, 8 + length) for key, entry in header.items()}


def _stored(file: str, key: str, entry: Mapping[str, Any], start: int) -> StoredTensor:
    """One entry of a checked header; the data begin at `start`."""
    begin, end = entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"], torch.uint8)
    return StoredTensor(file, key, dtype, tuple(entry["shape"]), start + begin, end - begin)


def rename_map(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Checkpoint key -> parameter name, as transformers renames on loading.

    Parts of a quantised layer go where its weight goes, and keep their last name.

    Raises:
        UnsupportedModelError: loading would transform a weight, so that it cannot stay in its file.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix, wanted = model.base_model_prefix, model.state_dict(keep_vars=True)
    renamed = {}
    for key in sorted(keys, key=dot_natural_key):  # a renaming may wait for an earlier key
        plain, part = as_weight(key)
        name, pattern = rename_source_key(plain, renamings, converters, prefix, wanted)
        if name not in wanted and plain in wanted:
            name, pattern = rename_source_key(plain, [], [], prefix, wanted)
        if pattern is not None and name in wanted:
            raise UnsupportedModelError(
                f"the checkpoint's {shown(key)} has to be transformed on loading, which is not supported: "
                "save the model once with save_pretrained of the installed transformers"
            )
        renamed[key] = of_weight(name, part)
    return renamed


def locate(model: PreTrainedModel, folder: Path, quantised: Collection[str] = ()) -> dict[str, StoredTensor]:
    """Where every parameter of `model` is stored, by parameter name; tied names share an entry.

    Those named as `quantised` are left out: other tensors make them up, as `precision.stored` finds them.

    What `model` ties is changed to what transformers ties when it loads this checkpoint: a stored head of
    other values than the embedding stays a weight of its own, whatever the config says.

    Raises:
        InputError: a parameter is missing, stored twice, or has another shape than the config says.
        UnsupportedModelError: see `rename_map`.
    """
    stored: dict[str, StoredTensor] = {}
    for file in checkpoint_files(folder):
        stored.update(read_header(file))  # of a key in several files transformers takes the last, too
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_name: dict[str, StoredTensor] = {}
    for key, name in rename_map(model, stored).items():
        if name in by_name and name in parameters:
            raise InputError(
                f"the checkpoint in {folder} stores {name} twice, as {shown(by_name[name].key)} and as "
                f"{shown(key)}: remove one of them, or save the model once with save_pretrained"
            )
        by_name[name] = stored[key]
    for name, parameter in parameters.items():
        expected, tensor = tuple(parameter.shape), by_name.get(name)
        if tensor is not None and tensor.shape != expected:
            raise InputError(
                f"{tensor.file} stores {shown(tensor.key)} with shape {tensor.shape}, the config says "
                f"{expected}: config.json and the weights do not belong together"
            )
    _tie_as_loaded(model, folder, by_name)
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in quantised:
            groups.setdefault(id(parameter), []).append(name)
    found: dict[str, StoredTensor] = {}
    for names in groups.values():
        tensor = next((by_name[name] for name in names if name in by_name), None)
        if tensor is None:
            raise InputError(f"the checkpoint in {folder} has no weight for {names[0]}: is it complete?")
        found.update(dict.fromkeys(names, tensor))
    return found


def _tie_as_loaded(model: PreTrainedModel, folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Ties the parameters of `model` as transformers' own tying decides on loading `stored`.

    It compares values where both sides are stored, so the tied parameters are made real for it; afterwards
    those that were tied to one another are one parameter without memory again.
    """
    tied = dict(model.all_tied_weights_keys)
    names = sorted({*tied, *tied.values()})
    fakes = {name: model.get_parameter(name) for name in names}
    both = {name for pair in tied.items() if all(side in stored for side in pair) for name in pair}
    for name in names:
        shape = fakes[name].shape
        real = read_tensor(folder, stored[name]) if name in both else torch.empty(shape, device="meta")
        _set_parameter(model, name, nn.Parameter(real, requires_grad=False))
    missing = {name for name in model.state_dict(keep_vars=True) if name not in stored}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its warning is about what is just being found out
    try:
        model.tie_weights(missing_keys=missing, recompute_mapping=False)
    finally:
        logging.set_verbosity(level)
    groups: dict[int, nn.Parameter] = {}
    for name, real in {name: model.get_parameter(name) for name in names}.items():
        fake = groups.get(id(real))
        if fake is None:
            fake = nn.Parameter(torch.empty_like(fakes[name]), requires_grad=False)
            groups[id(real)] = fake
        _set_parameter(model, name, fake)


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, parameter)


def read_tensor(folder: Path, tensor: StoredTensor) -> torch.Tensor:
    """A tensor's values, read and not mapped, so that no more than one is in memory."""
    with open_regular(folder / tensor.file, "the checkpoint") as file:
        content = bytearray(tensor.length)
        read = os.preadv(file.fileno(), [content], tensor.offset)
    if read != tensor.length:
        raise InputError(f"{folder / tensor.file} was cut while it was read: download or copy it again")
    if not content:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.frombuffer(content, dtype=tensor.dtype).reshape(tensor.shape)


def buffer_values(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The values of buffers that no checkpoint holds (rotary frequencies, position tables).

    `model` may be fake: each such buffer is made real, filled by the model's own initialisation (the way
    `from_pretrained` fills it), and put back.
    """
    values: dict[str, torch.Tensor] = {}
    owner: PreTrainedModel = model
    for module_name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owner = module
        names = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]
        if not names:
            continue
        fakes = {name: module._buffers[name] for name in names}
        for name, fake in fakes.items():
            module._buffers[name] = torch.full(fake.shape, float("nan"), dtype=torch.float64).to(fake.dtype)
        parameters = dict(module._parameters)
        for name, parameter in parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(1, 1), requires_grad=False)
        with torch.no_grad():
            owner._init_weights(module)
        for name, fake in fakes.items():
            values[f"{module_name}.{name}" if module_name else name] = module._buffers[name]
            module._buffers[name] = fake
        module._parameters.update(parameters)
    return values
