"""The search for a recency bias, in a size that takes seconds."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import recency
from benchmarks.recency import (
    VARIANTS,
    Text,
    attention_paid,
    build,
    decoy_layers,
    pack_texts,
    see,
    show,
    text,
)
from samples import model as sample
from samples import packing, stages
from samples.scenes import COLORS, GRID, SHAPES, scene

TOKENS = GRID * GRID


@pytest.fixture(scope="module")
def parts():
    return sample.processor()


@pytest.fixture(scope="module")
def model(parts):
    return build(VARIANTS["text-frozen"], parts, 0).eval()


def _partners(one: Text, word: str) -> list[str]:
    """The word's partners, mention by mention."""
    return [unit[1 - unit.index(word)] for unit in one.units if len(unit) == 2 and word in unit]


def test_the_later_something_was_mentioned_the_likelier_it_is_mentioned_again():
    rng = np.random.default_rng(0)
    again = []
    for _ in range(100):
        one = text(rng, VARIANTS["text-frozen"], mentions=60, length=60)
        shapes = [shape for _, shape in one.units][30:]  # by now all are known
        again += [first == second for first, second in pairwise(shapes)]
    # 0.8 * 0.4 in a burst, and 0.2 / 8 by chance.
    assert np.mean(again) == pytest.approx(0.345, abs=0.06)


@pytest.mark.parametrize("compounds", [False, True])
def test_the_latest_mention_holds(compounds):
    rng = np.random.default_rng(0)
    variant = replace(VARIANTS["text-frozen"], compounds=compounds)
    changed = 0
    for _ in range(50):
        one = text(rng, variant, mentions=9, length=40)
        assert sum(len(unit) == 2 for unit in one.units) == 9
        for question in one.questions:
            word = next(each for each in question.text.split() if each in (*SHAPES, *COLORS))
            partners = _partners(one, word)
            assert question.answer == partners[-1]
            changed += len(set(partners)) > 1
    assert changed > 50  # otherwise recency would not pay


def test_texts_spread_over_the_places_of_a_picture_and_keep_their_order():
    rng = np.random.default_rng(0)
    read = [text(rng, VARIANTS["words-frozen"], mentions=9, length=40) for _ in range(50)]
    for one in read:
        ends = [start + len(unit) for start, unit in zip(one.starts, one.units, strict=True)]
        assert all(start >= end for start, end in zip(one.starts[1:], ends[:-1], strict=True))
        assert one.starts[0] >= 0
        assert ends[-1] <= TOKENS
    assert min(one.starts[0] for one in read) < 10
    assert max(one.starts[-1] for one in read) > TOKENS - 10


def test_packed_words_are_the_text_and_predict_the_second_words(model, parts):
    one = text(np.random.default_rng(3), VARIANTS["words-frozen"], mentions=5, length=20)
    packed, _ = pack_texts(model, parts, [one], VARIANTS["words-frozen"])
    words = [word for unit in one.units for word in unit]
    start = packed.prefix - len(words)
    assert parts.tokenizer.convert_ids_to_tokens(packed.ids[0, start : packed.prefix]) == words
    due = (packed.labels[0, : packed.prefix] != packing.IGNORED).nonzero()[:, 0]
    assert [words[place - start] for place in due] == [unit[0] for unit in one.units if len(unit) == 2]
    assert packed.labels[0, due].tolist() == packed.ids[0, due + 1].tolist()
    # The question follows where a picture would end.
    assert packed.positions[0, packed.prefix] == start + TOKENS


def test_texts_in_the_place_of_two_pictures_are_spread_over_both(model, parts):
    rng = np.random.default_rng(0)
    variant = VARIANTS["text-frozen-pair"]
    read = [text(rng, variant, mentions=9, length=40) for _ in range(50)]
    assert TOKENS < max(one.starts[-1] for one in read) < 2 * TOKENS
    packed, _ = pack_texts(model, parts, read[:2], variant)
    assert packed.positions[:, packed.prefix].tolist() == [packed.prefix - 40 + 2 * TOKENS] * 2


def test_what_two_pictures_of_a_prompt_share_is_not_asked_about():
    drawn = [scene(seed, 3) for seed in range(40)]
    counts = [0, 0]
    for shown in show(drawn, 2):
        words = [
            {word for thing in one.things for word in (thing.shape, thing.color)} for one in shown.scenes
        ]
        answers = {question.text: question.answer for question in shown.questions}
        assert len(answers) == len(shown.questions) == len(words[0] ^ words[1])
        for number, one in enumerate(shown.scenes):
            own = [question for question in one.questions if question.text in answers]
            assert all(answers[question.text] == question.answer for question in own)
            counts[number] += len(own)
    # Neither the first nor the last picture is preferred.
    assert min(counts) > 0.8 * max(counts) > 0


def test_prompts_of_one_picture_ask_everything():
    drawn = [scene(seed) for seed in (1, 2, 3)]
    assert [shown.questions for shown in show(drawn, 1)] == [list(one.questions) for one in drawn]


