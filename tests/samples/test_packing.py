"""Packed questions are as many prompts with one question each."""

import dataclasses

import pytest
import torch
from transformers import LlavaForConditionalGeneration, set_seed

from samples import stages
from samples.model import config, processor
from samples.packing import IGNORED, answer, answer_with_decoy
from samples.scenes import prompt, scene


@pytest.fixture(scope="module")
def parts():
    return processor()


@pytest.fixture(scope="module")
def model(parts):
    set_seed(0)
    return LlavaForConditionalGeneration(config(parts.tokenizer)).eval()


@pytest.fixture(scope="module")
def drawn():
    return [scene(1), scene(2, objects=3)]


@torch.no_grad()
def test_a_packed_question_gets_the_logits_of_its_own_prompt(model, parts, drawn):
    packed = stages.pack_questions(parts, [one.questions for one in drawn])
    visual = stages.visual_tokens(model, stages.pixels(drawn, parts))
    embeds = model.get_input_embeddings()(packed.ids)
    embeds[packed.ids == model.config.image_token_id] = visual.flatten(0, 1)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=packed.mask[:, None], position_ids=packed.positions
    ).last_hidden_state
    together = model.lm_head(hidden[packed.answers])
    alone = []
    for one in drawn:
        for question in one.questions:
            inputs = parts(images=one.image, text=prompt(question.text), return_tensors="pt")
            alone.append(model(**inputs).logits[0, -1])
    assert len(alone) == len(together) == 12 + 6
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_labels_are_the_answer_and_the_end(parts, drawn):
    packed = stages.pack_questions(parts, [one.questions for one in drawn])
    for row, one in enumerate(drawn):
        due = packed.labels[row][packed.labels[row] != IGNORED]
        expected = [word for question in one.questions for word in (question.answer, "</s>")]
        assert parts.tokenizer.convert_ids_to_tokens(due) == expected
        before = packed.ids[row][packed.answers[row]]
        assert set(parts.tokenizer.convert_ids_to_tokens(before)) == {"ASSISTANT:"}


@torch.no_grad()
def test_early_layers_see_the_decoy_and_later_layers_the_own_picture(model, parts):
    """With all pictures alike a decoy changes nothing; another picture in either role does."""
    rows = [scene(1).questions, scene(1).questions]
    packed = stages.pack_questions(parts, rows)
    one, other = stages.visual_tokens(model, stages.pixels([scene(1), scene(2)], parts))
    alike = answer_with_decoy(model, packed, torch.stack([one, one])).loss
    torch.testing.assert_close(alike, answer(model, packed, torch.stack([one, one])).loss)
    mixed = answer_with_decoy(model, packed, torch.stack([one, other])).loss
    assert abs(mixed - answer(model, packed, torch.stack([one, other])).loss) > 1e-6


def test_no_gradient_flows_from_early_layers_into_the_own_picture(model, parts):
    """With every layer reading the decoy, a row's loss depends on the other row's picture alone."""
    layers = len(model.model.language_model.layers)
    packed = stages.pack_questions(parts, [scene(1).questions, scene(2).questions])
    labels = packed.labels.clone()
    labels[1] = IGNORED
    answers = packed.answers.clone()
    answers[1] = False
    packed = dataclasses.replace(packed, labels=labels, answers=answers)
    visual = stages.visual_tokens(model, stages.pixels([scene(1), scene(2)], parts)).detach().requires_grad_()
    answer_with_decoy(model, packed, visual, layers).loss.backward()
    assert visual.grad[0].abs().max() == 0
    assert visual.grad[1].abs().max() > 0
