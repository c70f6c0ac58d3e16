# Every target sets itself up in $(VENV) from pyproject.toml and constraints.txt.
#   make test PYTHON=python3.12 VENV=.venv312    another interpreter, beside the first
#   make test TESTS=tests/powerflow              some of the tests, or any other arguments of pytest

PYTHON ?= python3
VENV ?= .venv
TESTS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-sb3 bench-d3rlpy bench-federated test-browser validation feeders clean browser

help:  ## Show the targets
	@echo "Targets (PYTHON=$(PYTHON), VENV=$(VENV)):"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "To change the interpreter, remove $(VENV) or name another: VENV=.venv312 PYTHON=python3.12"

demo: $(VENV)/.stamp-opendss $(VENV)/.stamp-privacy  ## Run the demonstration, with the OpenDSS check; writes demo_out/
	$(BIN)/python examples/demo.py --out demo_out
	rm -rf demo_out/federated
	$(BIN)/python -W ignore::UserWarning -m gridjax federate examples/federated/demo.toml --out demo_out/federated

test: $(VENV)/.stamp-dev  ## Run the test suite, without the browser tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(VENV)/.stamp-dev  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(VENV)/.stamp-bench  ## Measure the solver beside its peers
	$(BIN)/python -m benchmarks.powerflow
	$(BIN)/python -m benchmarks.kernel

bench-sb3: $(VENV)-sb3/.stamp  ## Train stable-baselines3's PPO on the environments, in an environment of its own
	$(VENV)-sb3/bin/python -m benchmarks.sb3

bench-d3rlpy: $(VENV)/.stamp-gymnasium $(VENV)-d3rlpy/.stamp  ## Train beside d3rlpy, which has an environment of its own
	$(BIN)/python -m benchmarks.offline_rl --peer $(VENV)-d3rlpy/bin/python

bench-federated: $(VENV)/.stamp-core $(VENV)-flower/.stamp  ## Time federated rounds beside Flower and pfl-research, in an environment of their own
	$(BIN)/python -m benchmarks.federated_speed --peer $(VENV)-flower/bin/python

validation: $(VENV)/.stamp-opendss  ## Compare with OpenDSS; writes docs/validation.md
	$(BIN)/python -m benchmarks.validation

test-browser: browser $(VENV)/.stamp-dev $(VENV)/.stamp-browser  ## Run the browser tests; installs Chromium if it is missing
	$(BIN)/python -m pytest -m browser

feeders: $(VENV)/.stamp-core  ## List the feeders that ship with the package
	$(BIN)/gridjax feeders

clean:  ## Remove caches and built files, but not the environments
	rm -rf build dist demo_out htmlcov .coverage .coverage.* coverage.xml
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find gridjax algorithms federated tests benchmarks examples -name __pycache__ -type d \
		-prune -exec rm -rf {} + 2>/dev/null || true

# One stamp for each set of packages, made again when a dependency or a pin changes.
$(VENV)/.stamp-core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing gridjax into $(VENV)"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing gridjax[$*] into $(VENV)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

# torch is in no extra and no pin: the one without CUDA where the index has it.
$(VENV)-sb3/.stamp: pyproject.toml constraints.txt
	@test -x $(VENV)-sb3/bin/python || "$(PYTHON)" -m venv $(VENV)-sb3
	@echo "Installing stable-baselines3 and torch into $(VENV)-sb3"
	$(VENV)-sb3/bin/python -m pip install --quiet "torch==2.13.0+cpu" || \
		$(VENV)-sb3/bin/python -m pip install --quiet "torch==2.13.0"
	$(VENV)-sb3/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[gymnasium]" \
		"stable-baselines3==2.9.2"
	@touch $@

$(VENV)-d3rlpy/.stamp:
	@test -x $(VENV)-d3rlpy/bin/python || "$(PYTHON)" -m venv $(VENV)-d3rlpy
	@echo "Installing d3rlpy and torch into $(VENV)-d3rlpy"
	$(VENV)-d3rlpy/bin/python -m pip install --quiet "torch==2.13.0+cpu" || \
		$(VENV)-d3rlpy/bin/python -m pip install --quiet "torch==2.13.0"
	$(VENV)-d3rlpy/bin/python -m pip install --quiet "d3rlpy==2.8.1" "gymnasium==1.0.0"
	@touch $@

# Flower keeps protobuf, packaging, rich and typer old; its simulation runs on Ray.
$(VENV)-flower/.stamp:
	@test -x $(VENV)-flower/bin/python || "$(PYTHON)" -m venv $(VENV)-flower
	@echo "Installing Flower, Ray, pfl-research and torch into $(VENV)-flower"
	$(VENV)-flower/bin/python -m pip install --quiet "torch==2.13.0+cpu" || \
		$(VENV)-flower/bin/python -m pip install --quiet "torch==2.13.0"
	$(VENV)-flower/bin/python -m pip install --quiet "flwr[simulation]==1.41.0" "pfl==0.6.0"
	@touch $@

$(BIN)/python:
	@"$(PYTHON)" -c "" >/dev/null 2>&1 || { \
		echo "$(PYTHON) does not run here. gridjax needs Python 3.11 or newer:" \
			"make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "gridjax needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$("$(PYTHON)" --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { \
		rm -rf "$(VENV)"; \
		echo "$(PYTHON) could not make a virtual environment (on Debian: apt-get install python3-venv)." >&2; \
		exit 1; }

# Chromium and its driver, from Debian's packages where they are missing.
browser:
	@if command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then \
		exit 0; \
	fi; \
	if ! command -v apt-get >/dev/null 2>&1; then \
		echo "The browser tests need chromium and chromedriver on PATH; install them and try again." >&2; \
		exit 1; \
	fi; \
	if [ "$$(id -u)" -eq 0 ]; then \
		as_root=""; \
	elif command -v sudo >/dev/null 2>&1; then \
		as_root="sudo"; \
	else \
		echo "The browser tests need chromium and chromium-driver. As root, run:" >&2; \
		echo "  apt-get install chromium chromium-driver" >&2; \
		exit 1; \
	fi; \
	echo "Installing chromium and chromium-driver"; \
	$$as_root apt-get update -q && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
		-o DPkg::Lock::Timeout=300 --no-install-recommends chromium chromium-driver
