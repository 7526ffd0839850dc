# make demo      sets up .venv and samples the bundled model: no cache, published methods, tuned plans
# make test      the same set-up, then style, types and every test that is not slow (7 minutes on two idle cores)
# make test-all  the same with the slow tests: what CI runs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS := $(VENV)/.runs
# modules are compiled when they are first imported, whatever the environment says: minutes less than all of them at once
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

.PHONY: demo test test-all lint style format figures statistics tables bench peers serving docs package
demo: $(RUNS)
	$(BIN)/forecache demo

TYPES := $(BIN)/pyright --pythonpath $(BIN)/python

# a process a core, each with one thread: models this small gain nothing from more; pyright, which has one, beside them
test: SELECT := -m "not slow"
test-all: SELECT := -m "slow or not slow"
test-all: export FORECACHE_THOROUGH := 1
test test-all: style
	@$(TYPES) > $(VENV)/pyright.log 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(SELECT); tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/pyright.log; test $$tests -eq 0 -a $$types -eq 0

lint: style
	$(TYPES)

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# every figure in README, docs and the model card, measured again (about 25 minutes on two cores)
figures: $(READY)
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/digits_text.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/schedules.py
	$(BIN)/python benchmarks/notebook.py
	$(BIN)/python benchmarks/routers.py

# the statistics that ship with digits and digits-text, and the ones per token that benchmarks/quality.py uses (ten minutes)
DIGITS := src/forecache/zoo/assets/digits
statistics: $(READY)
	for steps in 20 50; do \
	  $(BIN)/forecache calibrate --steps $$steps --samples 1000 --signals 16 --out out/statistics-$$steps.safetensors && \
	  cp out/statistics-$$steps.safetensors $(DIGITS)/statistics-$$steps.safetensors && \
	  $(BIN)/forecache calibrate --steps $$steps --samples 1000 --signals $$((steps == 20 ? 16 : 2)) --keep channel --out $(DIGITS)/statistics-$$steps.safetensors \
	  || exit 1; done
	$(BIN)/forecache calibrate --model digits-text --samples 300 --signals 16 --out out/digits-text-statistics-20.safetensors
	cp out/digits-text-statistics-20.safetensors $(DIGITS)-text/statistics-20.safetensors
	$(BIN)/forecache calibrate --model digits-text --samples 300 --signals 16 --keep channel --out $(DIGITS)-text/statistics-20.safetensors

# the tables of docs/methods/eoc.md, docs/methods/l2c.md, docs/measured/methods.md, docs/methods/procache.md, docs/measured/digits-text.md, docs/calibration.md, docs/evaluation.md and
# docs/sampling.md, docs/reproduce.md (four hours on two cores, after make statistics)
tables: $(READY)
	$(BIN)/python benchmarks/quality.py corrections
	$(BIN)/python benchmarks/quality.py l2c
	$(BIN)/python benchmarks/quality.py intervals
	$(BIN)/python benchmarks/which_method.py
	$(BIN)/python benchmarks/procache.py
	$(BIN)/python benchmarks/quality.py procache
	$(BIN)/python benchmarks/quality.py text-corrections
	$(BIN)/python benchmarks/quality.py text-procache
	$(BIN)/python benchmarks/partial.py
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/intervals.py
	$(BIN)/python benchmarks/shards.py
	$(BIN)/python benchmarks/reproduce.py

# the tables of docs/performance.md: ours (a quarter of an hour), and beside other caches (an hour; it can be stopped)
bench: $(READY)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/least.py

peers: $(READY)
	$(BIN)/python benchmarks/peers.py --model tiny
	$(BIN)/python benchmarks/peers.py --model digits

# the documentation as pages that need no network, in site/: python -m http.server -d site (a quarter of a minute)
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "site/ is ready: $(BIN)/python -m http.server -d site 8000"

# the tables of docs/serving.md: two minutes each with 2 and 16 clients (ten minutes)
serving: $(READY)
	$(BIN)/python examples/serve/load_test.py

# the wheel from an index, bare and with all extras, with each Python of PYTHONS (a quarter of an hour each)
PYTHONS ?= $(PYTHON)
package:
	.ci/package $(PYTHONS)

# what samples: torch, diffusers and the command line; the tests need more
$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("forecache needs Python 3.11 or newer; this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable '.[diffusers,cli]'
	touch $(RUNS)

$(READY): $(RUNS)
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps torch-fidelity lpips
	touch $(READY)
