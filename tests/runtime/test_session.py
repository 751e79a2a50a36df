"""The session's loop on a back end of numpy: batches, padding, caches, ends, pruning that did not happen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.errors import BundleError, InputError, NumericsError, PruningError
from edgeprune.layout import PromptLayout
from edgeprune.manifest import GraphSpec, Precision
from edgeprune.plans import Debias, with_keep
from edgeprune.positions import SequentialPositions, prompt_positions
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.session import Generated, Session
from tests.runtime.fakes import EOS, IMAGE, PER_IMAGE, VOCAB, FakeBackend, fake_manifest, prompt_inputs


def make(method: str = "fastv", **changes: Any) -> tuple[Session, FakeBackend]:
    manifest = fake_manifest(method, **changes)
    backend = FakeBackend(manifest)
    return Session(backend, Path("nowhere"), manifest), backend


def greedy(logits: np.ndarray) -> int:
    return int(logits.argmax())


def generate(session: Session, *prompts: PromptInputs, tokens: int = 5, **options: Any) -> list[Generated]:
    return session.generate(prompts, [greedy] * len(prompts), tokens, **options)


MIXTURE = [
    prompt_inputs(1, 6, seed=1),
    prompt_inputs(2, 9, seed=2, padded=4),
    prompt_inputs(1, 14, seed=3),
    prompt_inputs(0, 5, seed=4),
    prompt_inputs(1, 6, seed=5, padded=13),
    prompt_inputs(2, 4, seed=6),
]


@pytest.mark.parametrize("method", ["fastv", "none"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_mixture_of_prompts_gives_what_each_gives_alone(method: str, batch_size: int) -> None:
    session, _ = make(method)
    together = generate(session, *MIXTURE, batch_size=batch_size)
    for prompt, result in zip(MIXTURE, together, strict=True):
        (alone,) = generate(make(method)[0], prompt)
        assert result.token_ids == alone.token_ids
        assert len(result.token_ids) == 5
        for stage, own in zip(result.stages, alone.stages, strict=True):
            np.testing.assert_array_equal(stage.kept_visual, own.kept_visual)
            np.testing.assert_allclose(stage.visual_valid, prompt.visual_valid)
    # The checksum tells prompts apart, so the comparison above means something.
    assert len({result.token_ids for result in together}) == len(MIXTURE)


def test_prompts_with_as_many_pictures_run_together_up_to_the_batch_size() -> None:
    session, backend = make()
    results = generate(session, *MIXTURE, batch_size=2)
    assert [result.statistics.batch for result in results] == [2, 2, 2, 1, 1, 2]
    assert sorted(backend.vision.pictures) == [1, 2, 4]


def test_positions_count_real_tokens_and_padding_is_masked() -> None:
    session, backend = make()
    short, long = MIXTURE[0], MIXTURE[2]
    generate(session, short, long, tokens=3)
    prefill, step, next_step = backend.language.feeds
    padding = len(long.input_ids) - len(short.input_ids)
    np.testing.assert_array_equal(prefill["attention_mask"][0, :padding], 0)
    np.testing.assert_array_equal(
        prefill["attention_mask"].sum(axis=1), [len(short.input_ids), len(long.input_ids)]
    )
    np.testing.assert_array_equal(prefill["position_ids"][0, padding:], np.arange(len(short.input_ids)))
    np.testing.assert_array_equal(
        prefill["visual_index"][0], padding + np.flatnonzero(short.input_ids == IMAGE)
    )
    np.testing.assert_array_equal(step["position_ids"][:, 0], [len(short.input_ids), len(long.input_ids)])
    np.testing.assert_array_equal(next_step["position_ids"], step["position_ids"] + 1)
    assert step["visual_embeds"].shape[:2] == (2, 0)
    assert step["visual_index"].shape == step["visual_valid"].shape == (2, 0)


MERGED = 6  # what the fake's tower leaves of 16 places, of which the decoder keeps 4


def test_what_a_tower_merged_takes_its_places_along() -> None:
    session, backend = make("illava")
    prompts = [prompt_inputs(2, 9, seed=1, padded=4), prompt_inputs(2, 6, seed=2, padded=7)]
    prompts = [fewer_image_tokens(prompt, MERGED) for prompt in prompts]
    results = generate(session, *prompts, tokens=1)
    places = backend.vision.places[0].reshape(2, 2, MERGED) + np.array([0, PER_IMAGE])[None, :, None]
    fed = backend.language.feeds[0]["visual_valid"]
    for row, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        of_prompt = places[row].reshape(-1)
        (stage,) = result.stages
        np.testing.assert_array_equal(fed[row], prompt.visual_valid[of_prompt])
        np.testing.assert_array_equal(stage.candidates, of_prompt)
        np.testing.assert_array_equal(stage.visual_valid, prompt.visual_valid[of_prompt])
        assert set(stage.kept_visual) < set(of_prompt)
        figures = result.statistics
        assert (figures.visual_tokens, figures.tower_tokens, figures.kept) == (32, 2 * MERGED, (8,))
    assert not np.array_equal(places[0], places[1])


def test_a_tower_that_does_not_follow_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session, backend = make("illava")
    run = backend.vision.run

    def disordered(feeds: Any, outputs: Any) -> dict[str, Any]:
        found = run(feeds, outputs)
        found["visual_place"].array = found["visual_place"].array[:, ::-1]
        return found

    monkeypatch.setattr(backend.vision, "run", disordered)
    with pytest.raises(PruningError, match=r"the vision tower left 6 tokens of a tile: expected 6, in order"):
        generate(session, fewer_image_tokens(prompt_inputs(1, 6), MERGED))


def test_a_prompt_made_for_a_tower_that_merges_nothing_is_refused() -> None:
    session, _ = make("illava")
    with pytest.raises(
        InputError, match=r"has 16 image tokens, 1 rows .*: expected 6, 1 and 16 for a layout of 16"
    ):
        generate(session, prompt_inputs(1, 6))


def fewer_image_tokens(prompt: PromptInputs, per_image: int) -> PromptInputs:
    number = np.cumsum(prompt.input_ids == IMAGE) - 1
    stays = (prompt.input_ids != IMAGE) | (number % PER_IMAGE < per_image)
    ids = prompt.input_ids[stays]
    return replace(
        prompt, input_ids=ids, positions=prompt_positions(SequentialPositions(), ids == IMAGE, prompt.layout)
    )


def test_padding_never_looks_like_a_visual_token() -> None:
    manifest = fake_manifest()
    odd = manifest.prompt.model_copy(update={"pad_token_id": IMAGE})
    session, backend = make(prompt=odd)
    generate(session, MIXTURE[0], MIXTURE[2], tokens=1)
    assert (backend.language.feeds[0]["input_ids"] == IMAGE).sum() == 2 * PER_IMAGE


def test_caches_are_handed_back_as_they_were_given_out_and_never_fetched() -> None:
    session, backend = make()
    generate(session, prompt_inputs(), tokens=4)
    feeds, given = backend.language.feeds, backend.language.given
    assert len(feeds) == 4
    for step, before in zip(feeds[1:], given, strict=False):
        names = [name for name in step if name.startswith("past_")]
        assert len(names) == 10
        for name in names:
            assert step[name] is before[name.replace("past_", "present_")]
    fetched = {name for outputs in given for name, tensor in outputs.items() if tensor.fetched}
    assert fetched == {"logits", "kept_index.0", "score.0"}
    assert not any(name.startswith(("kept_index", "score")) for outputs in given[1:] for name in outputs)


def test_the_first_caches_are_empty_and_of_the_graph_s_shapes() -> None:
    session, backend = make()
    generate(session, MIXTURE[0], MIXTURE[2], tokens=1)
    first = backend.language.feeds[0]
    assert first["past_key.0"].shape == (2, 2, 0, 8)
    assert first["past_mask.1"].shape == (2, 0)
    assert first["past_mask.1"].dtype == np.int64


def test_each_prompt_ends_by_itself() -> None:
    session, backend = make()
    calls = {0: 0, 1: 0}

    def picker(number: int, end: int) -> Any:
        def pick(logits: np.ndarray) -> int:
            calls[number] += 1
            return EOS if calls[number] == end else 10

        return pick

    results = session.generate([MIXTURE[0], MIXTURE[2]], [picker(0, 2), picker(1, 99)], 4)
    assert results[0].token_ids == (10, EOS)
    assert results[0].finish_reason == "stop"
    assert results[1].token_ids == (10, 10, 10, 10)
    assert results[1].finish_reason == "length"
    assert calls == {0: 2, 1: 4}
    assert results[0].statistics.decode_seconds <= results[1].statistics.decode_seconds
    assert results[0].statistics.cache_bytes < results[1].statistics.cache_bytes
    assert len(backend.language.feeds) == 4


def test_a_listener_hears_every_token_and_can_end_a_reply() -> None:
    session, _ = make()
    heard: list[tuple[int, int]] = []

    def listener(number: int, token: int) -> bool:
        heard.append((number, token))
        return number == 1 and len([n for n, _ in heard if n == 1]) == 2

    results = generate(session, MIXTURE[0], MIXTURE[2], tokens=3, listener=listener)
    assert [result.finish_reason for result in results] == ["length", "stop_string"]
    for number, result in enumerate(results):
        assert tuple(token for n, token in heard if n == number) == result.token_ids
    assert len(results[1].token_ids) == 2


def test_an_image_token_that_the_model_makes_is_a_token_like_others() -> None:
    """As in Hugging Face's generate; the graph embeds it as text."""
    session, backend = make()
    backend.language.script = [IMAGE]
    (result,) = generate(session, prompt_inputs(), tokens=2)
    assert result.token_ids == (IMAGE, IMAGE)


