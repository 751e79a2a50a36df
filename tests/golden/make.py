"""Makes the golden bundles and what a reader must get from them: `python -m tests.golden.make [BUNDLE ...]`.

The models are random and tiny. What is recorded is what edgeprune's own runtime computes on the CPU, and only
where it does not hang by a hair: every case is run again on pixel values with a little noise, and is refused
where that changes kept tokens or reply. So a reader whose arithmetic rounds otherwise gets the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import edgeprune
from edgeprune.plans import PruningPlan
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.images import load_image
from edgeprune.runtime.model import Model, load
from edgeprune.runtime.programs import image_tiles
from tests.golden.layouts import layout_cases

GOLDEN = Path(__file__).resolve().parent
IMAGES = {"wide.png": (40, 17), "tall.png": (13, 31), "square.png": (24, 24)}
NEW_TOKENS = 6
# Of the pixel values, which are of the order of 1; and of how many draws each case has to stand.
_NOISE = {"fp32": 1e-4, "fp16": 1e-3}
_DRAWS = 3


@dataclass(frozen=True)
class Golden:
    """A bundle: the parameters of what saves the model in `tests.tiny`, and of `edgeprune.export`, and what
    it is asked.
    """

    model: dict[str, Any]
    export: dict[str, Any]
    cases: tuple[dict[str, Any], ...]
    saver: str = "save_llava"


_QUESTION = "what colour is the star ?"
_BOTH = "USER: <image> is big and <image> is ? ASSISTANT:"

BUNDLES = {
    "one-stage": Golden(
        {"kind": "llama"},
        {"method": "fastv", "keep": 0.3, "curve": "fastv"},
        (
            {"name": "as exported", "prompt": _QUESTION, "images": ["wide.png"]},
            {"name": "fewer", "prompt": _QUESTION, "images": ["tall.png"], "keep": 0.2},
            {"name": "all", "prompt": _QUESTION, "images": ["tall.png"], "keep": 1},
            {"name": "no debias", "prompt": _QUESTION, "images": ["wide.png"], "debias": "none"},
            {"name": "padding alone", "prompt": _QUESTION, "images": ["wide.png"], "debias": "padding"},
            {"name": "nothing is padding", "prompt": _QUESTION, "images": ["square.png"], "keep": 0.5},
            {"name": "two images", "prompt": _BOTH, "images": ["wide.png", "tall.png"]},
            {"name": "image last", "prompt": "USER: what is <image>", "images": ["tall.png"]},
            {"name": "no image", "prompt": _QUESTION, "images": []},
            {
                "name": "conversation",
                "prompt": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red ?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
                    {"role": "user", "content": [{"type": "text", "text": "what is big ?"}]},
                ],
                "images": ["wide.png"],
            },
        ),
    ),
    "three-stages": Golden(
        {"kind": "qwen2"},
        {"method": "pyramiddrop", "curve": "pyramiddrop"},
        (
            {"name": "as exported", "prompt": _QUESTION, "images": ["wide.png"]},
            {
                "name": "a share for each",
                "prompt": _QUESTION,
                "images": ["tall.png"],
                "keep": [0.8, 0.5, 0.2],
            },
            {"name": "no debias", "prompt": _QUESTION, "images": ["tall.png"], "debias": "none"},
            {"name": "two images", "prompt": _BOTH, "images": ["tall.png", "wide.png"]},
            {"name": "no image", "prompt": _QUESTION, "images": []},
        ),
    ),
    "means": Golden(
        {"kind": "llama", "seed": 1},
        {"method": "sparsevlm", "curve": "sparsevlm"},
        (
            {"name": "as exported", "prompt": _QUESTION, "images": ["wide.png"]},
            {"name": "position alone", "prompt": _QUESTION, "images": ["tall.png"], "debias": "position"},
            {"name": "no image", "prompt": _QUESTION, "images": []},
        ),
    ),
    "tower": Golden(
        {"kind": "llama", "seed": 2},
        {"method": "illava", "dtype": "fp16"},
        (
            {"name": "as exported", "prompt": _QUESTION, "images": ["square.png"]},
            {"name": "padded", "prompt": "the small blue star is", "images": ["wide.png"]},
            {"name": "two images", "prompt": _BOTH, "images": ["wide.png", "tall.png"]},
        ),
    ),
    "window": Golden(
        {},
        {"method": "fastv", "keep": 0.3, "layer": 3},
        (
            {"name": "as exported", "prompt": "what is the big star ?", "images": ["wide.png"]},
            {
                "name": "more",
                "prompt": "<s>is the star <start_of_image> big ?",
                "images": ["tall.png"],
                "keep": 0.6,
            },
            {"name": "two images", "prompt": "is the box small ?", "images": ["square.png", "tall.png"]},
            {"name": "no image", "prompt": "what is the big box ?", "images": []},
        ),
        saver="save_gemma3",
    ),
}


def asked(model: Model, case: dict[str, Any]) -> tuple[PromptInputs, PruningPlan]:
    """What the session is given for a case."""
    images = [GOLDEN / "images" / name for name in case["images"]]
    return model.prepare(case["prompt"], images), model.plan(case.get("keep"), case.get("debias"))


def results(model: Model, prompts: Sequence[tuple[PromptInputs, PruningPlan]]) -> list[dict[str, Any]]:
    """Runs prompts of one plan as one batch, greedily; what depends on arithmetic of each."""
    inputs, plan = [prompt for prompt, _ in prompts], prompts[0][1]
    firsts: list[list[np.ndarray]] = [[] for _ in inputs]

    def picker(number: int) -> Any:
        def pick(logits: np.ndarray) -> int:
            firsts[number].append(logits)
            return int(np.argmax(logits))

        return pick

    pickers = [picker(number) for number in range(len(inputs))]
    generated = model.session.generate(inputs, pickers, NEW_TOKENS, plan=plan)
    return [
        {
            "kept_visual": [stage.kept_visual.tolist() for stage in one.stages],
            "averaged": [stage.averaged.tolist() for stage in one.stages],
            "reply": list(one.token_ids),
            "finish_reason": one.finish_reason,
            "logits": [round(float(logit), 4) for logit in first[0]],
        }
        for one, first in zip(generated, firsts, strict=True)
    ]


def recorded(model: Model, case: dict[str, Any]) -> dict[str, Any]:
    """A case with everything that a reader must get."""
    prompt, plan = asked(model, case)
    manifest, visual = model.manifest, int((prompt.input_ids == model.manifest.prompt.image_token_id).sum())
    tiles = [
        image_tiles(load_image(GOLDEN / "images" / name), manifest.image_program) for name in case["images"]
    ]
    debiased = "position" in plan.debias
    places = manifest.curve_place(prompt.layout) if debiased else prompt.layout.places(0)
    (found,) = results(model, [(prompt, plan)])
    return {
        **case,
        "input_ids": prompt.input_ids.tolist(),
        "next_position": prompt.positions.following,
        "tiles_sha256": [hashlib.sha256(one.tobytes()).hexdigest() for one in tiles],
        "padding_mask": prompt.visual_valid.astype(int).tolist(),
        # By number of the layout; where the tower merges, only those of the tokens that are left are fed.
        "curve_place": places.tolist(),
        "debiased_by": [one.value for one in plan.debias],
        "kept_slots": [counts.kept for counts in plan.counts(visual)],
        "cache_lengths": list(plan.cache_lengths(len(prompt.input_ids), visual)),
        **found,
    }


def shaken(model: Model, case: dict[str, Any], seed: int) -> dict[str, Any]:
    """The results of a case whose pixel values have a little noise."""
    prompt, plan = asked(model, case)
    noise = np.random.default_rng(seed).standard_normal(prompt.pixel_values.shape)
    scale = _NOISE[model.manifest.precision.compute]
    pixels = (prompt.pixel_values + scale * noise).astype(np.float32)
    return results(model, [(replace(prompt, pixel_values=pixels), plan)])[0]


def _image(size: tuple[int, int], seed: int) -> Image.Image:
    """Blocks of random colours."""
    width, height = size
    cells = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(cells, np.ones((4, 4, 1), np.uint8))[:height, :width])


def make_images(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for seed, (name, size) in enumerate(IMAGES.items()):
        _image(size, seed).save(folder / name)


def make_bundle(name: str, golden: Golden) -> None:
    """Exports a bundle, under a name that is the same on every machine, and records its cases."""
    from tests import tiny

    with TemporaryDirectory() as scratch:
        home = Path.cwd()
        os.chdir(scratch)
        try:
            getattr(tiny, golden.saver)(Path(f"tiny-{name}"), **golden.model)
            edgeprune.export(f"tiny-{name}", output="bundle", **golden.export)
            shutil.rmtree(GOLDEN / name, ignore_errors=True)
            shutil.copytree("bundle", GOLDEN / name)
        finally:
            os.chdir(home)
    model = load(GOLDEN / name, "onnxruntime")
    cases = [recorded(model, case) for case in golden.cases]
    for case in cases:
        for seed in range(_DRAWS):
            found = shaken(model, case, seed)
            for field in ("kept_visual", "averaged", "reply"):
                if found[field] != case[field]:
                    raise SystemExit(
                        f"{name}, {case['name']}: {field} is {found[field]} with a little noise and "
                        f"{case[field]} without; take another seed or image"
                    )
    write_json(GOLDEN / f"{name}.json", {"cases": cases})


def write_json(path: Path, value: Any) -> None:
    """JSON with each list of numbers on one line."""

    def joined(found: re.Match[str]) -> str:
        return " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]")

    text = re.sub(r"\[[\s\d.,eE+-]*\]", joined, json.dumps(value, indent=1, ensure_ascii=False))
    path.write_text(text + "\n", encoding="utf-8")


def main(names: Sequence[str]) -> None:
    make_images(GOLDEN / "images")
    write_json(GOLDEN / "image_programs.json", {"cases": layout_cases()})
    for name in names or BUNDLES:
        make_bundle(name, BUNDLES[name])


if __name__ == "__main__":
    main(sys.argv[1:])
