# Everything a person or CI does here, one word each: `make help`.

# Python that makes .venv; from then on .venv's own is used.
PYTHON ?= python3
# Processes of the default test tier. Each loads torch; more of them than cores only wait for one another.
WORKERS ?= logical
# make test-slow PART=1/4 runs that part of the slow tests.
PART ?=
# For train.py, pytest or a benchmark: make train ARGS="model=cnn"
ARGS ?=

TRAIN := train,sweep,demo
TEST := train,serve,sweep,ray,slurm,demo,notebooks,dev
BENCHMARK := train,serve,sweep,demo,bench,dev

VENV := .venv
PY := $(VENV)/bin/python
# Exit code 5 says that the choice of tests is empty: for a tier or a part of one, that is no failure.
UNLESS_EMPTY := || [ $$? -eq 5 ]

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train s3 test test-service test-slow test-all lint format docs bench constraints clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.has-$(TEST) ## Make .venv with all that training and the tests need

train: $(VENV)/.has-$(TRAIN) ## Train on the demonstration pictures (ARGS="model=cnn trainer.max_epochs=5")
	$(PY) train.py $(ARGS)

s3: $(VENV)/.has-$(TEST) ## Run a small S3 server for development, with its files in outputs/s3, until Ctrl-C
	@$(PY) -m tests.helpers.s3_server

# Each process has one thread (tests/conftest.py), and takes file after file in their order, of which those that take
# longest come first. The slow tier runs alone and may have all cores.
test: lint ## Run lint, then the default tests in parallel (ARGS="-k data")
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

# Servers that no wheel brings are named in .ci/apt.txt: sudo apt-get install --yes $$(cat .ci/apt.txt)
test-service: $(VENV)/.has-$(TEST) ## Run the tests that talk to real servers, which they start
	$(PY) -m pytest -m "service and not slow" $(ARGS) $(UNLESS_EMPTY)

test-slow: $(VENV)/.has-$(TEST) ## Run the slow tests, and those on a GPU where there is one (PART=1/4)
	$(PY) -m pytest -p tests.helpers.part -m "slow or gpu" $(if $(PART),--part $(PART)) $(ARGS) $(UNLESS_EMPTY)

test-all: test test-service test-slow ## Run every test there is

lint: $(VENV)/.has-$(TEST) ## Check style (ruff), format (ruff) and types (mypy)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: $(VENV)/.has-$(TEST) ## Format, and mend what ruff can mend
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

docs: $(VENV)/.has-$(TEST) ## Write docs/options.md anew from conf/ and the schema of the options
	$(PY) -m flatfix.config.options_page

bench: $(VENV)/.has-$(BENCHMARK) ## Run the benchmarks, or one of them (BENCH=loader)
	@for script in $(if $(BENCH),benchmarks/$(BENCH).py,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "$$script"; $(PY) $$script $(ARGS) || exit 1; done

constraints: ## Pin anew what pyproject.toml has come to need (UPGRADE=1: the newest of everything)
	$(PYTHON) .ci/constraints.py $(if $(UPGRADE),--upgrade)

clean: ## Remove caches and build products; .venv and outputs/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage htmlcov
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# An empty file remembers each set of extras that .venv has, until the ranges or the pins change.
$(VENV)/.has-%: pyproject.toml constraints.txt $(VENV)/.made
	$(PY) -m pip install --constraint constraints.txt --editable '.[$*]'
	@touch '$@'

# pip 23 and older neither resume a broken download nor take metadata apart from a wheel of gigabytes.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "Flatfix needs Python 3.11, 3.12 or 3.13; here, $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
	  echo "Name one that fits: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet 'pip>=24'
	@touch '$@'
