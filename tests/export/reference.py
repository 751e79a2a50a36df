"""What exported models are compared with: Hugging Face's generate, and FastV written as a plain loop.

The FastV here shares no code with the exporter. It has no caches: every step runs Hugging Face's own eager
layers on the whole sequence again, and drops the visual tokens by indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration

from edgeprune.image_program import ImageProgram
from edgeprune.interface import Interface
from edgeprune.layout import PromptLayout
from edgeprune.positions import Positions
from edgeprune.runtime.batching import PromptInputs

Step = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Inputs:
    """A batch of prompts: ids and mask int64 [B, S], pixels [B * images, 3, H, W], valid float32 [B, V].

    `further` is what Hugging Face's model takes of the images beside their pixels.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor
    visual_valid: torch.Tensor
    further: dict[str, torch.Tensor] = field(default_factory=dict)

    def visual_index(self, image_token: int) -> torch.Tensor:
        """Positions of the visual tokens, int64 [B, V]."""
        return torch.stack([(row == image_token).nonzero()[:, 0] for row in self.input_ids])


@dataclass(frozen=True)
class Decoded:
    """Greedy decoding: tokens int64 [B, steps], logits [B, steps, vocab], and what the stages kept."""

    tokens: torch.Tensor
    logits: torch.Tensor
    kept: tuple[NDArray[np.int64], ...] = ()
    scores: tuple[NDArray[np.float32], ...] = ()