def test_new_tokens_are_cut_where_the_positions_end() -> None:
    base = fake_manifest()
    prompt = prompt_inputs()
    for room, expected in ((0, 1), (2, 3)):
        info = base.model.model_copy(update={"max_positions": len(prompt.input_ids) + room})
        session, backend = make(model=info)
        (result,) = generate(session, prompt, tokens=50)
        assert len(result.token_ids) == expected
        assert result.finish_reason == "length"
        assert max(feeds["position_ids"].max() for feeds in backend.language.feeds) < info.max_positions


def test_an_ended_prompt_stays_within_the_positions_while_others_go_on() -> None:
    base = fake_manifest()
    long, short = prompt_inputs(text=12), prompt_inputs(text=4, seed=9)
    info = base.model.model_copy(update={"max_positions": len(long.input_ids)})
    session, backend = make(model=info)
    results = generate(session, long, short, tokens=6)
    assert [len(result.token_ids) for result in results] == [1, 6]
    assert max(feeds["position_ids"].max() for feeds in backend.language.feeds) < info.max_positions


def test_a_prompt_longer_than_the_positions_is_refused() -> None:
    prompt = prompt_inputs()
    info = fake_manifest().model.model_copy(update={"max_positions": len(prompt.input_ids) - 1})
    session, _ = make(model=info)
    with pytest.raises(InputError, match=r"22 positions, 16 of its tokens being visual: .* most 21"):
        generate(session, prompt)


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": np.arange(6, 20)},
        {"visual_valid": np.ones(PER_IMAGE - 1, np.float32)},
        {"pixel_values": np.zeros((2, 3, 24, 24), np.float32)},
        {"layout": PromptLayout(())},
    ],
)
def test_image_tokens_tiles_layout_and_mask_must_agree(change: dict[str, Any]) -> None:
    with pytest.raises(
        InputError,
        match=r"expected \d+, \d+ and \d+ for a layout of \d+ visual tokens; make them of the same",
    ):
        generate(make()[0], replace(prompt_inputs(), **change))


