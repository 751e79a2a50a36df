"""Every pruning method, in torch and as an exported graph, against its plain reference."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.debias.curves import ExponentialCurve, save_curve, tile_weights
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import family_of
from edgeprune.exporter.families.llava import Llava
from edgeprune.exporter.pipeline import _model_info
from edgeprune.interface import Interface, language_interface
from edgeprune.plans import Debias, PruningPlan, Ranking, method_by_name, random_scores
from tests.export.method_reference import Outcome, Recipe, generate
from tests.export.reference import Decoded, Inputs, greedy, onnxruntime_step, random_inputs, torch_step
from tests.tiny import save_llava, tiny_llava

LAYERS, PER_PICTURE = 4, 36
STEPS = 20
LIMIT = 1e-4
# Steep enough to change which of so few tokens are kept.
CURVE = ExponentialCurve(b=0.02, num_tokens=PER_PICTURE)
# method -> layers, and how many visual tokens stay of one picture, and of two.
RECIPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "fastv": ((2,), (14,), (29,)),
    "random": ((2,), (14,), (29,)),
    "pyramiddrop": ((1, 2, 3), (24, 12, 6), (48, 24, 12)),
    "himap": ((1, 2), (17, 13), (34, 26)),
    "sparsevlm": ((1, 2, 3), (21, 14, 8), (42, 28, 15)),
    "tokencarve": ((2,), (14,), (29,)),
    "illava-decoder": ((1,), (14,), (29,)),
}
KEEP = 0.4


@functools.cache
def model_of(kind: str, **changes: Any) -> LlavaForConditionalGeneration:
    return tiny_llava(kind, **changes)


def plan_of(method: str) -> PruningPlan:
    plan = method_by_name(method).plan(LAYERS, KEEP, visual_tokens=PER_PICTURE, seed=3)
    return plan.debiased(tuple(Debias)[method == "random" :])


def curve_of(pictures: int) -> torch.Tensor:
    return torch.from_numpy(tile_weights(CURVE, PER_PICTURE, pictures))


def references(
    model: LlavaForConditionalGeneration,
    inputs: Inputs,
    embeds: torch.Tensor,
    method: str,
    steps: int = STEPS,
) -> list[Outcome]:
    """Each prompt alone, without its padding."""
    batch, visual = inputs.visual_valid.shape
    pictures = visual // PER_PICTURE
    layers, one, two = RECIPES[method]
    curve = torch.ones(visual) if method == "random" else curve_of(pictures)
    scores = torch.from_numpy(random_scores(3, visual))
    recipe = Recipe(method, layers, one if pictures == 1 else two, curve, scores)
    of_prompt = embeds.reshape(batch, visual, -1)
    return [
        generate(model, ids[mask == 1], of_prompt[row], inputs.visual_valid[row], recipe, steps)
        for row, (ids, mask) in enumerate(zip(inputs.input_ids, inputs.attention_mask, strict=True))
    ]


def run_torch(
    model: LlavaForConditionalGeneration, inputs: Inputs, plan: PruningPlan, steps: int = STEPS
) -> tuple[Decoded, torch.Tensor]:
    """By a PrunedDecoder made of a copy of the model; also the visual embeddings."""
    model = copy.deepcopy(model)
    family = family_of(model.config)
    parts = family.parts(model)
    visual = inputs.visual_valid.shape[1]
    curve = curve_of(visual // PER_PICTURE)
    if any(stage.ranking is Ranking.RANDOM for stage in plan.stages):
        curve = torch.ones(visual)
    decoder = PrunedDecoder(parts.text_model, parts.lm_head, plan, parts.image_token_id, curve).eval()
    interface = language_interface(
        _model_info(family, model.config.get_text_config(), "tiny", model.dtype), plan
    )
    embeds = torch.zeros(0, PER_PICTURE, model.config.text_config.hidden_size)
    if len(inputs.pixel_values):
        with torch.no_grad():
            embeds = parts.vision(inputs.pixel_values.to(model.dtype))
    step = torch_step(decoder, interface)
    return greedy(step, interface, inputs, embeds, parts.image_token_id, steps), embeds


def assert_agrees(found: Decoded, wanted: list[Outcome], inputs: Inputs, limit: float = LIMIT) -> None:
    for row, reference in enumerate(wanted):
        padding = int((inputs.attention_mask[row] == 0).sum())
        for stage, origin in enumerate(reference.kept):
            # Left padding, which the reference does not have, is kept in front.
            expected = [*range(padding), *(padding + position for position in origin)]
            assert found.kept[stage][row].tolist() == expected, f"row {row}, stage {stage}"
        assert found.tokens[row].tolist() == reference.tokens
        logits = reference.stacked()
        assert float(logits.std()) > 0.1, "logits this flat prove nothing"
        assert float((found.logits[row] - logits).abs().max()) <= limit


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("method", RECIPES)
def test_a_method_equals_its_reference_over_twenty_steps(method: str, shape: tuple[int, int]) -> None:
    model = model_of("llama")
    inputs = random_inputs(model, *shape, seed=1)
    found, embeds = run_torch(model, inputs, plan_of(method))
    assert_agrees(found, references(model, inputs, embeds, method), inputs)


@pytest.mark.parametrize("method", RECIPES)
def test_a_prompt_without_pictures_is_left_alone(method: str) -> None:
    model = model_of("llama")
    some = random_inputs(model, 2, 1)
    text = some.input_ids[:, -3:]
    inputs = Inputs(text, torch.ones_like(text), some.pixel_values[:0], torch.ones(2, 0))
    found, _ = run_torch(model, inputs, plan_of(method), steps=3)
    for step in range(3):
        with torch.no_grad():
            logits = model(input_ids=torch.cat([text, found.tokens[:, :step]], dim=1)).logits[:, -1]
        assert float((found.logits[:, step] - logits).abs().max()) <= LIMIT


@dataclass(frozen=True)
class Bundle:
    """A tiny model and its bundle, which the exporter compared with the original."""

    model: LlavaForConditionalGeneration
    folder: Path


@pytest.fixture(scope="module", params=sorted(set(RECIPES) - {"fastv"}))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    folder = tmp_path_factory.mktemp(request.param)
    source = save_llava(folder / "model")
    save_curve(CURVE, folder / "curve.json")
    curve = None if request.param == "random" else folder / "curve.json"
    bundle = export(
        source, method=request.param, keep=KEEP, curve=curve, seed=3, output=folder / "bundle", verify=True
    )
    return request.param, Bundle(Llava().load(source, torch.float32), bundle)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 2)], ids=str)
def test_the_exported_graph_equals_the_reference_too(
    exported: tuple[str, Bundle], shape: tuple[int, int]
) -> None:
    method, bundle = exported
    manifest = read_manifest(bundle.folder)
    assert manifest.plan == plan_of(method)
    assert manifest.verification.checks
    inputs = random_inputs(bundle.model, *shape, seed=2)
    with torch.no_grad():
        embeds = Llava().parts(bundle.model).vision(inputs.pixel_values)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    graph = onnxruntime.InferenceSession(str(bundle.folder / "language.onnx"), options)
    found = greedy(
        onnxruntime_step(graph),
        Interface(manifest.language.inputs, manifest.language.outputs),
        inputs,
        embeds,
        manifest.prompt.image_token_id,
        STEPS,
    )
    assert_agrees(found, references(bundle.model, inputs, embeds, method), inputs)


@pytest.mark.slow
def test_tensorrt_for_rtx_builds_the_graph(exported: tuple[str, Bundle]) -> None:
    pytest.importorskip("tensorrt_rtx")
    from edgeprune.runtime.backends.tensorrt.building import build

    method, bundle = exported
    folder = build(bundle.folder, flavour="tensorrt-rtx", targets=("sm89",), max_batch=2, max_images=2)
    assert (folder / "language.engine").stat().st_size > 0, method


@pytest.mark.slow
@pytest.mark.parametrize("method", ["illava", "sparsevlm", "tokencarve"])
def test_a_method_that_merges_exports_in_bfloat16(method: str, tmp_path: Path) -> None:
    source = save_llava(tmp_path / "model")
    bundle = export(source, method=method, keep=KEEP, dtype="bf16", output=tmp_path / "bundle")
    # The exporter has ONNX check what it writes; nothing here runs bfloat16.
    assert "bfloat16" in (read_manifest(bundle).verification.skipped or "")
