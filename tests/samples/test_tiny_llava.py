"""The committed checkpoint: it loads by itself, speaks the documented prompt form, and answers."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from samples.evaluate import measure
from samples.model import VISUAL_TOKENS
from samples.scenes import HELD_OUT_SEEDS, prompt, scene

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
FOLDER = SAMPLES / "tiny-llava"
ASKED = json.loads((SAMPLES / "pictures" / "questions.json").read_text())
TEXT = "USER: <image>\nwhat color is the star ASSISTANT:"


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(FOLDER, local_files_only=True).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER, local_files_only=True)


def _answer(model, processor, inputs):
    with torch.no_grad():
        ids = model.generate(**inputs)
    return ids[0, inputs["input_ids"].shape[1] :], processor.batch_decode(ids, skip_special_tokens=True)[0]


@pytest.mark.parametrize("name", sorted({entry["picture"] for entry in ASKED}))
def test_answers_the_questions_about_the_sample_pictures(model, processor, name):
    asked = [entry for entry in ASKED if entry["picture"] == name]
    right = 0
    with Image.open(SAMPLES / "pictures" / name) as picture:
        for entry in asked:
            inputs = processor(images=picture, text=prompt(entry["question"]), return_tensors="pt")
            assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == VISUAL_TOKENS == 144
            new, _ = _answer(model, processor, inputs)
            assert new[-1] == model.config.eos_token_id, "greedy generation did not stop by itself"
            right += processor.decode(new, skip_special_tokens=True).strip() == entry["answer"]
    assert right >= len(asked) - 1


def test_is_right_on_most_held_out_questions():
    right, asked = measure(FOLDER, questions=96)
    assert asked == 96
    assert right >= 92


def test_tokens_round_trip():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    ids = tokenizer.encode(TEXT)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == f"<s> {TEXT}".replace("\n", " ")
    assert tokenizer.encode("USER: <image>\nWhat colour is the Star? ASSISTANT:") == ids


def test_the_chat_template_gives_the_documented_prompt(processor):
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the star"}]}
    assert processor.apply_chat_template([ask], add_generation_prompt=True) == TEXT
    told = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    again = {"role": "user", "content": "what shape is blue"}
    text = processor.apply_chat_template([ask, told, again], add_generation_prompt=True)
    assert text == f"{TEXT} red</s>USER: what shape is blue ASSISTANT:"


def test_special_tokens_agree_everywhere(model, processor):
    for settings in (model.config, model.config.text_config, model.generation_config):
        assert settings.bos_token_id == processor.tokenizer.bos_token_id
        assert settings.eos_token_id == processor.tokenizer.eos_token_id
        assert settings.pad_token_id == processor.tokenizer.pad_token_id
    assert len(processor.tokenizer) == model.config.text_config.vocab_size


def test_random_loss_of_visual_tokens_costs_accuracy(model, processor):
    """Layers 2 and later fetch the answer from the visual tokens they are left with."""
    decoder = model.model.language_model
    generator = torch.Generator().manual_seed(0)
    right = {144: 0, 43: 0}
    drawn = [scene(seed) for seed in HELD_OUT_SEEDS[:8]]
    for one in drawn:
        for question in one.questions:
            inputs = processor(images=one.image, text=prompt(question.text), return_tensors="pt")
            wanted = processor.tokenizer.convert_tokens_to_ids(question.answer)
            for kept in right:
                right[kept] += _logits_with(model, decoder, inputs, kept, generator).argmax() == wanted
    assert right[144] >= 90
    assert right[43] < 60


@torch.no_grad()
def _logits_with(model, decoder, inputs, kept, generator):
    """Logits of the last position where only `kept` random visual tokens go on from layer 2."""
    visual = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
    places = inputs["input_ids"][0] == model.config.image_token_id
    hidden = model.get_input_embeddings()(inputs["input_ids"])
    hidden[0, places] = visual
    positions = torch.arange(hidden.shape[1])[None]
    for index, layer in enumerate(decoder.layers):
        if index == 2:
            start = int(places.nonzero()[0])
            chosen = torch.randperm(int(places.sum()), generator=generator)[:kept].sort().values + start
            keep = torch.cat([(~places).nonzero()[:, 0], chosen]).sort().values
            hidden, positions = hidden[:, keep], positions[:, keep]
        size = hidden.shape[1]
        hidden = layer(
            hidden,
            attention_mask=torch.ones(1, 1, size, size, dtype=torch.bool).tril(),
            position_ids=positions,
            position_embeddings=decoder.rotary_emb(hidden, positions),
        )
    return model.lm_head(decoder.norm(hidden[0, -1]))