def test_a_batch_needs_equal_numbers_of_visual_tokens() -> None:
    with pytest.raises(InputError, match="different numbers of visual tokens"):
        make()[0].prefill([prompt_inputs(1), prompt_inputs(2)])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
@pytest.mark.parametrize("name", ["tokens", "batch_size"])
def test_counts_must_be_whole_and_positive(name: str, value: Any) -> None:
    with pytest.raises(InputError, match="expected a whole number of at least 1"):
        generate(make()[0], prompt_inputs(), **{name: value})


def test_statistics_tell_what_happened() -> None:
    prompt = prompt_inputs(2, 7, padded=14)
    (result,) = generate(make()[0], prompt, tokens=3)
    figures = result.statistics
    # K = round(0.3 * 32) = 10 of which only 4 can be content.
    assert (figures.visual_tokens, figures.kept, figures.padded_kept) == (32, (10,), (6,))
    assert (figures.prompt_tokens, figures.new_tokens, figures.batch) == (39, 3, 1)
    # Two decode steps beyond the prefill: two full layers, two pruned ones; keys and values of 2 x 8 floats.
    lengths = 2 * (39 + 2) + 2 * (39 - 32 + 10 + 2)
    assert figures.cache_bytes == lengths * 2 * 2 * 8 * 4
    assert figures.time_to_first_token_seconds >= figures.vision_seconds + figures.prefill_seconds > 0
    assert figures.tokens_per_second == pytest.approx(2 / figures.decode_seconds)
    assert (figures.peak_memory_bytes, figures.peak_memory_metric) == (123, "of a fake")


