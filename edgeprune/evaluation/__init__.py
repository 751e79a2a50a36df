"""Evaluation: benchmarks in the file formats of their communities, with their official metrics.

| module | what it holds |
|---|---|
| `formats` | the readers, one per benchmark; what a question is lies in `edgeprune.questions` |
| `answers` | what an answer's text says: normalisation, yes or no, option letters |
| `metrics` | the official metrics, as counts per image |
| `bootstrap` | confidence intervals from those counts |
| `submissions` | prediction files for graders elsewhere |
| `benchmarks` | the table of all benchmarks by name |
| `predictions` | the answers of a run on disk, so that it can go on after an interruption |
| `answering` | asks a bundle all questions |
| `comparison`, `report` | several ways to select visual tokens side by side; table, JSON, plot |

Needs numpy and the standard library; the runtime is imported where a model is asked, matplotlib where a plot
is drawn.
"""
