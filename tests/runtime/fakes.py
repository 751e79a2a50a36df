"""A back end without a runtime: graphs that are a few lines of numpy, for tests of the session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.debias.curves import curve_table
from edgeprune.debias.selection import select
from edgeprune.layout import PromptLayout
from edgeprune.manifest import GraphSpec, Manifest
from edgeprune.memory import PeakMemory
from edgeprune.positions import SequentialPositions, prompt_positions
from edgeprune.runtime.batching import PromptInputs
from tests.manifests import make_manifest

IMAGE, EOS, VOCAB = 5, 2, 64
PER_IMAGE, WIDTH = 16, 32


class FakeTensor:
    """A host array that remembers whether it was fetched."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.fetched = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> str:
        return str(self.array.dtype)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def reshape(self, *shape: int) -> FakeTensor:
        return FakeTensor(self.array.reshape(shape))

    def numpy(self) -> np.ndarray:
        self.fetched = True
        return self.array


def fake_manifest(method: str = "fastv", debias: str = "position padding", **changes: Any) -> Manifest:
    """As `make_manifest`, but whatever is changed is not checked."""
    return make_manifest(method, debias).model_copy(update=changes)


class FakeVision:
    """Each tile's mean in every element of its embeddings; a tower that merges leaves some places."""

    max_length: int | None = None
    most_behind_past: int | None = None

    def __init__(self, manifest: Manifest) -> None:
        self.inputs, self.outputs = manifest.vision.inputs, manifest.vision.outputs
        self.tokens = manifest.tokens_per_tile
        self.pictures: list[int] = []
        self.places: list[np.ndarray] = []

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, FakeTensor]:
        pixels = feeds["pixel_values"]
        self.pictures.append(len(pixels))
        means = pixels.mean(axis=(1, 2, 3), keepdims=True)[:, :, :, 0]
        embeds = np.broadcast_to(means, (len(pixels), self.tokens, WIDTH)).reshape(-1, WIDTH)
        found = {outputs[0]: FakeTensor(embeds)}
        if "visual_place" in outputs:
            seeds = np.abs(means[:, 0, 0] * 1e6).astype(int)
            orders = [np.random.default_rng(seed).permutation(PER_IMAGE) for seed in seeds]
            self.places.append(np.stack([np.sort(order[: self.tokens]) for order in orders]))
            found["visual_place"] = FakeTensor(self.places[-1])
        return found


