"""Prompts against Hugging Face's LlavaProcessor, and text that arrives token by token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from edgeprune.errors import BundleError, InputError
from edgeprune.manifest import Prompt
from edgeprune.runtime.prompt import PromptEncoder, StopStrings, Stream

# The form of LLaVA-1.5's template: images first, replies within {% generation %}.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{# images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m['content'] + '\n' }}{% endfor %}"
SENTENCES = [
    "USER: what colour is the big star in the picture?",
    "ASSISTANT: the big star is blue, the small one is red.",
    "é 🙂 ü how many stars?",
]
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
TOKENS_PER_IMAGE = 9
IMAGE = "<image>" * TOKENS_PER_IMAGE
# Bundles are made once per kind; the folder goes when the interpreter does.
BUNDLES = TemporaryDirectory(prefix="edgeprune-prompt-")


def word_level() -> Tokenizer:
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIALS + words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama's: a space mark in front, and bytes for what the vocabulary lacks."""
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁thestarUSER:.,?ilu"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("s", "t"), ("a", "r"), ("st", "ar"), ("▁", "star")]
    vocabulary = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"word level": word_level, "byte level": byte_level, "sentencepiece": sentencepiece}


@dataclass(frozen=True)
class Case:
    ours: PromptEncoder
    theirs: LlavaProcessor
    folder: Path
    prompt: Prompt


@cache
def case(kind: str, template: str | None = LLAVA_TEMPLATE, bos: bool = True) -> Case:
    """The same tokenizer in a bundle and in Hugging Face's processor."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_special_tokens(SPECIALS)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    folder = Path(mkdtemp(dir=BUNDLES.name))
    # Left over from training, as in many published tokenizers; neither may reach a prompt.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=3, pad_token="<pad>", length=70)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    prompt = Prompt(
        tokenizer="tokenizer.json",
        chat_template="chat_template.jinja" if template is not None else None,
        image_token="<image>",
        image_token_id=4,
        pad_token_id=3,
        bos_token="<s>",
        eos_token="</s>",
        eos_token_ids=(2,),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    theirs = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}
        ),
        tokenizer=fast,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return Case(PromptEncoder(folder, prompt), theirs, folder, prompt)


def hf_ids(processor: LlavaProcessor, text: str, images: int) -> list[int]:
    pictures = [np.zeros((20, 30, 3), np.uint8)] * images
    ids: list[int] = processor(text=text, images=pictures or None)["input_ids"][0]
    return ids


def user(text: str, images: int = 0) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}],
    }


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def ids_of(encoder: PromptEncoder, prompt: Any, images: list[str]) -> list[int]:
    """Token ids of a prompt with its images in their places."""
    return encoder.encode(encoder.render(prompt, len(images)), images)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("images", range(4))
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_are_those_of_hugging_face(kind: str, images: int, bos: bool) -> None:
    both = case(kind, bos=bos)
    question = "what colour is the  big star? é 🙂"
    text = both.theirs.apply_chat_template([user(question, images)], add_generation_prompt=True)
    assert both.ours.render(question, images) == text
    found = ids_of(both.ours, question, [IMAGE] * images)
    assert found == hf_ids(both.theirs, text, images)
    assert found.count(4) == images * TOKENS_PER_IMAGE
    assert (found[0] == 1) == bos


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_string_with_image_places_is_used_as_it_stands(kind: str) -> None:
    both = case(kind)
    text = "the <image> and\n<image>the star <image><image>?"
    assert both.ours.render(text, 4) == text
    assert ids_of(both.ours, text, [IMAGE] * 4) == hf_ids(both.theirs, text, 4)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_conversations(kind: str) -> None:
    both = case(kind)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "the star"}]},
        user("what is it?", 2),
        assistant("a red star."),
        user("how many?", 1),
    ]
    text = both.theirs.apply_chat_template(messages, add_generation_prompt=True)
    assert both.ours.render(messages, 3) == text
    assert ids_of(both.ours, messages, [IMAGE] * 3) == hf_ids(both.theirs, text, 3)


def test_plain_string_content_in_a_template_of_parts() -> None:
    """Hugging Face's rendering drops such a text without a word."""
    both = case("word level")
    plain, parts = [{"role": "user", "content": "how many stars?"}], [user("how many stars?")]
    assert both.ours.render(plain, 0) == both.ours.render(parts, 0)


