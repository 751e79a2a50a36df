"""Weights by reference: found in every layout of a checkpoint, placed without loss, refused when damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import LlavaForConditionalGeneration

from edgeprune.errors import InputError
from edgeprune.exporter import weights
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.families.llava import Llava
from edgeprune.exporter.weights import StoredTensor
from tests.tiny import (
    TEXT_CONFIGS,
    llava_config,
    save_anyres,
    save_gemma3,
    save_internvl,
    save_qwen,
    save_smolvlm,
    save_video_llava,
    tiny_llava,
)

ITEM = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


def fake_model(
    config: Any, dtype: torch.dtype = torch.float32
) -> tuple[LlavaForConditionalGeneration, FakeTensorMode]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = Llava().build(config, dtype)
    return model, mode


def read(folder: Path, tensor: StoredTensor) -> torch.Tensor:
    """The tensor from the bytes that `tensor` points at, as an ONNX runtime reads them."""
    raw = (folder / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.length]
    assert len(raw) == tensor.length
    return torch.frombuffer(bytearray(raw), dtype=tensor.dtype).reshape(tensor.shape)


def legacy_name(name: str) -> str:
    """The name that a parameter has in LLaVA checkpoints as they were published."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    name = name.replace("language_model.", "language_model.model.", 1)
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def save_as(model: LlavaForConditionalGeneration, folder: Path, layout: str) -> Path:
    if layout == "sharded":
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        return folder
    model.save_pretrained(folder)
    if layout != "single":
        rename = legacy_name if layout == "legacy" else lambda name: name.removeprefix("model.")
        path = folder / "model.safetensors"
        save_file({rename(name): value for name, value in model.state_dict().items()}, path)
    return folder


@pytest.mark.parametrize("layout", ["single", "sharded", "legacy", "without prefix"])
def test_finds_every_parameter(layout: str, tmp_path: Path) -> None:
    model = tiny_llava("llama")
    folder = save_as(model, tmp_path, layout)
    fake, _ = fake_model(llava_config("llama"))
    found = weights.locate(fake, folder)
    parameters = dict(model.named_parameters())
    assert set(found) == set(parameters)
    for name, parameter in parameters.items():
        assert torch.equal(read(folder, found[name]), parameter), name


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_tied_names_share_one_place(kind: str, tmp_path: Path) -> None:
    config = llava_config(kind, tie_word_embeddings=True)
    tiny_llava(kind, tie_word_embeddings=True).save_pretrained(tmp_path)
    fake, _ = fake_model(config)
    found = weights.locate(fake, tmp_path)
    assert found["lm_head.weight"] == found["model.language_model.embed_tokens.weight"]


TIES = [True, False, None]
HEADS = ["absent", "equal", "other"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("in_text", TIES)
@pytest.mark.parametrize("at_top", TIES)
def test_the_head_is_the_one_that_transformers_loads(
    at_top: bool | None, in_text: bool | None, head: str, tmp_path: Path
) -> None:
    tiny_llava("llama").save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    for part, value in ((text, at_top), (text["text_config"], in_text)):
        part.pop("tie_word_embeddings", None)
        if value is not None:
            part["tie_word_embeddings"] = value
    (tmp_path / "config.json").write_text(json.dumps(text))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    (embedding,) = [name for name in tensors if name.endswith("embed_tokens.weight")]
    (key,) = [name for name in tensors if name.endswith("lm_head.weight")]
    if head == "absent":
        del tensors[key]
    else:
        tensors[key] = tensors[embedding] * (1 if head == "equal" else -2)
    save_file(tensors, path, metadata={"format": "pt"})

    fake, _ = fake_model(read_config(tmp_path))
    loaded, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    if report["missing_keys"]:
        with pytest.raises(InputError, match=r"has no weight for lm_head\.weight: is it complete"):
            weights.locate(fake, tmp_path)
        return
    found = weights.locate(fake, tmp_path)
    for name, parameter in loaded.named_parameters(remove_duplicate=False):
        assert torch.equal(read(tmp_path, found[name]), parameter), name
    # The graph is traced from this model: what is one weight there must be one weight here.
    ours, theirs = fake.lm_head.weight, loaded.lm_head.weight
    assert (ours is fake.get_input_embeddings().weight) == (theirs is loaded.get_input_embeddings().weight)
    assert isinstance(ours, FakeTensor)


def test_the_single_file_comes_before_an_index(tmp_path: Path) -> None:
    tiny_llava("llama", seed=1).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = weights.checkpoint_files(tmp_path)
    assert len(shards) > 2
    tiny_llava("llama", seed=2).save_pretrained(other := tmp_path / "other")
    (other / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    fake, _ = fake_model(llava_config("llama"))
    _check_as_loaded(fake, tmp_path)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_the_file_that_the_config_names_comes_before_all(shard: str, tmp_path: Path) -> None:
    tiny_llava("llama", seed=1).save_pretrained(tmp_path, max_shard_size=shard)
    named = "model.safetensors" if shard == "1GB" else "model.safetensors.index.json"
    (tmp_path / named).rename(tmp_path / (named := named.replace("model", "own")))
    tiny_llava("llama", seed=2).save_pretrained(other := tmp_path / "other")
    (other / "model.safetensors").rename(tmp_path / "model.safetensors")
    _name_weights(tmp_path, named)
    fake, _ = fake_model(read_config(tmp_path))
    _check_as_loaded(fake, tmp_path)


def _name_weights(folder: Path, name: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, "transformers_weights": name}))


