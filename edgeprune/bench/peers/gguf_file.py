"""A Llama as a GGUF file, the format that llama.cpp reads.

Names, keys and the order of the rotary halves are those of the format's specification and of llama.cpp's
converter of Llama models (github.com/ggml-org/ggml docs/gguf.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.bench.peers.llama import Llama
from edgeprune.bench.peers.peer import Weights
from edgeprune.errors import UnsupportedModelError

_BLOCK = 32  # of Q4_0
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """Of a tensor by its name in a plain Llama."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{_NAMES['.'.join(part)]}.{kind}"


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection with each head's two rotary halves interleaved, as llama.cpp rotates
    neighbours: row i of a head's first half, then row i of its second.

    Args:
        rows: float32 [heads * head_dim, D].
        heads: of the projection.
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def write_gguf(llama: Llama, path: Path, weights: Weights) -> None:
    """Writes the file; the tokenizer in it is made up, because token ids alone are handed in.

    Args:
        llama: the decoder.
        path: to write.
        weights: of all matrices, "int4" being Q4_0.

    Raises:
        UnsupportedModelError: a matrix cannot be stored so.
    """
    import gguf
    from gguf import GGMLQuantizationType as Kind

    config, kind = llama.config, {"fp32": Kind.F32, "int4": Kind.Q4_0}[weights]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(llama.head_dim)
    writer.add_value_length(llama.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(llama.head_dim)
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10000.0))
    writer.add_file_type({Kind.F32: 0, Kind.Q4_0: 2}[kind])
    _add_vocabulary(writer, config["vocab_size"])
    for name, values in llama.tensors():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:
                values = interleaved(values, count)
        chosen = Kind.F32 if values.ndim == 1 else kind
        if chosen is Kind.Q4_0 and values.shape[1] % _BLOCK:
            raise UnsupportedModelError(
                f"its {name} has rows of {values.shape[1]} values: expected a multiple of {_BLOCK} for Q4_0"
            )
        stored = values if chosen is Kind.F32 else gguf.quants.quantize(values, chosen)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, size: int) -> None:
    """Special tokens, a token for each byte where there is room, and further ones."""
    from gguf import TokenType

    tokens = [(b"<unk>", TokenType.UNKNOWN), (b"<s>", TokenType.CONTROL), (b"</s>", TokenType.CONTROL)]
    if size >= len(tokens) + 256:
        tokens += [(b"<0x%02X>" % byte, TokenType.BYTE) for byte in range(256)]
    tokens += [(b"t%d" % number, TokenType.NORMAL) for number in range(len(tokens), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