def test_parts_in_a_template_of_strings() -> None:
    both = case("word level", TEXT_TEMPLATE)
    assert both.ours.render("how many?", 0) == "[user] how many?\n"
    messages = [{"role": "system", "content": "the star"}, user("how many?")]
    assert both.ours.render(messages, 0) == "[system] the star\n[user] how many?\n"
    # Such a template would show a list in Python's notation.
    assert case("word level", "{{ messages[0]['content'] }}").ours.render("how many?", 0) == "how many?"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bos_is_not_doubled(kind: str) -> None:
    both = case(kind, "{{ bos_token }}" + LLAVA_TEMPLATE)
    expected = both.theirs.apply_chat_template(
        [user("how many?", 1) | {"content": [{"type": "image", "image": np.zeros((9, 9, 3), np.uint8)}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"][0]
    found = ids_of(both.ours, [{"role": "user", "content": [{"type": "image"}]}], [IMAGE])
    assert found == expected
    assert found.count(1) == 1
    assert ids_of(both.ours, "<s><image> the star", [IMAGE] * 1).count(1) == 1


MIXED_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}S:{{ m.content + '\n' }}{% else %}"
    "{{ m.role }}:{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("others", [str, lambda text: [{"type": "text", "text": text}]], ids=["str", "parts"])
@pytest.mark.parametrize("template", [LLAVA_TEMPLATE, TEXT_TEMPLATE, MIXED_TEMPLATE])
def test_no_role_vanishes(template: str, others: Any) -> None:
    """Beside a message with parts, Hugging Face's rendering drops the plain strings without a word."""
    messages = [
        {"role": "system", "content": others("be brief")},
        user("how many?", 1),
        {"role": "assistant", "content": others("two stars")},
        {"role": "user", "content": others("be brief")},
    ]
    text = case("word level", template).ours.render(messages, 1)
    places = [text.index("be brief"), text.index("<image>"), text.index("how many?"), text.index("two stars")]
    assert [*places, text.rindex("be brief")] == sorted({*places, text.rindex("be brief")})


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_role_that_the_template_ignores_is_named(role: str) -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    messages = [{"role": role, "content": "star"}, {"role": "user", "content": "what is a star"}]
    with pytest.raises(InputError, match=f"leaves out what the {role} says"):
        case("word level", template).ours.render(messages, 0)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("trim", " star "),
        ("tojson", 'a "star"'),
        ("upper", "star"),
        ("split('</think>') | last", "a</think>star"),
    ],
)
def test_transformed_texts_are_not_lost(said: str, written: str) -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{{ m.content." + said
    if "(" not in said:
        template = template.replace(f".{said}", f" | {said}")
    messages = [{"role": "assistant", "content": written}, {"role": "user", "content": "what?"}]
    found = case("word level", template + " }}{% endif %}{% endfor %}").ours.render(messages, 0)
    assert "star" in found.lower()
    assert found.endswith("what?")


def test_pictures_in_a_template_of_strings() -> None:
    ours = case("word level", TEXT_TEMPLATE).ours
    assert ours.render("how many?", 2) == "[user] <image>\n<image>\nhow many?\n"
    messages = [
        {"role": "system", "content": "the star"},
        {"role": "user", "content": [{"type": "text", "text": "what "}, {"type": "image"}]},
    ]
    assert ours.render(messages, 1) == "[system] the star\n[user] what <image>\n\n"
    only_texts = "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    assert case("word level", only_texts + "{% endfor %}").ours.render("star", 1) == "<image>\nstar"


def with_videos(source: str | None) -> PromptEncoder:
    """Of a model whose videos stand at the word "star"."""
    both = case("word level", source)
    return PromptEncoder(both.folder, both.prompt.model_copy(update={"video_place": "star"}))


def test_videos_have_places_of_their_own() -> None:
    parts = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image> "
    parts += "{% elif p.type == 'video' %}star {% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
    ours = with_videos(parts)
    assert ours.render("how many?", 1, 2) == "<image> star star how many?"
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "how many?"}]
    text = ours.render([{"role": "user", "content": content}], 1, 1)
    assert (text, ours.order(text)) == ("star <image> how many?", ["video", "image"])
    assert ours.encode(text, ["<image>" * 3, "the <image>"]).count(ours.prompt.image_token_id) == 4
    with pytest.raises(InputError, match=r"has 1 video place \(star\) and comes with 2 videos"):
        ours.render([{"role": "user", "content": content}], 1, 2)
    only_texts = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert with_videos(only_texts).render("how many?", 0, 1) == "star\nhow many?"


def test_a_model_without_videos_says_so() -> None:
    ours = case("word level").ours
    content = [{"type": "video"}, {"type": "text", "text": "how many?"}]
    for prompt, videos in (("how many?", 1), ([{"role": "user", "content": content}], 0)):
        with pytest.raises(InputError, match="comes with videos, and this model takes none"):
            ours.render(prompt, 0, videos)


HALF = "a star \ud83d"


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        (HALF, "the prompt"),
        ("<image>" + HALF, "the prompt"),
        ([{"role": "user", "content": HALF}], "message 0"),
        ([user("a"), user(HALF)], "message 1"),
        ([{"role": HALF, "content": "a"}], "the role of message 0"),
    ],
)
def test_half_a_character(prompt: Any, what: str) -> None:
    for template in (LLAVA_TEMPLATE, None):
        with pytest.raises(
            InputError, match=rf"{what} is not Unicode text: .*'\\ud83d', half of one; expected"
        ):
            ids_of(case("word level", template).ours, prompt, [])