def random_inputs(
    model: LlavaForConditionalGeneration, batch: int, pictures: int, seed: int = 0, padded: float = 0.25
) -> Inputs:
    """Prompts of different lengths, left padded, with the images at different places among the text."""
    rng = np.random.default_rng(seed)
    config = model.config
    side = config.vision_config.image_size
    per_picture = (side // config.vision_config.patch_size) ** 2
    image, rows = config.image_token_id, []
    for row in range(batch):
        parts = []
        for picture in range(pictures):
            text = rng.integers(6, config.text_config.vocab_size, size=2 + (row + picture) % 3)
            parts += [text, np.full(per_picture, image)]
        # The first row is the shortest, and padded most.
        parts.append(rng.integers(6, config.text_config.vocab_size, size=3 + 2 * row))
        rows.append(np.concatenate(parts))
    longest = max(map(len, rows))
    ids = np.zeros((batch, longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = row
        mask[number, longest - len(row) :] = 1
    pixels = rng.standard_normal((batch * pictures, 3, side, side)).astype(np.float32)
    valid = (rng.random((batch, pictures * per_picture)) >= padded).astype(np.float32)
    return Inputs(*(torch.from_numpy(array) for array in (ids, mask, pixels, valid)))


@torch.no_grad()
def huggingface(model: LlavaForConditionalGeneration, inputs: Inputs, steps: int) -> Decoded:
    """Hugging Face's own generate, which never stops early."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    out = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        pixel_values=inputs.pixel_values.to(model.dtype),
        do_sample=False,
        max_new_tokens=steps,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return Decoded(out.sequences[:, -steps:], torch.stack(out.logits, dim=1).float())


@torch.no_grad()
def fastv(
    model: Any,
    inputs: Inputs,
    steps: int,
    layer: int,
    kept: int,
    curve: torch.Tensor,
) -> Decoded:
    """FastV before decoder layer `layer`, scored by eager `output_attentions` of the layer before it.

    Args:
        model: of Hugging Face, with eager attention.
        kept: how many visual tokens stay.
        curve: float32 [V], the bias curve's weight of each visual token.
    """
    base, videos = model.model, "pixel_values_videos" in inputs.further
    image = model.config.video_token_id if videos else model.config.image_token_id
    decoder = base.text_model if hasattr(base, "text_model") else base.language_model
    mask, ids = inputs.attention_mask, inputs.input_ids
    pixels = {} if videos else {"pixel_values": inputs.pixel_values.to(model.dtype)}
    given = {**pixels, **inputs.further}
    first = _positions(base, inputs, image)
    out = base(
        input_ids=ids,
        attention_mask=mask,
        position_ids=first,
        **given,
        output_attentions=True,
        use_cache=False,
    )
    score = out.attentions[layer - 1][:, :, -1].float().mean(dim=1)
    index = inputs.visual_index(image)
    chosen = np.stack(
        [
            _stays(row.numpy(), (row[visual] * curve).numpy(), visual.tolist(), valid.numpy(), kept)
            for row, visual, valid in zip(score, index, inputs.visual_valid, strict=True)
        ]
    )
    of_tower = ("token_type_ids", "mm_token_type_ids", "second_per_grid_ts")
    look = base.get_video_features if videos else base.get_image_features
    features = look(**{k: v for k, v in given.items() if k not in of_tower})
    runs = _runs(inputs.input_ids == image) * int("token_type_ids" in given)
    visual = torch.cat(list(features.pooler_output))
    is_visual = inputs.input_ids == image
    levels = [torch.cat(list(level)) for level in getattr(features, "deepstack_features", ())]
    tokens: list[torch.Tensor] = []
    logits = []
    for step in range(steps):
        ids = torch.cat([inputs.input_ids, *tokens], dim=1)
        mask = torch.cat([inputs.attention_mask, torch.ones(len(ids), step, dtype=torch.int64)], dim=1)
        hidden = model.get_input_embeddings()(ids).clone()
        prompt = hidden[:, : inputs.input_ids.shape[1]]
        prompt[is_visual] = visual
        # What is added to the visual tokens behind the first layers, at their places.
        added = [torch.zeros_like(hidden) for _ in levels]
        for rows, level in zip(added, levels, strict=True):
            rows[:, : inputs.input_ids.shape[1]][is_visual] = level
        later = first.amax((0, 2) if first.dim() == 3 else 1)[:, None] + 1 + torch.arange(step)
        positions = torch.cat([first, later.expand(*first.shape[:-1], -1)], dim=-1)
        new = torch.arange(inputs.input_ids.shape[1], ids.shape[1]).expand(len(ids), -1)
        stays = torch.cat([torch.from_numpy(chosen), new], dim=1)
        run = torch.cat([runs, torch.zeros(len(ids), step, dtype=torch.int64)], dim=1)
        for number, block in enumerate(decoder.layers):
            if number == layer:
                hidden, *added = (
                    torch.stack([row[keep_row] for row, keep_row in zip(rows, stays, strict=True)])
                    for rows in (hidden, *added)
                )
                positions = positions.gather(-1, stays.expand(*positions.shape[:-1], -1))
                mask, run = mask.gather(1, stays), run.gather(1, stays)
            size = hidden.shape[1]
            seen = torch.ones(size, size, dtype=torch.bool).tril().expand(len(ids), -1, -1)
            seen = seen | ((run[:, :, None] == run[:, None]) & (run[:, None] > 0))
            seen = seen & mask.bool()[:, None, :]
            if positions.dim() == 2:
                seen = seen & in_window(decoder.config, number, positions)
            additive = torch.zeros(len(ids), 1, size, size, dtype=hidden.dtype)
            additive = additive.masked_fill(~seen[:, None], torch.finfo(hidden.dtype).min)
            hidden = block(
                hidden,
                attention_mask=additive,
                position_ids=positions if positions.dim() == 2 else None,
                position_embeddings=decoder.rotary_emb(
                    hidden,
                    positions,
                    **({"layer_type": _kind(decoder.config, number)} if "token_type_ids" in given else {}),
                ),
            )
            if number < len(added):
                hidden = hidden + added[number]
        logits.append(model.lm_head(decoder.norm(hidden))[:, -1].float())
        tokens.append(logits[-1].argmax(-1, keepdim=True))
    return Decoded(torch.cat(tokens, dim=1), torch.stack(logits, dim=1), (chosen,), (score.numpy(),))


def in_window(config: Any, layer: int, positions: torch.Tensor) -> torch.Tensor:
    """Which tokens a layer's rows see by its window, bool [B, n, n].

    Args:
        config: of the text model.
        layer: its number.
        positions: int64 [B, n], in the unpruned sequence: what was dropped in between counts.
    """
    apart = positions[:, :, None] - positions[:, None]
    slides = _kind(config, layer) == "sliding_attention"
    return apart < config.sliding_window if slides else torch.ones_like(apart, dtype=torch.bool)


def _kind(config: Any, layer: int) -> str:
    """Whether a layer sees a window or all."""
    if getattr(config, "layer_types", None):
        return str(config.layer_types[layer])
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


def _runs(marks: torch.Tensor) -> torch.Tensor:
    """Which run of marks each place is in, int64 [B, S], from 1 on; 0 for none."""
    found = torch.zeros(marks.shape, dtype=torch.int64)
    for row, of_row in enumerate(marks):
        number, inside = 0, False
        for place, mark in enumerate(of_row.tolist()):
            number += mark and not inside
            inside = mark
            found[row, place] = number if mark else 0
    return found


def _positions(base: Any, inputs: Inputs, image: int) -> torch.Tensor:
    """Hugging Face's own position ids, int64 [B, S] or [3, B, S]."""
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: value for name, value in inputs.further.items() if name in names}
    if not given:
        return (inputs.attention_mask.cumsum(1) - 1).clamp_min(0)
    found: torch.Tensor = base.get_rope_index(
        inputs.input_ids,
        mm_token_type_ids=inputs.further.get("mm_token_type_ids", (inputs.input_ids == image).int()),
        attention_mask=inputs.attention_mask,
        **given,
    )[0]
    return found


def _stays(
    score: NDArray[np.float32],
    weighted: NDArray[np.float32],
    visual: list[int],
    valid: NDArray[np.float32],
    kept: int,
) -> NDArray[np.int64]:
    """The positions that stay in one row: all text, and the best `kept` visual tokens, padded ones last."""
    order = sorted(range(len(visual)), key=lambda i: (valid[i] == 0, -weighted[i] if valid[i] else 0, i))
    dropped = {visual[i] for i in order[kept:]}
    return np.array([p for p in range(len(score)) if p not in dropped], dtype=np.int64)


def greedy(
    step: Step,
    interface: Interface,
    inputs: Inputs,
    embeds: torch.Tensor,
    image: int,
    steps: int,
    kept: Sequence[int] = (),
    places: torch.Tensor | None = None,
) -> Decoded:
    """Greedy decoding through the language graph's interface, however `step` runs the graph.

    Args:
        step: named inputs -> named outputs, one run of the graph.
        embeds: visual embeddings [B * V, D], those of a prompt behind those of the one before.
        image: the image token.
        kept: how many visual tokens each stage keeps.
        places: int64 [B, V], the entries of the bias curve that the visual tokens read; None for no curve.
    """
    batch, visual = inputs.visual_valid.shape
    feeds = {
        "input_ids": inputs.input_ids,
        "visual_embeds": embeds.reshape(batch, visual, embeds.shape[-1]),
        "visual_index": inputs.visual_index(image),
        "visual_valid": inputs.visual_valid,
        "curve_place": torch.zeros(batch, visual, dtype=torch.int64) if places is None else places,
        "position_ids": (inputs.attention_mask.cumsum(1) - 1).clamp_min(0),
        "attention_mask": inputs.attention_mask,
    }
    slots = {f"kept_slots.{stage}": torch.zeros(1, 0, dtype=torch.int64) for stage in range(len(kept))}
    feeds |= {name: torch.full((1, count), -7) for name, count in zip(slots, kept, strict=True)}
    assert [spec.name for spec in interface.inputs[: len(feeds)]] == list(feeds)
    for spec in interface.inputs[len(feeds) :]:
        shape = [batch if axis == "batch" else axis if isinstance(axis, int) else 0 for axis in spec.shape]
        dtype = torch.int64 if spec.dtype == "int64" else embeds.dtype
        feeds[spec.name] = torch.zeros(shape, dtype=dtype)
    chosen: tuple[Any, ...] = ()
    scores: tuple[Any, ...] = ()
    tokens, logits = [], []
    visuals = ("visual_embeds", "visual_index", "visual_valid", "curve_place")
    for number in range(steps):
        outputs = step(feeds)
        if number == 0:
            chosen = tuple(v.numpy() for n, v in outputs.items() if n.startswith("kept_index."))
            scores = tuple(v.numpy() for n, v in outputs.items() if n.startswith("score."))
        logits.append(outputs["logits"])
        tokens.append(outputs["logits"].argmax(-1, keepdim=True))
        feeds = {
            "input_ids": tokens[-1],
            **{name: feeds[name][:, :0] for name in visuals},
            "position_ids": feeds["position_ids"][:, -1:] + 1,
            "attention_mask": torch.ones(batch, 1, dtype=torch.int64),
            **slots,
            **{n.replace("present_", "past_"): v for n, v in outputs.items() if n.startswith("present_")},
        }
    return Decoded(torch.cat(tokens, dim=1), torch.stack(logits, dim=1), chosen, scores)


def places_of(inputs: Inputs, per_picture: int) -> torch.Tensor:
    """The entries of the bias curve, int64 [B, V]: 1, 2, ... of each image anew."""
    batch, visual = inputs.visual_valid.shape
    return (1 + torch.arange(visual) % per_picture).expand(batch, -1).contiguous()


def prompts_of(inputs: Inputs, program: ImageProgram, prompts: Sequence[Any] | None = None) -> list[Any]:
    """The batch as the runtime takes it, without left padding.

    Args:
        program: of images of the tower's own size.
        prompts: int64 [S] of each row; None for the batch's own.
    """
    rows = prompts or [
        ids[mask == 1].numpy() for ids, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True)
    ]
    pictures = len(inputs.pixel_values) // len(rows)
    height, width = inputs.pixel_values.shape[2:]
    layout = PromptLayout((program.layout(width, height),) * pictures)
    pixels = inputs.pixel_values.reshape(len(rows), pictures, *inputs.pixel_values.shape[1:])
    return [
        PromptInputs(ids, of_row.numpy(), layout, valid.numpy(), Positions(np.arange(len(ids)), len(ids)))
        for ids, of_row, valid in zip(rows, pixels, inputs.visual_valid, strict=True)
    ]


def torch_step(decoder: torch.nn.Module, interface: Interface) -> Step:
    """Runs a `PrunedDecoder` by the graph's names."""
    names = [spec.name for spec in interface.outputs]

    @torch.no_grad()
    def step(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        single = [value for name, value in feeds.items() if "." not in name]
        kinds = ("deepstack.", "kept_slots.", "past_mask.", "past_key.", "past_value.")
        lists = [[value for name, value in feeds.items() if name.startswith(kind)] for kind in kinds]
        return dict(zip(names, decoder(*single, *lists), strict=True))

    return step


def onnxruntime_step(session: Any) -> Step:
    """Runs a language graph in ONNX Runtime."""
    names = [value.name for value in session.get_outputs()]

    def step(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        arrays = {name: value.numpy() for name, value in feeds.items()}
        return {n: torch.from_numpy(v) for n, v in zip(names, session.run(None, arrays), strict=True)}

    return step
