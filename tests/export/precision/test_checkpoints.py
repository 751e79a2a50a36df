"""Quantised layers are found, checked, and repacked without a bit lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.precision.checkpoints import (
    Repacked,
    dequantise,
    group_layers,
    repack,
    without_zeros,
)
from edgeprune.exporter.precision.quantisers import Scheme, read_quantization
from tests.quantised_checkpoints import (
    LAYOUTS,
    Integers,
    Parts,
    awq,
    float8,
    gptq,
    packed,
    words,
)

NAME = "model.layers.0.mlp.up_proj.weight"
AWQ = Scheme("awq", 4, 16, symmetric=False)
GPTQ = Scheme("gptq", 4, 16, zeros_less_one=True)
COMPRESSED = Scheme("compressed-tensors", 4, 16)
FP8 = Scheme("fp8", 8, block=(32, 32))


@st.composite
def matrices(draw: st.DrawFn, bits: int = 4, symmetric: bool = False, shuffled: bool = False) -> Integers:
    """A matrix of chance with groups of 16, 32 or 48 rows, the last of which may be shorter."""
    k, n = 16 * draw(st.integers(1, 6)), 8 * draw(st.integers(1, 4))
    group = draw(st.sampled_from([16, 32, 48]))
    groups = np.arange(k) // group
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    middle = 2 ** (bits - 1)
    zeros = chance.integers(0, 2**bits, (groups.max() + 1, n))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    return Integers(
        bits,
        chance.integers(0, 2**bits, (k, n)),
        torch.from_numpy(chance.uniform(1e-4, 0.1, zeros.shape)).to(dtype),
        np.full(zeros.shape, middle) if symmetric else zeros,
        chance.permutation(groups) if shuffled else groups,
    )


def scheme_of(scheme: Scheme, matrix: Integers) -> Scheme:
    """With the matrix's own group size."""
    return Scheme(
        scheme.kind, matrix.bits, int((matrix.groups == 0).sum()), zeros_less_one=scheme.zeros_less_one
    )


def shape_of(matrix: Integers) -> tuple[int, int]:
    k, n = matrix.values.shape
    return n, k


def assert_same(found: Repacked, matrix: Integers) -> None:
    """The values, and the dtype of the scales, are the matrix's; float32 holds each product exactly."""
    assert found.shape == matrix.values.shape
    assert np.array_equal(dequantise(found), matrix.dequantised().numpy())
    names = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
    assert found.scale.dtype.name == names[matrix.scale.dtype]
    assert found.scale.shape == (found.shape[0] // found.block, found.shape[1])
    assert (found.zero is None) == bool((matrix.zeros == 2 ** (matrix.bits - 1)).all())


@given(matrices())
def test_awq_is_repacked_bit_by_bit(matrix: Integers) -> None:
    found = repack(scheme_of(AWQ, matrix), NAME, awq(matrix), shape_of(matrix))
    assert_same(found, matrix)
    assert found.order is None


@given(st.data(), st.sampled_from([4, 8]), st.booleans(), st.booleans(), st.booleans())
def test_gptq_is_repacked_bit_by_bit(
    data: st.DataObject, bits: int, symmetric: bool, less_one: bool, indexed: bool
) -> None:
    matrix = data.draw(matrices(bits, symmetric))
    scheme = Scheme("gptq", bits, int((matrix.groups == 0).sum()), zeros_less_one=less_one)
    parts = gptq(matrix, less_one)
    if not indexed:
        del parts["g_idx"]
    found = repack(scheme, NAME, parts, shape_of(matrix))
    assert_same(found, matrix)
    assert found.order is None
    assert found.kind == f"{'int' if symmetric else 'uint'}{bits}" or (matrix.zeros == 1 << (bits - 1)).all()


@given(st.data(), st.booleans())
def test_rows_out_of_order_are_sorted_by_group(data: st.DataObject, symmetric: bool) -> None:
    matrix = data.draw(matrices(symmetric=symmetric, shuffled=True))
    found = repack(scheme_of(GPTQ, matrix), NAME, gptq(matrix), shape_of(matrix))
    assert_same(found, matrix)
    if found.order is None:
        assert (np.diff(matrix.groups) >= 0).all()
    else:
        rows = range(len(matrix.groups))
        assert found.order.tolist() == sorted(rows, key=lambda row: (matrix.groups[row], row))


@given(st.data(), st.sampled_from([4, 8]), st.booleans())
def test_compressed_tensors_are_repacked_bit_by_bit(data: st.DataObject, bits: int, symmetric: bool) -> None:
    matrix = data.draw(matrices(bits, symmetric))
    parts = packed(matrix, symmetric)
    parts["weight_g_idx"] = torch.full((len(matrix.groups),), -1, dtype=torch.int32)  # unused
    assert_same(repack(scheme_of(COMPRESSED, matrix), NAME, parts, shape_of(matrix)), matrix)


@given(st.data(), st.booleans())
def test_bytes_of_compressed_tensors_are_repacked_bit_by_bit(data: st.DataObject, symmetric: bool) -> None:
    matrix = data.draw(matrices(8, symmetric))
    parts = {
        "weight": torch.from_numpy((matrix.values.T - 128).astype(np.int8)),
        "weight_scale": matrix.scale.T.contiguous(),
    }
    if not symmetric:
        parts["weight_zero_point"] = torch.from_numpy((matrix.zeros.T - 128).astype(np.int8))
    assert_same(repack(scheme_of(COMPRESSED, matrix), NAME, parts, shape_of(matrix)), matrix)


def test_a_zero_point_of_the_middle_leaves_a_signed_weight_without() -> None:
    values = np.arange(16)[:, None].repeat(8, axis=1)
    zeros = np.full((1, 8), 8)
    matrix = Integers(4, values, torch.ones(1, 8), zeros, np.zeros(16, int))
    found = repack(AWQ, NAME, awq(matrix), (8, 16))
    assert (found.kind, found.zero) == ("int4", None)
    # -8 is 0b1000, twice a byte; the last row is 7.
    assert found.values[:4].tolist() == [0x88] * 4
    assert found.values[-4:].tolist() == [0x77] * 4
    assert dequantise(found)[0].tolist() == list(range(-8, 8))


def test_a_zero_point_of_zero_borrows_from_its_neighbour_in_the_first_format() -> None:
    zeros = np.array([[0, 5, 0, 15, 8, 0, 0, 0]])
    matrix = Integers(4, np.full((16, 8), 9), torch.ones(1, 8), zeros, np.zeros(16, int))
    parts = gptq(matrix)
    assert parts["qzeros"].item() & 0xFF == 0x3F  # not 0x4F
    assert_same(repack(GPTQ, NAME, parts, (8, 16)), matrix)


@pytest.mark.parametrize(
    ("group", "rows", "block"), [(256, 512, 128), (512, 512, 128), (32, 48, 16), (64, 128, 64)]
)
def test_groups_become_blocks_that_runtimes_know(group: int, rows: int, block: int) -> None:
    chance = np.random.default_rng(0)
    groups = np.arange(rows) // group
    count = groups.max() + 1
    matrix = Integers(
        4,
        chance.integers(0, 16, (rows, 8)),
        torch.from_numpy(chance.uniform(0.1, 1, (count, 8))).half(),
        chance.integers(0, 16, (count, 8)),
        groups,
    )
    found = repack(Scheme("awq", 4, group), NAME, awq(matrix), (8, rows))
    assert found.block == block
    assert_same(found, matrix)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([None, "channel", (32, 32), (16, 48)]),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(0, 2**32),
)
def test_float8_keeps_its_bytes(n: int, sixteens: int, form: Any, dtype: torch.dtype, seed: int) -> None:
    k, n = 16 * sixteens, 5 * n
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    block = (1, k) if form == "channel" else form
    parts, meant = float8(weight, block, dtype)
    if form is None:
        parts["weight_scale"] = parts["weight_scale"].reshape([])
    scheme = Scheme("fp8", 8, block=form if isinstance(form, tuple) else None)
    found = repack(scheme, NAME, parts, (n, k))
    assert found.kind == "fp8"
    assert np.array_equal(found.values.reshape(k, n).T, parts["weight"].view(torch.uint8).numpy())
    assert np.array_equal(dequantise(found), meant.numpy())
    if not isinstance(form, tuple):
        assert found.block == math.gcd(128, k if k in (16, 48) else k // 2)  # never a single one, but of 16


def test_scales_that_are_powers_of_two_become_float32() -> None:
    parts, _ = float8(torch.randn(32, 64), (32, 32), torch.float32)
    parts["weight_scale"] = torch.tensor([[0.25, 8.0]]).to(torch.float8_e8m0fnu)
    found = repack(FP8, NAME, parts, (32, 64))
    assert found.scale.dtype == np.float32
    assert found.scale[:, 0].tolist() == [0.25, 8.0]


_ONNX_TYPES = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}


