# All paths are relative, so that a folder with a space or an apostrophe in its name works.
# .venv/bin/python -m pip, never .venv/bin/pip: its first line cannot hold a space.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
INSTALLED := .venv/installed
BROWSER := .venv/installed-browser

.DEFAULT_GOAL := help
.PHONY: help install demo train test test-browser test-colab test-oldest prove-tests notebook publish docs bench bench-gpu faults clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(INSTALLED) ## make the environment in .venv

$(INSTALLED): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $(INSTALLED)

demo: $(INSTALLED) ## finder, training and figures on the embedded digits, two to five minutes
	$(PY) train.py --dataset digits

train: $(INSTALLED) ## CIFAR-10, 24 epochs; DATA=folder of the images, downloaded where not given
	$(PY) train.py $(if $(DATA),--data-dir "$(DATA)",--download)

# One thread a worker: two that share a core wait for each other.
test: $(INSTALLED) ## all tests; CIFAR10_DIR=folder adds those on the real images
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

$(BROWSER): $(INSTALLED) requirements-browser.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	@touch $(BROWSER)

test-browser: $(BROWSER) ## what people open, in Chromium; SCREENSHOTS=folder keeps pictures
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		{ echo "Chromium is missing: apt-get install chromium chromium-driver"; exit 1; }
	$(PY) -m pytest -m browser

test-colab: ## the notebook with Colab's versions, in an environment made for it (6 GB)
	$(PYTHON) scripts/check_environment.py colab

test-oldest: ## the same with the lowest versions that requirements.txt allows
	$(PYTHON) scripts/check_environment.py oldest

prove-tests: $(INSTALLED) ## take each protection out of a copy, and expect a failing test
	$(PY) scripts/deliberate_faults.py $(if $(JOBS),--jobs $(JOBS))

notebook: $(INSTALLED) ## execute the notebook in place; DATA=folder of the images, EPOCHS=24
	DOWNLOAD=$(if $(DATA),0,1) DATA_DIR="$(or $(DATA),cifar10)" EPOCHS=$(or $(EPOCHS),24) \
		OUT="$(or $(OUT),runs/notebook-$(shell date +%Y%m%d-%H%M%S))" $(PY) scripts/run_notebook.py

publish: $(INSTALLED) ## README, images/, results/ and weights/ from a run; RUN=folder of the run
	$(PY) scripts/publish.py "$(RUN)"

docs: $(INSTALLED) ## docs/api.md from the docstrings
	$(PY) scripts/write_api.py

bench: $(INSTALLED) ## speeds on this CPU into benchmarks/results/, under 10 minutes
	for name in input step baseline scaling; do \
		$(PY) benchmarks/$$name.py --device cpu $(if $(DATA),--data-dir "$(DATA)") || exit 1; done

# A machine with a GPU may have torch, but no network to make .venv with.
bench-gpu: ## what needs a GPU, under 9 minutes; DATA=images or archive, OUT=folder, ONLY=sections
	$(if $(DATA),DATA="$(DATA)") $(if $(OUT),OUT="$(OUT)") $(if $(ONLY),ONLY="$(ONLY)") \
		$(or $(wildcard $(PY)),python3) benchmarks/gpu.py

faults: $(INSTALLED) ## kills, signals, damaged files and more, many of each, under 15 minutes
	$(PY) scripts/faults.py

clean: ## remove the environment and what Python left behind
	rm -rf .venv .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
