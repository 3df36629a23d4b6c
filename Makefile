# Two commands set everything up from a bare clone: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all check train bench clean

demo: $(READY)  ## the demo on the bundled model, in the browser
	$(BIN)/python -m demo

test: $(READY)  ## at most 5 minutes on 2 cores
	$(BIN)/python -m pytest

test-all: $(READY)  ## end to end and long, at most an hour
	$(BIN)/python -m pytest -m "long or not long"

check: $(READY)  ## style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

train: $(READY)  ## the bundled model, from nothing
	$(BIN)/python -m training.train_clip training/recipes/mini.toml --out runs/mini --resume auto
	$(BIN)/python -m training.train_clip training/recipes/mini-words.toml --out runs/mini-words --resume auto

bench: $(READY)
	$(BIN)/python -m benchmarks

$(READY): pyproject.toml
	@echo "Setting up $(VENV): PyTorch and the rest, a few minutes and a few GB the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache
