# `make help` lists the targets. Needs only make and Python 3.10 or later with venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := export,ort,rtx,video,plot,dev

PIP_FLAGS := -qq --disable-pip-version-check --no-input
PYTEST_ARGS ?=

# Many small matrices: more threads than this only wait for each other.
export OMP_NUM_THREADS ?= 2
# Everything below runs from local folders; no library shall ask a hub for anything.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

PICTURE := samples/pictures/wide.png
QUESTION := what shape is green

.DEFAULT_GOAL := help
.PHONY: help setup demo test plugins plugins-sanitized lint types imports format schema constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## make the virtual environment .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## export the sample model, ask it about a picture, draw the tokens it kept
	@mkdir -p demo
	$(BIN)/edgeprune export samples/tiny-llava --keep 0.3 -o demo/bundle --force
	$(BIN)/edgeprune run demo/bundle --image $(PICTURE) --prompt "$(QUESTION)" --draw demo/kept.png

# A file a process at a time, as tests of a file share what is costly to make; each process takes one core.
test: $(STAMP) ## run every test (PYTEST_ARGS="-k name" for some)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile $(PYTEST_ARGS)

# Without nvcc, what runs on the CPU: the references, the contract, and the kernels' source on a stand-in for CUDA.
PLUGINS := build/plugins-ci
PLUGIN_FLAGS := $(if $(shell command -v nvcc),-DCMAKE_CUDA_ARCHITECTURES=87,-DEDGEPRUNE_CUDA=OFF)
plugins: ## build the TensorRT plugin for one architecture and run its tests (TensorRT_ROOT=folder with its headers)
	cmake -S plugins -B $(PLUGINS) $(PLUGIN_FLAGS) $(if $(TensorRT_ROOT),-DTensorRT_ROOT=$(TensorRT_ROOT))
	cmake --build $(PLUGINS) -j2
	ctest --test-dir $(PLUGINS) --output-on-failure

# Host code alone: the sanitizers see nothing of a GPU.
plugins-sanitized: ## build what runs on the CPU with the address and undefined-behaviour sanitizers, and run its tests
	$(MAKE) plugins PLUGINS=build/plugins-sanitized PLUGIN_FLAGS="-DEDGEPRUNE_CUDA=OFF -DEDGEPRUNE_SANITIZE=ON"

lint: $(STAMP) types imports ## check style, types, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The rooms as one package, by links, as they are when installed: mypy knows packages by their folders only.
TYPED := build/typed
types: $(STAMP) ## check types alone
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/edgeprune
	@ln -s $(CURDIR)/edgeprune/* $(TYPED)/edgeprune
	@ln -s $(CURDIR)/export $(TYPED)/edgeprune/exporter
	@ln -s $(CURDIR)/runtime/python $(TYPED)/edgeprune/runtime
	$(BIN)/mypy

# From within the links, which the tool finds before the rooms of the same names here.
imports: types ## check which room imports which
	@cd $(TYPED) && $(abspath $(BIN))/lint-imports --no-cache $(CURDIR)/pyproject.toml

format: $(STAMP) ## put the sources in style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(STAMP) ## write the manifest's JSON schema, docs/edgeprune.schema.json
	$(BIN)/python -m edgeprune.manifest_schema > .schema.partial && mv .schema.partial docs/edgeprune.schema.json

constraints: $(STAMP) ## pin what is installed in .venv as constraints.txt
	@$(BIN)/python .ci/freeze.py > .constraints.partial && mv .constraints.partial constraints.txt
	@touch $(STAMP)

clean: ## remove the virtual environment, builds, and what the demo wrote
	rm -rf $(VENV) demo build
