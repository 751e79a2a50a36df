"""Every pruning method, in torch and as an exported graph, against its plain reference."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.debias.curves import ExponentialCurve, save_curve
from edgeprune.exporter.decision import _DTYPE_NAMES, _model_info
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import family_of
from edgeprune.exporter.families.llava import Llava
from edgeprune.interface import Interface, language_interface
from edgeprune.manifest import Precision
from edgeprune.plans import Debias, Positions, PruningPlan, method_by_name, random_scores, with_keep
from edgeprune.positions import SequentialPositions
from edgeprune.runtime import load
from tests.export.method_reference import Outcome, Recipe, generate
from tests.export.reference import (
    Decoded,
    Inputs,
    greedy,
    onnxruntime_step,
    places_of,
    prompts_of,
    random_inputs,
    torch_step,
)
from tests.tiny import save_llava, tiny_llava

LAYERS, PER_PICTURE = 4, 36
STEPS = 20
LIMIT = 1e-4
# Steep enough to change which of so few tokens are kept.
CURVE = ExponentialCurve(b=0.02, num_tokens=PER_PICTURE)
LAYERS_OF = {
    "fastv": (2,),
    "random": (2,),
    "pyramiddrop": (1, 2, 3),
    "himap": (1, 2),
    "sparsevlm": (1, 2, 3),
    "tokencarve": (2,),
    "illava-decoder": (1,),
}
KEEP = 0.4
# keep -> method -> how many visual tokens stay of one image, and of two. At 0.7 the first selection of a
# method with several keeps them all, so that the second is the first that drops.
COUNTS: dict[float, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    0.2: {
        "fastv": ((7,), (14,)),
        "random": ((7,), (14,)),
        "pyramiddrop": ((12, 6, 3), (24, 12, 6)),
        "himap": ((8, 7), (16, 14)),
        "sparsevlm": ((11, 7, 4), (22, 14, 8)),
        "tokencarve": ((7,), (14,)),
        "illava-decoder": ((7,), (14,)),
    },
    KEEP: {
        "fastv": ((14,), (29,)),
        "random": ((14,), (29,)),
        "pyramiddrop": ((24, 12, 6), (48, 24, 12)),
        "himap": ((17, 13), (34, 26)),
        "sparsevlm": ((21, 14, 8), (42, 28, 15)),
        "tokencarve": ((14,), (29,)),
        "illava-decoder": ((14,), (29,)),
    },
    0.7: {
        "fastv": ((25,), (50,)),
        "random": ((25,), (50,)),
        "pyramiddrop": ((36, 26, 13), (72, 52, 26)),
        "himap": ((29, 23), (58, 46)),
        "sparsevlm": ((36, 26, 14), (72, 52, 27)),
        "tokencarve": ((25,), (50,)),
        "illava-decoder": ((25,), (50,)),
    },
    1.0: {
        method: ((PER_PICTURE,) * len(at), (2 * PER_PICTURE,) * len(at)) for method, at in LAYERS_OF.items()
    },
}
POSITION, PADDING = Debias
CHOICES = ((), (POSITION,), (PADDING,), (POSITION, PADDING))


@functools.cache
def model_of(kind: str, **changes: Any) -> LlavaForConditionalGeneration:
    return tiny_llava(kind, **changes)


def most_debias(method: str) -> tuple[Debias, ...]:
    """All that can act: random scores have no bias by position."""
    return (PADDING,) if method == "random" else (POSITION, PADDING)


def plan_of(method: str, keep: float = KEEP) -> PruningPlan:
    plan = method_by_name(method).plan(LAYERS, KEEP, visual_tokens=PER_PICTURE, seed=3)
    return with_keep(plan, keep, LAYERS, PER_PICTURE).debiased(most_debias(method))


def references(
    model: LlavaForConditionalGeneration,
    inputs: Inputs,
    embeds: torch.Tensor,
    method: str,
    steps: int = STEPS,
    keep: float = KEEP,
    debias: tuple[Debias, ...] = CHOICES[-1],
) -> list[Outcome]:
    """Each prompt alone, without its padding."""
    batch, visual = inputs.visual_valid.shape
    pictures = visual // PER_PICTURE
    weights = torch.from_numpy(CURVE.weights(PER_PICTURE)).repeat(pictures)
    curve = weights if POSITION in debias else torch.ones(visual)
    scores = torch.from_numpy(random_scores(3, visual))
    recipe = Recipe(method, LAYERS_OF[method], COUNTS[keep][method][pictures - 1], curve, scores)
    of_prompt = embeds.reshape(batch, visual, -1)
    valid = inputs.visual_valid if PADDING in debias else torch.ones_like(inputs.visual_valid)
    return [
        generate(model, ids[mask == 1], of_prompt[row], valid[row], recipe, steps)
        for row, (ids, mask) in enumerate(zip(inputs.input_ids, inputs.attention_mask, strict=True))
    ]


def kept_of(plan: PruningPlan, inputs: Inputs) -> list[int]:
    return [counts.kept for counts in plan.counts(inputs.visual_valid.shape[1])]


def places_by(plan: PruningPlan, inputs: Inputs) -> torch.Tensor | None:
    return places_of(inputs, PER_PICTURE) if POSITION in plan.debias else None


def run_torch(
    model: LlavaForConditionalGeneration,
    inputs: Inputs,
    plan: PruningPlan,
    steps: int = STEPS,
    made_of: PruningPlan | None = None,
) -> tuple[Decoded, torch.Tensor]:
    """By a PrunedDecoder of a copy of the model, perhaps made of another plan; also the visual embeddings."""
    model = copy.deepcopy(model)
    family = family_of(model.config)
    parts = family.parts(model)
    table = torch.cat([torch.ones(1), torch.from_numpy(CURVE.weights(PER_PICTURE))])
    most = model.config.get_text_config().max_position_embeddings
    decoder = PrunedDecoder(
        parts.text_model, parts.lm_head, made_of or plan, parts.image_token_id, table, most
    ).eval()
    interface = language_interface(
        _model_info(family, model.config.get_text_config(), "tiny"),
        Precision.plain(_DTYPE_NAMES[model.dtype]),
        plan,
        SequentialPositions(),
    )
    embeds = torch.zeros(0, PER_PICTURE, model.config.text_config.hidden_size)
    if len(inputs.pixel_values):
        with torch.no_grad():
            embeds = parts.vision(inputs.pixel_values.to(model.dtype))
    step = torch_step(decoder, interface)
    kept, places = kept_of(plan, inputs), places_by(plan, inputs)
    return greedy(step, interface, inputs, embeds, parts.image_token_id, steps, kept, places), embeds


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
@pytest.mark.parametrize("method", LAYERS_OF)
def test_a_method_equals_its_reference_over_twenty_steps(method: str, shape: tuple[int, int]) -> None:
    model = model_of("llama")
    inputs = random_inputs(model, *shape, seed=1)
    found, embeds = run_torch(model, inputs, plan_of(method))
    assert_agrees(found, references(model, inputs, embeds, method), inputs)


@pytest.mark.parametrize(
    "method", [name for name in LAYERS_OF if plan_of(name).positions is Positions.PRESERVED]
)
def test_a_method_of_a_model_with_windows_equals_its_reference(method: str) -> None:
    """In the last two layers, so that those in front pay attention to all visual tokens."""
    model = model_of("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=2)
    inputs = random_inputs(model, 2, 2, seed=1)
    found, embeds = run_torch(model, inputs, plan_of(method))
    assert_agrees(found, references(model, inputs, embeds, method), inputs)


@pytest.mark.parametrize("keep", [0.2, 0.7])
@pytest.mark.parametrize("method", LAYERS_OF)
def test_a_decoder_keeps_what_it_is_told_and_not_what_it_was_made_of(method: str, keep: float) -> None:
    model = model_of("llama")
    inputs = random_inputs(model, 2, 2, seed=6)
    plan = plan_of(method, keep)
    assert kept_of(plan, inputs)[0] == COUNTS[keep][method][1][0]
    found, embeds = run_torch(model, inputs, plan, steps=3, made_of=plan_of(method))
    wanted = references(model, inputs, embeds, method, 3, keep, plan.debias)
    assert_agrees(found, wanted, inputs)


@pytest.mark.parametrize("method", LAYERS_OF)
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

    method: str
    model: LlavaForConditionalGeneration
    folder: Path

    @functools.cached_property
    def graph(self) -> onnxruntime.InferenceSession:
        """The language graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(self.folder / "language.onnx"), options)

    @functools.cached_property
    def runtime(self) -> Any:
        return load(self.folder, "onnxruntime", threads=1)

    @torch.no_grad()
    def embeds(self, inputs: Inputs) -> torch.Tensor:
        found: torch.Tensor = family_of(self.model.config).parts(self.model).vision(inputs.pixel_values)
        return found

    def run(self, inputs: Inputs, plan: PruningPlan, steps: int) -> Decoded:
        """By the graph alone; nothing of the runtime."""
        manifest = read_manifest(self.folder)
        return greedy(
            onnxruntime_step(self.graph),
            Interface(manifest.language.inputs, manifest.language.outputs),
            inputs,
            self.embeds(inputs),
            manifest.prompt.image_token_id,
            steps,
            kept_of(plan, inputs),
            places_by(plan, inputs),
        )