def test_of_a_key_in_several_shards_the_last_counts(tmp_path: Path) -> None:
    model = tiny_llava("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    first, *_, last = weights.checkpoint_files(tmp_path)
    for path, other in ((first, last), (last, first)):
        key = next(iter(load_file(other)))
        save_file({**load_file(path), key: load_file(other)[key] + 1}, path, metadata={"format": "pt"})
    fake, _ = fake_model(llava_config("llama"))
    _check_as_loaded(fake, tmp_path)


def _check_as_loaded(fake: Any, folder: Path) -> None:
    """What `locate` finds are the values that transformers loads."""
    found = weights.locate(fake, folder)
    for name, parameter in Llava().load(folder, torch.float32).named_parameters(remove_duplicate=False):
        assert torch.equal(read(folder, found[name]), parameter), name


def test_a_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    model = tiny_llava("llama")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    both = {"lm_head.weight": model.lm_head.weight + 1, "language_model.lm_head.weight": model.lm_head.weight}
    save_file({**load_file(path), **both}, path)
    fake, _ = fake_model(llava_config("llama"))
    with pytest.raises(InputError, match=r"stores lm_head\.weight twice, as .*lm_head\.weight and as"):
        weights.locate(fake, tmp_path)


def test_a_weight_of_an_unknown_layout_is_named(tmp_path: Path) -> None:
    tiny_llava("llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({("elsewhere" if key == name else key): value for key, value in tensors.items()}, path)
    fake, _ = fake_model(llava_config("llama"))
    with pytest.raises(InputError, match=r"no weight for .*layers\.1\.mlp\.up_proj\.weight: is it complete"):
        weights.locate(fake, tmp_path)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    tiny_llava("llama").save_pretrained(tmp_path)
    fake, _ = fake_model(llava_config("llama", intermediate_size=52))
    with pytest.raises(InputError, match=r"shape \(.*48.*the config says \(.*52.*do not belong together"):
        weights.locate(fake, tmp_path)


@pytest.mark.parametrize("kind", sorted(TEXT_CONFIGS))
@pytest.mark.parametrize("dtype", list(ITEM), ids=str)
def test_buffers_have_the_values_that_loading_gives(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_llava(kind).to(dtype).save_pretrained(tmp_path)
    loaded = Llava().load(tmp_path, dtype)
    fake, _ = fake_model(llava_config(kind), dtype)
    before = {name: id(buffer) for name, buffer in fake.named_buffers()}
    values = weights.buffer_values(fake)
    wanted = dict(loaded.named_buffers())
    assert set(values) == set(wanted)
    assert {"model.language_model.rotary_emb.inv_freq", "model.vision_tower.embeddings.position_ids"} <= set(
        values
    )
    for name, buffer in wanted.items():
        assert values[name].dtype == buffer.dtype, name
        assert torch.equal(values[name], buffer), name
    assert {name: id(buffer) for name, buffer in fake.named_buffers()} == before, "the model was changed"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_buffers_follow_rotary_scaling(rope: dict[str, Any], tmp_path: Path) -> None:
    changes = {"rope_parameters": {"rope_theta": 500.0, **rope}}
    model = tiny_llava("llama", **changes)
    fake, _ = fake_model(llava_config("llama", **changes))
    name = "model.language_model.rotary_emb.inv_freq"
    plain = dict(tiny_llava("llama").named_buffers())[name]
    value = weights.buffer_values(fake)[name]
    assert torch.equal(value, dict(model.named_buffers())[name])
    assert not torch.equal(value, plain)


def _file(header: bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _tensor(**changes: Any) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}).encode()


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "shorter than its length field": b"\x01\x02",
    "header cut short": _file(_tensor())[:20],
    "header longer than the file": _file(_tensor(), length=1 << 62),
    "header not JSON": _file(b"{'w': 1}"),
    "header not UTF-8": _file(b'{"\xff": 1}'),
    "header a list": _file(b"[1, 2]"),
    "header a number": _file(b"7"),
    "header nested without end": _file(b'{"w":' + b"[" * 100_000),
    "entry not an object": _file(b'{"w": 3}'),
    "entry without offsets": _file(b'{"w": {"dtype": "F32", "shape": [2, 2]}}'),
    "data cut short": _file(_tensor())[:-1],
    "offsets beyond the end": _file(_tensor(data_offsets=[8, 24])),
    "offsets before the data": _file(_tensor(data_offsets=[-16, 0])),
    "offsets the wrong way round": _file(_tensor(data_offsets=[16, 0])),
    "offsets not numbers": _file(_tensor(data_offsets=["0", "16"])),
    "fewer bytes than the shape": _file(_tensor(shape=[2, 3])),
    "negative shape": _file(_tensor(shape=[-2, -2])),
    "shape not numbers": _file(_tensor(shape=["2", 2])),
    "shape missing": _file(_tensor(shape=None)),
    "dtype not a name": _file(_tensor(dtype=["F32"])),
    "dtype a number": _file(_tensor(dtype=7)),
    "sizes as truths": _file(_tensor(shape=[True, 4])),
    "a tensor twice": _file(_tensor()[:-1] + b", " + _tensor()[1:]),
    "a number that is none": _file(b'{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}'),
    "a size beyond every number": _file(_tensor(shape=[1e999, 2])),
    "tensors that overlap": _file(
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, '
        b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}'
    ),
    "a gap between tensors": _file(
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}'
    ),
    "bytes of no tensor": _file(_tensor(), data=b"\0" * 24),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(
        InputError, match=r"model\.safetensors is not a whole safetensors file \(.+\): download"
    ):
        weights.read_header(path)


