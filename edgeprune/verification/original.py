"""Comparing a bundle with the model it was made from.

Three independent statements are checked, on random inputs and on a drawn image with a real prompt:
1. the ONNX graph, run by ONNX Runtime, computes what the torch decoder computes (logits, kept tokens,
   prefill and decode steps);
2. they compute what Hugging Face's own model computes: the graph's logits, where every stage keeps all; the
   scores of the layers before the first stage, its eager attention; and where the vision tower merges
   tokens, the scores of the first such layer;
3. the kept tokens are exactly those the numpy reference selects from the graph's own scores.

Where weights are stored in fewer bits, that is checked of the model with the weights that are stored, and a
fourth statement says how far that is from the original. The language graph's form with caches in place is
compared with the portable one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune import interface
from edgeprune.debias.curves import curve_table
from edgeprune.debias.selection import select
from edgeprune.errors import MissingDependencyError, VerificationError
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import Family, ModelParts, family_of, read_config
from edgeprune.exporter.graph import TORCH_DTYPES, decoder_arguments
from edgeprune.layout import PromptLayout
from edgeprune.log import note
from edgeprune.manifest import Check, Manifest, Verification, failures
from edgeprune.memory import available_memory
from edgeprune.plans import Debias, PruningPlan, Ranking, ScoringRows
from edgeprune.positions import prompt_positions
from edgeprune.progress import Progress
from edgeprune.runtime.programs import run_program
from edgeprune.units import bytes_text
from edgeprune.verification import quantising
from edgeprune.verification.cache_forms import Decoded, compare_in_place
from edgeprune.verification.quantising import Selected
from edgeprune.vision_inputs import frame_feed, vision_inputs

DECODE_STEPS = 4
# Largest accepted absolute difference of logits, in units of the logits' own spread (at least 1).
LOGIT_LIMITS = {"fp32": 1e-4, "fp16": 5e-2}
SCORE_LIMITS = {"fp32": 1e-5, "fp16": 2e-3}
# Half precision moves scores that are nearly equal past each other; this share of kept tokens must agree.
KEPT_LIMITS = {"fp32": 0.0, "fp16": 0.05}
# What is repacked loses nothing but the bits of scales that the type in which the graph computes has not.
CHECKPOINT_LIMITS = {"fp32": 1e-6, "fp16": 1e-2}

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """Inputs of one comparison.

    Attributes:
        name: says which.
        input_ids, attention_mask: int64 [B, S].
        position_ids: int64 [B, S], or [axes, B, S].
        following: int64 [B], the position behind each row.
        vision: the vision graph's inputs, for the images of all rows.
        layout: of a row's visual tokens, the same for each.
        visual_valid: the padding mask, float32 [B, tokens of the layout]; for the language graph of the
            visual tokens that are left, [B, V].
        curve_place: int64 [B, V], as if positions were debiased.
    """

    name: str
    input_ids: Array
    attention_mask: Array
    position_ids: Array
    following: Array
    vision: dict[str, Array]
    layout: PromptLayout
    visual_valid: Array
    curve_place: Array


class Figures:
    """The worst value of every figure; NaN is worse than any number, and stays."""

    def __init__(self) -> None:
        self._worst: dict[str, Check] = {}

    def add(self, name: str, value: float, limit: float) -> None:
        if name not in self._worst or math.isnan(value) or value > self._worst[name].value:
            self._worst[name] = Check(name=name, value=float(value), limit=limit)

    @property
    def checks(self) -> list[Check]:
        return list(self._worst.values())


def verify_bundle(
    bundle: Path,
    manifest: Manifest,
    source: Path,
    progress: Progress,
) -> Verification:
    """Compares `bundle` with the model folder `source`.

    Returns:
        The figures, or the reason why nothing could be compared here.

    Raises:
        VerificationError: a figure is beyond its limit.
        MissingDependencyError: onnxruntime is not installed.
    """
    reason = why_not(bundle, manifest)
    if reason:
        note(f"not compared with the original model: {reason}")
        return Verification(skipped=reason)
    progress.step("comparing with the original model")
    checks = compare(bundle, manifest, source)
    if bad := failures(checks):
        raise VerificationError(
            f"the exported graph does not agree with the original model: {bad}. "
            "Nothing was written; `verify=False` would write it all the same"
        )
    return Verification(checks=tuple(checks))


def why_not(bundle: Path, manifest: Manifest) -> str | None:
    """Why the comparison cannot run on this machine; None where it can."""
    if (lacking := manifest.precision.beyond_onnxruntime) is not None:
        return f"ONNX Runtime's CPU kernels do not run {lacking}"
    weights = sum(entry.bytes for entry in manifest.files)
    free = available_memory()
    # The original and the graph each hold the weights once, each as it computes; both lay matrices out anew.
    needed = (2 + 2 * quantising.times_wider(manifest.precision)) * weights
    if free is not None and free < needed:
        return f"it needs about {bytes_text(needed)} of memory and {bytes_text(free)} are free"
    return None


def compare(bundle: Path, manifest: Manifest, source: Path) -> list[Check]:
    """All figures, without judging them."""
    family = family_of(read_config(source))
    dtype = TORCH_DTYPES[manifest.precision.compute]
    model = family.load(source, dtype)
    vision, language = _session(bundle / manifest.vision.file), _session(bundle / manifest.language.file)
    figures = Figures()
    record = figures.add

    cases = [_random_case(manifest, seed) for seed in (0, 1)] + [_image_case(bundle, manifest)]
    tower = manifest.plan.tower
    worst = quantising.store(model, family.parts(model), bundle, manifest)
    received = [_received(family, model, case, tower[0].layer) if tower else None for case in cases]
    parts = family.parts(model, tower)  # from here on the tower's own attention is another
    seen_of = [_see(vision, parts.vision, case) for case in cases]
    reference = [
        _huggingface(family, model, case, manifest, seen.embeds if tower else None)
        for case, seen in zip(cases, seen_of, strict=True)
    ]
    decoder = _decoder(parts, manifest)
    found: list[Selected] = []
    decoded: list[Decoded] = []
    for case, seen, paid, (hf_logits, hf_score) in zip(cases, seen_of, received, reference, strict=True):
        _compare_vision(seen, paid, manifest, record)
        case = _after_tower(case, seen, manifest)
        prefill, of_case = _compare_language(
            case, manifest, decoder, language, seen, hf_logits, hf_score, record
        )
        found.append(Selected.of(prefill, len(manifest.plan.stages)))
        decoded.append(of_case)
    del language, decoder, parts, model  # room for the weights of one more graph
    kind = manifest.precision.compute
    # Each may be off by the limit, to either side.
    compare_in_place(bundle, manifest, decoded, record, 2 * LOGIT_LIMITS[kind], KEPT_LIMITS[kind])
    if manifest.precision.method == "checkpoint":
        limit = CHECKPOINT_LIMITS[manifest.precision.compute]
        record("quantised weights, the worst matrix against the checkpoint", worst, limit)
        return figures.checks
    limits = quantising.weakest(manifest.precision)
    if limits is None:
        return figures.checks
    record("weights in blocks, the worst matrix against the original", worst, limits.weights)
    parts = family.parts(family.load(source, dtype), tower)
    for before, after in zip(_originals(parts, vision, cases, manifest), found, strict=True):
        for name, value in after.changes(before).items():
            what = "kept tokens" if name == "kept" else name
            record(f"{what}, against the original weights", value, getattr(limits, name))
    return figures.checks


def _decoder(parts: ModelParts, manifest: Manifest) -> PrunedDecoder:
    curve = torch.from_numpy(curve_table(manifest.curve, manifest.curve_places))
    return PrunedDecoder(
        parts.text_model,
        parts.lm_head,
        manifest.plan,
        parts.image_token_id,
        curve,
        manifest.model.max_positions,
        parts.two_way,
    ).eval()


def _originals(
    parts: ModelParts, vision: Any, cases: Sequence[Case], manifest: Manifest
) -> Iterator[Selected]:
    """What the original's prefill selects in each case."""
    decoder, names = _decoder(parts, manifest), [spec.name for spec in manifest.language.outputs]
    for case in cases:
        seen = _see(vision, parts.vision, case)
        feeds = first_feeds(
            _after_tower(case, seen, manifest), manifest, manifest.plan, seen.embeds, seen.levels
        )
        with torch.no_grad():
            outputs = dict(zip(names, decoder(*decoder_arguments(feeds)), strict=True))
        arrays = {name: _to_numpy(value) for name, value in outputs.items()}
        yield Selected.of(arrays, len(manifest.plan.stages))