def test_pictures_of_a_prompt_are_seen_in_order(model, parts):
    drawn = [scene(seed, 3) for seed in range(4)]
    with torch.no_grad():
        packed, visual = see(model, parts, show(drawn, 2))
        alone = stages.visual_tokens(model, stages.pixels(drawn, parts))
    assert visual.shape[:2] == (2, 2 * TOKENS)
    torch.testing.assert_close(visual[1, TOKENS:], alone[3])
    assert int((packed.ids[1] == model.config.image_token_id).sum()) == 2 * TOKENS


def test_the_attention_is_that_of_single_prompts(model, parts):
    """Against queries and keys by hand, one question at a time, in the first layer."""
    drawn = [scene(1), scene(2)]
    batch = stages._pack(parts, [one.questions[:3] for one in drawn])
    with torch.no_grad():
        visual = stages.visual_tokens(model, stages.pixels(drawn, parts))
    paid, rows, right = attention_paid(model, batch, visual, TOKENS)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(paid) == len(model.model.language_model.layers)
    assert right.shape == (6,)
    layer = model.model.language_model.layers[0]
    heads, size = sample.HEADS, sample.WIDTH // sample.HEADS
    number = 0
    for row, one in enumerate(drawn):
        for question in one.questions[:3]:
            single = stages._pack(parts, [[question]])
            length = int(single.answers[0].nonzero()) + 1
            with torch.no_grad():
                hidden = packing._embed(model, single, visual[row : row + 1])[:, :length]
                turned = model.model.language_model.rotary_emb(hidden, torch.arange(length)[None])
                normed = layer.input_layernorm(hidden)
                query, key = (
                    project(normed).view(length, heads, size).transpose(0, 1)
                    for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
                )
                cos, sin = (part[0] for part in turned)

                def rotate(x, cos=cos, sin=sin):
                    return x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin

                scores = rotate(query)[:, -1:] @ rotate(key).transpose(1, 2) / size**0.5
                expected = F.softmax(scores, -1).mean(0)[0]
            start = batch.prefix - TOKENS
            np.testing.assert_allclose(paid[0][number], expected[start : batch.prefix], atol=1e-6)
            number += 1


def test_the_decoys_layers_are_restored():
    usual = packing.DECOY_LAYERS
    with decoy_layers(0):
        assert not packing.DECOY_LAYERS
    assert usual == packing.DECOY_LAYERS != 0


@pytest.mark.slow
def test_quick_run(tmp_path, capsys):
    """A frozen decoder stays what it read as; a first stage that is found is the one that was trained."""
    arguments = ["text-frozen", "--steps", "2", "2", "--batch", "2", "--pictures", "40"]
    arguments += ["--work", str(tmp_path)]
    reports = []
    for _ in range(2):
        assert recency.main(arguments) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert [each.pop("cpu_minutes") > 0 for each in reports] == [True, True]
    assert reports[0] == reports[1]
    pictures, texts = reports[0]["over_pictures"], reports[0]["over_text"]
    assert pictures["questions"] == 40 * 12
    assert len(pictures["layers"]) == len(texts["layers"]) == sample.LAYERS
    assert all(-1 <= layer["spearman"] <= 1 for layer in pictures["layers"])
    (first,) = tmp_path.iterdir()
    state = torch.load(first, weights_only=True)
    plans = tuple(replace(plan, steps=2, batch=2) for plan in (recency.TEXT, recency.PICTURE))
    trained = recency.train(
        VARIANTS["text-frozen"], sample.processor(), 0, plans, tmp_path, lambda line: None
    ).state_dict()
    changed = {name.split(".")[1] for name in state if not torch.equal(state[name], trained[name])}
    assert changed == {"multi_modal_projector"}


@pytest.mark.slow
def test_two_pictures_in_a_prompt(capsys):
    """Trends go over both; a frozen decoder is not changed by them, which the projector is."""
    arguments = ["text-frozen-pair", "--steps", "1", "1", "--batch", "2", "--pictures", "81"]
    assert recency.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["over_pictures"]["pictures"] == 80  # no picture is left alone
    assert len(report["over_pictures"]["layers"]) == len(report["over_text"]["layers"]) == sample.LAYERS
    assert 40 < report["over_pictures"]["questions"] < 40 * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures", "5"], "too few images to fit a trend to: found 5, expected at least 40"),
        (["--steps", "0", "3"], "--steps is 0: expected 1 to 1000000; choose a number in this range"),
        (["--batch", "1"], "--batch is 1: expected 2 to 4096; choose a number in this range"),
        (["--seed", "-1"], "--seed is -1: expected 0 to 2147483648; choose a number in this range"),
        (["--save", "missing"], "--save missing is no folder: expected an existing one; create it first"),
    ],
)
def test_mistakes_are_told_in_one_sentence(capsys, arguments, message):
    assert recency.main(["text-frozen", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
