"""Image processors and tokenizers of model folders: reproduced exactly, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.image_processor import padding_mask_for, read_image_program
from edgeprune.exporter.processor import read_prompt
from edgeprune.image_program import ImageProgram, Letterbox, Stretch
from edgeprune.image_sizes import ShortestEdge
from edgeprune.runtime.programs import run_program
from edgeprune.runtime.prompt import PromptEncoder
from tests.manifests import make_manifest

LLAVA_15 = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
pytestmark = pytest.mark.usefixtures("width_first")

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content[0].text }}{% endfor %}"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "what", "is", "the", "star"]


def folder_with(path: Path, **changes: Any) -> Path:
    """A folder with LLaVA-1.5's preprocessor_config.json; a change to `...` leaves a key out."""
    fields = {key: value for key, value in {**LLAVA_15, **changes}.items() if value is not ...}
    (path / "preprocessor_config.json").write_text(json.dumps(fields))
    return path


def read(folder: Path, size: int | tuple[int, int] = 336) -> ImageProgram:
    height, width = (size, size) if isinstance(size, int) else size
    return read_image_program(folder, (height, width), (height // 14, width // 14))


def assert_reproduced(folder: Path, size: int | tuple[int, int]) -> ImageProgram:
    program = read(folder, size)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    rng = np.random.default_rng(0)
    for shape in ((40, 97), (90, 31), (50, 50)):
        pixels = rng.integers(0, 256, size=(*shape, 3), dtype=np.uint8)
        expected = np.asarray(theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"])[0]
        (found,) = run_program(pixels, program).pixel_values
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected.shape[1:] == program.feed.size
    return program


def test_llava_15(tmp_path: Path) -> None:
    program = assert_reproduced(folder_with(tmp_path), 336)
    assert program.fit == Stretch()
    assert program.sizes == (ShortestEdge(edge=336),)
    assert (program.crop, program.tokens.grid) == ((336, 336), (24, 24))


def test_letterboxed_llava(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, image_processor_type="LlavaImageProcessor", do_pad=True)
    program = assert_reproduced(folder, 336)
    assert program.fit == Letterbox(color=(122, 116, 104))


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(),
        CLIPImageProcessorPil(size=28, crop_size=28, resample=2),
        CLIPImageProcessorPil(
            size={"height": 28, "width": 42}, do_center_crop=False, image_mean=0.4, image_std=0.3
        ),
        CLIPImageProcessorPil(size=28, default_to_square=True, do_center_crop=False, do_normalize=False),
        LlavaImageProcessorPil(do_pad=True, size=42, crop_size=28, image_mean=[0.1, 0.2, 0.9]),
        LlavaImageProcessorPil(do_pad=True, size=(28, 42), do_center_crop=False, do_rescale=False),
        LlavaImageProcessorPil(do_resize=False, crop_size=(28, 42)),
        SiglipImageProcessorPil(),
        SiglipImageProcessorPil(size={"height": 28, "width": 28}, resample=1),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_saved_processors(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    size = processor(Image.new("RGB", (20, 20)), return_tensors="np")["pixel_values"].shape[2:]
    assert_reproduced(tmp_path, tuple(size))


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor"])
def test_defaults_are_those_of_the_classes(name: str, tmp_path: Path) -> None:
    """Older files leave most settings out."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name}))
    assert_reproduced(tmp_path, 224)


def test_null_is_no(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "do_center_crop": None,
        "do_rescale": None,
        "default_to_square": None,
        "do_pad": None,
    }
    assert_reproduced(folder_with(tmp_path, size={"height": 28, "width": 28}, **changes), 28)
    changes = {"do_normalize": None, "image_mean": None, "do_pad": True}
    assert_reproduced(folder_with(tmp_path, image_processor_type="LlavaImageProcessor", **changes), 336)


@pytest.mark.parametrize("name", ["CLIPImageProcessorFast", "CLIPImageProcessor"])
def test_bare_numbers_and_variants_of_a_class(name: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, image_processor_type=name, size=28, crop_size=28)
    assert_reproduced(folder, 28)


def test_feature_extractors_of_old(tmp_path: Path) -> None:
    changes = {"image_processor_type": ..., "feature_extractor_type": "CLIPFeatureExtractor"}
    assert_reproduced(folder_with(tmp_path, **changes), 336)


def test_processor_config_goes_first(tmp_path: Path) -> None:
    folder_with(tmp_path, size=336)
    nested = {**LLAVA_15, "size": {"shortest_edge": 42}, "crop_size": {"height": 28, "width": 28}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert_reproduced(tmp_path, 28)
    (tmp_path / "processor_config.json").write_text(json.dumps({"patch_size": 14}))
    assert_reproduced(tmp_path, 336)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"image_processor_type": "LlavaNextImageProcessor"},
            "the image processor LlavaNextImageProcessor is",
        ),
        ({"image_processor_type": ...}, "the image processor of no name is"),
        ({"do_pad": True}, "do_pad of CLIPImageProcessor is"),
        ({"resample": 5}, "resample 5 is"),
        ({"resample": "bicubic"}, "resample 'bicubic' is"),
        ({"size": {"shortest_edge": 336, "longest_edge": 400}}, "size .*'longest_edge': 400.* is"),
        ({"size": {"longest_edge": 336}}, "size .*'longest_edge': 336.* is"),
        ({"size": {"shortest_edge": 0}}, "size 0 is"),
        ({"size": "large"}, "size 'large' is"),
        ({"size": None}, "size None is"),
        ({"image_mean": None}, "image_mean None is"),
        ({"rescale_factor": None}, "rescale_factor None is"),
        ({"crop_size": {"shortest_edge": 336}}, "crop_size .*'shortest_edge': 336.* is"),
        ({"do_center_crop": False}, "output size, which depends on the image, is"),
        ({"crop_size": 224}, "output of 224 x 224 pixels for a vision tower of 336 x 336 is"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean \[0.5, 0.5\] is"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std \[0.5, 0, 0.5\] is"),
        ({"image_std": ["a", "b", "c"]}, "image_std 'a' is"),
        ({"rescale_factor": "1/255"}, "rescale_factor '1/255' is"),
        (
            {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": 300},
            r"crop_size \(336, 336\) around padded images of size \(300, 300\) is",
        ),
        (
            {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_resize": False},
            "do_pad without do_resize is",
        ),
        (
            {
                "image_processor_type": "LlavaImageProcessor",
                "do_pad": True,
                "image_mean": [123.0, 116.0, 104.0],
            },
            r"image_mean \[123.0, 116.0, 104.0\] as the colour of the padding is",
        ),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=what
        + r" not supported(\. Supported: CLIPImageProcessor, LlavaImageProcessor, .*nearest, lanczos, "
        r"bilinear, bicubic|: expected a setting .*; correct preprocessor_config\.json)",
    ):
        read(folder_with(tmp_path, **changes))


def test_no_image_processor(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, nor a processor_config\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds list: expected a JSON object"),
        ("[" * 50_000, r"is not valid JSON \(it is nested too deeply\)"),
    ],
)
def test_broken_json(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(InputError, match=rf"preprocessor_config\.json {what}.*copy it again"):
        read(tmp_path)


LETTERBOXED = make_manifest().image_program
CROPPED = LETTERBOXED.model_copy(update={"fit": Stretch()})


@pytest.mark.parametrize(
    ("method", "kind", "threshold"),
    [
        ("fastv", "share", 0.5),
        ("himap", "share", 0.5),
        ("tokencarve", "share", 0.5),
        ("pyramiddrop", "share", 0.01),
        ("sparsevlm", "bilinear", 0.5),
    ],
)
def test_published_masks(method: str, kind: str, threshold: float) -> None:
    assert padding_mask_for(LETTERBOXED, method) == PaddingMask(kind=kind, threshold=threshold)
    assert padding_mask_for(CROPPED, method).kind == "none"


def config(image_token_id: int = 4, **text: Any) -> LlavaConfig:
    fields = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 64, **text}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(), text_config=LlamaConfig(**fields), image_token_index=image_token_id
    )


def tokenizer_files(path: Path, template: str | None = TEMPLATE, **special: str) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **names)
    if template is not None:
        fast.chat_template = template
    fast.save_pretrained(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return tokenizer_files(folder)


def test_prompt_of_a_saved_processor(model: Path, bundle: Path) -> None:
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=28, crop_size=28),
        tokenizer=AutoTokenizer.from_pretrained(model),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}user {% for part in m.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}",
    )
    processor.save_pretrained(model)
    config().save_pretrained(model)
    prompt = read_prompt(model, config(), bundle)
    assert (prompt.image_token, prompt.image_token_id, prompt.pad_token_id) == ("<image>", 4, 0)
    assert (prompt.bos_token, prompt.eos_token, prompt.eos_token_ids) == ("<s>", "</s>", (2,))
    assert prompt.template_variables == {}
    theirs = AutoProcessor.from_pretrained(model, backend="pil")
    picture = np.zeros((20, 30, 3), np.uint8)
    text = theirs.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is the star"}]}]
    )
    expected = theirs(text=text, images=[picture])["input_ids"][0]
    encoder = PromptEncoder(bundle, prompt)
    assert encoder.encode(encoder.render("what is the star", 1), ["<image>" * 4]) == expected
    (found,) = run_program(picture, read_image_program(model, (28, 28), (2, 2))).pixel_values
    wanted = np.asarray(theirs.image_processor(picture)["pixel_values"])[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tokenizer_is_written_as_transformers_loads_it(tmp_path: Path, bundle: Path) -> None:
    """The class and tokenizer_config.json have a say beside tokenizer.json: here, the space in front."""
    vocabulary = {
        piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", "▁", "s", "t", "a", "r", "<image>"])
    }
    LlamaTokenizer(
        vocab=vocabulary, merges=[], add_prefix_space=False, extra_special_tokens=["<image>"]
    ).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    changed = json.loads(file.read_text())
    changed["pre_tokenizer"] = None
    changed["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    file.write_text(json.dumps(changed))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    prompt = read_prompt(tmp_path, config(8), bundle)
    for text in ("star <image> star", " star"):
        images = ["<image>"] * text.count("<image>")
        assert PromptEncoder(bundle, prompt).encode(text, images) == theirs(text)["input_ids"]
    assert (
        Tokenizer.from_file(str(file)).encode("star").ids
        != Tokenizer.from_file(str(bundle / "tokenizer.json")).encode("star").ids
    )


def test_places_of_the_chat_template(tmp_path: Path, bundle: Path) -> None:
    """From the last place to the first; each one outdoes those before."""
    folder = tokenizer_files(tmp_path, None)
    assert read_prompt(folder, config(), bundle).chat_template is None
    assert not (bundle / "chat_template.jinja").exists()

    def assert_read(expected: str) -> None:
        assert read_prompt(folder, config(), bundle).chat_template == "chat_template.jinja"
        assert (bundle / "chat_template.jinja").read_text() == expected

    settings = folder / "tokenizer_config.json"
    raw = json.loads(settings.read_text())
    settings.write_text(json.dumps({**raw, "chat_template": "tokenizer"}))
    assert_read("tokenizer")
    named = [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "tools"}]
    settings.write_text(json.dumps({**raw, "chat_template": named}))
    assert_read("named")
    (folder / "chat_template.jinja").write_text("jinja")
    assert_read("jinja")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert_read("json")
    (folder / "processor_config.json").write_text(json.dumps({"chat_template": "processor"}))
    assert_read("processor")


def test_tokens_that_the_template_names(tmp_path: Path, bundle: Path) -> None:
    folder = tokenizer_files(tmp_path, "{{ bos_token }}{{ pad_token }}{{ messages }}")
    assert read_prompt(folder, config(), bundle).template_variables == {"pad_token": "<pad>"}


def test_end_of_sequence_and_padding(model: Path, bundle: Path) -> None:
    assert read_prompt(model, config(eos_token_id=7), bundle).eos_token_ids == (7,)
    generation = model / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [2, 5], "pad_token_id": 6}))
    prompt = read_prompt(model, config(eos_token_id=7), bundle)
    assert (prompt.eos_token_ids, prompt.pad_token_id) == ((2, 5), 6)
    generation.write_text(json.dumps({"eos_token_id": 5}))
    prompt = read_prompt(model, config(eos_token_id=7), bundle)
    assert (prompt.eos_token_ids, prompt.pad_token_id) == ((5,), 0)


def test_padding_falls_back_to_end_of_sequence(model: Path, bundle: Path) -> None:
    settings = model / "tokenizer_config.json"
    raw = json.loads(settings.read_text())
    settings.write_text(json.dumps({key: value for key, value in raw.items() if key != "pad_token"}))
    # -1 is an old way to say none, and a vocabulary of 64 has no token 64.
    for pad in (-1, 64):
        (model / "generation_config.json").write_text(json.dumps({"pad_token_id": pad}))
        assert read_prompt(model, config(), bundle).pad_token_id == 2


def test_no_end_of_sequence(model: Path, bundle: Path) -> None:
    settings = model / "tokenizer_config.json"
    raw = json.loads(settings.read_text())
    settings.write_text(json.dumps({key: value for key, value in raw.items() if key != "eos_token"}))
    with pytest.raises(
        InputError, match=r"nor the tokenizer in .* names an eos_token_id.*add it to generation_con"
    ):
        read_prompt(model, config(eos_token_id=None), bundle)


def test_no_tokenizer(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json: expected a fast tokenizer; make one with"):
        read_prompt(tmp_path, config(), bundle)


def test_broken_tokenizer(model: Path, bundle: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be read .*: copy it again"):
        read_prompt(model, config(), bundle)


def test_image_token_of_its_own(model: Path, bundle: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"image_token_id 63 is None to the tokenizer .*add it"):
        read_prompt(model, config(63), bundle)


@pytest.mark.parametrize("image_token_id", [-1, 32, 10**12])
def test_an_image_token_beyond_the_vocabulary(image_token_id: int, model: Path, bundle: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"{image_token_id} is beyond .* vocabulary of 32 tokens"
    ):
        read_prompt(model, config(image_token_id, vocab_size=32), bundle)


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [[], [None], [[2]], {"a": 1}, "x", "2", True, 2.5])
def test_an_id_that_is_no_whole_number(name: str, value: Any, model: Path, bundle: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, name: value}))
    with pytest.raises(InputError, match=rf"has the {name} .*: expected a token's id, a whole number"):
        read_prompt(model, config(), bundle)


def test_an_id_that_is_named_again_counts_once(model: Path, bundle: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 5] * 1000}))
    assert read_prompt(model, config(), bundle).eos_token_ids == (5, 2)


@pytest.mark.parametrize("eos", [32, [2, 32], -2])
def test_an_end_of_sequence_beyond_the_vocabulary(eos: int | list[int], model: Path, bundle: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(InputError, match=r"eos_token_id (32|-2), beyond its text model's vocabulary of 32"):
        read_prompt(model, config(vocab_size=32), bundle)


def test_image_tokens_that_differ(model: Path, bundle: Path) -> None:
    (model / "processor_config.json").write_text(json.dumps({"image_token": "<img>"}))
    with pytest.raises(
        InputError, match=r"names the image token '<img>', but .*image_token_id 4 is '<image>'"
    ):
        read_prompt(model, config(), bundle)
