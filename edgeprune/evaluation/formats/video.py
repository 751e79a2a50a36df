"""Questions about videos, which are shown as frames: TGIF-QA, MSVD-QA, MSRVTT-QA."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.evaluation.formats.common import answer_to
from edgeprune.questions.llava import IMAGE_ENDINGS, Files
from edgeprune.questions.question import Question
from edgeprune.questions.records import entries, read_json


def video(files: Files) -> list[Question]:
    """Video questions (video_name, question, question_id) and answers (question_id, answer) in two files.

    Of each video, `images` has a folder of its frames, named after it and sorted by name; as many of them
    as asked for are shown, evenly spaced. Format: https://github.com/PKU-YuanGroup/Video-LLaVA.
    """
    path = files.answers("the answers file, such as test_a.json,")
    known = {str(record.identity("question_id")): record for record in entries(read_json(path), path)}
    frames: dict[str, tuple[Path, ...]] = {}
    questions = []
    for record in entries(read_json(files.data), files.data):
        name, number = record.text("video_name"), record.identity("question_id")
        if name not in frames:
            frames[name] = _frames(files, name, record.where)
        reference = answer_to(known, str(number), record.where, path)
        questions.append(
            Question(
                id=number,
                where=record.where,
                prompt=record.text("question"),
                images=frames[name],
                is_video=True,
                answers=(reference.text("answer"),),
                group=str(reference.values.get("type", "")),
            )
        )
    return questions


def _frames(files: Files, name: str, where: str) -> tuple[Path, ...]:
    folder = files.image(name)
    listed = sorted(folder.iterdir()) if os.path.isdir(folder) else []
    found = [path for path in listed if path.suffix.lower() in IMAGE_ENDINGS]
    if not found:
        raise InputError(
            f"{where}: there are no frames of the video in {folder}: expected a folder of images; extract "
            "the frames and give the folder above with `images`"
        )
    count = min(files.frames, len(found))
    # The middles of equal parts of the video.
    return tuple(found[(2 * part + 1) * len(found) // (2 * count)] for part in range(count))