def test_half_a_character_elsewhere() -> None:
    with pytest.raises(InputError, match="a stop string is not Unicode text"):
        StopStrings(["ok", HALF])
    with pytest.raises(InputError, match="is not Unicode text"):
        ids_of(case("word level", "{{ messages[0].content[0].text }}{{ '\\ud83d' }}").ours, "star", [])


def test_far_too_long_a_prompt_is_refused_before_the_tokenizer_sees_it() -> None:
    both = case("word level")
    ours = PromptEncoder(both.folder, both.prompt, max_positions=10)
    ids_of(ours, "star " * 400, [])
    with pytest.raises(
        InputError, match=r"the prompt has \d+ characters: expected at most 2560, .*shorten it"
    ):
        ids_of(ours, "star " * 600, [])
    with pytest.raises(InputError, match="characters: expected at most 2560"):
        ids_of(ours, "star", ["<image>" * 600])


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    both = case("word level")
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/gr\xe9en")
    shutil.copytree(both.folder, folder)
    assert ids_of(PromptEncoder(folder, both.prompt), "star", []) == ids_of(both.ours, "star", [])


def test_template_has_what_hugging_face_gives_it() -> None:
    template = (
        "{%- if tools is not none or documents is not none %}tools{% endif %}{{ eos_token }}{{ unk_token }}\n"
        "    {% for m in messages * 2 %}{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ {'a': '<é>'} | tojson }}{{ m.content[0].text }}{{ strftime_now('%Y')[:2] }}{% endfor %}\n"
        "{%- set n = namespace(k=1) %}{{ n.k }}{% generation %}{% if n.k %}!{% endif %}{% endgeneration %}"
    )
    both = case("word level", template)
    prompt = both.prompt.model_copy(update={"template_variables": {"unk_token": "<unk>"}})
    ours = PromptEncoder(both.folder, prompt)
    messages = [user("star")]
    expected = both.theirs.apply_chat_template(messages, add_generation_prompt=True)
    assert ours.render(messages, 0) == expected
    assert '</s><unk>\n{"a": "<é>"}star20' in expected


