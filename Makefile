# make demo, make test: everything from a fresh clone, with Python 3.11+, a C++ compiler and make.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# --no-compile: Python compiles what it imports; compiling all of torch ahead of time takes longer.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check

# What the build reads: a change here reinstalls the package (CMake rebuilds only what changed).
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard tools/*.py) \
           $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.map' -o -name '*.cu' -o -name '*.cuh')

# The first interpreter that is new enough; PYTHON=... on the command line overrides it.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# The extension must build here: without it the tests would pass on the torch backend alone.
export FLASHVL_REQUIRE_EXT := 1

.PHONY: help setup demo test bench speed peers fuzz sanitize emulate docs lint train-tiny study clean

help:
	@echo 'make demo        set up and ask the tiny model about the shipped images'
	@echo 'make test        set up and run the tests'
	@echo 'make bench       benchmarks of the ops'
	@echo 'make speed       measure all ops and profile the tiny model for docs/speed.md; run it alone'
	@echo 'make peers       OpenVINO and llama.cpp for flashvl-bench model, in environments of their own'
	@echo 'make fuzz        10,000 fuzzed calls of the ops'
	@echo 'make sanitize    the op tests under AddressSanitizer and UBSan, at every level'
	@echo 'make emulate     the op tests of the AMX kernels, on a CPU with AVX512_BF16 alone'
	@echo 'make docs        regenerate the generated pages of docs/'
	@echo 'make lint        ruff, mypy and clang-format'
	@echo 'make train-tiny  train the tiny checkpoint again; hours'
	@echo 'make study       ask it under every tile policy and write docs/stitching.md; run it alone'
	@echo 'make setup       only the virtual environment ($(VENV)) and the build'
	@echo 'make clean       remove the virtual environment and everything built'

setup: $(VENV)/.test-stamp $(VENV)/.triton-stamp $(VENV)/.proof-stamp

demo: setup
	@$(BIN)/flashvl demo

# What measures time has the machine for itself, afterwards.
WORKERS ?= 2
ALONE := tests/cuda/test_nvrtc.py $(patsubst %,tests/bench/test_%.py,ceilings gate host_bench \
  model_bench ops_bench own profile steady)

# Two workers of two threads each on two cores: threads that spin while they wait would take the core
# from those they wait for, and some tests then last several times as long.
test: setup
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(addprefix --ignore=,$(ALONE))
	@$(BIN)/python -m pytest $(ALONE)

bench: setup
	@$(BIN)/flashvl-bench ops --quick

# What the model benchmark is measured beside, in environments of their own: OpenVINO brings another
# torch, llama.cpp compiles for a quarter of an hour. FLASHVL_PEERS names another folder. torchvision
# comes along with optimum; made for another build of torch, it fails every import of transformers.
PEERS := $(or $(FLASHVL_PEERS),.peers)
OPENVINO := openvino==2026.4.1 optimum-intel==2.2.0 nncf==3.4.0
LLAMA := llama-cpp-python==0.3.36 gguf==0.19.0

peers: $(PEERS)/openvino/.stamp $(PEERS)/llama/.stamp

$(PEERS)/openvino/.stamp $(PEERS)/llama/.stamp:
	@echo 'peers: $(@D) ...'
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(findstring openvino,$(@D)),'$(TORCH)' $(OPENVINO),--no-binary llama-cpp-python $(LLAMA))
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

fuzz: setup
	@FLASHVL_FUZZ_CALLS=10000 $(BIN)/python -m pytest -q -s -o timeout=0 tests/ops/test_fuzz.py

sanitize: setup
	@$(BIN)/python tools/sanitize.py

emulate: setup
	@$(BIN)/python tools/emulate_tiles.py

docs: setup
	@$(BIN)/python -m flashvl_kernels.docs
	@$(WRITE_SPEED)

# docs/speed.md from the results that lie there, and a picture of this machine's.
RESULTS := docs/results
WRITE_SPEED = if ls $(RESULTS)/*.json >/dev/null 2>&1; then \
  $(BIN)/flashvl-bench report $(RESULTS)/*.json --speed docs/speed.md && \
  $(BIN)/flashvl-bench report $(RESULTS)/ops.json --picture docs/speed.svg; fi

speed: setup
	@mkdir -p $(RESULTS)
	@$(BIN)/flashvl-bench ops --dtype bf16 --seconds 0.5 --json $(RESULTS)/ops.json
	@$(BIN)/flashvl-bench profile --json $(RESULTS)/profile.json
	@$(WRITE_SPEED)

train-tiny: $(VENV)/.train-stamp
	@$(BIN)/python -m flashvl.train.tiny
	@$(BIN)/python -m flashvl.train.tiles --start build/tiny/checkpoint \
	  --export model/flashvl/assets/tiny

study: $(VENV)/.train-stamp
	@$(BIN)/python -m flashvl.train.study

CPP_FILES = $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/.lint-stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

$(VENV)/.venv-stamp:
	@test -n '$(PYTHON)' || { echo 'setup: no Python 3.11 or newer found (tried python3 and' \
	  'python3.11 to 3.14); install one, or run make PYTHON=/path/to/python' >&2; exit 1; }
	@echo 'setup: creating $(VENV) with $(PYTHON) ...'
	@$(PYTHON) -m venv $(VENV) || { echo 'setup: $(PYTHON) -m venv failed (Debian and Ubuntu:' \
	  'apt install python3-venv)' >&2; exit 1; }
	@touch $@

$(VENV)/.torch-stamp: $(VENV)/.venv-stamp
	@echo 'setup: installing $(TORCH) ...'
	@$(PIP_INSTALL) '$(TORCH)'
	@touch $@

# What executes the Triton kernels without a GPU, apart from the test extra and its resolver: a CUDA
# build of torch pins another Triton, and ttsem declares Python 3.12 although it runs on 3.11. Where
# they cannot be installed those tests skip and say so, so a failure here is no error.
TRITON := triton==3.8.0 ttsem==0.1.0

$(VENV)/.triton-stamp: $(VENV)/.test-stamp
	@echo 'setup: installing $(TRITON) ...'
	@$(PIP_INSTALL) --no-deps --ignore-requires-python $(TRITON) && touch $@ || \
	  echo 'setup: $(TRITON) could not be installed; the tests that execute Triton kernels will skip'

# What proves the CUDA kernels free of races; nothing depends on it either.
PROOF := sentryward==0.1.1

$(VENV)/.proof-stamp: $(VENV)/.test-stamp
	@echo 'setup: installing $(PROOF) ...'
	@$(PIP_INSTALL) --no-deps $(PROOF) && touch $@ || \
	  echo 'setup: $(PROOF) could not be installed; the tests that prove CUDA kernels will skip'

# .test-stamp, .train-stamp, .lint-stamp: the package, editable, with that extra.
$(VENV)/.%-stamp: $(VENV)/.torch-stamp $(SOURCES)
	@echo 'setup: building the CPU extension and installing flashvl-kernels[$*] ...'
	@$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info flashvl_kernels/libflashvl_kernels.so flashvl_kernels/_build.json
