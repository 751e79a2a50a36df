"""The forms of the language graph: which a bundle gets, what is in them, and that they decode alike."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, VerificationError
from edgeprune.exporter import cache_forms
from edgeprune.interface import IN_PLACE, is_cache, present, score
from edgeprune.plans import Debias
from edgeprune.runtime import Model, load
from tests.export.conftest import Exported
from tests.export.families import QUESTIONS, asked, decode_alike, noise
from tests.golden.make import BUNDLES, GOLDEN
from tests.manifests import make_manifest
from tests.tiny import save_llava, save_qwen

# What the golden bundles have not got: earlier caches that are trimmed, and positions on three axes.
EXPORTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "trimmed": (save_llava, {"kind": "llama", "seed": 1}, {"method": "tokencarve"}),
    "three axes": (save_qwen, {"kind": "qwen2_5_vl"}, {"keep": 0.3}),
}


def bundle_of(name: str, factory: pytest.TempPathFactory) -> Path:
    """A golden bundle, or one of `EXPORTS`."""
    if name not in EXPORTS:
        return GOLDEN / name
    saver, model, options = EXPORTS[name]
    folder = saver(factory.mktemp("forms") / "model", **model)
    return export(folder, output=folder.parent / "bundle", verify=False, **options)


@pytest.fixture(scope="module", params=[*BUNDLES, *EXPORTS])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def forms(bundle: Path) -> tuple[Model, Model]:
    """A bundle with its caches in place, and copied."""
    return tuple(load(bundle, "onnxruntime", threads=1, caches=how) for how in (IN_PLACE, "copied"))  # type: ignore[return-value]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_they_decode_alike(forms: tuple[Model, Model], batch: int) -> None:
    decode_alike(forms, batch, steps=12, room=12)


def test_they_go_on_beyond_the_room_that_was_asked_for(forms: tuple[Model, Model]) -> None:
    decode_alike(forms, 2, steps=5, room=2)


@pytest.mark.slow
def test_a_thousand_steps(forms: tuple[Model, Model]) -> None:
    decode_alike(forms, 2, steps=1000, room=1000, scale=4)


def test_replies_and_their_figures(forms: tuple[Model, Model]) -> None:
    """Replies of mixed prompts are the same; what caches take is what both have at the end."""
    prompts = [asked(question, 1) for question in QUESTIONS[:2]]
    images = [[noise((30, 24))], [noise((24, 40))]]
    found = [
        model.generate(prompts, images, max_new_tokens=8, do_sample=False, batch_size=1) for model in forms
    ]
    for mine, other in zip(*found, strict=True):
        assert mine.token_ids == other.token_ids
        assert mine.kept_visual == other.kept_visual
        if mine.finish_reason == "length" and not forms[0].manifest.plan.trims_earlier_caches:
            assert mine.statistics.cache_bytes == other.statistics.cache_bytes


def test_the_bundle_says_which_forms_it_has(pruned: Exported, brain: Exported) -> None:
    manifest = pruned.manifest
    assert manifest.language_forms == {"in-place": "language.in-place.onnx"}
    assert "language.in-place.onnx" in {entry.path for entry in manifest.files}
    form = manifest.language_form(IN_PLACE)
    assert form is not None
    assert {axis for spec in form.inputs if is_cache(spec.name) for axis in spec.shape[2:3]} == {
        "capacity_0",
        "capacity_1",
    }
    assert brain.manifest.language_forms == {}, "ONNX Runtime's CPU kernels run no bfloat16"
    assert brain.manifest.language_form(IN_PLACE) is None


def test_heads_of_another_width_have_none() -> None:
    manifest = make_manifest(language_forms={})
    assert cache_forms.forms_of(manifest) == (IN_PLACE,)
    odd = manifest.model.model_copy(update={"head_dim": 12})
    assert cache_forms.forms_of(manifest.model_copy(update={"model": odd})) == ()


def test_the_portable_graph_has_standard_operators_and_the_other_one_node_a_layer(pruned: Exported) -> None:
    portable, in_place = (
        onnx.load(pruned.bundle / name, load_external_data=False)
        for name in ("language.onnx", "language.in-place.onnx")
    )
    assert {node.domain for node in portable.graph.node} == {"", "com.edgeprune"}
    assert {node.op_type for node in portable.graph.node if node.domain} == {"DebiasedTokenPrune"}
    layers = pruned.manifest.model.layers
    assert sum(node.op_type == "GroupQueryAttention" for node in in_place.graph.node) == layers
    assert sum(node.op_type == "RotaryEmbedding" for node in in_place.graph.node) == 2 * layers
    assert "Neg" not in {node.op_type for node in in_place.graph.node}, "nothing is rotated in halves"
    # Of the layer that scores alone, keys are cut off their buffer, and that where there is what to score.
    readers = [node for node in in_place.graph.node if any(map(is_cache, node.input))]
    assert {node.op_type for node in readers} == {"GroupQueryAttention"}
    (choice,) = (node for node in in_place.graph.node if node.op_type == "If")
    assert list(choice.output) == [score(0)]
    branches = {attribute.name: attribute.g.node for attribute in choice.attribute}
    scoring, nothing = branches["then_branch"], branches["else_branch"]
    assert [node.input[0] for node in scoring if any(map(is_cache, node.input))] == [present("key", 1)]
    assert [node.op_type for node in nothing] == ["ConstantOfShape"]


def test_every_family_is_rotated_by_one_node_and_normalised_as_runtimes_look_for_it(bundle: Path) -> None:
    in_place = onnx.load(bundle / "language.in-place.onnx", load_external_data=False)
    kinds = [node.op_type for node in in_place.graph.node]
    assert kinds.count("RotaryEmbedding") == 2 * kinds.count("GroupQueryAttention")
    assert "Reciprocal" not in kinds


def test_a_node_that_reads_a_whole_buffer_is_refused(pruned: Exported, tmp_path: Path) -> None:
    """As those of a graph do whose attention is explicit already."""
    path = shutil.copy(pruned.bundle / "language.onnx", tmp_path)
    with pytest.raises(VerificationError, match="reads a cache's whole buffer: this is a bug of"):
        cache_forms.write(Path(path), pruned.manifest, two_way=False)


def test_a_form_that_is_not_there_cannot_be_asked_for(tmp_path: Path) -> None:
    """The heads of this one are 12 wide."""
    model_folder = save_llava(tmp_path / "model", kind="gemma")
    bundle = export(model_folder, keep=0.5, output=tmp_path / "bundle", verify=False)
    assert read_manifest(bundle).language_forms == {}
    with pytest.raises(BackendError, match=r"in place were asked for, and the bundle has no such graph: "):
        load(bundle, "onnxruntime", caches=IN_PLACE)
    model = load(bundle, "onnxruntime", caches="auto")
    assert model.generate(QUESTIONS[0], max_new_tokens=2).token_ids


def test_what_the_plan_debiases_by_is_the_same(pruned: Exported) -> None:
    """Keep ratio and debias are choices of a run in both forms."""
    models = [load(pruned.bundle, "onnxruntime", threads=1, caches=how) for how in (IN_PLACE, "copied")]
    for keep, debias in ((0.2, "none"), (1, [Debias.PADDING.value])):
        ours, theirs = (
            model.generate(
                QUESTIONS[0],
                [noise((30, 24))],
                keep=keep,
                debias=debias,
                max_new_tokens=4,
                do_sample=False,
            )
            for model in models
        )
        assert (ours.token_ids, ours.kept_visual) == (theirs.token_ids, theirs.kept_visual)
