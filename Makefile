# Everything a person or CI runs. Needs bash, make and Python 3.11 or newer; all else is installed into .venv.
#
#   make demo        install, then the whole method on the embedded corpus (about 4 minutes on 2 cores) -> runs/demo
#   make demo-full   the same with a better language model (about half an hour)                         -> runs/demo-full
#   make test        install, then the default test suite
#   make test-all    the slow tests too; those that need a GPU are skipped where there is none
#   make test-gpu    only those that need a GPU
#   make test-browser only those that open the report in Chromium; skipped where there is none
#   make lint        ruff check, ruff format --check, mypy
#   make docs        the documentation site, from docs/ -> build/site; a warning is an error
#   make format      let ruff rewrite what lint would refuse
#   make clean       remove .venv, runs/ and caches
#
# Choices: PYTHON=python3.12 (the interpreter .venv is made from), WORKERS=4 (test processes), PYTEST_ARGS="-k lr_find".

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help install demo demo-full test test-all test-gpu test-browser lint docs format clean

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The suite shares the cores between test processes, so each computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# Named, so that the second run of the few tests that compute in bf16 does not import all files to find them.
BF16_FILES = $$(grep -rl --include='test_*.py' 'mark\.bf16' tests)

BROWSER_FILES = $$(grep -rl --include='test_*.py' 'mark\.browser' tests)

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

install: $(STAMP)

# Made again when a requirement changes, and when the last attempt broke off half-way. setuptools is installed first, at
# the version in constraints.txt, so that building the project downloads nothing more and cannot drift.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' found; install Python 3.11 or newer, or say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: ulmfit_pipe needs Python 3.11 or newer, $(PYTHON) is %d.%d; say which: make PYTHON=python3.11" % sys.version_info[:2])'
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet -c constraints.txt setuptools
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[vision,adapters,trackers,test]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python recipes/quickstart.py --output_dir runs/demo

demo-full: $(STAMP)
	$(BIN)/python recipes/quickstart.py --full true --output_dir runs/demo-full

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu and not browser" $(PYTEST_ARGS)
	ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -n 0 -m "bf16 and not slow" $(BF16_FILES)

test-all: $(STAMP)
	$(PYTEST) -m "not browser" $(PYTEST_ARGS)

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-browser: $(STAMP)
	$(BIN)/python -m pytest -m browser $(BROWSER_FILES) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment of its own: the reference is read from the source, so that nothing of the package needs to be installed.
docs:
	test -x .venv-docs/bin/mkdocs || { $(PYTHON) -m venv .venv-docs && .venv-docs/bin/python -m pip install --quiet 'mkdocs-material>=9.7' 'mkdocstrings[python]>=1.0'; }
	.venv-docs/bin/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-docs runs build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find ulmfit_pipe recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
