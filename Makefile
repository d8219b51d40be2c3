# SPDX-License-Identifier: Apache-2.0
# The commands of the README. Each works from a clean clone: python3 (>= 3.10, with venv) and a C++17 compiler are enough.
#
#   make demo     prune the bundled model and show the table
#   make test     C++ tests, then Python tests
#   make lint     style, types, layering
#   make bench    benchmarks
#   make format   rewrite the sources in the project's style
#   make clean    remove what was built, but not .venv
#
# Variables: PYTHON (interpreter), VENV (.venv), BUILD (build), CUDA (OFF, ON, AUTO), PYTEST_ARGS, DEMO_ARGS, and
# PIP_ARGS, e.g. to name a package index whose torch is built for the CPU alone (the default one is much larger).

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
CUDA ?= OFF
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.stun_ext-installed
CXX_SOURCES := $(shell find cpp cuda bindings cmake -type f 2>/dev/null) $(wildcard CMakeLists.txt)
PYTHON_SOURCES := .ci benchmarks python tests  # not Markdown, whose examples are laid out for readers
FORMATTED := $(shell find cpp cuda bindings tests benchmarks -type f \( -name '*.hpp' -o -name '*.cuh' -o -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' \) 2>/dev/null)

# A command of this project must not pick up another environment's settings.
export PYTHONNOUSERSITE := 1
# OpenMP's threads spin while they wait; where something else needs the cores that makes small models ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-cpp test-python lint format bench install clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

install: $(READY)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; set PYTHON to a Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else "make: stun_ext needs Python 3.10 or newer, but $(PYTHON) is %d.%d; set PYTHON, e.g. make test PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) lacks the venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@for c in $(CXX) c++ g++ clang++; do command -v $$c >/dev/null && exit 0; done; echo "make: no C++ compiler found; on Debian and Ubuntu: apt-get install g++" >&2; exit 1
	$(PYTHON) -m venv $(VENV)

# The build's tools come first because the package is built without isolation: an editable build must find the same
# cmake and pybind11 next time, and must not download them again.
$(VENV)/.stun_ext-tools: constraints.txt | $(BIN)/python
	@echo "installing the build's tools into $(VENV)"
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt scikit-build-core pybind11 cmake ninja
	@touch $@

$(READY): $(VENV)/.stun_ext-tools pyproject.toml $(CXX_SOURCES)
	@echo "building the extension; the first time this also installs torch and other pinned packages into $(VENV)"
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt --no-build-isolation --config-settings=build-dir=$(BUILD)/python \
	  --config-settings=cmake.define.STUN_EXT_CUDA=$(CUDA) -e '.[dev,datasets]'
	@touch $@

demo: $(READY)
	$(BIN)/stun-ext demo $(DEMO_ARGS)

test: test-cpp test-python

test-cpp: $(VENV)/.stun_ext-tools
	@$(BIN)/cmake -S . -B $(BUILD)/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCMAKE_BUILD_TYPE=Release \
	  -DSTUN_EXT_TESTS=ON -DSTUN_EXT_PYTHON=OFF -DSTUN_EXT_CUDA=$(CUDA) || { \
	  echo "make: configuring the C++ tests failed. If GoogleTest is what is missing: it is neither installed nor could it be downloaded." >&2; \
	  echo "make: on Debian and Ubuntu: apt-get install libgtest-dev, or point CMAKE_PREFIX_PATH to an installation." >&2; exit 1; }
	$(BIN)/cmake --build $(BUILD)/cpp
	$(BIN)/ctest --test-dir $(BUILD)/cpp --output-on-failure -j 2

test-python: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy --strict python/stun_ext .ci/check_layers.py .ci/check_kernel_symbols.py
	@echo "clang-format --dry-run -Werror: $(words $(FORMATTED)) files"
	@$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/python .ci/check_layers.py

format: $(READY)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(FORMATTED)

bench: $(READY)
	$(BIN)/cmake -S . -B $(BUILD)/bench -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCMAKE_BUILD_TYPE=Release \
	  -DSTUN_EXT_BENCHMARKS=ON -DSTUN_EXT_TESTS=OFF -DSTUN_EXT_PYTHON=OFF -DSTUN_EXT_CUDA=$(CUDA)
	$(BIN)/cmake --build $(BUILD)/bench
	@set -e; for program in $$(find $(BUILD)/bench/benchmarks/cpp -maxdepth 1 -type f -perm -u+x); do echo "$$program"; $$program; done
	@set -e; for script in benchmarks/python/ops_distance.py benchmarks/python/ops_linkage.py benchmarks/python/ops_mask.py; do \
	  echo "$$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(BUILD)
