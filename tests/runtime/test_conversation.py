"""Conversations read what is new, and answer as if they had read everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.runtime import Model, load
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.decoding import Held
from edgeprune.runtime.session import Session
from tests.golden.make import GOLDEN
from tests.runtime.fakes import IMAGE, FakeBackend, fake_manifest, prompt_inputs

WIDE, TALL = GOLDEN / "images" / "wide.png", GOLDEN / "images" / "tall.png"
BUNDLES = ("one-stage", "three-stages", "means", "tower", "window")
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}


@pytest.fixture(scope="module", params=[(name, how) for name in BUNDLES for how in ("in-place", "copied")])
def model(request: pytest.FixtureRequest) -> Model:
    name, how = request.param
    return load(GOLDEN / name, "onnxruntime", threads=1, caches=how)


def longer(prompt: PromptInputs, model: Model, more: str) -> PromptInputs:
    """The prompt with further words behind it."""
    ids = model._encoder.encode(more, [])
    positions = prompt.positions
    new = np.arange(positions.following, positions.following + len(ids))
    new = np.broadcast_to(new, (*positions.ids.shape[:-1], len(ids)))
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, ids]).astype(np.int64),
        positions=replace(
            positions,
            ids=np.concatenate([positions.ids, new], axis=-1),
            following=positions.following + len(ids),
        ),
    )


class Watch:
    """A picker of the likeliest token that keeps the logits."""

    def __init__(self) -> None:
        self.logits: list[np.ndarray] = []

    def __call__(self, logits: np.ndarray) -> int:
        self.logits.append(logits)
        return int(logits.argmax())


def converse(
    model: Model, prompt: PromptInputs, tokens: int = 5, **options: Any
) -> tuple[list[np.ndarray], Any, Held]:
    watch = Watch()
    found, held = model.session.converse(prompt, watch, tokens, **options)
    return watch.logits, found, held


def test_what_is_read_on_equals_a_whole_prefill(model: Model) -> None:
    """Of the same tokens fed step by step behind the same prefill, whatever was cut off in between."""
    first = model.prepare("what is the big star ?", [WIDE])
    second = longer(first, model, "is red or small ?")
    _, _, held = converse(model, first, 6)
    logits, found, held = converse(model, second, 4, before=held)
    assert found.statistics.reused_tokens == len(first.input_ids)
    state = model.session.prefill([first])
    for token in second.input_ids[len(first.input_ids) :]:
        state.step(np.array([token]))
    wanted = [state.logits[0]]
    wanted += [state.step(np.array([token]))[0] for token in found.token_ids[:-1]]
    limit = LIMITS[model.manifest.precision.compute]
    for mine, other in zip(logits, wanted, strict=True):
        assert np.abs(mine - other).max() <= limit * max(1.0, other.std())
    # Another question behind the same image: what differs is let go of.
    third = longer(first, model, "is blue")
    logits, found, _ = converse(model, third, 2, before=held)
    assert found.statistics.reused_tokens >= len(first.input_ids)
    state = model.session.prefill([first])
    for token in third.input_ids[len(first.input_ids) :]:
        state.step(np.array([token]))
    assert np.abs(logits[0] - state.logits[0]).max() <= limit * max(1.0, state.logits.std())


def test_it_equals_a_prefill_with_the_same_kept_tokens(model: Model) -> None:
    plan = model.manifest.plan
    if not plan.selects_once or plan.tower:
        pytest.skip("a selection can be imposed where a method selects once")
    first = model.prepare("what is the big star ?", [WIDE])
    second = longer(first, model, "is red or small ?")
    _, before, held = converse(model, first)
    logits, found, _ = converse(model, second, before=held)
    imposed = np.zeros_like(second.visual_valid)
    imposed[before.stages[0].kept_visual] = 1
    state = model.session.prefill([replace(second, imposed=imposed)])
    np.testing.assert_array_equal(state.stages[0][0].kept_visual, found.stages[0].kept_visual)
    assert np.abs(logits[0] - state.logits[0]).max() <= 1e-4 * max(1.0, state.logits.std())


def test_selecting_anew_equals_a_prompt_of_its_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model.prepare("what is the big star ?", [WIDE])
    second = longer(first, model, "is red or small ?")
    alone, wanted, _ = converse(model, second)
    _, _, held = converse(model, first)
    monkeypatch.setattr(model.session, "_see", None)  # nothing is seen twice
    logits, found, _ = converse(model, second, before=held, reselect=True)
    assert found.statistics.reused_tokens == 0
    assert found.token_ids == wanted.token_ids
    for stage, other in zip(found.stages, wanted.stages, strict=True):
        np.testing.assert_array_equal(stage.kept_visual, other.kept_visual)
    np.testing.assert_allclose(logits[0], alone[0], atol=1e-5)


def test_questions_in_turn(model: Model) -> None:
    if model.manifest.prompt.chat_template is None:
        pytest.skip("there is no chat template")
    talk = model.conversation()
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    first = talk.ask("what is the big star ?", [WIDE], **options)
    assert first.statistics.reused_tokens == 0
    alone = model.generate("what is the big star ?", [WIDE], **options)
    assert first.token_ids == alone.token_ids
    second = talk.ask("is red ?", **options)
    assert second.statistics.reused_tokens > int(
        np.flatnonzero(model.prepare("is", [WIDE]).input_ids == model.manifest.prompt.image_token_id)[-1]
    )
    assert second.kept_visual == first.kept_visual
    assert second.statistics.vision_seconds == 0
    assert [one["role"] for one in talk.messages] == ["user", "assistant"] * 2
    # About the same image, as if nothing had been said.
    afresh = talk.ask("what is the big star ?", afresh=True, **options)
    assert afresh.token_ids == first.token_ids
    assert afresh.statistics.reused_tokens > 0
    assert len(talk.messages) == 2


def test_a_further_image_is_the_only_one_that_is_seen(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    one = model.prepare("USER: <image> is", [WIDE]) if model.manifest.model.family == "llava" else None
    if one is None:
        pytest.skip("the prompt is LLaVA's")
    both = model.prepare("USER: <image> is <image> is ?", [WIDE, TALL])
    alone, wanted, _ = converse(model, both)
    _, _, held = converse(model, one)
    seen: list[int] = []
    see = model.session._see
    monkeypatch.setattr(
        model.session, "_see", lambda prompts: seen.append(len(prompts[0].pixel_values)) or see(prompts)
    )
    logits, found, _ = converse(model, both, before=held)
    assert seen == [len(both.pixel_values) - len(one.pixel_values)]
    assert found.token_ids == wanted.token_ids
    np.testing.assert_allclose(logits[0], alone[0], atol=1e-4)


def make(stride: int | None = None) -> tuple[Session, FakeBackend]:
    manifest = fake_manifest()
    backend = FakeBackend(manifest)
    backend.language.most_behind_past = stride
    return Session(backend, Path("nowhere"), manifest), backend


def extended(prompt: PromptInputs, *ids: int) -> PromptInputs:
    positions = prompt.positions
    count = positions.following + len(ids)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, ids]).astype(np.int64),
        positions=replace(positions, ids=np.arange(count), following=count),
    )


@pytest.mark.parametrize("stride", [None, 1])
def test_what_an_engine_reads_one_by_one_comes_to_the_same(stride: int | None) -> None:
    session, backend = make(stride)
    first = prompt_inputs(1, 6)
    greedy = Watch()
    _, held = session.converse(first, greedy, 3)
    fed = len(backend.language.feeds)
    second = extended(first, 7, 8, 9)
    found, _ = session.converse(second, greedy, 3, before=held)
    lengths = [feeds["input_ids"].shape[1] for feeds in backend.language.feeds[fed:]]
    assert lengths == ([3, 1, 1] if stride is None else [1, 1, 1, 1, 1])
    assert found.statistics.reused_tokens == len(first.input_ids)
    whole, _ = make()[0].converse(second, greedy, 3)
    assert found.token_ids == whole.token_ids
    assert len(backend.vision.pictures) == 1


def test_what_begins_otherwise_is_read_whole() -> None:
    session, _ = make()
    first = prompt_inputs(1, 6)
    _, held = session.converse(first, Watch(), 3)
    other_words, other_image = prompt_inputs(1, 6, seed=1), prompt_inputs(1, 6)
    other_image = replace(other_image, pixel_values=other_image.pixel_values + 1)
    plan = session.manifest.plan
    for prompt, given in (
        (replace(other_words, pixel_values=first.pixel_values), plan),
        (other_image, plan),
        (first, plan.keeping_all()),
    ):
        assert held.known(prompt, given, IMAGE) == 0
    # The same prompt again: its last token is read, as the next one comes from there.
    assert held.known(first, plan, IMAGE) == len(first.input_ids) - 1
    assert held.images(other_words) == held.images(other_image) == 0
    assert held.images(replace(other_words, pixel_values=first.pixel_values)) == 1
    assert held.images(prompt_inputs(0, 6)) == 0


def test_a_prompt_without_images_goes_on_too() -> None:
    session, _ = make()
    first = prompt_inputs(0, 6)
    _, held = session.converse(first, Watch(), 3)
    found, _ = session.converse(extended(first, 7), Watch(), 2, before=held)
    assert found.statistics.reused_tokens == 6


def test_caches_that_were_overwritten_are_not_gone_on_with() -> None:
    session, backend = make(stride=1)
    first = prompt_inputs(1, 6)
    _, held = session.converse(first, Watch(), 3)
    session.prefill([prompt_inputs(1, 9)])
    found, _ = session.converse(extended(first, 7), Watch(), 2, before=held)
    assert found.statistics.reused_tokens == 0
    assert len(backend.vision.pictures) == 3


def test_a_question_that_is_refused_changes_nothing() -> None:
    model = load(GOLDEN / "one-stage", "onnxruntime", threads=1)
    talk = model.conversation()
    talk.ask("what ?", [WIDE], max_new_tokens=2)
    said = list(talk.messages)
    with pytest.raises(InputError):
        talk.ask("what ?", max_new_tokens=0)
    assert talk.messages == said
    assert talk.ask("what ?", max_new_tokens=2).token_ids
    with pytest.raises(InputError, match="stream is 3: expected a function"):
        talk.ask("what ?", stream=3)