@dataclass(frozen=True)
class _Seen:
    """What graph and torch module make of a case's images, by the graph's outputs.

    Attributes:
        found: the graph's.
        expected: the module's. It merges by the graph's scores, since scores that are equal up to rounding
            may be in another order here, and the order is what merges.
    """

    found: dict[str, Array]
    expected: dict[str, torch.Tensor]

    @property
    def embeds(self) -> torch.Tensor:
        return self.expected[interface.VISUAL_EMBEDS]

    @property
    def levels(self) -> list[torch.Tensor]:
        return [value for name, value in self.expected.items() if interface.is_deepstack(name)]


def _see(session: Any, module: Any, case: Case) -> _Seen:
    half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
    feeds = {name: v.astype(np.float16) if name in half else v for name, v in case.vision.items()}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    scores = [torch.from_numpy(value) for name, value in found.items() if interface.is_tower_score(name)]
    given = [torch.from_numpy(value) for value in feeds.values()]
    with torch.no_grad():
        made = module(*given, scores) if scores else module(*given)
    expected = made if isinstance(made, tuple) else (made,)
    return _Seen(found, dict(zip(names, expected, strict=True)))


def _received(family: Family, model: Any, case: Case, layer: int) -> Array:
    """The attention that each place receives in a layer of Hugging Face's own tower, float32 [N, places]."""
    pixels = torch.from_numpy(case.vision[interface.PIXEL_VALUES]).to(model.dtype)
    with torch.no_grad():
        paid = family.tower_attention(model, pixels, layer)
    return _to_numpy(paid.float().mean(dim=(1, 2)))


