"""Video-LLaVA asked about images, against Hugging Face's generate and our own loop; videos: `test_video`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families import family_of, read_config
from tests.export.families import Image, Pair, Seen, asked, check_half_precision, noise
from tests.tiny import save_video_llava
from tests.videos import clip

pytestmark = pytest.mark.usefixtures("width_first")

WIDE, TALL = (90, 30), (31, 60)
CASES = {"wide": [WIDE], "two of different size": [TALL, WIDE], "text only": []}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = save_video_llava(tmp_path_factory.mktemp("video-llava") / "model")
    processor = VideoLlavaImageProcessor.from_pretrained(folder)

    def see(images: Sequence[Image]) -> Seen:
        found = processor(list(images), return_legacy_image_output=False, return_tensors="np")
        pixels = torch.from_numpy(np.asarray(found["pixel_values"], dtype=np.float32))
        return Seen(pixels, ["<image>" * 36] * len(images))

    return Pair(folder, see)


@pytest.mark.parametrize("name", CASES)
def test_unpruned_it_answers_as_hugging_face(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_unpruned(asked("what colour is the big star ?", len(images)), images)


@pytest.mark.parametrize("name", [name for name, sizes in CASES.items() if sizes])
def test_pruned_it_keeps_and_answers_as_the_independent_loop(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_pruned(asked("is the star small ?", len(images)), images)


def test_a_batch_of_images_and_videos_answers_as_one_by_one(pair: Pair) -> None:
    prompts = ["what is the box ?", "is the star small ?", "what colour ?"]
    images, videos = [[noise(WIDE)], [], []], [[], [clip(3)], [clip(3, 30, 50)]]
    together = pair.ours.generate(prompts, images, videos=videos, max_new_tokens=5, do_sample=False)
    for prompt, its, clips, reply in zip(prompts, images, videos, together, strict=True):
        alone = pair.ours.generate(prompt, its, videos=clips, max_new_tokens=5, do_sample=False)
        assert reply.token_ids == alone.token_ids


@pytest.mark.slow
def test_every_command_takes_it(pair: Pair, tmp_path: Path) -> None:
    pair.check_commands(tmp_path, noise(WIDE))


@pytest.mark.slow
def test_half_precision(pair: Pair, tmp_path: Path) -> None:
    check_half_precision(pair.folder, tmp_path)


@pytest.mark.slow
def test_engines_build(pair: Pair) -> None:
    pair.check_engines()


def test_towers_of_another_kind_are_named(tmp_path: Path) -> None:
    folder = save_video_llava(tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw["vision_config"]["model_type"] = "siglip_vision_model"
    raw["vision_feature_select_strategy"] = "full"
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="'siglip_vision_model' are not supported here"):
        family_of(read_config(folder))