def by_onnx(weight: Repacked) -> NDArray[np.float32]:
    """[N, K] as ONNX Runtime's DequantizeLinear reads the bytes; rows are put back into order."""
    k, n = weight.shape
    kind = _ONNX_TYPES[weight.kind]
    scale = weight.scale.astype(np.float32)
    initializers = [
        helper.make_tensor("q", kind, (k, n), weight.values.tobytes(), raw=True),
        helper.make_tensor("s", TensorProto.FLOAT, scale.shape, scale.tobytes(), raw=True),
    ]
    if weight.zero is not None:
        initializers.append(helper.make_tensor("z", kind, scale.shape, weight.zero.tobytes(), raw=True))
    node = helper.make_node(
        "DequantizeLinear", [tensor.name for tensor in initializers], ["w"], axis=0, block_size=weight.block
    )
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, (k, n))
    graph = helper.make_graph([node], "graph", [], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {})
    whole = np.empty_like(found)
    whole[np.arange(k) if weight.order is None else weight.order] = found
    return whole.T


@pytest.mark.parametrize("layout", LAYOUTS)
def test_onnx_reads_what_the_checkpoint_means(layout: str) -> None:
    quantise, config = LAYOUTS[layout]
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    parts, meant = quantise(weight)
    parts.pop("input_scale", None)
    scheme = read_quantization(Path(), {"quantization_config": config})
    assert scheme is not None
    found = repack(scheme, NAME, parts, (40, 96))
    assert np.array_equal(by_onnx(found), meant.numpy())
    assert (meant - weight).abs().max() < 0.5, "the layout is no quantisation of the weight"