def _compare_vision(
    seen: _Seen, received: Array | None, manifest: Manifest, record: Callable[[str, float, float], None]
) -> None:
    kind = manifest.precision.compute
    for name, value in seen.expected.items():
        found = seen.found[name]
        if name == interface.VISUAL_PLACE:
            apart = float((found != value.numpy()).mean())
            record("places of merged tokens, graph against torch", apart, 0.0)
        elif interface.is_tower_score(name):
            record("tower score, graph against torch", _apart(found, value), SCORE_LIMITS[kind])
        else:
            scale = max(1.0, float(value.float().abs().max()))
            label = "visual embeddings" if name == interface.VISUAL_EMBEDS else "deepstack"
            record(label, _apart(found, value) / scale, LOGIT_LIMITS[kind])
    if received is None:
        return
    apart = float(np.abs(seen.found[interface.tower_score(0)] - received).max())
    record("tower score, graph against Hugging Face", apart, SCORE_LIMITS[kind])


def _after_tower(case: Case, seen: _Seen, manifest: Manifest) -> Case:
    """The case with the padding mask of the tokens that the tower left."""
    if interface.VISUAL_PLACE not in seen.found:
        return case
    place, batch = seen.found[interface.VISUAL_PLACE], len(case.visual_valid)
    tiles = place.reshape(batch, -1, place.shape[1])
    each = case.layout.tokens // tiles.shape[1]
    taken = (tiles + each * np.arange(tiles.shape[1])[:, None]).reshape(batch, -1)
    return replace(
        case,
        visual_valid=np.take_along_axis(case.visual_valid, taken, axis=1),
        curve_place=np.stack([manifest.curve_place(case.layout.take(row)) for row in taken]),
    )


