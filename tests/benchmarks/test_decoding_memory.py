"""That decoding stays within what its header is judged by, measured in processes of their own."""

from __future__ import annotations

import sys

import pytest

from benchmarks import decoding_memory
from edgeprune.runtime.images import MAX_DECODING_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")]


@pytest.mark.parametrize(
    "case", ["PNG RGB, turned", "JPEG progressive 4:4:4", "WebP lossless RGBA", "one strip"]
)
def test_the_peak_is_bounded(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    decoding_memory.main(["--megapixels", "33", "--only", case, "--preprocess"])
    outcome, peak = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")[-2:]
    assert outcome == "read"
    assert 0.05 < float(peak) <= MAX_DECODING_BYTES / 1e9 + 0.03
