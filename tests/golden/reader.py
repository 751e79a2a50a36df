"""A second reader of bundles, written from docs/bundle.md alone: no line of edgeprune runs here.

It is slow and refuses nothing. It is there to show that the document says everything, and as a model for
readers in other languages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tests.golden.reader_images import SeenImage, Size, curve_place

_DTYPES = {"fp32": np.float32, "fp16": np.float16}


def counts(visual: int, stage: dict[str, Any]) -> Size:
    """K and the appended ones."""
    kept = max(1, (2 * visual * stage["keep"] + 10000) // 20000) if visual else 0
    dropped = visual - kept
    if stage["merge"] != "recycle" or not dropped:
        return kept, 0
    recycled = min(dropped, 3 * dropped // 10 + 1)
    return kept, min(recycled, recycled // 10 + 1)


class Reader:
    """A bundle with sequential positions and float32 or float16; prompts one at a time, greedily."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "edgeprune.json").read_text(encoding="utf-8"))
        prompt = self.manifest["prompt"]
        self.tokenizer = Tokenizer.from_file(str(folder / prompt["tokenizer"]))
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.template = jinja.from_string((folder / prompt["chat_template"]).read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.vision, self.language = (
            onnxruntime.InferenceSession(
                str(folder / self.manifest[which]["file"]), options, providers=["CPUExecutionProvider"]
            )
            for which in ("vision", "language")
        )

    def run(
        self, prompt: Any, images: list[np.ndarray], keep: list[int], debias: list[str], new: int
    ) -> dict[str, Any]:
        """One prompt; `keep` is the K of every stage."""
        manifest = self.manifest
        program, model = manifest["image_program"], manifest["model"]
        seen = [SeenImage(image, program) for image in images]
        per_tile, left = self._tokens_per_tile()
        ids = self._ids(prompt, seen, per_tile, left)
        tiles = np.concatenate(
            [np.empty((0, 3, *self._feed), np.float32), *(self._pixels(one) for one in seen)]
        )
        dtype = _DTYPES[manifest["precision"]["compute"]]
        embeds, place = np.zeros((0, model["hidden_size"]), dtype), np.zeros((0, left), np.int64)
        if len(tiles):
            embeds = self.vision.run(["visual_embeds"], {"pixel_values": tiles.astype(dtype)})[0]
            place = np.broadcast_to(np.arange(left), (len(tiles), left))
            if manifest["plan"]["tower"]:
                place = self.vision.run(["visual_place"], {"pixel_values": tiles.astype(dtype)})[0]
        mask = np.array([v for one in seen for v in one.valid(manifest["padding_mask"])], np.float32).reshape(
            -1, per_tile
        )
        valid = np.take_along_axis(mask, place, axis=1).reshape(1, -1)
        places = self._places(left) if "position" in debias else 0
        curve = [
            p
            for one in seen
            for p in (curve_place(len(one.tiles) * left, places) if places else [0] * (len(one.tiles) * left))
        ]
        start = manifest["positions"]["start"]
        feeds = {
            "input_ids": np.array([ids]),
            "visual_embeds": embeds[None],
            "visual_index": np.array(
                [[at for at, token in enumerate(ids) if token == manifest["prompt"]["image_token_id"]]],
                np.int64,
            ).reshape(1, -1),
            "visual_valid": valid if "padding" in debias else np.ones_like(valid),
            "curve_place": np.array([curve], np.int64).reshape(1, -1),
            "position_ids": np.arange(start, start + len(ids))[None],
            "attention_mask": np.ones((1, len(ids)), np.int64),
            **{f"kept_slots.{s}": np.zeros((1, k), np.int64) for s, k in enumerate(keep)},
            **{f"past_mask.{g}": np.zeros((1, 0), np.int64) for g in range(len(manifest["cache_groups"]))},
        }
        for kind in ("key", "value"):
            for layer in range(model["layers"]):
                feeds[f"past_{kind}.{layer}"] = np.zeros((1, model["kv_heads"], 0, model["head_dim"]), dtype)
        first = out = self._run(feeds)
        reply: list[int] = []
        while True:
            reply.append(int(np.argmax(out["logits"][0])))
            if reply[-1] in manifest["prompt"]["eos_token_ids"] or len(reply) == new:
                break
            out = self._run(self._next(reply[-1], start + len(ids) + len(reply) - 1, out, len(keep), dtype))
        return {
            "input_ids": ids,
            "reply": reply,
            "logits": first["logits"][0].tolist(),
            "kept_index": [first[f"kept_index.{s}"][0].tolist() for s in range(len(keep))],
            "cache_lengths": [
                first[f"present_mask.{g}"].shape[1] for g in range(len(manifest["cache_groups"]))
            ],
        }

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [spec["name"] for spec in self.manifest["language"]["outputs"]]
        return dict(zip(names, self.language.run(names, feeds), strict=True))

    def _next(
        self, token: int, position: int, out: dict[str, np.ndarray], stages: int, dtype: Any
    ) -> dict[str, np.ndarray]:
        return {
            "input_ids": np.array([[token]]),
            "visual_embeds": np.zeros((1, 0, self.manifest["model"]["hidden_size"]), dtype),
            "visual_index": np.zeros((1, 0), np.int64),
            "visual_valid": np.zeros((1, 0), np.float32),
            "curve_place": np.zeros((1, 0), np.int64),
            "position_ids": np.array([[position]]),
            "attention_mask": np.ones((1, 1), np.int64),
            **{f"kept_slots.{s}": np.zeros((1, 0), np.int64) for s in range(stages)},
            **{
                name.replace("present", "past"): value
                for name, value in out.items()
                if name.startswith("present")
            },
        }

    def _tokens_per_tile(self) -> Size:
        tokens, tower = self.manifest["image_program"]["tokens"], self.manifest["plan"]["tower"]
        whole = tokens["rows"] * tokens["columns"]
        return whole, tower[-1]["kept"] if tower else whole

    def _places(self, left: int) -> int:
        """N, of programs that make one tile of every image."""
        return left

    @property
    def _feed(self) -> Size:
        feed = self.manifest["image_program"]["feed"]
        return feed["height"], feed["width"]

    def _pixels(self, seen: SeenImage) -> np.ndarray:
        rule = self.manifest["image_program"]["pixels"]
        values = (seen.tiles.astype(np.float64) * (rule["rescale_factor"] or 1)).astype(np.float32)
        if rule["mean"] is not None:
            values = (values - np.array(rule["mean"], np.float32)) / np.array(rule["std"], np.float32)
        return values.transpose(0, 3, 1, 2)

    def _ids(self, prompt: Any, seen: list[SeenImage], per_tile: int, left: int) -> list[int]:
        rule = self.manifest["prompt"]
        token, text = rule["image_token"], prompt
        place = token if rule.get("image_place") is None else rule["image_place"]
        if not (isinstance(prompt, str) and place in prompt):
            if isinstance(prompt, str):
                content = [*({"type": "image"} for _ in seen), {"type": "text", "text": prompt}]
                prompt = [{"role": "user", "content": content}]
            tokens = {name: rule[name] for name in ("bos_token", "eos_token") if rule[name] is not None}
            text = self.template.render(
                messages=prompt,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **tokens,
                **rule["template_variables"],
            )
        before, *behind = text.split(place)
        for one, after in zip(seen, behind, strict=True):
            pieces = (
                piece if isinstance(piece, str) else token * (piece // per_tile * left)
                for piece in one.pieces
            )
            before += "".join(pieces) + after
        special = not (rule["bos_token"] and before.startswith(rule["bos_token"]))
        return self.tokenizer.encode(before, add_special_tokens=special).ids
