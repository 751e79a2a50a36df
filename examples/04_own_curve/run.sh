#!/bin/sh
set -eu
OUT=demo/examples/own-curve
mkdir -p "$OUT"

# Some images with their questions: twelve each.
python benchmarks/sample_questions.py -o "$OUT/questions" --questions 480 --seeds tuning

# The curve, and beside it every figure in curve.report.json.
edgeprune calibrate samples/tiny-llava --images "$OUT/questions/questions.jsonl" --batch 40 --no-plot -o "$OUT/curve.json"

edgeprune export samples/tiny-llava --keep 0.3 --curve "$OUT/curve.json" -o "$OUT/bundle" --force

# Both from the same bundle: with the curve and without.
edgeprune run "$OUT/bundle" --image samples/pictures/wide.png --prompt "what shape is green"
edgeprune run "$OUT/bundle" --image samples/pictures/wide.png --prompt "what shape is green" --debias padding
