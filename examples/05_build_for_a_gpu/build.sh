#!/bin/sh
set -eu
BUNDLE=demo/examples/bundle

# One engine for two kinds of GPU: Ampere (sm86) and Ada (sm89).
edgeprune build "$BUNDLE" --backend tensorrt-rtx --target sm86 --target sm89 --max-prompt 256 --max-new-tokens 32

# The engines are part of the bundle now.
ls "$BUNDLE"/engines/*

cat <<EOF
on the device:
  edgeprune run BUNDLE --backend tensorrt-rtx --image IMAGE --prompt QUESTION
  edgeprune run BUNDLE --backend tensorrt-rtx --keep 0.1 --image IMAGE --prompt QUESTION
  edgeprune verify BUNDLE --backend tensorrt-rtx
EOF
