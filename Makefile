# `make demo` and `make test` do all the set-up; `make venv` alone makes the full environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# files of tests go to this many processes; one that dies is not replaced (pytest-xdist then waits for ever)
JOBS ?= 2

.PHONY: demo test venv bench check format slow fixtures clean

demo: $(VENV)/.demo
	$(BIN)/clipkit demo

test: $(VENV)/.dev
	$(MAKE) check
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not gpu and not slow" -n $(JOBS) --dist loadfile --max-worker-restart 0 --durations 25

slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks --quick

venv: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch comes first, by its exact version: a resolver that meets it as somebody's dependency may take another build
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.demo

# real data that tests need and nobody commits; without it they skip
fixtures:
	.ci/fixtures

clean:
	rm -rf $(VENV) .fixtures runs dist build
