"""SparseVLM part by part, on a few tuning pictures."""

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks import sparsevlm_ablation
from benchmarks.sample_accuracy import SAMPLE, picture_targets
from benchmarks.sparsevlm_ablation import in_place_of_published, rate_words, variants
from edgeprune.plans import METHODS, Merge, Positions, ScoringRows
from samples import model as sample
from samples.scenes import TUNING_SEEDS, prompt, scene


def test_every_variant_changes_what_it_says():
    found = variants()
    published = found.pop("as published")
    assert published is METHODS["sparsevlm"]
    for name, variant in found.items():
        changed = {
            "last token": variant.rows == (ScoringRows.LAST_TOKEN,),
            "all text": variant.rows == (ScoringRows.TEXT_AFTER_IMAGE,),
            "recycled": variant.merge is Merge.DROP,
            "preserved": variant.positions is Positions.PRESERVED,
            "renumbered": variant.positions is Positions.PRESERVED,
            "one selection": variant.at == (2,),
        }
        told = {part: part in name for part in changed}
        told["preserved"] = told["renumbered"] = told["preserved"] or told["renumbered"]
        assert changed == told, name


def test_the_published_method_comes_back():
    published = METHODS["sparsevlm"]
    other = variants()["the last token rates"]
    with in_place_of_published(other):
        assert METHODS["sparsevlm"] is other
    assert METHODS["sparsevlm"] is published


def test_words_and_their_attention_against_transformers():
    drawn = scene(TUNING_SEEDS[0])
    found = rate_words([drawn], layers=(0, 2))
    forms = {form for form, _ in found}
    assert forms == {"color", "shape"}
    for form in forms:
        assert {of.asked for (kind, _), of in found.items() if kind == form} == {6}
        # Shares of one softmax.
        assert sum(of.received for (kind, _), of in found.items() if kind == form) == pytest.approx(
            6, rel=1e-4
        )
        assert sum(of.rated for (kind, _), of in found.items() if kind == form) >= 6
    model = LlavaForConditionalGeneration.from_pretrained(SAMPLE, attn_implementation="eager").eval()
    question = next(one for one in drawn.questions if one.text.startswith("what color"))
    inputs = sample.processor()(text=prompt(question.text), images=drawn.image, return_tensors="pt")
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    with torch.no_grad():
        attention = model(**inputs, output_attentions=True).attentions
    for layer in (0, 2):
        paid = attention[layer][0].mean(0)[-1, visual]
        order = np.argsort(-paid.numpy(), kind="stable").tolist()
        of = found["color", "ASSISTANT:"]
        assert of.places[layer][0] == order.index(picture_targets(drawn)[question.text])


@pytest.mark.slow
def test_quick_run(capsys):
    # The variant that is exported fastest.
    assert sparsevlm_ablation.main(["--questions", "24", "--seeds", "tuning", "--variants", "8"]) == 0
    title, words, figures = capsys.readouterr().out.strip().split("\n\n")
    assert title == "24 questions about 2 pictures"
    assert "| color | (the shape) |" in words
    (row,) = ([cell.strip() for cell in line.strip("|").split("|")] for line in figures.splitlines()[2:])
    assert row[:2] == ["one selection before layer 2, the last token rates", "72"]
    accuracy, masked = (float(cell.split(" ± ")[0]) for cell in row[2:4])
    kept = float(row[4].removesuffix(" %"))
    # What is not kept can only be guessed, one time in eight.
    assert 12.5 < accuracy <= kept + 12.5
    assert accuracy < masked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "12"], "--questions is 12: expected 13 to 360000; choose a number in this range"),
        (["--variants", "0", "9"], "--variants is 9: expected 0 to 8; choose a number in this range"),
        (["--threads", "0"], "--threads is 0: expected 1 to 64; choose a number in this range"),
    ],
)
def test_mistakes_are_told_in_one_sentence(capsys, arguments, message):
    assert sparsevlm_ablation.main(arguments) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