def _compare_language(
    case: Case,
    manifest: Manifest,
    decoder: PrunedDecoder,
    session: Any,
    seen: _Seen,
    hf_logits: torch.Tensor,
    hf_score: torch.Tensor | None,
    record: Callable[[str, float, float], None],
) -> tuple[dict[str, Array], Decoded]:
    """Returns what the graph gave out in the pruned prefill, and what it decoded."""
    kind = manifest.precision.compute
    stages = len(manifest.plan.stages)
    feeds = first_feeds(case, manifest, manifest.plan.keeping_all(), seen.embeds, seen.levels)
    whole = session.run([interface.LOGITS], {name: _to_numpy(value) for name, value in feeds.items()})[0]
    record(
        "unpruned prefill logits, graph against Hugging Face",
        _apart(whole, hf_logits) / max(1.0, float(hf_logits.std())),
        LOGIT_LIMITS[kind],
    )
    feeds = first_feeds(case, manifest, manifest.plan, seen.embeds, seen.levels)
    names = [spec.name for spec in manifest.language.outputs]
    prefill: dict[str, Array] = {}
    decoded = Decoded({name: _to_numpy(value) for name, value in feeds.items()}, case.following)
    for step in range(DECODE_STEPS + 1):
        with torch.no_grad():
            expected = dict(zip(names, decoder(*decoder_arguments(feeds)), strict=True))
        wanted = {name: _to_numpy(value) for name, value in feeds.items()}
        found = dict(zip(names, session.run(None, wanted), strict=True))
        logits = expected[interface.LOGITS]
        decoded.logits.append(found[interface.LOGITS])
        decoded.tokens.append(logits.argmax(-1).numpy())
        spread = max(1.0, float(logits.std()))
        phase = "decode" if step else "prefill"
        # A step's caches are the same on both sides; a prefill's selections need not be, to the last token.
        rows = _same_selection(found, expected, stages) if step == 0 else slice(None)
        record(
            f"{phase} logits, graph against torch",
            _apart(found[interface.LOGITS][rows], logits[rows]) / spread,
            LOGIT_LIMITS[kind],
        )
        if step == 0:
            prefill = found
            visual = _to_numpy(feeds[interface.VISUAL_INDEX])
            every, place = visual.shape[1], _to_numpy(feeds[interface.CURVE_PLACE])
            weights = (
                decoder.get_buffer("bias_curve").numpy()[place] * case.visual_valid
                if stages
                else case.visual_valid
            )
            for stage, planned in enumerate(manifest.plan.stages):
                kept = found[interface.kept_index(stage)]
                decoded.kept.append(kept)
                record(
                    "kept tokens, graph against torch",
                    _differing(kept, expected[interface.kept_index(stage)].numpy()),
                    KEPT_LIMITS[kind],
                )
                acts = visual.shape[1] == every and not planned.weighs_before
                weight = weights if acts else np.ones(visual.shape, dtype=np.float32)
                counts = planned.counts(visual.shape[1])
                chosen = select(found[interface.score(stage)], visual, weight, counts.kept)
                lacking = _lacking(kept, chosen.kept_index, visual, counts.appended)
                record("kept tokens, graph against numpy", lacking, 0.0)
                visual = _still_visual(kept, visual)
            if stages and hf_score is not None:
                apart = _apart(found[interface.score(0)], hf_score)
                record("score, graph against Hugging Face", apart, SCORE_LIMITS[kind])
        feeds = _next_feeds(case.following + step, expected, manifest)
    return prefill, decoded


def first_feeds(
    case: Case,
    manifest: Manifest,
    plan: PruningPlan,
    embeds: torch.Tensor,
    levels: Sequence[torch.Tensor] = (),
) -> dict[str, torch.Tensor]:
    """The prefill's inputs, in the graph's order."""
    batch, visual = case.visual_valid.shape
    columns = [np.flatnonzero(row == manifest.prompt.image_token_id) for row in case.input_ids]
    return _tensors(
        interface.first_feeds(
            manifest.language.inputs,
            case.input_ids,
            case.attention_mask,
            case.position_ids,
            np.stack(columns).astype(np.int64),
            case.visual_valid,
            case.curve_place * int(Debias.POSITION in plan.debias),
            [counts.kept for counts in plan.counts(visual)],
            embeds.reshape(batch, visual, -1),
            [level.reshape(batch, visual, -1) for level in levels],
        )
    )


def _next_feeds(
    positions: Array, outputs: dict[str, torch.Tensor], manifest: Manifest
) -> dict[str, torch.Tensor]:
    """A decode step: the greedy token, an empty visual input, the caches carried on."""
    tokens = outputs[interface.LOGITS].argmax(-1).numpy()
    return _tensors(interface.next_feeds(manifest.language.inputs, tokens, positions, outputs))


def _tensors(feeds: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        for name, value in feeds.items()
    }


