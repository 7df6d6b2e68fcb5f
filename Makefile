# Two commands: `make demo` shows the system on real music, `make test` proves it. Both set up what they need first,
# in a virtual environment inside the checkout (.venv); `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread per process: tests and the demo start several ranks on few cores, and threads that fight for cores are slower.
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

SYSTEM_TOOLS := slurmctld slurmd sbatch munged chromium
SYSTEM_PACKAGES := slurmctld slurmd slurm-client munge chromium

.PHONY: help setup system demo test lint bench gpu clean

help:
	@echo "make demo    install, then turn real music into a trained, probed and explained model (runs/demo/report.html)"
	@echo "make test    install (SLURM and Chromium included), then lint, types and all tests"
	@echo "make lint    ruff, mypy and the arrows between rooms"
	@echo "make bench   the benchmarks, side by side with our peers (results: benchmarks/RESULTS.md)"
	@echo "make gpu     one GPU in nine minutes: tests, step times, data wait; BIN=/env/bin takes an environment that is there"
	@echo "make clean   remove .venv, runs/ and caches of this checkout"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on PATH; install Python 3.11, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps tinysoundfont==0.3.7
	touch $@

# Tests run on a real two-node SLURM and in a real browser. Installed when missing and when we may; said plainly when not.
system:
	@missing=(); for tool in $(SYSTEM_TOOLS); do PATH=$$PATH:/usr/sbin:/sbin command -v $$tool >/dev/null || missing+=($$tool); done; \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "error: the tests need $${missing[*]}, and only root can install them; run once as root:" >&2; \
	  echo "  apt-get update && apt-get install -y --no-install-recommends $(SYSTEM_PACKAGES)" >&2; exit 1; fi; \
	echo "installing $${missing[*]} from Debian"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null

demo: setup
	$(BIN)/python examples/demo.py

test: system setup lint
	PATH=$$PATH:/usr/sbin:/sbin $(BIN)/python -m pytest -n 2 --dist loadscope

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks

gpu: $(if $(filter command,$(origin BIN)),,setup)
	$(BIN)/python -m benchmarks gpu

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
