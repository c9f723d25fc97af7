# `make setup` makes .venv; every other target sets up first, and a second setup costs nothing.

# Which interpreter .venv gets, one that is already on this machine: `make test PYTHON=3.14`.
PYTHON ?= >=3.12,<3.15
# The newest jax that jax-triton 0.4.1 works with.
JAX := 0.11.2

# uv from the PATH, else from python3, else a private one in .uv/.
UV := $(or $(shell uv --version >/dev/null 2>&1 && echo uv),$(shell python3 -m uv --version >/dev/null 2>&1 && echo python3 -m uv),.uv/bin/uv)
PRIVATE_UV := $(filter .uv/bin/uv,$(UV))
BIN := .venv/bin
INSTALLED := .venv/.installed

LOCK = $(UV) pip compile pyproject.toml --group dev --extra datasets --extra parquet \
    --extra plots --extra export --extra huggingface --extra tensorboard --universal --python-version 3.12 --no-annotate --no-header --quiet

export JAX_PLATFORMS := cpu

.PHONY: setup setup-aot demo test test-all check docs lock newest-jax clean

setup: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml | $(PRIVATE_UV)
	@test -x $(BIN)/python \
	    || UV_VENV_CLEAR=1 $(UV) venv --quiet --python '$(PYTHON)' --no-python-downloads .venv \
	    || { echo "No Python $(PYTHON) was found on this machine: install one (python3.13, say) and run make again." >&2; exit 1; }
	$(UV) pip install --quiet --python $(BIN)/python --requirements requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# The extra `aot`, 2.4 GB: without it the tests that compile for absent devices are skipped.
setup-aot: $(INSTALLED)-aot

$(INSTALLED)-aot: requirements-aot.txt $(INSTALLED)
	$(UV) pip install --quiet --python $(BIN)/python --requirements requirements-aot.txt
	@touch $@

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

demo: setup
	rm -rf runs/demo
	$(BIN)/rnnscale train digits --mesh data=4,tensor=2 --cpu-devices 8 --out runs/demo

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow"

test-all: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The API reference, in site/: an equation needs a network only when it is read.
docs: setup
	$(BIN)/python .ci/reference.py

# Pins every package anew, with no address in the file: any index will do.
lock: $(PRIVATE_UV)
	echo 'jax==$(JAX)' | $(LOCK) --upgrade --output-file requirements.txt -
	$(LOCK) --upgrade --extra aot --constraint requirements.txt --output-file requirements-aot.txt

# Takes .venv beyond the pins; `make clean setup` comes back to them.
newest-jax: setup
	$(UV) pip install --quiet --python $(BIN)/python --upgrade-package jax --upgrade-package jaxlib jax jaxlib
	$(UV) pip list --python $(BIN)/python | grep '^jax'

clean:
	rm -rf .venv .uv build dist site .hypothesis .pytest_cache .ruff_cache
