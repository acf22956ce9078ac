# Every target sets itself up: only python3 (3.11 to 3.13) and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test quick lint notebooks lab bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"izwi-lab needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; run make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and on its own, so that the pinned build is the one everything else builds on
$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[torch,mlx,audio,grammar,starter]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run tests/references.txt
	$(PIP) --editable '.[torch,mlx,audio,grammar,starter,lab,dev]'
	$(PIP) --no-deps --requirement tests/references.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable '.[bench]'
	@touch $@

demo: $(VENV)/.run  ## set up, fetch the starter weights, say it, hear it, answer it
	$(BIN)/izwi-lab demo

test: $(VENV)/.dev lint  ## set up and run every test and notebook
	$(BIN)/python -m pytest
	$(MAKE) --no-print-directory notebooks

quick: $(VENV)/.dev  ## the tests that need no weights and no patience
	$(BIN)/python -m pytest -m 'not weights and not slow'

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev  ## run every notebook, cell by cell
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/python -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=120 notebooks

lab: $(VENV)/.dev  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

bench: $(VENV)/.bench  ## measure the starter models beside their peers, and write benchmarks/results
	$(BIN)/izwi-lab bench --all --report

clean:  ## remove the environment and caches of this checkout
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