def _huggingface(
    family: Family, model: Any, case: Case, manifest: Manifest, embeds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Last-position logits of Hugging Face's own forward, and the first stage's score from its attention.

    Args:
        embeds: the visual embeddings [V, D], where they are not those of Hugging Face's own tower.
    """
    mask, ids = torch.from_numpy(case.attention_mask), torch.from_numpy(case.input_ids)
    with torch.no_grad():
        if embeds is None:
            pixels = torch.from_numpy(case.vision[interface.PIXEL_VALUES]).to(model.dtype)
            given = {
                "input_ids": ids,
                **family.image_arguments(ids, pixels, [case.layout] * len(ids), model.config),
            }
        else:
            words = model.get_input_embeddings()(ids)
            words[ids == manifest.prompt.image_token_id] = embeds
            given = {"inputs_embeds": words}
        output = model(
            **given,
            attention_mask=mask,
            position_ids=torch.from_numpy(case.position_ids),
            output_attentions=manifest.plan.prunes,
            output_hidden_states=manifest.plan.prunes,
            use_cache=False,
        )
    logits = output.logits[:, -1].float()
    first = manifest.plan.stages[0] if manifest.plan.prunes else None
    if first is None or first.ranking is not Ranking.ATTENTION or first.score_layer is None:
        return logits, None
    paid = output.attentions[first.score_layer].float().mean(1)
    if first.rows is ScoringRows.LAST_TOKEN:
        return logits, paid[:, -1]
    weights = _row_weights(first.rows, ids == manifest.prompt.image_token_id, output.hidden_states[0])
    return logits, (paid * weights.unsqueeze(-1)).sum(1)


def _row_weights(rows: ScoringRows, is_visual: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    """What each row's attention counts in the first score, float32 [B, S]; embeds are the layers' input."""
    weights = torch.zeros(is_visual.shape)
    for row, marks in enumerate(is_visual):
        visual = marks.nonzero()[:, 0]
        if rows is ScoringRows.IMAGE:
            weights[row, visual] = 1
            continue
        text = torch.arange(int(visual[-1]) + 1, len(marks))
        if rows is ScoringRows.RATERS:
            likeness = embeds[row, visual].float() @ embeds[row, text].float().T
            received = likeness.softmax(dim=1).mean(dim=0)
            above = text[received > received.mean()]
            text = above if len(above) else text
            weights[row, text] = 1 / len(text)
        else:
            weights[row, text] = 1
    return weights


def _random_case(manifest: Manifest, seed: int) -> Case:
    """A batch of two with left padding in one row and `seed + 1` images of noise each."""
    rng, batch = np.random.default_rng(seed), 2
    side = max(manifest.image_program.unit)
    images = [rng.integers(0, 256, size=(side, side, 3)).astype(np.uint8) for _ in range(batch * (seed + 1))]
    text = rng.integers(0, manifest.model.vocab_size, size=(batch, 12))
    special = manifest.prompt.image_token_id
    text[text == special] = (special + 1) % manifest.model.vocab_size
    mask = np.ones((batch, 5), dtype=np.int64)
    mask[0, :3] = 0
    case = _case("random", manifest, images, text[:, :5], text[:, 5:], mask)
    valid = (rng.random(case.visual_valid.shape) > 0.2).astype(np.float32)
    return replace(case, visual_valid=valid)


def _image_case(bundle: Path, manifest: Manifest) -> Case:
    """A drawn wide image in a prompt of the bundle's tokenizer."""
    from tokenizers import Tokenizer

    height = width = max(manifest.image_program.unit)
    rows, columns = np.mgrid[0:height, 0 : 2 * width]
    disc = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 5) ** 2
    channels = np.stack([rows / height, columns / (2 * width), disc], axis=-1)
    tokenizer = Tokenizer.from_file(str(bundle / manifest.prompt.tokenizer))
    before = np.array([tokenizer.encode("USER: ").ids], dtype=np.int64)
    question = " What is in the image? ASSISTANT:"
    after = np.array([tokenizer.encode(question, add_special_tokens=False).ids], dtype=np.int64)
    image = np.round(channels * 255).astype(np.uint8)
    return _case("drawn", manifest, [image], before, after, np.ones_like(before))


