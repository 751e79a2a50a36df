"""Training and its command line, in a size that takes seconds."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from samples import evaluate, stages, train
from samples.model import processor
from samples.scenes import GRID, scene


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after two steps of each stage."""
    folder = tmp_path_factory.mktemp("training") / "model"
    assert train.main(["-o", str(folder), "--steps", "2", "2", "2", "--batch", "2"]) == 0
    return folder


def test_two_steps_give_a_folder_that_loads(trained):
    model = LlavaForConditionalGeneration.from_pretrained(trained)
    parts = AutoProcessor.from_pretrained(trained)
    assert model.config.image_token_id == parts.image_token_id
    assert not [name for name in trained.parent.iterdir() if name.name.startswith(".")]


def test_training_again_gives_the_same_weights_and_replaces_the_folder(trained):
    before = LlavaForConditionalGeneration.from_pretrained(trained).state_dict()
    assert train.main(["-o", str(trained), "--steps", "2", "2", "2", "--batch", "2"]) == 0
    after = LlavaForConditionalGeneration.from_pretrained(trained).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_pictures_are_what_the_processor_makes_of_them(trained):
    """Whatever loads the folder must see exactly what the tower was trained on."""
    parts = AutoProcessor.from_pretrained(trained)
    drawn = [scene(seed, aspect=aspect) for seed, aspect in enumerate((1.0, 3 / 2, 1 / 3, 6.0))]
    expected = parts(images=[one.image for one in drawn], text=["<image>"] * len(drawn), return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(stages.pixels(drawn, processor()), expected)


def test_labels_name_the_token_under_each_thing():
    drawn = scene(5, objects=4)
    shapes, colors = stages.token_labels([drawn])
    assert int((shapes > 0).sum()) == int((colors > 0).sum()) == 4
    for thing in drawn.things:
        assert stages.SHAPES[shapes[0, thing.row * GRID + thing.column] - 1] == thing.shape
        assert stages.COLORS[colors[0, thing.row * GRID + thing.column] - 1] == thing.color


def test_a_sketch_has_a_token_for_each_thing():
    things, places = stages._sketch(np.random.default_rng(0), 6)
    assert places == sorted(set(places))
    assert len(places) == stages.SKETCH_TOKENS
    assert {thing.row * GRID + thing.column for thing in things} <= set(places)


def test_no_training_seed_is_used_twice():
    pictures = stages.TrainingPictures()
    drawn = pictures.scenes(3, lambda: 2) + pictures.scenes(2, lambda: 1)
    assert [one.seed for one in drawn] == [0, 1, 2, 3, 4]
    assert [len(one.things) for one in drawn] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0", "1", "1"], "every stage needs at least one step, not 0"),
        (["--batch", "0"], "--batch must be at least 1, not 0"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--seed", "-1"], "--seed must not be negative, but is -1"),
    ],
)
def test_train_refuses_arguments_in_one_sentence(tmp_path, capsys, arguments, message):
    assert train.main(["-o", str(tmp_path / "model"), *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


OTHERS = ({"model_type": "llama"}, {"model_type": "llava", "text_config": {"hidden_size": 4096}})


@pytest.mark.parametrize("text", [None, "not json", "[]", *map(json.dumps, OTHERS)])
def test_train_never_replaces_what_is_no_sample_model(tmp_path, capsys, text):
    (tmp_path / "precious").write_text("keep me")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert train.main(["-o", str(tmp_path)]) == 1
    assert "was not written by edgeprune (it is no sample model)" in capsys.readouterr().err
    assert (tmp_path / "precious").exists()


def test_train_needs_a_parent_folder(tmp_path, capsys):
    assert train.main(["-o", str(tmp_path / "missing" / "model")]) == 1
    assert "missing is not a folder; create it first" in capsys.readouterr().err


def test_evaluate_refuses_a_folder_without_a_model(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 1
    assert "holds no config.json" in capsys.readouterr().err


def test_evaluate_refuses_more_questions_than_there_are(trained, capsys):
    assert evaluate.main([str(trained), "--questions", "1200001"]) == 1
    assert capsys.readouterr().err == "error: --questions must be 1 to 1200000, not 1200001\n"
