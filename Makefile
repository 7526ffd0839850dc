# make demo   sets up .venv and samples the bundled model with and without a cache
# make test   the same set-up, then every check
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format figures
demo: $(READY)
	$(BIN)/forecache demo

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# every figure in README, docs and the model card, measured again (about 25 minutes on two cores)
figures: $(READY)
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/routers.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("forecache needs Python 3.11 or newer; this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
