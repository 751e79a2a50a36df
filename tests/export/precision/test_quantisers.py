"""Configs of quantisers: those that are read, and those that are refused by name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.precision.quantisers import Scheme, note_activations, read_quantization
from tests.quantised_checkpoints import LAYOUTS

# As the hub's repositories have them.
QWEN_AWQ = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": ["visual"],
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}
AWQ_OF_OLD = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
GPTQ_OF_OLD = {
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.01,
    "desc_act": True,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "model",
}
GPTQ = {**LAYOUTS["gptq"][1], "group_size": 128}
QWEN_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.visual.merger.linear_fc1"],
}


def compressed(layout: str = "pack-quantized", inputs: Any = None, **weights: Any) -> dict[str, Any]:
    """A config of compressed-tensors, of int4 weights in groups of 128 unless told."""
    every = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {**every, **weights}, "input_activations": inputs}
        },
        "ignore": ["lm_head", "re:.*visual.*"],
    }


BYTES = {"num_bits": 8, "strategy": "channel", "group_size": None}
BLOCKS = {**BYTES, "type": "float", "strategy": "block", "block_structure": [128, 64]}
TWO_GROUPS = {
    **compressed(),
    "config_groups": {
        "group_0": compressed()["config_groups"]["group_0"],
        "group_1": {
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
            "targets": ["re:.*down"],
        },
        "group_2": {"weights": None, "targets": ["Attention"]},
    },
}

READ: dict[str, tuple[dict[str, Any], Scheme]] = {
    "awq": (QWEN_AWQ, Scheme("awq", 4, 128, symmetric=False)),
    "awq of GPTQModel": (
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": -1,
            "checkpoint_format": "gemm",
            "zero_point": False,
        },
        Scheme("awq", 4),
    ),
    "gptq": (GPTQ, Scheme("gptq", 4, 128, zeros_less_one=True)),
    "gptq with little said": ({"quant_method": "gptq", "bits": 8}, Scheme("gptq", 8, zeros_less_one=True)),
    "gptq v2": (
        {**GPTQ, "checkpoint_format": "gptq_v2", "sym": False, "desc_act": True, "group_size": -1},
        Scheme("gptq", 4, symmetric=False, act_order=True),
    ),
    "compressed-tensors": (compressed(), Scheme("compressed-tensors", 4, 128)),
    "compressed-tensors of old": (
        {**compressed(), "quant_method": "compressed_tensors"},
        Scheme("compressed-tensors", 4, 128),
    ),
    "compressed-tensors, asymmetric, by activations": (
        compressed(symmetric=False, actorder="group"),
        Scheme("compressed-tensors", 4, 128, symmetric=False, act_order=True),
    ),
    "compressed-tensors with a channel's own order": (
        compressed(actorder="weight"),
        Scheme("compressed-tensors", 4, 128),
    ),
    "two groups": (TWO_GROUPS, Scheme("compressed-tensors", 4)),
    "w8a8": (
        compressed("int-quantized", {"num_bits": 8, "dynamic": True}, **BYTES),
        Scheme("compressed-tensors", 8, activations=True),
    ),
    "float8 of compressed-tensors": (
        compressed("float-quantized", {"num_bits": 8}, **{**BYTES, "type": "float"}),
        Scheme("compressed-tensors", 8, activations=True),
    ),
    "blocks of compressed-tensors": (
        compressed("float-quantized", **BLOCKS),
        Scheme("compressed-tensors", 8, block=(128, 64)),
    ),
    "blocks as text": (
        compressed("naive-quantized", **{**BLOCKS, "block_structure": "128x64"}),
        Scheme("compressed-tensors", 8, block=(128, 64)),
    ),
    "fp8": (QWEN_FP8, Scheme("fp8", 8, block=(128, 128), activations=True)),
    "fp8 without blocks": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        Scheme("fp8", 8, activations=True),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_configs_of_the_hub_are_read(name: str, tmp_path: Path) -> None:
    content, scheme = READ[name]
    assert read_quantization(tmp_path, {"model_type": "llava", "quantization_config": content}) == scheme
    text = {"model_type": "llama", "quantization_config": content}
    assert read_quantization(tmp_path, {"model_type": "llava", "text_config": text}) == scheme


def test_a_model_that_is_not_quantised_has_no_scheme(tmp_path: Path) -> None:
    assert read_quantization(tmp_path, {"quantization_config": None, "text_config": {}}) is None


@pytest.mark.parametrize(
    ("file", "content", "scheme"),
    [
        ("quantize_config.json", GPTQ_OF_OLD, Scheme("gptq", 4, 128, act_order=True, zeros_less_one=True)),
        ("quant_config.json", AWQ_OF_OLD, Scheme("awq", 4, 128, symmetric=False)),
    ],
)
def test_files_of_old_are_read(file: str, content: dict[str, Any], scheme: Scheme, tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    assert read_quantization(tmp_path, {}) == scheme
    # What config.json says comes first.
    assert read_quantization(tmp_path, {"quantization_config": QWEN_FP8}) == READ["fp8"][1]


def test_the_field_of_old_is_read(tmp_path: Path) -> None:
    content = {key: value for key, value in compressed().items() if key != "quant_method"}
    assert read_quantization(tmp_path, {"compression_config": content}) == Scheme(
        "compressed-tensors", 4, 128
    )


REFUSED: dict[str, tuple[Any, str]] = {
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        r"bitsandbytes .*, whose values no graph holds without loss",
    ),
    "bitsandbytes of old": ({"load_in_8bit": True}, r"bitsandbytes .*, whose values no graph holds"),
    **{
        name: ({"quant_method": name}, rf"{re.escape(name)} \(see .*\), which is not supported")
        for name in (
            "hqq",
            "aqlm",
            "quip",
            "eetq",
            "quanto",
            "torchao",
            "mxfp4",
            "auto-round",
            "modelopt",
            "newest",
        )
    },
    "no name": ({"bits": 4}, r"an unknown method .*, which is not supported"),
    "no object": ([4], r"an unknown method .*, which is not supported"),
    "a number": ({"quant_method": 4}, r"an unknown method .*, which is not supported"),
    "gemv": ({**QWEN_AWQ, "version": "GEMV"}, r"in the layout 'GEMV', of which only 'gemm' is supported"),
    "a version that is none": ({**QWEN_AWQ, "version": 3}, r"in the layout 3, of which only 'gemm'"),
    "awq of 3 bits": ({**QWEN_AWQ, "bits": 3}, r"with 3 bits a weight, of which only 4 are supported"),
    "gptq of 3 bits": ({**GPTQ, "bits": 3}, r"with 3 bits a weight, of which only 4 and 8 are supported"),
    "gptq of no bits": ({**GPTQ, "bits": True}, r"with True bits a weight"),
    "gptq of bits in a list": ({**GPTQ, "bits": [4]}, r"with \[4\] bits a weight"),
    "compressed-tensors of bits in a list": (compressed(num_bits=[4]), r"of type 'int' and \[4\] bits"),
    "gptq in groups of text": ({**GPTQ, "group_size": "all"}, r"in groups of 'all', where a number of input"),
    "marlin": ({**GPTQ, "checkpoint_format": "marlin"}, r"in the layout 'marlin', of which only 'gptq' and"),
    "marlin of old": ({**GPTQ, "is_marlin_format": True}, r"in the layout 'marlin'"),
    "packed in bytes": ({**GPTQ, "pack_dtype": "int8"}, r"with pack_dtype 'int8', which is not supported"),
    "rotated": ({**GPTQ, "rotation": "hadamard"}, r"with rotation 'hadamard', which is not supported"),
    "adapted": ({**GPTQ, "adapter": {"name": "lora"}}, r"with adapter \{'name': 'lora'\}"),
    "nvfp4": (
        compressed("nvfp4-pack-quantized", type="float", group_size=16),
        r"in the format 'nvfp4-pack-quantized' with weights of type 'float' and 4 bits, which is not",
    ),
    "int2": (compressed(num_bits=2), r"in the format 'pack-quantized' with weights of type 'int' and 2 bits"),
    "half bytes in bytes": (
        compressed("int-quantized"),
        r"'int-quantized' with weights of type 'int' and 4 bits",
    ),
    "a format that is none": (compressed([]), r"in the format \[\] with"),  # type: ignore[arg-type]
    "not compressed": (
        {**compressed(), "quantization_status": "frozen"},
        r"with quantization_status 'frozen', where only 'compressed' is supported",
    ),
    "sparse": ({**compressed(), "sparsity_config": {"format": "sparse-24-bitmask"}}, r"with sparse weights"),
    "sparse in text": ({**compressed(), "sparsity_config": "dense"}, r"with sparse weights"),
    "transformed": ({**compressed(), "transform_config": {"R1": {}}}, r"with a transform_config"),
    "no groups": ({**compressed(), "config_groups": {}}, r"without a group in its config_groups"),
    "groups that are none": ({**compressed(), "config_groups": 3}, r"without a group in its config_groups"),
    "a preset": (
        {**compressed(), "config_groups": {"W4A16": ["Linear"]}},
        r"with a config group \['Linear'\]",
    ),
    "blocks of several sizes": (
        {
            **compressed(),
            "config_groups": {
                "a": compressed("float-quantized", **BLOCKS)["config_groups"]["group_0"]
                | {"format": "float-quantized"},
                "b": compressed("float-quantized", **{**BLOCKS, "block_structure": [64, 64]})[
                    "config_groups"
                ]["group_0"]
                | {"format": "float-quantized"},
            },
        },
        r"in blocks of several sizes",
    ),
    "e5m2": ({**QWEN_FP8, "fmt": "e5m2"}, r"in the format 'e5m2', of which only 'e4m3' is supported"),
    "experts of fp4": (
        {**QWEN_FP8, "expert_dtype": "fp4"},
        r"with experts of 'fp4', which are not supported",
    ),
    **{
        f"blocks of {sizes!r}": (
            {**QWEN_FP8, "weight_block_size": sizes},
            rf"in blocks of {re.escape(repr(sizes))}, where numbers of output and input",
        )
        for sizes in ([128], [128, 0], 128, "wide", [None, 1])
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_repacked_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    end = ": export the original model, from before quantisation, whose weights the export can quantise"
    with pytest.raises(UnsupportedModelError, match=rf"^the model is stored quantised by .*{message}.*{end}"):
        read_quantization(tmp_path, {"quantization_config": content})


def test_unquantised_activations_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgeprune"):
        note_activations(Scheme("gptq", 4))
        assert not caplog.records
        note_activations(Scheme("fp8", 8, activations=True))
    assert "quantises activations, too (fp8)" in caplog.text
