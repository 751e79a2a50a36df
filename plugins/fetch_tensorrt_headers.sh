#!/usr/bin/env bash
# Fetches TensorRT's headers, which is all of TensorRT that building the plugin needs, from NVIDIA's repository (Apache-2.0):
#
#   plugins/fetch_tensorrt_headers.sh TAG FOLDER [URL]      e.g. v10.3.0 ~/tensorrt-10.3.0
#
# and then: cmake -S plugins -B build/plugins -DTensorRT_ROOT=FOLDER
# The tags are those of https://github.com/NVIDIA/TensorRT/tags; the engine must be built and run with the same major version.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
tag=$1 folder=$2 url=${3:-https://github.com/NVIDIA/TensorRT.git}
if [[ -e $folder ]]; then
    echo "$folder exists already: name a folder that does not, or remove it" >&2
    exit 1
fi
# Beside the target, so that moving it is one step and a failure leaves nothing in its place.
work=$(mktemp -d "$(dirname "$folder")/.tensorrt-headers.XXXXXX")
trap 'rm -rf "$work"' EXIT
git -c advice.detachedHead=false clone --quiet --depth 1 --branch "$tag" --filter=blob:none --sparse "$url" "$work/clone"
git -C "$work/clone" sparse-checkout set include
if [[ ! -f $work/clone/include/NvInferRuntime.h ]]; then
    echo "$url has no include/NvInferRuntime.h at $tag: choose another tag" >&2
    exit 1
fi
mkdir "$work/headers"
mv "$work/clone/include" "$work/headers/include"
mv "$work/headers" "$folder"
echo "TensorRT's headers of $tag are in $folder/include"