def test_reads_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file(_tensor()))
    header = len(_tensor())
    assert weights.read_header(path) == {
        "w": StoredTensor("model.safetensors", "w", torch.float32, (2, 2), 8 + header, 16)
    }


def _stored(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    save_file(tensors, folder / "model.safetensors")
    return weights.read_header(folder / "model.safetensors")


@pytest.mark.parametrize(
    "dtype",
    [*ITEM, torch.int8, torch.int32, torch.int64, torch.float8_e4m3fn, torch.float8_e8m0fnu],
    ids=str,
)
def test_types_of_tensors_are_told_apart(dtype: torch.dtype, tmp_path: Path) -> None:
    (found,) = _stored(tmp_path, {"w": torch.ones(4).to(dtype)}).values()
    assert found.dtype == dtype


def _pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _index(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text) and None


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda folder: None, r"has no model\.safetensors .*save_pretrained"),
    "a pickle": (_pickled, r"pytorch_model\.bin is a pickle, which is never loaded"),
    "a missing shard": (
        _index('{"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}'),
        r"names model-00001-of-00002\.safetensors, which is missing: download",
    ),
    "an index that is no JSON": (_index("{"), r"index\.json is not a valid index .*download"),
    "an index without a map": (_index('{"weights": {}}'), r"index\.json is not a valid index"),
    "an index without metadata": (
        _index('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'),
        r"index\.json is not a valid index \('metadata'\)",
    ),
    "weights of another name": (
        lambda folder: (folder / "consolidated.safetensors").write_bytes(_file(_tensor())) and None,
        r"consolidated\.safetensors is not called so, and transformers does not load it",
    ),
    "an index of numbers": (_index('{"weight_map": {"w": 3}}'), r"index\.json is not a valid index"),
    "an index that is a list": (_index("[]"), r"index\.json is not a valid index"),
    "an empty index": (_index('{"weight_map": {}}'), r"index\.json is not a valid index"),
    "a shard outside the folder": (
        _index('{"metadata": {}, "weight_map": {"w": "../secret.safetensors"}}'),
        r"names '\.\./secret\.safetensors', which leaves the folder",
    ),
    "a file that only the config names": (
        lambda folder: _name_weights(folder, "own.safetensors"),
        r"config\.json names own\.safetensors, which is missing: download",
    ),
    "an index that only the config names": (
        lambda folder: _name_weights(folder, "own.safetensors.index.json"),
        r"config\.json names own\.safetensors\.index\.json, which is missing: download",
    ),
    "a config that names a file elsewhere": (
        lambda folder: _name_weights(folder, "../secret.safetensors"),
        r"names '\.\./secret\.safetensors', which leaves the folder",
    ),
    "a config that names a pickle": (
        lambda folder: _name_weights(folder, "model.bin"),
        r"config\.json names 'model\.bin' as transformers_weights, which is no safetensors file",
    ),
    "a config that names a number": (
        lambda folder: _name_weights(folder, 3),
        r"config\.json names 3 as transformers_weights, which is no safetensors file",
    ),
    "a pickled shard": (
        _index('{"metadata": {}, "weight_map": {"w": "model.bin"}}'),
        r"names 'model\.bin', which is not a safetensors file",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_without_usable_weights_are_refused(name: str, tmp_path: Path) -> None:
    write, message = LAYOUTS[name]
    (tmp_path / "secret.safetensors").write_bytes(_file(_tensor()))
    (folder := tmp_path / "model").mkdir()
    write(folder)
    with pytest.raises(InputError, match=message):
        weights.checkpoint_files(folder)


@pytest.mark.parametrize(
    ("save", "before", "after"),
    [
        (save_gemma3, "vision_tower.", "vision_tower.vision_model."),
        (save_gemma3, "language_model.model.", "model.language_model."),
        (save_qwen, "model.layers.", "model.language_model.layers."),
        (save_qwen, "visual.", "model.visual."),
        (save_internvl, "language_model.model.", "model.language_model."),
        (save_smolvlm, "model.text_model.", "model.text_model."),
        (save_anyres, "vision_tower.", "vision_tower.vision_model."),
        (save_anyres, "language_model.model.", "model.language_model."),
        (save_anyres, "image_newline", "model.image_newline"),
        (save_video_llava, "image_tower.", "image_tower.vision_model."),
        (save_video_llava, "video_tower.", "model.video_tower.vision_model."),
    ],
)
def test_names_of_older_and_newer_checkpoints(
    save: Callable[[Path], Path], before: str, after: str, tmp_path: Path
) -> None:
    """What `save_pretrained` writes, and what other releases of transformers wrote."""
    folder = save(tmp_path / "model")
    config = read_config(folder)
    family = family_of(config)
    stored = weights.locate(family.build(config, torch.float32), folder)
    wanted = {name: read(folder, tensor) for name, tensor in stored.items()}
    path = folder / "model.safetensors"
    renamed = {
        after + name.removeprefix(before) if name.startswith(before) else name: value
        for name, value in load_file(path).items()
    }
    assert (set(renamed) == set(load_file(path))) == (after == before)
    save_file(renamed, path, metadata={"format": "pt"})
    found = weights.locate(family.build(config, torch.float32), folder)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(read(folder, tensor), wanted[name]) for name, tensor in found.items())
