"""Readers of question files: LLaVA's JSON lines, and the benchmarks' own files.

Every reader takes the question file (or folder), the folder of images, the file (or folder) with reference
answers where that is another one, and gives the questions in order. Formats:
https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md and the benchmarks' own pages.
"""

from edgeprune.evaluation.formats.choices import mmbench, mmbench_cn, scienceqa
from edgeprune.evaluation.formats.common import Reader, answered_lines
from edgeprune.evaluation.formats.video import video
from edgeprune.evaluation.formats.vqa import gqa, mmvet, textvqa, vizwiz, vqav2
from edgeprune.evaluation.formats.yesno import mme, pope

__all__ = [
    "Reader",
    "answered_lines",
    "gqa",
    "mmbench",
    "mmbench_cn",
    "mme",
    "mmvet",
    "pope",
    "scienceqa",
    "textvqa",
    "video",
    "vizwiz",
    "vqav2",
]
