"""The search for a recency bias, in a size that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samples import model as sample
from studies import recency


@pytest.mark.slow
def test_a_frozen_decoder_stays_what_it_read_as(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    arguments = ["text-frozen", "--steps", "2", "2", "--batch", "2", "--pictures", "40"]
    assert recency.main([*arguments, "--work", str(tmp_path), "--save", str(saved)]) == 0
    report = json.loads(capsys.readouterr().out)
    images, texts = report["over_pictures"], report["over_text"]
    assert images["questions"] == 40 * 12
    assert len(images["layers"]) == len(texts["layers"]) == sample.LAYERS
    assert all(-1 <= layer["spearman"] <= 1 for layer in images["layers"])
    (first,) = tmp_path.glob("*.pt")
    state = torch.load(first, weights_only=True)
    trained = recency.LlavaForConditionalGeneration.from_pretrained(saved).state_dict()
    changed = {name.split(".")[1] for name in state if not torch.equal(state[name], trained[name])}
    assert changed == {"multi_modal_projector"}
