"""Evaluation: benchmarks in the file formats of their communities, with their official metrics.

    from edgeprune.evaluation import evaluate

    found = evaluate("llava-bundle", "pope", "coco_pope_popular.json", images="val2014")
    print(found.main, found.figures, found.interval)

| module | what it holds |
|---|---|
| `run` | `evaluate` and `compare`, from files on the disk to results on the disk |
| `formats` | the readers, one per benchmark; what a question is lies in `edgeprune.questions` |
| `answers` | what an answer's text says: normalisation, yes or no, option letters |
| `metrics` | the official metrics, as counts per image |
| `bootstrap` | confidence intervals from those counts |
| `submissions` | prediction files for graders elsewhere |
| `benchmarks` | the table of all benchmarks by name |
| `predictions`, `outputs` | the answers of a run on disk, so that it can go on after an interruption |
| `answering` | asks a bundle all questions |
| `exporting` | the bundles of a model that are needed |
| `single` | one bundle: its figures |
| `comparison`, `report` | several ways to select visual tokens side by side; table, JSON, plot |

Importing this package loads the standard library alone; the runtime is imported where a model is asked,
matplotlib where a plot is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.lazy import lazy_names

if TYPE_CHECKING:
    from edgeprune.evaluation.answering import Asking
    from edgeprune.evaluation.comparison import Comparison, Grid
    from edgeprune.evaluation.exporting import Pruning
    from edgeprune.evaluation.run import compare, evaluate
    from edgeprune.evaluation.single import Evaluation

# Public name -> module that defines it.
_PUBLIC = {
    "evaluate": "edgeprune.evaluation.run",
    "compare": "edgeprune.evaluation.run",
    "Evaluation": "edgeprune.evaluation.single",
    "Comparison": "edgeprune.evaluation.comparison",
    "Grid": "edgeprune.evaluation.comparison",
    "Pruning": "edgeprune.evaluation.exporting",
    "Asking": "edgeprune.evaluation.answering",
}

__all__ = ["Asking", "Comparison", "Evaluation", "Grid", "Pruning", "compare", "evaluate"]

__getattr__ = lazy_names("edgeprune.evaluation", _PUBLIC)
