# Everything runs in an environment of its own (.venv), made at first use.
PYTHON ?= python3
# Test modules that run side by side; 0 for one after the other.
JOBS ?= 3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format benchmark dist docs clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: .venv/.installed ## make the environment

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.tested: .venv/.installed tests/third_party/pilot-example/pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -e tests/third_party/pilot-example
	@touch $@

demo: .venv/.installed ## a small campaign of jobs, end to end, on this machine
	$(BIN)/pilot demo

test: .venv/.tested ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered $(ARGS)

lint: .venv/.tested ## style, types, and which room may know which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.tested ## let ruff arrange the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: .venv/.tested ## the numbers of docs/benchmarks.md, measured here and now
	$(BIN)/python -m tests.benchmarks $(ARGS)

dist: .venv/.installed ## pilot3.tar.gz and pilot.pyz with all they need, and their checksums
	$(BIN)/python wrappers/dist.py

docs: .venv/.documented ## the site in docs/_build, and the pages that are made from the code
	$(BIN)/python -m pilot.settingsdoc > docs/settings.md
	$(BIN)/python -m sphinx -q -W --keep-going -j auto docs docs/_build

.venv/.documented: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

clean: ## remove the environment and what tools left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .coverage* .hypothesis .import_linter_cache *.egg-info build dist docs/_build docs/error-codes.md
