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

.PHONY: help setup demo test bench docs lint train-tiny clean

help:
	@echo 'make demo        set up and ask the tiny model about the shipped images'
	@echo 'make test        set up and run the tests'
	@echo 'make bench       benchmarks of the ops'
	@echo 'make docs        regenerate the generated pages of docs/'
	@echo 'make lint        ruff, mypy and clang-format'
	@echo 'make train-tiny  train the tiny checkpoint again'
	@echo 'make setup       only the virtual environment ($(VENV)) and the build'
	@echo 'make clean       remove the virtual environment and everything built'

setup: $(VENV)/.test-stamp

demo: setup
	@$(BIN)/flashvl demo

test: setup
	@$(BIN)/python -m pytest

bench: setup
	@$(BIN)/flashvl-bench ops --quick

docs: setup
	@$(BIN)/python -m flashvl_kernels.docs

train-tiny: $(VENV)/.train-stamp
	@$(BIN)/python -m flashvl.train.tiny

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

# .test-stamp, .train-stamp, .lint-stamp: the package, editable, with that extra.
$(VENV)/.%-stamp: $(VENV)/.torch-stamp $(SOURCES)
	@echo 'setup: building the CPU extension and installing flashvl-kernels[$*] ...'
	@$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info flashvl_kernels/libflashvl_kernels.so flashvl_kernels/_build.json
