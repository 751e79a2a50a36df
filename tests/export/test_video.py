"""Videos: frames, times and positions, against Hugging Face's generate and an independent loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.evaluation import Asking, evaluate
from edgeprune.exporter.families import family_of
from tests.export.families import STEPS, Pair, Seen, noise
from tests.export.reference import Inputs, fastv
from tests.tiny import save_anyres, save_qwen, save_video_llava
from tests.videos import clip, write_video

pytestmark = pytest.mark.usefixtures("width_first")

SAVERS: dict[str, Callable[[Path], Path]] = {
    "qwen2_vl": lambda folder: save_qwen(folder, "qwen2_vl"),
    "qwen2_5_vl": lambda folder: save_qwen(folder, "qwen2_5_vl"),
    "qwen3_vl": lambda folder: save_qwen(folder, "qwen3_vl"),
    "llava_onevision": lambda folder: save_anyres(folder, "llava_onevision", "qwen2"),
    "video_llava": save_video_llava,
}
CLIPS = ("a file of 3.5 seconds", "five frames, all of them")


@dataclass(frozen=True)
class Shown:
    """A prompt with videos, as both sides take it."""

    messages: list[Any]
    videos: list[Any]
    images: list[Any]


def shown(name: str, folder: Path, images: int = 0) -> Shown:
    content: list[dict[str, str]] = [{"type": "image"}] * images
    content += [{"type": "video"}, {"type": "text", "text": "what colour is the big star ?"}]
    pictures = [noise((40, 30))] * images
    video = write_video(folder / "clip.mkv", clip(28), 8) if name == CLIPS[0] else clip(5)
    return Shown([{"role": "user", "content": content}], [video], pictures)


class VideoPair(Pair):
    """A model and its bundle, asked about videos."""

    def video_inputs(self, what: Shown) -> Inputs:
        """The prompt as Hugging Face's model takes it.

        Pixel values, layout and text are ours: they have tests of their own. What is compared is what the
        model makes of them.
        """
        ours = self.ours.prepare(what.messages, what.images, videos=what.videos)
        config, place = self.hf.config, self.ours.manifest.prompt.image_token_id
        is_video = np.zeros(len(ours.input_ids), dtype=bool)
        kinds = [image.interval > 0 for image in ours.layout.images]
        is_video[ours.input_ids == place] = np.array(kinds)[ours.layout.image_of]
        ids = np.where(is_video, config.video_token_id, ours.input_ids)
        pixels = torch.from_numpy(ours.pixel_values)
        rows_of = self.ours.manifest.image_program.rows
        first = sum(rows_of(one) for one in ours.layout.images if not one.interval)
        (video,) = (one for one in ours.layout.images if one.interval)
        further: dict[str, Any] = {}
        family = self.ours.manifest.model.family
        if family == "llava_onevision":
            further["pixel_values_videos"] = pixels[first:][None]
            sizes = [one.size[::-1] for one in ours.layout.images if not one.interval]
            if sizes:
                further["pixel_values"] = pixels[:first]
                further["image_sizes"] = torch.tensor(sizes)
                further["batch_num_images"] = torch.tensor([len(sizes)])
        elif family == "video_llava":
            assert ours.frame_values is not None
            further["pixel_values_videos"] = torch.from_numpy(ours.frame_values)[None]
            if first:
                further["pixel_values"] = pixels
        else:
            given = family_of(config).image_arguments(torch.empty(0), pixels, [ours.layout], config)
            side = config.vision_config.spatial_merge_size
            patches = side * side
            further["pixel_values_videos"] = given["pixel_values"][first * patches :]
            rows, columns = video.blocks[0].grid
            further["video_grid_thw"] = torch.tensor([[len(video.blocks), rows * side, columns * side]])
            if family == "qwen2_5_vl":
                further["second_per_grid_ts"] = torch.tensor([video.interval])
            if first:
                further["pixel_values"] = given["pixel_values"][: first * patches]
                further["image_grid_thw"] = given["image_grid_thw"][:1]
        types = np.where(is_video, 2, (ours.input_ids == place).astype(int))
        if family.startswith("qwen"):
            further["mm_token_type_ids"] = torch.from_numpy(types)[None].int()
        row = torch.from_numpy(ids)[None]
        valid = torch.ones(1, ours.layout.tokens)
        return Inputs(row, torch.ones_like(row), torch.zeros(0), valid, further)

    def check_video_unpruned(self, what: Shown) -> None:
        inputs = self.video_inputs(what)
        out = self.hf.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=False,
            max_new_tokens=STEPS,
            **inputs.further,
        )
        reply = self.ours.generate(
            what.messages,
            what.images,
            videos=what.videos,
            keep=1,
            max_new_tokens=STEPS,
            do_sample=False,
        )
        assert list(reply.token_ids) == out[0, -STEPS:].tolist()

    def check_video_pruned(self, what: Shown) -> None:
        inputs = self.video_inputs(what)
        visual = inputs.visual_valid.shape[1]
        plan = self.ours.manifest.plan
        (counts,) = plan.counts(visual)
        wanted = fastv(self.hf, inputs, STEPS, plan.stages[0].layer, counts.kept, torch.ones(visual))
        reply = self.ours.generate(
            what.messages,
            what.images,
            videos=what.videos,
            max_new_tokens=STEPS,
            do_sample=False,
        )
        ids = inputs.input_ids[0]
        is_visual = (ids == self.hf.config.image_token_id) | (ids == self.hf.config.video_token_id)
        index = torch.nonzero(is_visual)[:, 0].numpy()
        assert list(reply.kept_visual[0]) == np.flatnonzero(np.isin(index, wanted.kept[0][0])).tolist()
        assert list(reply.token_ids) == wanted.tokens[0].tolist()


@pytest.fixture(scope="module", params=list(SAVERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoPair:
    folder = SAVERS[request.param](tmp_path_factory.mktemp("video") / request.param)
    return VideoPair(folder, lambda images: Seen(torch.zeros(0), []), keep=0.4)


@pytest.mark.parametrize("name", CLIPS)
def test_unpruned_it_answers_as_hugging_face(pair: VideoPair, name: str, tmp_path: Path) -> None:
    pair.check_video_unpruned(shown(name, tmp_path))


@pytest.mark.parametrize("name", CLIPS)
def test_pruned_it_keeps_and_answers_as_the_independent_loop(
    pair: VideoPair, name: str, tmp_path: Path
) -> None:
    pair.check_video_pruned(shown(name, tmp_path))


def test_an_image_beside_a_video_answers_as_hugging_face(pair: VideoPair, tmp_path: Path) -> None:
    pair.check_video_unpruned(shown(CLIPS[0], tmp_path, images=1))


def test_a_file_is_seen_as_its_frames_are(pair: VideoPair, tmp_path: Path, capsys: Any) -> None:
    frames = clip(28)
    path = write_video(tmp_path / "clip.mkv", frames, 8)
    prompt = "what is the box ?"
    inputs = pair.ours.prepare(prompt, videos=[path])
    given = pair.ours.prepare(prompt, videos=[path.read_bytes()])
    np.testing.assert_array_equal(inputs.pixel_values, given.pixel_values)
    program = pair.ours.manifest.video_program
    assert program is not None
    numbers = program.sampling.indices(28, 8.0)
    chosen = pair.ours.prepare(prompt, videos=[frames[numbers]], fps=8.0 * len(numbers) / 28)
    np.testing.assert_array_equal(inputs.pixel_values, chosen.pixel_values)
    np.testing.assert_allclose(inputs.layout.images[0].interval, chosen.layout.images[0].interval)
    asking = ["run", str(pair.bundle), "--video", str(path), "--prompt", prompt, "--max-new-tokens", "2"]
    assert main([*asking, "--frames", "4", "--json"]) == 0
    assert main([*asking, "--fps", "1"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(pair.bundle)]) == 0
    assert program.sampling.describe() in capsys.readouterr().out


def test_a_benchmark_of_videos_asks_about_videos(pair: VideoPair, tmp_path: Path) -> None:
    folder = tmp_path / "frames" / "v1"
    folder.mkdir(parents=True)
    for number, frame in enumerate(clip(6)):
        PIL.Image.fromarray(frame).save(folder / f"{number}.png")
    asked = [{"video_name": "v1", "question": "what is the box ?", "question_id": "v_1"}]
    answers = [{"question_id": "v_1", "answer": "star", "type": 3}]
    for name, content in (("q.json", asked), ("a.json", answers)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    evaluate(
        pair.bundle,
        data=tmp_path / "q.json",
        annotations=tmp_path / "a.json",
        images=tmp_path / "frames",
        benchmark="msvd-qa",
        frames=4,
        output=tmp_path / "out",
        asking=Asking(max_new_tokens=2, threads=1),
    )
    numbers = [0, 2, 3, 5]  # the middles of quarters, as the benchmark takes them
    video = pair.ours.prepare("what is the box ?", videos=[clip(6)[numbers]])
    *_, answered = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(answered)["visual_tokens"] == video.layout.tokens


def test_a_prompt_without_its_video_is_named(pair: VideoPair) -> None:
    place = pair.ours.manifest.prompt.video_place
    assert place is not None
    with pytest.raises(Exception, match=r"has 1 video place .* and comes with 0 videos"):
        pair.ours.generate(f"{place} what ?")
