"""The back end for engines, driven by the session: CUDA and TensorRT are fakes, so no GPU shows anything
here."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeprune
from edgeprune.errors import BackendError, InputError
from edgeprune.interface import is_cache
from edgeprune.ownership import SIDECAR_NAME
from edgeprune.runtime import backends
from edgeprune.runtime.backends.tensorrt import build
from edgeprune.runtime.backends.tensorrt.backend import GPU_METRIC
from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar
from tests.runtime.backends.tensorrt import fakes

PICTURES = Path(__file__).resolve().parents[4] / "samples" / "pictures"
QUESTION = "what color is the star"
LIMITS: dict[str, Any] = {"max_batch": 2, "max_prompt": 320, "max_images": 2, "max_new_tokens": 16}


@pytest.fixture
def bundle(sample_bundle: Path, tmp_path: Path, tensorrt: object) -> Path:
    """The sample bundle with engines by the fake."""
    copy = tmp_path / "bundle"
    shutil.copytree(sample_bundle, copy)
    build(copy, backend="tensorrt", **LIMITS)
    return copy


def paths(*names: str) -> list[Path]:
    return [PICTURES / f"{name}.png" for name in names]


def test_the_session_answers_as_over_onnx_runtime(bundle: Path, cudart: fakes.FakeCudart) -> None:
    engine, onnx = edgeprune.load(bundle, "tensorrt"), edgeprune.load(bundle, "onnxruntime", caches="copied")
    for images in (paths("wide"), paths("tall", "square"), []):
        prompt = "<image>\n" * len(images) + QUESTION if images else QUESTION
        found, expected = (model.generate(prompt, images, max_new_tokens=6) for model in (engine, onnx))
        assert found.token_ids == expected.token_ids
        assert found.kept_visual == expected.kept_visual
        np.testing.assert_allclose(found.stages[0].score, expected.stages[0].score, atol=1e-6)
        assert found.statistics.cache_bytes == expected.statistics.cache_bytes
    assert found.statistics.peak_memory_metric == GPU_METRIC
    assert (found.statistics.peak_memory_bytes or 0) > 0


def test_a_batch_answers_as_one_by_one(bundle: Path) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    prompts = [QUESTION, "what shape is red"]
    images = [paths("wide"), paths("tall")]
    together = model.generate(prompts, images, max_new_tokens=4)
    alone = [
        model.generate(prompt, picture, max_new_tokens=4)
        for prompt, picture in zip(prompts, images, strict=True)
    ]
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]


def test_memory_is_taken_once_and_given_back(bundle: Path, cudart: fakes.FakeCudart) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    model.generate(QUESTION, paths("wide"), max_new_tokens=3)
    allocations = cudart.allocations
    waits = cudart.waits
    reply = model.generate(QUESTION, paths("tall"), max_new_tokens=8)
    assert cudart.allocations == allocations
    # Prefill and every step fetch the logits once; the rest is the vision time, kept tokens and scores.
    assert cudart.waits - waits <= len(reply.token_ids) + 4
    del model
    gc.collect()
    assert cudart.live == {}


def test_caches_are_there_once(bundle: Path, cudart: fakes.FakeCudart) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    graph, manifest = model.session._language, model.manifest
    longest = LIMITS["max_prompt"] + LIMITS["max_new_tokens"] + 1  # room for a second token in the last step
    taken = [memory.size for memory in graph._caches._memory.values()]  # type: ignore[attr-defined]
    assert sum(taken) == LIMITS["max_batch"] * longest * manifest.cache_bytes_per_token
    assert not any(map(is_cache, graph._buffers))  # type: ignore[attr-defined]
    state = model.session.prefill([model.prepare(QUESTION, paths("wide"))])
    for _ in range(3):
        before = {name: cache for name, cache in state._caches.items() if is_cache(name)}
        copied = cudart.copied
        state.step(state.logits.argmax(axis=1))
        assert cudart.copied - copied <= manifest.cache_bytes_per_token  # at most what is new
        for name, cache in before.items():
            assert state._caches[name].buffer is cache.buffer  # type: ignore[attr-defined]


def test_another_prompt_takes_the_place_of_the_one_before(bundle: Path) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    first, second = (
        model.session.prefill([model.prepare(QUESTION, paths(name))]) for name in ("wide", "tall")
    )
    with pytest.raises(BackendError, match=r"is not the one of the last run, which took its place"):
        first.step(first.logits.argmax(axis=1))
    second.step(second.logits.argmax(axis=1))


def test_a_conversation_goes_on_in_the_same_memory(bundle: Path) -> None:
    talks = [
        edgeprune.load(bundle, "tensorrt").conversation(),
        edgeprune.load(bundle, "onnxruntime").conversation(),
    ]
    for question, images in ((QUESTION, paths("wide")), ("what shape is red", []), (QUESTION, [])):
        found, wanted = (talk.ask(question, images, max_new_tokens=3) for talk in talks)
        assert found.token_ids == wanted.token_ids
        assert found.statistics.reused_tokens == wanted.statistics.reused_tokens
    assert found.statistics.reused_tokens


def test_auto_takes_an_engine_only_where_there_is_one(
    bundle: Path, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edgeprune.load(bundle).backend_name == "tensorrt"
    assert edgeprune.load(sample_bundle).backend_name == "onnxruntime"
    assert backends.open_backend().name == "onnxruntime"


def test_a_reply_ends_where_the_engine_ends(bundle: Path) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    length = len(model.prepare(QUESTION, paths("wide")).input_ids)
    longest = LIMITS["max_prompt"] + LIMITS["max_new_tokens"]
    long = QUESTION + " red" * (LIMITS["max_prompt"] - length)
    inputs = model.prepare(long, paths("wide"))
    assert len(inputs.input_ids) == LIMITS["max_prompt"]
    picks = [lambda logits: 7]
    (result,) = model.session.generate([inputs], picks, max_new_tokens=500)
    assert result.finish_reason == "length"
    assert LIMITS["max_prompt"] + len(result.token_ids) == longest + 1


def test_the_longest_prompt_without_pictures_has_room(bundle: Path) -> None:
    """Nothing is dropped of it, so kept_index is longer than with all images."""
    model = edgeprune.load(bundle, "tensorrt")
    inputs = model.prepare(QUESTION, [])
    inputs = model.prepare(QUESTION + " red" * (LIMITS["max_prompt"] - len(inputs.input_ids)), [])
    assert len(inputs.input_ids) == LIMITS["max_prompt"]
    (result,) = model.session.generate([inputs], [lambda logits: 7], max_new_tokens=2)
    assert len(result.token_ids) == 2


@pytest.mark.parametrize(
    ("prompts", "images", "words"),
    [
        (
            [QUESTION + " red" * 320],
            [["wide"]],
            r"the prompt's \d+ tokens do not fit .* at most 320.*--max-prompt \d+",
        ),
        (["<image>\n" * 3 + "red"], [["wide"] * 3], r"(3 images|prompt's \d+ tokens) do not fit"),
        ([QUESTION] * 3, [["wide"]] * 3, r"3 prompts at once do not fit .* at most 2: .*--max-batch 3"),
    ],
)
def test_what_the_profiles_do_not_take_names_the_command(
    bundle: Path, prompts: list[str], images: list[list[str]], words: str
) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    with pytest.raises(BackendError, match=words) as caught:
        model.generate(prompts, [paths(*names) for names in images], max_new_tokens=2)
    assert f"edgeprune build {bundle} --backend tensorrt --target sm89" in str(caught.value)


def test_a_full_gpu_is_one_sentence(bundle: Path, cudart: fakes.FakeCudart) -> None:
    cudart.capacity = 100_000
    with pytest.raises(BackendError, match=r"^the GPU has no .* left .*`max_prompt`"):
        edgeprune.load(bundle, "tensorrt")


def test_an_altered_engine_is_refused_and_a_large_one_by_tensorrt(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sidecar,) = bundle.glob(f"engines/*/{SIDECAR_NAME}")
    engine = sidecar.parent / "vision.engine"
    engine.write_bytes(b"x" * engine.stat().st_size)
    with pytest.raises(BackendError, match=r"vision\.engine does not match .*build the engines again"):
        edgeprune.load(bundle, "tensorrt")
    monkeypatch.setattr("edgeprune.bundle._QUICK_FILE", 0)
    with pytest.raises(
        BackendError, match=r"cannot load .*vision.engine \(the plan is corrupt\): build it again"
    ):
        edgeprune.load(bundle, "tensorrt")


def test_runs_that_would_read_what_they_overwrite_are_refused(bundle: Path) -> None:
    model = edgeprune.load(bundle, "tensorrt")
    vision = model.session._vision
    pixels = np.zeros((1, *vision.inputs[0].shape[1:]), dtype=np.float32)
    first = vision.run({"pixel_values": pixels}, ["visual_embeds"])["visual_embeds"]
    second = vision.run({"pixel_values": pixels + 1}, ["visual_embeds"])["visual_embeds"]
    assert not np.array_equal(first.numpy(), second.numpy())
    third = vision.run({"pixel_values": pixels + 1}, ["visual_embeds"])["visual_embeds"]
    np.testing.assert_array_equal(first.numpy(), third.numpy())  # the same memory again


def test_inputs_that_do_not_belong_are_refused(bundle: Path) -> None:
    vision = edgeprune.load(bundle, "tensorrt").session._vision
    with pytest.raises(BackendError, match="without its input pixel_values"):
        vision.run({}, ["visual_embeds"])
    pixels = np.zeros((1, *vision.inputs[0].shape[1:]), dtype=np.float32)
    with pytest.raises(BackendError, match="has no input colour"):
        vision.run({"pixel_values": pixels, "colour": pixels}, ["visual_embeds"])
    embeds = vision.run({"pixel_values": pixels}, ["visual_embeds"])["visual_embeds"]
    with pytest.raises(BackendError, match="cannot be seen as"):
        embeds.reshape(3, 5)


def test_options_and_missing_things(
    cudart: fakes.FakeCudart, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="has no option 'threads'"):
        backends.open_backend("tensorrt", threads=1)
    with pytest.raises(InputError, match="`device` is -1"):
        backends.open_backend("tensorrt", device=-1)
    with pytest.raises(BackendError, match="there is no GPU 3 here"):
        backends.open_backend("tensorrt", device=3)
    monkeypatch.setattr(fakes, "CUDART", fakes.FakeCudart(gpus=0))
    with pytest.raises(BackendError, match=r"^the back end tensorrt cannot run here: no NVIDIA GPU answers"):
        backends.open_backend("tensorrt")
    entry = next(entry for entry in backends.available() if entry.name == "tensorrt")
    assert entry.reason is not None
    assert entry.reason.startswith("no NVIDIA GPU answers here")


def test_the_plugin_is_loaded_before_the_engine(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libedgeprune_plugins.so"
    library.write_bytes(b"plugin")
    monkeypatch.setenv("EDGEPRUNE_PLUGINS", str(library))
    folder = build(bundle, backend="tensorrt", plugin="on", **LIMITS)
    assert read_sidecar(folder).pruning == "plugin"
    fakes._REGISTRY.__init__()  # type: ignore[misc]
    edgeprune.load(bundle, "tensorrt")
    assert fakes._REGISTRY.loaded == [str(library)]
    library.write_bytes(b"another plugin")
    with pytest.raises(BackendError, match=r"built with another libedgeprune_plugins\.so"):
        edgeprune.load(bundle, "tensorrt")
    monkeypatch.delenv("EDGEPRUNE_PLUGINS")
    with pytest.raises(BackendError, match=r"need the plugin library .*was not found.*EDGEPRUNE_PLUGINS"):
        edgeprune.load(bundle, "tensorrt")
