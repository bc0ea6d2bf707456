# `make demo` and `make test` need Python >= 3.11 with venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test check format lint types fast clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

venv: $(STAMP) ## create the virtual environment

demo: $(STAMP) ## a daemon and real agents against simulated proxies (ARGS="--plain --agents 8")
	$(BIN)/trackd demo $(ARGS)

test: $(STAMP) ## every test (ARGS="-k word")
	$(BIN)/python -m pytest $(ARGS)

check: lint types fast ## before every commit: format, lint, types, fast tests

format: $(STAMP) ## rewrite the code as the formatter wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy --strict over both packages and the tests
	$(BIN)/mypy

fast: $(STAMP) ## the tests that take less than a minute together
	$(BIN)/python -m pytest -q -m 'not slow' tests/unit tests/model

clean: ## remove what make created
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
