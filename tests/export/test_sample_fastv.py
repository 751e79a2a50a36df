"""The sample model's bundle on 200 images: tokens and text of a FastV that shares no code with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor

from edgeprune.debias.curves import load_preset
from edgeprune.debias.masks import letterbox_valid
from edgeprune.debias.selection import effective_score, kept_count
from edgeprune.exporter.families.llava import Llava
from edgeprune.runtime import Reply, load
from samples.model import VISUAL_TOKENS
from samples.scenes import GRID, TUNING_SEEDS, Question, Scene, prompt, scene
from tests.export.reference import Inputs, fastv

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "tiny-llava"
PICTURES, BATCH, STEPS, KEEP = 200, 40, 4, 3000
K = kept_count(VISUAL_TOKENS, KEEP)
# Two scores this close are equal up to float32's rounding in sums over a hundred terms.
EQUAL = 1e-6


@dataclass(frozen=True)
class Answer:
    """One image's answer by the bundle, and by the independent FastV.

    `margin` is how much the worst kept token's score is above the best dropped one's, as a share of it.
    """

    scene: Scene
    reply: Reply
    tokens: NDArray[np.int64]
    kept: NDArray[np.int64]
    margin: float


def asked() -> list[tuple[Scene, Question]]:
    """One question per image; they differ in length, so that rows of a batch are padded."""
    drawn = [scene(seed) for seed in TUNING_SEEDS[:PICTURES]]
    return [(one, one.questions[number % len(one.questions)]) for number, one in enumerate(drawn)]


@pytest.fixture(scope="module")
def answers(sample_bundle: Path) -> list[Answer]:
    questions = asked()
    replies = load(sample_bundle, backend="onnxruntime").generate(
        [prompt(question.text) for _, question in questions],
        [[one.image] for one, _ in questions],
        max_new_tokens=STEPS,
        batch_size=BATCH,
    )
    model, processor = Llava().load(SAMPLE, torch.float32), AutoProcessor.from_pretrained(SAMPLE)
    image = model.config.image_token_id
    curve = load_preset("fastv").weights(VISUAL_TOKENS)
    found: list[Answer] = []
    for start in range(0, PICTURES, BATCH):
        part = questions[start : start + BATCH]
        batch = processor(
            images=[one.image for one, _ in part],
            text=[prompt(question.text) for _, question in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        valid = np.stack([letterbox_valid(*one.image.size, (GRID, GRID)) for one, _ in part])
        inputs = Inputs(
            batch["input_ids"], batch["attention_mask"], batch["pixel_values"], torch.from_numpy(valid)
        )
        wanted = fastv(model, inputs, STEPS, layer=2, kept=K, curve=torch.from_numpy(curve))
        index = inputs.visual_index(image).numpy()
        scores = effective_score(np.take_along_axis(wanted.scores[0], index, axis=1), valid * curve)
        ranked = -np.sort(-scores, axis=1)
        best, next_best = ranked[:, K - 1], ranked[:, K]
        # Padding is far below everything else, and among itself ordered by index, never by score.
        margins = np.full(len(part), np.inf)
        np.divide(best - np.maximum(next_best, 0), best, out=margins, where=np.isfinite(best))
        for row, (one, _) in enumerate(part):
            kept = np.flatnonzero(np.isin(index[row], wanted.kept[0][row]))
            found.append(
                Answer(one, replies[start + row], wanted.tokens[row].numpy(), kept, float(margins[row]))
            )
    return found


@pytest.mark.slow
def test_keeps_the_tokens_that_eager_attention_chooses(answers: list[Answer]) -> None:
    assert len(answers) == PICTURES
    # No two scores at the edge are so close that rounding would decide.
    assert min(answer.margin for answer in answers) > EQUAL
    for answer in answers:
        np.testing.assert_array_equal(answer.reply.kept_visual[0], answer.kept)
    assert {len(answer.kept) for answer in answers} == {K}
    # The images are padded as images are, and padding is left out wherever there is enough else.
    assert sum(answer.scene.image.width != answer.scene.image.height for answer in answers) > PICTURES / 4
    assert len({tuple(answer.kept) for answer in answers}) > PICTURES / 2


@pytest.mark.slow
def test_says_what_an_independent_fastv_says(answers: list[Answer]) -> None:
    tokenizer = AutoProcessor.from_pretrained(SAMPLE).tokenizer
    lengths = set()
    for answer in answers:
        tokens = answer.tokens.tolist()
        ends = [place for place, token in enumerate(tokens) if token == tokenizer.eos_token_id]
        wanted = tokens[: ends[0] + 1] if ends else tokens
        assert list(answer.reply.token_ids) == wanted
        assert answer.reply.text == tokenizer.decode(wanted, skip_special_tokens=True).strip()
        lengths.add(len(wanted))
    texts = {answer.reply.text for answer in answers}
    assert len(texts) > 8, "answers of one word say little"
    assert max(lengths) > 1
