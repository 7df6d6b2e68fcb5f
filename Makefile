# Two commands: `make demo` shows the system on real music, `make test` proves it. Both set up what they need first,
# in a virtual environment inside the checkout (.venv); `make help` lists the rest.
SHELL := /bin/bash
# Default: the newest usable Python 3.11 to 3.13 on PATH (.ci/find-python). Other: make PYTHON=/path/to/python3.12
export PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread per process: tests and the demo start several ranks on few cores, and competing threads are slower.
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

SYSTEM_TOOLS := slurmctld slurmd sbatch munged chromium
SYSTEM_PACKAGES := slurmctld slurmd slurm-client munge chromium

.PHONY: FORCE help setup lock compat system demo test lint bench gpu clean

help:
	@echo "make demo    install, then turn real music into a trained, probed and explained model (runs/demo/report.html)"
	@echo "make test    install (SLURM and Chromium included), then lint, types and all tests"
	@echo "make lint    ruff, mypy and the arrows between rooms"
	@echo "make bench   the benchmarks, side by side with our peers (results: benchmarks/RESULTS.md)"
	@echo "make setup   install requirements.lock into .venv; the other targets do this themselves"
	@echo "make lock    renew requirements.lock from pyproject.toml; UPGRADE=1 takes the newest versions"
	@echo "make compat  test the lowest and the highest versions that pyproject.toml allows"
	@echo "make gpu     one GPU in nine minutes: tests, step times, data wait; BIN=/env/bin uses an existing environment"
	@echo "make clean   remove .venv, runs/ and caches of this checkout"

# Always runs, because it repairs packages that were changed by hand; the other targets trust the stamp.
setup:
	@.ci/setup $(VENV) venv uv packages project
	@touch $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.lock $(if $(PYTHON),FORCE)
	@.ci/setup $(VENV) venv uv packages project
	@touch $@

FORCE:

# Keeps versions that still fit pyproject.toml; `make lock UPGRADE=1` takes the newest of everything.
lock:
	@.ci/setup $(VENV) venv uv
	@[ -x $(BIN)/uv ] || $(BIN)/pip install --quiet uv
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --generate-hashes \
	  --python-version 3.11 --extra dev --group build --group sound $(if $(UPGRADE),--upgrade) \
	  --output-file requirements.lock pyproject.toml

# The lowest and the highest versions that pyproject.toml allows, each in its own virtual environment.
compat:
	@.ci/setup $(VENV) venv uv
	@.ci/compat $(BIN)/uv $(COMPAT_TESTS)

# Tests need a real two-node SLURM and a real browser. Root installs missing ones; others get the command.
system:
	@missing=(); for tool in $(SYSTEM_TOOLS); do PATH=$$PATH:/usr/sbin:/sbin command -v $$tool >/dev/null || missing+=($$tool); done; \
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "error: the tests need $${missing[*]}, and only root can install them; run once as root:" >&2; \
	  echo "  apt-get update && apt-get install -y --no-install-recommends $(SYSTEM_PACKAGES)" >&2; exit 1; fi; \
	echo "installing $${missing[*]} from Debian"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: system $(INSTALLED) lint
	PATH=$$PATH:/usr/sbin:/sbin $(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

gpu: $(if $(filter command,$(origin BIN)),,$(INSTALLED))
	$(BIN)/python -m benchmarks gpu

clean:
	rm -rf $(VENV) .compat runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