def test_template_is_sandboxed() -> None:
    both = case("word level", "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="SecurityError"):
        both.ours.render("star", 0)
    both = case("word level", "{{ messages.clear() }}")
    with pytest.raises(InputError, match="SecurityError"):
        both.ours.render("star", 0)


def test_template_that_refuses() -> None:
    both = case("word level", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        InputError, match=r"cannot take these messages \(TemplateError: roles must alternate\)"
    ):
        both.ours.render("star", 0)


def test_template_that_drops_the_question() -> None:
    both = case("word level", "USER: {% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(InputError, match="leaves out what the user says"):
        both.ours.render("star", 0)


def test_no_template() -> None:
    both = case("word level", None)
    assert both.ours.render("how many?", 0) == "how many?"
    assert both.ours.render("<image> how many?", 1) == "<image> how many?"
    for prompt, images in (("how many?", 1), ([user("how many?")], 0)):
        with pytest.raises(InputError, match=r"no chat template: .*holds <image> where each image goes"):
            both.ours.render(prompt, images)


@pytest.mark.parametrize(
    ("prompt", "images", "places", "pictures"),
    [
        ("<image> what?", 2, "1 image place ", "2 images"),
        ("<image><image> what?", 1, "2 image places ", "1 image:"),
        ("<image> what?", 0, "1 image place ", "0 images"),
        ([user("what?", 1)], 3, "1 image place ", "3 images"),
        ([user("what?")], 1, "0 image places ", "1 image:"),
        ([user("what is <image>?", 1)], 1, "2 image places ", "1 image:"),
    ],
)
def test_places_and_pictures_differ(prompt: Any, images: int, places: str, pictures: str) -> None:
    ours = case("word level").ours
    for step in (ours.render, lambda prompt, images: ids_of(ours, prompt, [IMAGE] * images)):
        with pytest.raises(
            InputError, match=rf"the prompt has {places}\(<image>\) and comes with {pictures}"
        ):
            step(prompt, images)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"the prompt is \[\]: expected a string, or a list of at least one message"),
        ({"role": "user"}, r"the prompt is \{'role': 'user'\}: expected a string, or a list"),
        (["hello"], "message 0 is str: expected a mapping with role and content only"),
        ([{"role": "user"}], r"message 0 is \['role'\]: expected a mapping with role and content only"),
        ([user("a"), user("b") | {"name": "x"}], r"message 1 is \['content', 'name', 'role'\]: expected"),
        ([{"role": 1, "content": "x"}], "the role of message 0 is 1: expected a string"),
        ([{"role": "user", "content": 5}], "the content of message 0 is 5: expected a string or a list"),
        (
            [{"role": "user", "content": [{"type": "audio"}]}],
            "message 0 has the part {'type': 'audio'}: expected",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            "{'type': 'image'} or {'type': 'video'}, handed over separately",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "message 0 has the part"),
        ([{"role": "user", "content": ["x"]}], "message 0 has the part 'x'"),
    ],
)
def test_messages_of_another_form(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        case("word level").ours.render(messages, 0)


def test_empty_prompt() -> None:
    with pytest.raises(InputError, match="the prompt is empty: expected at least one token"):
        ids_of(case("word level", None, bos=False).ours, "", [])


def test_unreadable_files(tmp_path: Path) -> None:
    both = case("word level")
    with pytest.raises(
        BundleError, match=r"the tokenizer .*tokenizer\.json cannot be read .*: copy the bundle again"
    ):
        PromptEncoder(tmp_path, both.prompt)
    (tmp_path / "tokenizer.json").write_bytes((both.folder / "tokenizer.json").read_bytes())
    with pytest.raises(BundleError, match=r"the chat template .*chat_template\.jinja cannot be read"):
        PromptEncoder(tmp_path, both.prompt)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BundleError, match=r"the chat template .*chat_template\.jinja cannot be read"):
        PromptEncoder(tmp_path, both.prompt)