@given(matrices(), st.integers(0, 2**32))
def test_zero_points_become_a_correction(matrix: Integers, seed: int) -> None:
    weight = repack(scheme_of(AWQ, matrix), NAME, awq(matrix), shape_of(matrix))
    plain, correction = without_zeros(weight)
    assert plain.zero is None
    assert plain.kind == "int4"
    if correction is None:
        assert weight.zero is None
        return
    k, n = weight.shape
    whole = dequantise(plain).T.reshape(-1, weight.block, n).astype(np.float64) + correction[:, None]
    assert np.allclose(whole.reshape(k, n), dequantise(weight).T, rtol=1e-6, atol=1e-6)
    x = np.random.default_rng(seed).standard_normal((3, k))
    sums = x.reshape(3, -1, weight.block).sum(axis=2)
    split = x @ dequantise(plain).T.astype(np.float64) + sums @ correction.astype(np.float64)
    assert np.allclose(split, x @ dequantise(weight).T.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_eight_bits_lose_their_zero_points_too() -> None:
    chance = np.random.default_rng(0)
    matrix = Integers(
        8,
        chance.integers(0, 256, (32, 8)),
        torch.full((2, 8), 0.5),
        chance.integers(0, 256, (2, 8)),
        np.arange(32) // 16,
    )
    weight = repack(Scheme("gptq", 8, 16), NAME, gptq(matrix, less_one=False), (8, 32))
    plain, correction = without_zeros(weight)
    assert plain.kind == "int8"
    assert correction is not None
    assert np.array_equal(dequantise(plain) + correction.repeat(16, axis=0).T, dequantise(weight))


def test_a_symmetric_weight_needs_no_correction() -> None:
    matrix = Integers(4, np.full((16, 8), 3), torch.ones(1, 8), np.full((1, 8), 8), np.zeros(16, int))
    weight = repack(AWQ, NAME, awq(matrix), (8, 16))
    assert without_zeros(weight) == (weight, None)


def _parts() -> Parts:
    chance = np.random.default_rng(0)
    return gptq(
        Integers(
            4,
            chance.integers(0, 16, (32, 16)),
            torch.ones(2, 16),
            chance.integers(1, 16, (2, 16)),
            np.arange(32) // 16,
        )
    )


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        (
            GPTQ,
            {"qweight": torch.zeros(5, 16, dtype=torch.int32)},
            r"qweight .*\(5, 16\), expected \(4, 16\) or",
        ),
        (GPTQ, {"qweight": torch.zeros(4, 16)}, r"qweight .* as torch\.float32 .* expected torch\.int32"),
        (GPTQ, {"qzeros": torch.zeros(2, 3, dtype=torch.int32)}, r"qzeros .*expected \(2, 2\) for a weight"),
        (GPTQ, {"scales": torch.ones(2, 8)}, r"scales of .*expected \(2, 16\)"),
        (GPTQ, {"scales": torch.ones([])}, r"scales of .*expected \(0, 16\)"),
        (GPTQ, {"g_idx": torch.zeros(16, dtype=torch.int32)}, r"g_idx of .*expected \(32,\)"),
        (GPTQ, {"g_idx": torch.full((32,), 2, dtype=torch.int32)}, r"g_idx of .*expected 2 groups"),
        (GPTQ, {"g_idx": torch.arange(32, dtype=torch.int32) // 16 - 1}, r"g_idx of .*expected 2 groups"),
        (AWQ, {}, r"qweight of .*\(4, 16\), expected \(32, 2\) for a weight \(16, 32\) by config\.json"),
    ],
)
def test_tensors_that_do_not_belong_to_the_weight_are_refused(
    scheme: Scheme, changes: Parts, message: str
) -> None:
    with pytest.raises(InputError, match=rf"stores {message}.*do not belong together"):
        repack(scheme, NAME, {**_parts(), **changes}, (16, 32))


def test_groups_that_do_not_fill_the_rows_are_refused() -> None:
    parts = {**_parts(), "scales": torch.ones(3, 16)}
    del parts["g_idx"]
    with pytest.raises(InputError, match=r"scales of .* expected another shape for a weight \(16, 32\)"):
        repack(GPTQ, NAME, parts, (16, 32))


def test_a_weight_whose_words_cannot_be_whole_is_refused() -> None:
    with pytest.raises(InputError, match=r"qweight of .* expected another shape for a weight \(12, 32\)"):
        repack(AWQ, NAME, _parts(), (12, 32))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weight_scale", torch.ones(16, 3), r"weight_scale of .*expected another shape"),
        ("weight_scale", torch.ones(2, 2, 2), r"weight_scale of .*expected another shape"),
        (
            "weight_zero_point",
            torch.zeros(3, 2, dtype=torch.int32),
            r"weight_zero_point of .*expected \(2, 2\)",
        ),
        (
            "weight_zero_point",
            torch.zeros(16, 1, dtype=torch.int8),
            r"weight_zero_point of .*expected \(16, 2\)",
        ),
        ("weight_shape", torch.tensor([16, 31]), r"weight_shape of .*expected \[16, 32\] by config"),
        ("weight_g_idx", torch.zeros(16, dtype=torch.int32), r"weight_g_idx of .*expected \(32,\)"),
        ("weight_shape", torch.tensor([16]), r"weight_shape of .*expected \(2,\)"),
        (
            "weight_packed",
            torch.zeros(16, 5, dtype=torch.int32),
            r"weight_packed of .*expected \(16, 4\) or \(16, 8\)",
        ),
    ],
)
def test_tensors_of_compressed_layers_are_checked(part: str, value: torch.Tensor, message: str) -> None:
    parts = {"weight_packed": torch.zeros(16, 4, dtype=torch.int32), "weight_scale": torch.ones(16, 2)}
    repack(COMPRESSED, NAME, parts, (16, 32))
    with pytest.raises(InputError, match=rf"stores {message}"):
        repack(COMPRESSED, NAME, {**parts, part: value}, (16, 32))