def bundle_of(method: str, folder: Path) -> Bundle:
    source = save_llava(folder / "model")
    save_curve(CURVE, folder / "curve.json")
    options: dict[str, Any] = {"output": folder / "bundle"}
    if method != "none":
        options |= {"keep": KEEP, "seed": 3}
        options |= {} if method == "random" else {"curve": folder / "curve.json"}
    bundle = export(source, method=method, **options)
    return Bundle(method, Llava().load(source, torch.float32), bundle)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model, exported without pruning."""
    return bundle_of("none", tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module", params=sorted(LAYERS_OF))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 2)], ids=str)
def test_the_exported_graph_equals_the_reference_too(exported: Bundle, shape: tuple[int, int]) -> None:
    manifest, plan = read_manifest(exported.folder), plan_of(exported.method)
    assert manifest.plan == plan
    assert manifest.verification.checks
    inputs = random_inputs(exported.model, *shape, seed=2)
    wanted = references(exported.model, inputs, exported.embeds(inputs), exported.method, debias=plan.debias)
    assert_agrees(exported.run(inputs, plan, STEPS), wanted, inputs)


def numbers_kept(outcome: Outcome, visual: list[int]) -> list[list[int]]:
    """What each selection left, as numbers of the visual tokens; a mean has its centre's."""
    found: list[list[int]] = []
    origins = list(range(1 + max(max(kept) for kept in outcome.kept)))
    for kept in outcome.kept:
        origins = [origins[position] for position in kept]
        found.append([visual.index(position) for position in origins if position in visual])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "debias", CHOICES, ids=lambda chosen: "+".join(one.value for one in chosen) or "none"
)
@pytest.mark.parametrize("keep", [0.2, KEEP, 0.7])
def test_one_bundle_keeps_and_debiases_as_it_is_asked(
    exported: Bundle, keep: float, debias: tuple[Debias, ...]
) -> None:
    """Through the runtime, which decodes from its caches; the reference computes every step anew."""
    if not set(debias) <= set(most_debias(exported.method)):
        pytest.skip("random numbers have no bias by position")
    steps = 4
    inputs = random_inputs(exported.model, 2, 2, seed=7)
    wanted = references(exported.model, inputs, exported.embeds(inputs), exported.method, steps, keep, debias)
    plan = exported.runtime.plan(keep, [one.value for one in debias] or "none")
    assert plan.debias == debias
    prompts = prompts_of(inputs, read_manifest(exported.folder).image_program)
    state = exported.runtime.session.prefill(prompts, plan)
    for row, (prompt, outcome) in enumerate(zip(prompts, wanted, strict=True)):
        visual = np.flatnonzero(prompt.input_ids == 5).tolist()
        left = [[*stage.kept_visual.tolist(), *stage.averaged.tolist()] for stage in state.stages[row]]
        assert left == numbers_kept(outcome, visual)
        assert [stage.kept for stage in state.stages[row]] == list(COUNTS[keep][exported.method][1])
    for step in range(steps):
        reference = torch.stack([outcome.logits[step] for outcome in wanted]).numpy()
        assert float(np.abs(state.logits - reference).max()) <= LIMIT
        state.step(state.logits.argmax(axis=1).astype(np.int64))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 1), (2, 2)], ids=str)
