"""Question files: what a question is, and the readers that calibration and evaluation share.

| module | what it holds |
|---|---|
| `question` | a question, and the images that it is about |
| `records` | the entries of JSON and text files, with messages that name file and line |
| `llava` | where a benchmark lies, and LLaVA's question file |
"""