def test_image_token_that_the_tokenizer_does_not_know() -> None:
    both = case("byte level")
    ours = PromptEncoder(both.folder, both.prompt.model_copy(update={"image_token": "<photo>"}))
    with pytest.raises(
        BundleError, match="makes 0 image tokens of 1 place, expected 4: '<photo>' is not one token"
    ):
        ids_of(ours, "<photo> star", ["<photo>" * 4])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_decode_is_that_of_hugging_face(kind: str) -> None:
    both = case(kind)
    for ids in ([1, 7, 9, 2], ids_of(both.ours, " the star , é 🙂 .", []), [], [2], [10**6]):
        expected = both.theirs.batch_decode(
            [ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert both.ours.decode(ids) == expected[0]


def pieces(ours: PromptEncoder, ids: Sequence[int]) -> list[str]:
    stream = ours.stream()
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(text=st.text(alphabet="the star?.é🙂\u200d  ▁\ufffd中", max_size=30))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_streamed_text_is_the_whole_text(kind: str, text: str) -> None:
    ours = case(kind, None).ours
    ids = [*ids_of(ours, text, []), 2]
    shown = pieces(ours, ids)
    assert "".join(shown) == ours.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)


@given(ids=st.lists(st.integers(0, 290), max_size=20))
@settings(max_examples=100, deadline=None)
def test_streamed_bytes_are_the_whole_text(ids: list[int]) -> None:
    ours = case("byte level").ours
    assert "".join(pieces(ours, ids)) == ours.decode(ids)


def test_words_appear_at_once_and_characters_when_complete() -> None:
    ours = case("sentencepiece", None).ours
    ids = ids_of(ours, "the star 🙂 the", [])[1:]
    assert [ours.decode([token]) for token in ids[:2]] == ["the", "star"]
    assert pieces(ours, ids) == ["the", " star", " ", "", "", "", "🙂", " the", ""]
    words = case("word level", None).ours
    assert pieces(words, [*ids_of(words, "the", []), 2, *ids_of(words, "star", [])]) == [
        "",
        "the",
        "",
        "",
        " star",
        "",
    ]


def test_bytes_that_make_no_character() -> None:
    ours = case("sentencepiece", None).ours
    euro = [5 + byte for byte in "€".encode()]
    assert pieces(ours, euro[:2]) == ["", "", "\ufffd\ufffd"]
    the = ids_of(ours, "the", [])[-1]
    # One bad byte after a shown character: it alone is replaced.
    assert pieces(ours, [*euro, euro[0], the]) == ["", "", "€", "", "\ufffd the", ""]


def test_finish_leaves_nothing() -> None:
    ours = case("byte level", None).ours
    stream = Stream(ours.decode)
    assert stream.push(ids_of(ours, "ж", [])[1]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The rule, letter by letter: the first stop to be complete, of several the longest."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    chunks=st.lists(st.text(alphabet="ab.", max_size=4), max_size=8),
    stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_stop_strings_however_the_text_is_divided(chunks: list[str], stops: list[str]) -> None:
    expected, hit = cut("".join(chunks), stops)
    stopper = StopStrings(stops)
    shown = ""
    for chunk in chunks:
        shown += stopper.push(chunk)
        assert expected.startswith(shown)
    assert shown + stopper.finish() == expected
    assert stopper.hit == hit


def test_stop_string_over_several_pieces() -> None:
    stopper = StopStrings(["###", "USER:"])
    assert [stopper.push(piece) for piece in ("red US", "UAL US", "E", "R: what")] == [
        "red ",
        "USUAL ",
        "",
        "",
    ]
    assert stopper.hit == "USER:"
    assert stopper.push("more") == stopper.finish() == ""


def test_no_stop_strings_hold_nothing_back() -> None:
    stopper = StopStrings()
    assert stopper.push("as it comes") == "as it comes"
    assert StopStrings("ab").push("xab") == "x"
    assert StopStrings(None).push("as it comes") == "as it comes"


@pytest.mark.parametrize("stops", [[""], ["a", ""], [3]])
def test_empty_stop_strings(stops: Any) -> None:
    with pytest.raises(InputError, match="one is empty or no string: leave it out"):
        StopStrings(stops)