def test_a_scaled_but_unquantised_weight_is_refused() -> None:
    parts = {"weight": torch.zeros(16, 32), "weight_scale": torch.ones(16, 1)}
    with pytest.raises(
        InputError, match=r"weight of .* as torch\.float32 .*expected torch\.float8_e4m3fn or"
    ):
        repack(COMPRESSED, NAME, parts, (16, 32))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_unpacked_values_of_another_shape_are_refused(dtype: torch.dtype) -> None:
    parts = {"weight": torch.zeros(16, 32).to(dtype), "weight_scale": torch.ones(16, 1)}
    with pytest.raises(
        InputError, match=r"weight of .*\(16, 32\), expected \(16, 48\) for a weight \(16, 48\)"
    ):
        repack(COMPRESSED, NAME, parts, (16, 48))


def test_output_features_may_fill_no_word() -> None:
    """Zero points are packed along them, and fill no byte."""
    chance = np.random.default_rng(0)
    zeros = chance.integers(1, 8, (1, 9))
    matrix = Integers(4, chance.integers(0, 16, (16, 9)), torch.ones(1, 9), zeros, np.zeros(16, int))
    found = repack(COMPRESSED, NAME, packed(matrix, False), (9, 16))
    assert_same(found, matrix)
    assert found.zero is not None
    assert found.zero.tolist() == [*(zeros[0, 0:8:2] + 16 * zeros[0, 1:8:2]), zeros[0, 8]]


def test_groups_too_small_for_blocks_are_refused() -> None:
    matrix = Integers(4, np.zeros((32, 8), int), torch.ones(4, 8), np.zeros((4, 8), int), np.arange(32) // 8)
    with pytest.raises(UnsupportedModelError, match=r"groups of \[8\] input features, which cannot be cut"):
        repack(Scheme("awq", 4, 8), NAME, awq(matrix), (8, 32))


def _tensor(dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(1, dtype=dtype)


def test_what_belongs_to_no_layer_is_left_alone() -> None:
    keys = ["a.weight", "a.bias", "a.input_scale", "b.k_scale"]
    assert group_layers({key: _tensor() for key in keys}, {key: key for key in keys}) == {}


@pytest.mark.parametrize(
    "parts",
    [
        ("qweight", "scales"),
        ("weight_scale",),
        ("weight_packed", "weight_shape"),
        ("weight", "weight_zero_point"),
    ],
)
def test_a_layer_without_all_its_parts_is_named(parts: tuple[str, ...]) -> None:
    keys = {f"a.{part}": f"a.{part}" for part in parts}
    with pytest.raises(
        InputError, match=r"stores .* for a\.weight: expected the values of a quantised layer once"
    ):
        group_layers({key: _tensor() for key in keys}, keys)


def test_a_layer_with_two_kinds_of_values_is_named() -> None:
    keys = {f"a.{part}": f"a.{part}" for part in ("weight", "qweight", "qzeros", "scales")}
    with pytest.raises(InputError, match=r"stores qweight, qzeros, scales, weight for a\.weight"):
        group_layers({key: _tensor() for key in keys}, keys)


def test_a_part_under_two_keys_is_named() -> None:
    keys = {"a.qweight": "b.qweight", "b.qweight": "b.qweight"}
    with pytest.raises(InputError, match=r"stores b\.qweight twice, as a\.qweight and as b\.qweight"):
        group_layers({key: _tensor() for key in keys}, keys)


def test_scaled_activations_are_refused() -> None:
    keys = {"mlp.act.scales": "mlp.act.scales"}
    with pytest.raises(UnsupportedModelError, match=r"scales an activation by mlp\.act\.scales"):
        group_layers({"mlp.act.scales": _tensor()}, keys)


def test_a_large_matrix_is_repacked_whole() -> None:
    """Sizes that no word, block or byte count divides by accident."""
    chance = np.random.default_rng(0)
    matrix = Integers(
        4,
        chance.integers(0, 16, (384, 520)),
        torch.from_numpy(chance.uniform(0.01, 1, (3, 520))).half(),
        chance.integers(0, 16, (3, 520)),
        np.arange(384) // 128,
    )
    assert_same(repack(Scheme("awq", 4, 128), NAME, awq(matrix), (520, 384)), matrix)
    assert words(matrix.values, 4).shape == (384, 65)
