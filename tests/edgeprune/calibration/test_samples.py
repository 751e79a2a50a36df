"""Which images a calibration shows, and what it asks about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.calibration.samples import DEFAULT_PROMPT, Sample, digest, image_numbers, read_samples
from edgeprune.errors import InputError
from tests.edgeprune.evaluation.files import lines, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "c.jpeg"):
        picture(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return tmp_path / "pictures"


def test_a_folder_in_order_of_names(folder: Path) -> None:
    found = read_samples(folder)
    assert [sample.image.name for sample in found] == ["a.JPG", "b.png", "c.jpeg"]
    assert {sample.prompt for sample in found} == {DEFAULT_PROMPT}
    assert len(read_samples(folder, limit=2)) == 2


def test_a_list_of_paths_beside_it(folder: Path) -> None:
    listed = folder / "list.txt"
    listed.write_text("c.jpeg\n\n  b.png\n")
    assert [sample.image for sample in read_samples(listed)] == [folder / "c.jpeg", folder / "b.png"]


def test_a_question_file_brings_its_own_questions(folder: Path) -> None:
    data = lines(
        folder / "q.jsonl",
        {"question_id": 1, "image": "b.png", "text": "what?"},
        {"question_id": 2, "image": "a.JPG", "text": "where?"},
        {"question_id": 3, "image": "b.png", "text": "when?"},
    )
    found = read_samples(data)
    assert found[1] == Sample(folder / "a.JPG", "where?")
    assert image_numbers(found).tolist() == [0, 1, 0]


def test_prompts_are_asked_in_turn(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one?\n\ntwo?\n")
    found = read_samples(folder, tmp_path / "prompts.txt")
    assert [sample.prompt for sample in found] == ["one?", "two?", "one?"]


def test_the_digest_tells_pictures_prompts_and_order(folder: Path) -> None:
    found = read_samples(folder)
    others = [found[::-1], found[:2], [*found[:2], Sample(found[2].image, "?")]]
    assert len({digest(samples) for samples in (found, *others)}) == 4


def test_what_has_no_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    lines(tmp_path / "q.jsonl", {"question_id": 1, "text": "no image?"})
    lines(folder / "q.jsonl", {"question_id": 1, "image": ["a.JPG", "b.png"], "text": "two?"})
    (folder / "gone.txt").write_text("gone.png\n")
    for images, message in (
        (tmp_path / "empty", "has no images: expected .jpg"),
        (tmp_path / "empty.txt", "has no images"),
        (tmp_path / "nowhere", "there is no file .*nowhere"),
        (tmp_path / "q.jsonl", "line 1: 0 images: expected one"),
        (folder / "q.jsonl", "line 1: 2 images: expected one"),
        (folder / "gone.txt", "there is no image .*gone.png, which .*gone.txt names"),
    ):
        with pytest.raises(InputError, match=message):
            read_samples(images)
    with pytest.raises(InputError, match=r"empty.txt is empty: expected a question"):
        read_samples(folder, tmp_path / "empty.txt")
    with pytest.raises(InputError, match="`limit` is 0"):
        read_samples(folder, limit=0)