def test_keep_1_is_the_unpruned_model(exported: Bundle, whole: Bundle, shape: tuple[int, int]) -> None:
    """The same bundle that prunes, beside an export without pruning: prefill and decode."""
    inputs = random_inputs(exported.model, *shape, seed=8)
    steps = 6
    wanted = whole.run(inputs, method_by_name("none").plan(LAYERS), steps)
    for plan in (plan_of(exported.method, 1.0), plan_of(exported.method).keeping_all().debiased(())):
        found = exported.run(inputs, plan, steps)
        assert torch.equal(found.tokens, wanted.tokens)
        assert float((found.logits - wanted.logits).abs().max()) <= 1e-5
        for kept in found.kept:
            assert (kept == np.arange(inputs.input_ids.shape[1])).all()


@pytest.mark.slow
def test_tensorrt_for_rtx_builds_the_graph(exported: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    from edgeprune.runtime.backends.tensorrt.building import build

    folder = build(exported.folder, backend="tensorrt-rtx", targets=("sm89",), max_batch=2, max_images=2)
    assert (folder / "language.engine").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["illava", "sparsevlm", "tokencarve"])
def test_a_method_that_merges_exports_in_bfloat16(method: str, tmp_path: Path) -> None:
    source = save_llava(tmp_path / "model")
    bundle = export(source, method=method, keep=KEEP, dtype="bf16", output=tmp_path / "bundle")
    # The exporter has ONNX check what it writes; nothing here runs bfloat16.
    assert "bfloat16" in (read_manifest(bundle).verification.skipped or "")
