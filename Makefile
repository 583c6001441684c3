# Each target sets up .venv by itself. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test fast docs slow fuzz check interop clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/vlmix demo demo

test: .venv/test
	$(BIN)/python -m pytest -n auto --dist worksteal

# The data side without torch and without other processes: what to run while editing.
fast: .venv/test
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow and not fuzz and not processes' tests/mixture tests/builders tests/cli

# What takes minutes or starts servers.
slow: .venv/test
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'slow or fuzz'

# Ten minutes of damaged input on two cores; a failure prints the seed, and VLMIX_FUZZ_SEED repeats it.
fuzz: .venv/test
	VLMIX_FUZZ_SECONDS=$${VLMIX_FUZZ_SECONDS:-120} VLMIX_FUZZ_SEED=$${VLMIX_FUZZ_SEED:-$$(date +%s)} \
		$(BIN)/python -m pytest -n auto --dist worksteal -m '' tests/fuzz
	$(BIN)/python -m pytest -n auto --dist worksteal -m fuzz

check: .venv/test .venv/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site; warnings are errors.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The exports, read by the peers' own loaders in environments of their own. Not part of `make test`.
interop: .venv/run
	$(BIN)/python interop/run.py $(PEERS)

clean:
	rm -rf .venv demo site .interop

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "vlmix needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/demo: .venv/run
	$(PIP) -e '.[train,sweep,overlaps,rows]'
	touch $@

.venv/test: .venv/run
	$(PIP) -e '.[train,lora,smol,sweep,overlaps,ray,s3,test]'
	touch $@

.venv/docs: .venv/demo
	$(PIP) -e '.[docs]'
	touch $@

.venv/check: .venv/run
	$(PIP) -e '.[check]'
	touch $@