def test_a_single_token_has_no_decoding_speed() -> None:
    (result,) = generate(make()[0], prompt_inputs(), tokens=1)
    assert result.statistics.tokens_per_second is None
    assert result.statistics.decode_seconds == 0


def test_preparing_counts_towards_the_first_token() -> None:
    prompt = prompt_inputs()
    slow = replace(prompt, preprocess_seconds=100.0)
    (result,) = generate(make()[0], slow, tokens=1)
    assert result.statistics.preprocess_seconds == 100
    assert 100 < result.statistics.time_to_first_token_seconds < 101


def test_without_pictures_nothing_is_pruned_and_that_is_no_error() -> None:
    session, backend = make()
    (result,) = generate(session, prompt_inputs(0, 5))
    assert result.statistics.visual_tokens == 0
    assert result.statistics.kept == (0,)
    assert backend.vision.pictures == []


def keep_all(results: dict[str, np.ndarray]) -> None:
    batch, sequence = results["score.0"].shape
    results["kept_index.0"] = np.broadcast_to(np.arange(sequence), (batch, sequence))


def keep_text_instead_of_visual(results: dict[str, np.ndarray]) -> None:
    results["kept_index.0"] = np.arange(results["kept_index.0"].shape[1])[None]


def keep_one_twice(results: dict[str, np.ndarray]) -> None:
    results["kept_index.0"] = results["kept_index.0"].copy()
    results["kept_index.0"][:, 5] = results["kept_index.0"][:, 4]


def shorten_no_cache(results: dict[str, np.ndarray]) -> None:
    results["present_mask.1"] = results["present_mask.0"]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (keep_all, r"kept 22 of 22 tokens: expected 11, that is 5 of 16 visual ones"),
        (keep_text_instead_of_visual, r"kept 8 of 16 visual tokens: expected 5"),
        (keep_one_twice, r"expected 5, in order"),
        (shorten_no_cache, r"layer group 1 hold 22 tokens: expected 11 of 22"),
    ],
)
def test_pruning_that_did_not_happen_is_an_error(tamper: Any, message: str) -> None:
    session, backend = make()
    backend.language.tamper = tamper
    with pytest.raises(PruningError, match=message):
        generate(session, prompt_inputs())


def without(spec: GraphSpec, name: str) -> GraphSpec:
    outputs = tuple(output for output in spec.outputs if output.name != name)
    return spec.model_copy(update={"outputs": outputs})


def test_a_graph_that_cannot_prune_is_refused_when_it_is_loaded() -> None:
    manifest = fake_manifest()
    backend = FakeBackend(manifest)
    backend.language.outputs = without(manifest.language, "kept_index.0").outputs
    with pytest.raises(PruningError, match=r"no kept_index\.0: it would run unpruned"):
        Session(backend, Path("nowhere"), manifest)


def test_a_graph_of_another_bundle_is_refused_when_it_is_loaded() -> None:
    manifest = fake_manifest()
    backend = FakeBackend(manifest)
    backend.language.outputs = without(manifest.language, "present_key.3").outputs
    with pytest.raises(BundleError, match=r"no output present_key\.3"):
        Session(backend, Path("nowhere"), manifest)
    assert manifest.model.vocab_size == VOCAB


# What padding is, and what the plan does with it


@pytest.mark.parametrize("debias", ["position padding", "padding", "position", ""])
def test_padding_is_counted_whatever_the_plan_does_with_it(debias: str) -> None:
    session, backend = make(debias=debias)
    prompt = prompt_inputs(1, 6, padded=13)
    (result,) = generate(session, prompt, tokens=1)
    (stage,) = result.stages
    of_kept = int((prompt.visual_valid[stage.kept_visual] == 0).sum())
    assert result.statistics.padded_kept == (of_kept,) == (stage.padded_kept,)
    assert of_kept > 0
    fed = backend.language.feeds[0]["visual_valid"][0]
    told = prompt.visual_valid if "padding" in debias else np.ones(PER_IMAGE)
    np.testing.assert_array_equal(fed, told)


