# Each target sets up .venv by itself. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow fuzz check interop clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/vlmix demo demo

test: .venv/test
	$(BIN)/python -m pytest -n auto

# What takes minutes or starts servers.
slow: .venv/test
	$(BIN)/python -m pytest -n auto -m 'slow or fuzz'

fuzz: .venv/test
	$(BIN)/python -m pytest -n auto -m fuzz

check: .venv/test .venv/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The exports, read by the peers' own loaders in environments of their own. Not part of `make test`.
interop: .venv/run
	$(BIN)/python interop/run.py $(PEERS)

clean:
	rm -rf .venv demo .interop

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "vlmix needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/demo: .venv/run
	$(PIP) -e '.[train,sweep]'
	touch $@

.venv/test: .venv/run
	$(PIP) -e '.[train,lora,smol,sweep,test]'
	touch $@

.venv/check: .venv/run
	$(PIP) -e '.[check]'
	touch $@
