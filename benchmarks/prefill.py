"""Prefill on the CPU: a pruned bundle beside the bound, the unpruned graph, and Hugging Face's own code.

    python benchmarks/random_model.py --shape large --dtype fp32 -o build/llava-large
    python benchmarks/prefill.py build/llava-large

exports the model at a keep ratio, runs `edgeprune bench` on the bundle, and times in the same process, run by
run in turn, Hugging Face's language model: unpruned with eager and with SDPA attention, and FastV as it is
usually written, with `output_attentions` in every layer before the stage. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's packages importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

PROMPT = "What is in the image ?"


def hugging_face(model: Any, inputs: dict[str, Any], keep: int, layer: int) -> dict[str, Callable[[], Any]]:
    """The three ways to read the prompt with transformers, as functions that return the last logits.

    Args:
        model: a LLaVA with its weights.
        inputs: as the model's processor makes them, of one prompt with one image.
        keep: visual tokens that FastV keeps.
        layer: it prunes before this layer.
    """
    import torch

    decoder, head = model.model.language_model, model.lm_head
    with torch.no_grad():
        visual = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
        embeds = model.get_input_embeddings()(inputs["input_ids"]).clone()
        places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
        embeds[0, places] = visual.to(embeds.dtype)

    def unpruned(attention: str) -> Any:
        decoder.set_attn_implementation(attention)
        with torch.no_grad():
            hidden = decoder(inputs_embeds=embeds, use_cache=True).last_hidden_state
            return head(hidden[:, -1])

    def fastv() -> Any:
        decoder.set_attn_implementation("eager")
        with torch.no_grad():
            hidden = embeds
            positions = torch.arange(hidden.shape[1])[None]
            attention = torch.empty(0)
            for number, block in enumerate(decoder.layers):
                if number in (0, layer):
                    if number:
                        score = attention[0].mean(0)[-1, places]
                        best = places[score.topk(keep).indices]
                        stays = torch.ones(hidden.shape[1], dtype=torch.bool)
                        stays[places] = False
                        stays[best] = True
                        hidden, positions = hidden[:, stays], positions[:, stays]
                    size = hidden.shape[1]
                    mask = torch.full((size, size), torch.finfo(hidden.dtype).min).triu(1)[None, None]
                    rotary = decoder.rotary_emb(hidden, positions)
                # As `output_attentions` does it: the attention of all rows is kept.
                mixed, attention = block.self_attn(
                    hidden_states=block.input_layernorm(hidden),
                    attention_mask=mask.to(hidden.dtype),
                    position_embeddings=rotary,
                )
                hidden = hidden + mixed
                hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
            return head(decoder.norm(hidden[:, -1]))

    return {
        "Hugging Face eager, unpruned": lambda: unpruned("eager"),
        "Hugging Face SDPA, unpruned": lambda: unpruned("sdpa"),
        "Hugging Face eager FastV with output_attentions": fastv,
    }


def timed(ways: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Seconds of each way, the ways in turn so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if run:
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {"median": statistics.median(those), "least": min(those), "greatest": max(those)}
        for name, those in seconds.items()
    }


def pruning_nodes(path: Path) -> set[str]:
    """Names of the nodes that exist for pruning alone: those of the score, and the selection itself."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output}

    def before(names: list[str], through_selection: bool) -> Iterator[str]:
        seen: set[str] = set()
        while names:
            node = producers.get(names.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            yield node.name
            selects = node.op_type == "DebiasedTokenPrune"
            names.extend(node.input[:1] if selects and not through_selection else node.input)

    outputs = [value.name for value in graph.output if not value.name.startswith(("score.", "kept_index."))]
    return set(before([value.name for value in graph.output], True)) - set(before(outputs, False)) | {
        node.name for node in graph.node if node.op_type == "DebiasedTokenPrune"
    }


def pruning_share(bundle: Path, threads: int, runs: int) -> dict[str, float]:
    """Milliseconds of the pruning step and of the whole prefill, by ONNX Runtime's profiler."""
    import onnxruntime

    from edgeprune.bundle import read_manifest
    from edgeprune.interface import kept_axis

    manifest = read_manifest(bundle)
    path = bundle / manifest.language.file
    names = pruning_nodes(path)
    visual, text = manifest.most_image_tokens, 64
    sizes = {"batch": 1, "sequence": visual + text, "visual": visual}
    sizes |= {kept_axis(stage): counts.kept for stage, counts in enumerate(manifest.plan.counts(visual))}
    feeds: dict[str, Any] = {
        spec.name: np.zeros(
            [sizes.get(axis, 0) if isinstance(axis, str) else axis for axis in spec.shape],
            np.int64 if spec.dtype == "int64" else np.dtype(spec.dtype),
        )
        for spec in manifest.language.inputs
    }
    index = np.arange(text // 2, text // 2 + visual)
    feeds["input_ids"][:, index] = manifest.prompt.image_token_id
    feeds["visual_index"][:] = index
    embeds = np.random.default_rng(0).standard_normal(feeds["visual_embeds"].shape)
    feeds["visual_embeds"] = embeds.astype(feeds["visual_embeds"].dtype)
    feeds["visual_valid"][:] = feeds["attention_mask"][:] = 1
    feeds["curve_place"][:] = 1 + np.arange(visual)
    feeds["position_ids"][:] = np.arange(visual + text)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "prefill")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    own = [event for event in kernels if _base_name(event) in names or _is_inlined(event)]
    kinds = {event["args"]["op_name"] for event in own}
    if not {"TopK", "Softmax"} <= kinds:
        raise RuntimeError(f"of the pruning step, the profile shows only {sorted(kinds)}")
    step, whole = (sum(event["dur"] for event in those) / 1000 / runs for those in (own, kernels))
    return {"pruning_step_ms": step, "all_kernels_ms": whole, "share": step / whole}


def _base_name(event: dict[str, Any]) -> str:
    """A node's name in the file; fusions append theirs behind a slash."""
    return str(event["name"]).removesuffix("_kernel_time").split("/")[0]


def _is_inlined(event: dict[str, Any]) -> bool:
    """Nodes out of a function body are named anew by ONNX Runtime: the operator and a number."""
    return re.fullmatch(rf"{event['args']['op_name']}_\d+", _base_name(event)) is not None


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Prefill beside the bound and Hugging Face's own code.")
    parser.add_argument("model", type=Path, help="a LLaVA folder, as benchmarks/random_model.py writes it")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bundle", type=Path, help="an export of the model, to save the time of another")
    options = parser.parse_args(arguments)
    if not (options.model / "config.json").is_file():
        print(f"error: {options.model} holds no config.json; expected a model folder", file=sys.stderr)
        return 1

    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from edgeprune import export
    from edgeprune.bench import run as bench
    from edgeprune.debias.selection import keep_per_10000, kept_count

    torch.set_num_threads(options.threads)
    picture = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
        bundle = options.bundle or export(
            options.model, keep=options.keep, curve="fastv", output=Path(folder) / "bundle", verify=False
        )
        report = bench.run(
            bundle,
            prompt=PROMPT,
            images=[picture],
            runs=options.runs,
            threads=options.threads,
            backend="onnxruntime",
        ).to_dict()
        share = pruning_share(bundle, options.threads, 3)

    model = LlavaForConditionalGeneration.from_pretrained(options.model, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(options.model, local_files_only=True)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=picture, text=text, return_tensors="pt")
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    kept = kept_count(visual, keep_per_10000(options.keep))
    prefills = timed(hugging_face(model, dict(inputs), kept, layer=2), options.runs)
    pruned = next(v for v in report["variants"] if v["name"] == "pruned")["prefill"]["median"]
    result = {
        "bench": report,
        "speed_up_over_bound": report["speed_ups"][0]["share_of_bound"],
        "pruning_step": share,
        "hugging_face_prefill_seconds": prefills,
        "speed_up_over": {name: spread["median"] / pruned for name, spread in prefills.items()},
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
