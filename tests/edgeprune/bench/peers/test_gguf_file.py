"""GGUF: names, the order of rotary halves, and a file that its own reader understands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.bench.peers.gguf_file import gguf_name, interleaved, write_gguf
from edgeprune.bench.peers.llama import Llama, read_llama
from edgeprune.errors import UnsupportedModelError
from tests.conftest import SAMPLE_MODEL


def test_names() -> None:
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    assert gguf_name("model.layers.12.self_attn.k_proj.weight") == "blk.12.attn_k.weight"
    assert gguf_name("model.layers.3.post_attention_layernorm.weight") == "blk.3.ffn_norm.weight"


def of_halves(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """transformers' rotation: element i with element i + half."""
    a, b = np.split(x, 2)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])


def of_neighbours(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """llama.cpp's rotation of a Llama: element 2 i with element 2 i + 1."""
    a, b = x[0::2], x[1::2]
    found = np.empty_like(x)
    found[0::2] = a * np.cos(angles) - b * np.sin(angles)
    found[1::2] = b * np.cos(angles) + a * np.sin(angles)
    return found


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_attention_is_the_same_with_either_rotation(heads: int, half: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, keys = rng.standard_normal((2, heads * 2 * half, 5)).astype(np.float32)
    x, y = rng.standard_normal((2, 5)).astype(np.float32)
    here, there = rng.uniform(0, 6, (2, half))
    ours_q, ours_k = queries @ x, keys @ y
    theirs_q, theirs_k = interleaved(queries, heads) @ x, interleaved(keys, heads) @ y
    for head in range(heads):
        part = slice(head * 2 * half, (head + 1) * 2 * half)
        expected = of_halves(ours_q[part], here) @ of_halves(ours_k[part], there)
        found = of_neighbours(theirs_q[part], here) @ of_neighbours(theirs_k[part], there)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_file_is_what_its_reader_finds(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'edgeprune[peers]'")
    llama = read_llama(SAMPLE_MODEL)
    write_gguf(llama, tmp_path / "whole.gguf", "fp32")
    write_gguf(llama, tmp_path / "rounded.gguf", "int4")
    whole, rounded = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("whole", "rounded"))
    values = dict(llama.tensors())
    assert {tensor.name for tensor in whole.tensors} == {gguf_name(name) for name in values}
    found = {tensor.name: tensor for tensor in whole.tensors}
    np.testing.assert_array_equal(
        found["blk.1.ffn_up.weight"].data, values["model.layers.1.mlp.up_proj.weight"]
    )
    np.testing.assert_array_equal(
        found["blk.0.attn_q.weight"].data, interleaved(values["model.layers.0.self_attn.q_proj.weight"], 4)
    )
    assert whole.get_field("llama.attention.head_count").contents() == 4
    kinds = {tensor.name: tensor.tensor_type.name for tensor in rounded.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["output.weight"] == "Q4_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_rows_that_no_block_divides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="pip install 'edgeprune[peers]'")
    narrow = [("model.embed_tokens.weight", np.zeros((4, 40), dtype=np.float32))]
    monkeypatch.setattr(Llama, "tensors", lambda _: iter(narrow))
    llama = replace(read_llama(SAMPLE_MODEL))
    with pytest.raises(UnsupportedModelError, match="rows of 40 values: expected a multiple of 32 for Q4_0"):
        write_gguf(llama, tmp_path / "x.gguf", "int4")