def _case(
    name: str, manifest: Manifest, images: list[NDArray[np.uint8]], before: Array, after: Array, mask: Array
) -> Case:
    """Rows of as many images each, which are all of one size.

    Args:
        name: see `Case`.
        manifest: of the bundle.
        images: of all rows.
        before, after: int64 [B, text], what stands in front of the images and behind them.
        mask: int64 [B, text], of what stands in front.
    """
    batch, image_token = len(before), manifest.prompt.image_token_id
    program = manifest.image_program.of_prompt(len(images) // batch)
    seen = [run_program(image, program) for image in images]
    layout = PromptLayout(tuple(one.layout for one in seen[: len(seen) // batch]))
    visual = np.full((batch, manifest.tower_tokens(layout.tokens)), image_token)
    ids = np.concatenate([before, visual, after], axis=1).astype(np.int64)
    mask = np.concatenate([mask, np.ones((batch, ids.shape[1] - mask.shape[1]), dtype=np.int64)], axis=1)
    found = [
        prompt_positions(manifest.positions, row[real == 1] == image_token, layout)
        for row, real in zip(ids, mask, strict=True)
    ]
    positions = np.zeros((*found[0].ids.shape[:-1], *ids.shape), dtype=np.int64)
    for row, of_row in enumerate(found):
        positions[..., row, mask[row] == 1] = of_row.ids
    vision = {
        interface.PIXEL_VALUES: np.concatenate([one.pixel_values for one in seen]),
        **frame_feed(program, manifest.video_program),
        **vision_inputs(program, [one.layout for one in seen], manifest.video_program),
    }
    valid = np.stack([layout.valid(manifest.padding_mask)] * batch)
    place = np.stack([manifest.curve_place(layout)] * batch)
    following = np.array([of_row.following for of_row in found], dtype=np.int64)
    return Case(name, ids, mask, positions, following, vision, layout, valid, place)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "comparing the export with the original", "onnxruntime", "ort"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # By default what multiplies weights in blocks is rounded to 8 bits, which is no mistake of the graph.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _numpy(dtype: torch.dtype) -> type[np.generic]:
    return np.float16 if dtype == torch.float16 else np.float32


def _to_numpy(value: torch.Tensor) -> Array:
    return value.detach().numpy()


def _lacking(found: Array, chosen: Array, visual: Array, appended: int) -> float:
    """Share of the reference's kept positions that the graph lacks; 1 where it has others than the plan's.

    Beside the reference's positions, `appended` ones stand for means of dropped visual tokens.
    """
    if found.shape[1] != chosen.shape[1] + appended:
        return 1.0
    for row, reference, of_row in zip(found, chosen, visual, strict=True):
        added = np.setdiff1d(row, reference)
        if len(np.unique(row)) != len(row) or not np.isin(added, of_row).all():
            return 1.0
    missing = [np.setdiff1d(b, a).size for a, b in zip(found, chosen, strict=True)]
    return float(np.sum(missing) / chosen.size)


def _still_visual(kept: Array, visual: Array) -> Array:
    """Where the visual tokens among the kept positions stand, int64 [B, visual tokens left]."""
    rows = [np.flatnonzero(np.isin(row, of_row)) for row, of_row in zip(kept, visual, strict=True)]
    return np.stack(rows)


def _apart(found: Array, expected: torch.Tensor) -> float:
    return float(np.abs(found.astype(np.float32) - expected.float().numpy()).max())


def _same_selection(found: dict[str, Array], expected: dict[str, torch.Tensor], stages: int) -> Array | slice:
    """The rows, bool [B], in which both kept the same tokens, so that their logits can be compared.

    How many tokens may differ is a figure of its own. All rows where none agrees.
    """
    if not stages:
        return slice(None)
    names = [interface.kept_index(stage) for stage in range(stages)]
    if any(found[name].shape != tuple(expected[name].shape) for name in names):
        return slice(None)
    same = np.all([(found[name] == expected[name].numpy()).all(axis=1) for name in names], axis=0)
    return same if same.any() else slice(None)


def _differing(found: Array, expected: Array) -> float:
    """Share of kept positions that are not in both, over rows."""
    if found.shape != expected.shape:
        return 1.0
    missing = [np.setdiff1d(a, b).size for a, b in zip(found, expected, strict=True)]
    return float(np.sum(missing) / found.size)
