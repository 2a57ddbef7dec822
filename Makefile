# From nothing: `make demo` and `make test` make their own environment in .venv and install what they need; again only
# when pyproject.toml is newer. Elsewhere, or with another Python: make test VENV=/path PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
PYTEST_ARGS ?=
WORKERS ?= 2
MINUTES ?= 5

BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo test lint docs look campaign release clean

help:  ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## 5 ps of MD of aspirin with the shipped potential, into demo/
	@$(BIN)/python examples/demo.py --output $(DEMO)

test: lint  ## Lint, check types and run all tests, in WORKERS=2 processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-test  ## Lint and check types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## Build the documentation's site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

look: docs  ## Open every page of the site in a headless Chromium, as a screen and as a telephone, light and dark
	$(BIN)/python tests/browser.py site

campaign: $(VENV)/.installed-test  ## Try to break it, for MINUTES=5; hours find more
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaign/run.py --minutes $(MINUTES)

release: $(VENV)/.installed-release  ## Check, build and try a release; nothing is uploaded
	$(BIN)/python .ci/release

clean:  ## Remove the environment, caches and the demo's output
	rm -rf $(VENV) $(DEMO) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("egnn-md needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# --no-compile halves the time: of what torch and its companions bring, little is ever imported.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing egnn-md into $(VENV); the first time this takes a minute or two."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "Installing egnn-md and what its tests need into $(VENV); the first time this takes a minute or two."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	@echo "Installing egnn-md and what its site needs into $(VENV); the first time this takes a minute or two."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-release: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	@touch $@
