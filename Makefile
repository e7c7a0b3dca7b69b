# All paths are relative, so that a folder with a space or an apostrophe in its name works.
# .venv/bin/python -m pip, never .venv/bin/pip: its first line cannot hold a space.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
INSTALLED := .venv/installed
BROWSER := .venv/installed-browser

.DEFAULT_GOAL := help
.PHONY: help install demo train test lint test-browser test-colab test-oldest notebook publish docs bench bench-gpu study faults clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(INSTALLED) ## make the environment in .venv, with this clone in it

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(INSTALLED)

demo: $(INSTALLED) ## range test, training and report on handwritten digits, two to five minutes
	$(PY) -m onecycle train --dataset digits

train: $(INSTALLED) ## CIFAR-10, 24 epochs; DATA=folder of the images, downloaded if not given
	$(PY) -m onecycle train $(if $(DATA),--data-dir "$(DATA)",--download)

# One thread per worker: two that share a core wait for each other.
test: $(INSTALLED) ## layers and all tests; CIFAR10_DIR=folder adds those on the real images
	$(PY) -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-logo pyproject.toml
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

lint: $(INSTALLED) ## ruff's checks and its format, as pyproject.toml sets them
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

$(BROWSER): $(INSTALLED)
	$(PIP) --no-build-isolation --editable ".[browser]"
	@touch $(BROWSER)

test-browser: $(BROWSER) ## what people open, in Chromium; SCREENSHOTS=folder keeps pictures
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		{ echo "Chromium is missing: apt-get install chromium chromium-driver"; exit 1; }
	$(PY) -m pytest -m browser

test-colab: ## the notebook with Colab's versions, in an environment made for it (6 GB)
	$(PYTHON) scripts/check_environment.py colab

test-oldest: ## the same with the lowest versions that requirements.txt allows
	$(PYTHON) scripts/check_environment.py oldest

notebook: $(INSTALLED) ## execute the notebook in place
	$(PY) scripts/run_notebook.py S10_Assignment.ipynb

publish: $(INSTALLED) ## README, docs, images/, results/ and onecycle/weights/ from a run; RUN=folder of the run
	$(PY) scripts/publish.py "$(RUN)"

docs: $(INSTALLED) ## docs/api/ from the docstrings
	$(PY) -m pdoc --docformat google --output-directory docs/api onecycle models data transformation utils visualize

bench: $(INSTALLED) ## speeds on this CPU into benchmarks/results/, under 10 minutes
	for name in input step baseline scaling; do \
		$(PY) benchmarks/$$name.py --device cpu $(if $(DATA),--data-dir "$(DATA)") || exit 1; done

# A machine with a GPU may have torch, but no network to make .venv with.
bench-gpu: ## what needs a GPU, under 9 minutes; DATA=images or archive, OUT=folder, ONLY=sections
	$(if $(DATA),DATA="$(DATA)") $(if $(OUT),OUT="$(OUT)") $(if $(ONLY),ONLY="$(ONLY)") \
		$(or $(wildcard $(PY)),python3) benchmarks/gpu.py

study: $(INSTALLED) ## a designed experiment; DESIGN=file of benchmarks/designs/, DATA=images, OUT=file, JOBS=2
	$(PY) benchmarks/study.py --design "$(DESIGN)" $(if $(DATA),--data-dir "$(DATA)") \
		$(if $(OUT),--out "$(OUT)") $(if $(JOBS),--jobs $(JOBS))

faults: $(INSTALLED) ## kills, signals, damaged files and more, under 15 minutes; SCALE=share, OUT=folder
	$(PY) -m pytest -m faults tests/faults $(if $(SCALE),--faults-scale "$(SCALE)") \
		$(if $(OUT),--faults-out "$(OUT)")

clean: ## remove the environment and what Python left behind
	rm -rf .venv .pytest_cache .import_linter_cache .ruff_cache build *.egg-info docs/api
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
