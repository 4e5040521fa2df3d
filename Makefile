# make run       installs into .venv, evaluates the best checkpoint on the bundled mini set, prints a table
# make test      installs what the tests need, runs the linters, the type checker and the quick tests
# make test-all  the same, then the slow tests: load, thousands of items, notebooks, real weights

PYTHON ?= python3
BIN := .venv/bin
# Each worker of pytest computes with one thread: the tests' models are too small for more.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

.PHONY: run test test-all lint clean

run: .venv/installed
	$(BIN)/rsg-harness run

test: .venv/installed-dev lint
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	touch $@

clean:
	rm -rf .venv
