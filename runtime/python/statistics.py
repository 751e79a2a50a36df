"""What a reply cost: tokens, times and memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Statistics:
    """Figures of one prompt's reply. Times are in seconds of the wall clock.

    Prompts that ran as one batch share its times; a reply that ended earlier has a shorter decode time.

    Attributes:
        visual_tokens: of the prompt's images, one for each place in their grids.
        tower_tokens: how many of them the vision tower leaves: all, unless it merges.
        kept: per pruning stage, how many visual tokens stayed.
        padded_kept: per pruning stage, how many of those are padding.
        image_tokens: visual tokens of each image.
        image_kept: per pruning stage, how many of each image stayed.
        prompt_tokens: tokens of the prompt, visual ones included, batch padding not.
        new_tokens: tokens that were generated, the ending one included.
        batch: prompts that ran together.
        preprocess_seconds: reading and preparing images and prompt, on the host.
        vision_seconds: the vision graph, all images of the batch.
        prefill_seconds: the language graph on the whole prompt.
        time_to_first_token_seconds: all of the above, and choosing the first token.
        decode_seconds: from the first token to the last.
        tokens_per_second: of decoding, the first token left out; None where there is no second one.
        cache_bytes: keys and values of this prompt when it ended, batch padding included.
        peak_memory_bytes: see `peak_memory_metric`; None where it cannot be measured.
        peak_memory_metric: what is measured, in words.
        reused_tokens: of the prompt, which a conversation's caches held already, so that they were not read.
    """

    visual_tokens: int
    tower_tokens: int
    kept: tuple[int, ...]
    padded_kept: tuple[int, ...]
    image_tokens: tuple[int, ...]
    image_kept: tuple[tuple[int, ...], ...]
    prompt_tokens: int
    new_tokens: int
    batch: int
    preprocess_seconds: float
    vision_seconds: float
    prefill_seconds: float
    time_to_first_token_seconds: float
    decode_seconds: float
    tokens_per_second: float | None
    cache_bytes: int
    peak_memory_bytes: int | None
    peak_memory_metric: str
    reused_tokens: int = 0

    @property
    def starved(self) -> tuple[int, ...]:
        """The images, by their numbers from 0, of which less than a tenth of their part is left: of as many
        tokens as the last stage keeps of an image of their size on average.
        """
        if not self.image_kept or not sum(self.image_tokens):
            return ()
        share = sum(self.image_kept[-1]) / sum(self.image_tokens)
        pairs = enumerate(zip(self.image_tokens, self.image_kept[-1], strict=True))
        return tuple(number for number, (tokens, kept) in pairs if kept < 0.1 * share * tokens)

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        return asdict(self)