class FakeLanguage:
    """A "decoder" whose next token is a checksum of everything real that it has read.

    The checksum weighs each token by its position and adds the visual embeddings, so it changes with any
    mistake in padding, positions, caches or the order of images. Key and value caches hold the summands.
    """

    max_length: int | None = None
    most_behind_past: int | None = None

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.inputs, self.outputs = manifest.language.inputs, manifest.language.outputs
        self.feeds: list[dict[str, Any]] = []
        self.given: list[dict[str, FakeTensor]] = []
        self.expected: list[tuple[int, ...]] = []
        # Overwritten by tests: what to do to the outputs before they are handed out, and fixed next tokens.
        self.tamper: Any = None
        self.script: list[int] | None = None

    def expect(self, capacities: Sequence[int]) -> None:
        self.expected.append(tuple(capacities))

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, FakeTensor]:
        assert feeds.keys() == {spec.name for spec in self.inputs}
        assert set(outputs) <= {spec.name for spec in self.outputs}
        self.feeds.append(dict(feeds))
        values = {name: getattr(value, "array", value) for name, value in feeds.items()}
        ids, mask, positions = (values[n] for n in ("input_ids", "attention_mask", "position_ids"))
        batch, sequence = ids.shape
        summands = (ids * (positions + 1) * mask).astype(np.float32)
        embeds = values["visual_embeds"]
        if embeds.shape[1]:
            places = np.arange(1, embeds.shape[1] + 1)
            seen = (embeds.mean(axis=2) * 100 * places).round()
            at = values["visual_index"]
            np.put_along_axis(summands, at, np.take_along_axis(summands, at, 1) + seen, 1)
        results: dict[str, np.ndarray] = {}
        index = np.broadcast_to(np.arange(sequence), (batch, sequence))
        group_index = [index]
        for number in range(len(self.manifest.plan.stages)):
            score = summands / (1 + np.abs(summands).max())
            table = curve_table(self.manifest.curve, self.manifest.curve_places)
            weight = table[values["curve_place"]] * values["visual_valid"]
            slots = values[f"kept_slots.{number}"].shape[1]
            chosen = select(score, values["visual_index"], weight, slots)
            results[f"kept_index.{number}"], results[f"score.{number}"] = chosen.kept_index, score
            group_index.append(chosen.kept_index)
        for group, kept in enumerate(group_index):
            past = values[f"past_mask.{group}"]
            results[f"present_mask.{group}"] = np.concatenate(
                [past, np.take_along_axis(mask, kept, 1)], axis=1
            )
        for layer in range(self.manifest.model.layers):
            kept = group_index[self.manifest.plan.group_of_layer(layer)]
            new = np.take_along_axis(summands, kept, 1)[:, None, :, None]
            for kind in ("key", "value"):
                past = values[f"past_{kind}.{layer}"]
                results[f"present_{kind}.{layer}"] = np.concatenate(
                    [past, np.broadcast_to(new, (batch, 2, kept.shape[1], 8))], axis=2
                )
        total = results["present_key.0"][:, 0, :, 0].sum(axis=1) + results["present_key.3"][:, 0, :, 0].sum(
            axis=1
        )
        results["logits"] = self._logits(total)
        if self.tamper is not None:
            self.tamper(results)
        self.given.append({name: FakeTensor(results[name]) for name in outputs})
        return dict(self.given[-1])

    def _logits(self, total: np.ndarray) -> np.ndarray:
        if self.script is not None:
            step = len(self.feeds) - 1
            best = np.full(len(total), self.script[min(step, len(self.script) - 1)])
        else:
            best = 6 + total.astype(np.int64) % (VOCAB - 6)
        return -np.abs(np.arange(VOCAB)[None] - best[:, None]).astype(np.float32)


class FakeBackend:
    """Hands out the two graphs."""

    name = "fake"
    engines = None

    def __init__(self, manifest: Manifest) -> None:
        self.vision = FakeVision(manifest)
        self.language = FakeLanguage(manifest)
        self.waits = 0

    def language_form(self, manifest: Manifest) -> GraphSpec:
        return manifest.language

    def load(self, folder: Path, spec: GraphSpec) -> Any:
        return self.vision if spec.file == "vision.onnx" else self.language

    def synchronize(self) -> None:
        self.waits += 1

    def peak_memory(self) -> PeakMemory:
        return PeakMemory(123, "of a fake")

    def free_bytes(self) -> int | None:
        return None


def prompt_inputs(pictures: int = 1, text: int = 6, seed: int = 0, padded: int = 0) -> PromptInputs:
    """A prompt of random text around its images; the first `padded` tokens of each image are padding."""
    rng = np.random.default_rng(seed)
    words = rng.integers(6, VOCAB, size=text)
    visual = np.full(pictures * PER_IMAGE, IMAGE)
    ids = np.concatenate([words[: text // 2], visual, words[text // 2 :]]).astype(np.int64)
    valid = np.ones((pictures, PER_IMAGE), dtype=np.float32)
    valid[:, :padded] = 0
    pixels = rng.standard_normal((pictures, 3, 24, 24)).astype(np.float32)
    layout = PromptLayout((make_manifest().image_program.layout(24, 24),) * pictures)
    positions = prompt_positions(SequentialPositions(), ids == IMAGE, layout)
    return PromptInputs(ids, pixels, layout, valid.reshape(-1), positions)