def test_an_imposed_mask_is_told_and_not_counted() -> None:
    session, backend = make()
    prompt = prompt_inputs(1, 6, padded=13)
    imposed = 1 - prompt.visual_valid
    (result,) = generate(session, replace(prompt, imposed=imposed), tokens=1)
    np.testing.assert_array_equal(backend.language.feeds[0]["visual_valid"][0], imposed)
    assert result.statistics.padded_kept == (result.statistics.kept[0],)


# The last position


def ending_with_an_image() -> PromptInputs:
    prompt = prompt_inputs(1, 6, padded=16)
    ids = prompt.input_ids
    return replace(prompt, input_ids=np.concatenate([ids[ids != IMAGE], ids[ids == IMAGE]]))


def test_an_image_s_last_token_stays_where_it_ends_the_prompt() -> None:
    session, _ = make()
    prompt = ending_with_an_image()
    assert prompt.visual_valid[-1] == 0
    (stage,) = generate(session, prompt, tokens=1)[0].stages
    assert PER_IMAGE - 1 in stage.kept_visual


# What is asked for at run time


def test_keep_and_debias_are_choices_of_a_run() -> None:
    session, backend = make()
    prompt = prompt_inputs(2, 6, padded=3)
    own = session.manifest.plan
    kept = {}
    for keep in (0.1, 0.5, 1):
        plan = with_keep(own, keep, 4, PER_IMAGE)
        (stage,) = session.prefill([prompt], plan).stages[0]
        kept[keep] = stage.kept
        assert backend.language.feeds[-1]["kept_slots.0"].shape == (1, stage.kept)
    assert kept == {0.1: 3, 0.5: 16, 1: 32}
    for debias in ((), (Debias.POSITION,), (Debias.PADDING,), (Debias.POSITION, Debias.PADDING)):
        session.prefill([prompt], own.debiased(debias))
        feeds = backend.language.feeds[-1]
        expected = prompt.visual_valid if Debias.PADDING in debias else np.ones(2 * PER_IMAGE)
        np.testing.assert_array_equal(feeds["visual_valid"][0], expected)
        # The curve begins anew with every image.
        places = np.tile(np.arange(1, PER_IMAGE + 1), 2) if Debias.POSITION in debias else np.zeros(32)
        np.testing.assert_array_equal(feeds["curve_place"][0], places)


@pytest.mark.parametrize("method", ["himap", "none", "random"])
def test_a_plan_of_other_stages_is_refused(method: str) -> None:
    session, _ = make()
    with pytest.raises(
        InputError, match="expected the same stages, with other keep ratios or another debias"
    ):
        session.prefill([prompt_inputs()], fake_manifest(method).plan)


def test_a_debias_by_position_needs_a_curve() -> None:
    session, _ = make(debias="padding")
    with pytest.raises(InputError, match="debiases position, and this bundle has no bias curve"):
        session.prefill([prompt_inputs()], session.manifest.plan.debiased([Debias.POSITION]))


def test_a_step_keeps_nothing_visual() -> None:
    session, backend = make()
    generate(session, prompt_inputs(1, 6), tokens=2)
    assert backend.language.feeds[1]["kept_slots.0"].shape == (1, 0)
    assert backend.language.feeds[1]["curve_place"].shape == (1, 0)


@pytest.mark.parametrize("method", ["himap", "sparsevlm", "tokencarve", "illava-decoder"])
def test_a_method_that_needs_text_behind_the_images_refuses_a_prompt_without(method: str) -> None:
    session, _ = make(method)
    with pytest.raises(InputError, match=r"ends with an image.*put the question behind the images"):
        session.check(ending_with_an_image())


