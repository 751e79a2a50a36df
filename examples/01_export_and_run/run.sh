#!/bin/sh
set -eu
MODEL=samples/tiny-llava
OUT=demo/examples
mkdir -p "$OUT"

# On the host: half of a minute for the sample model.
edgeprune export "$MODEL" --keep 0.3 -o "$OUT/bundle" --force

# On the device: the answer is on stdout, what it cost on stderr.
edgeprune run "$OUT/bundle" --image samples/pictures/wide.png --prompt "what shape is green" --draw "$OUT/kept.png"

# What is in the bundle.
edgeprune inspect "$OUT/bundle"