# Numbers


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("step", [0, 2])
def test_logits_that_are_no_numbers_are_an_error(value: float, kind: str, step: int) -> None:
    session, backend = make()
    seen = []

    def spoil(outputs: dict[str, Any]) -> None:
        seen.append(1)
        if len(seen) == step + 1:
            # A single NaN or +inf would be chosen; -inf rules a token out, so only all of them are wrong.
            outputs["logits"][0, slice(None) if value < 0 else 7] = value

    backend.language.tamper = spoil
    with pytest.raises(NumericsError, match=rf"logits that are {kind}: expected numbers; its weights"):
        generate(session, prompt_inputs(1, 6), tokens=5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_another_type_is_recommended_where_it_reaches_further_alone(dtype: str) -> None:
    session, backend = make()
    session.manifest = session.manifest.model_copy(update={"precision": Precision.plain(dtype)})
    backend.language.tamper = lambda outputs: outputs["logits"].fill(np.nan)
    with pytest.raises(NumericsError) as raised:
        generate(session, prompt_inputs(1, 6), tokens=5)
    assert ("`dtype='bf16'`" in str(raised.value)) == (dtype == "fp16")


def test_a_model_may_rule_tokens_out_by_minus_infinity() -> None:
    session, backend = make()

    def spoil(outputs: dict[str, Any]) -> None:
        outputs["logits"][:, :EOS] = -np.inf

    backend.language.tamper = spoil
    assert len(generate(session, prompt_inputs(1, 6), tokens=3)[0].token_ids) <= 3


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("logits", ("batch", VOCAB + 1)),
        ("visual_embeds", ("batch", "visual", 33)),
        ("past_key.0", ("batch", 2, 8)),
        ("position_ids", (3, "batch", "sequence")),
    ],
)
def test_a_graph_of_other_shapes_is_refused(name: str, shape: tuple[int | str, ...]) -> None:
    manifest = fake_manifest()
    backend = FakeBackend(manifest)
    for kind in ("inputs", "outputs"):
        specs = getattr(backend.language, kind)
        changed = [spec.model_copy(update={"shape": shape}) if spec.name == name else spec for spec in specs]
        setattr(backend.language, kind, tuple(changed))
    with pytest.raises(BundleError, match=rf"{name} has the shape .*: the files do not belong together"):
        Session(backend, Path("nowhere"), manifest)


def test_axes_without_a_fixed_size_may_be_called_anything() -> None:
    manifest = fake_manifest()
    backend = FakeBackend(manifest)
    backend.language.inputs = tuple(
        spec.model_copy(update={"shape": tuple("" if isinstance(axis, str) else axis for axis in spec.shape)})
        for spec in backend.language.inputs
    )
    Session(backend, Path("nowhere"), manifest)


def test_caches_are_told_how_long_they_will_be() -> None:
    """Behind a stage the shorter length; and the last token of a reply is never read."""
    session, backend = make()
    prompt = prompt_inputs(1, 6)
    generate(session, prompt, tokens=5)
    (kept,) = session.manifest.plan.counts(PER_IMAGE)
    length = len(prompt.input_ids)
    assert backend.language.expected == [(length + 4, length - PER_IMAGE + kept.kept + 4)]
    session.prefill([prompt])
    assert backend.language.expected[1] == (length, length - PER_IMAGE + kept.kept)
    session.prefill([prompt], steps=7)
    assert backend.language.expected[2] == (length + 7, length - PER_IMAGE + kept.kept + 7)


def test_caches_that_a_stage_trims_have_room_for_the_prefill() -> None:
    session, backend = make("tokencarve")
    prompt = prompt_inputs(1, 6)
    with pytest.raises(PruningError):  # the fake trims nothing
        session.prefill([prompt], steps=1)
    ((first, second),) = backend.language.expected
    assert (first, second) == (len(prompt.input_ids), session.manifest.plan.cache_lengths(22, 16)[1] + 1)


def test_a_context_of_its_own_ends_replies_and_refuses_prompts() -> None:
    manifest = fake_manifest()
    prompt = prompt_inputs(1, 6)
    length = len(prompt.input_ids)
    session = Session(FakeBackend(manifest), Path("nowhere"), manifest, length + 2)
    (found,) = generate(session, prompt, tokens=20)
    # The last one needs no place.
    assert (len(found.token_ids), found.finish_reason) == (3, "length")
    session = Session(FakeBackend(manifest), Path("nowhere"), manifest, length - 1)
    with pytest.raises(
        InputError, match=rf"takes {length} positions, 16 of its .* and `max_context={length - 1}` was set: "
    ):
        generate(session, prompt)
    with pytest.raises(InputError, match="`max_context` is 0: expected a whole number of at least 1"):
        Session(FakeBackend(manifest), Path("nowhere"), manifest, 0)
