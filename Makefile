# Two commands set everything up from a bare clone: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
READY := $(VENV)/.ready

.PHONY: demo test test-all test-lowest check style types docs train bench clean

demo: $(READY)  ## the demo on the bundled model, in the browser
	VLM_CONFIG= VLM_MODEL= $(BIN)/vlm demo

test: $(READY)  ## at most 5 minutes on 2 cores
	$(BIN)/python -m pytest

test-all: $(READY)  ## end to end and long, at most an hour
	$(BIN)/python -m pytest -m "long or not long"

test-lowest: $(READY)  ## the fast tests with the oldest packages that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --resolution lowest-direct --python $(LOWEST) -o $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) -r $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) --no-deps -e .
	$(LOWEST)/bin/python -m pytest

check: style types  ## style, types, tests
	$(BIN)/python -m pytest

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## pyright on build/checkout, where training/ and demo/ stand inside of vlm/ as they are installed
	rm -rf build/checkout && mkdir -p build/checkout/vlm && ln -s $(CURDIR)/vlm/* $(CURDIR)/training $(CURDIR)/demo build/checkout/vlm/ && ln -s $(CURDIR)/benchmarks build/checkout/
	$(BIN)/pyright

docs: $(READY)  ## the site, into site/; a broken link or equation ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

train: $(READY)  ## the bundled model, from nothing: under two hours on two cores
	$(BIN)/vlm train training/recipes/mini-picture-words.toml --out runs/mini-picture-words --resume auto
	$(BIN)/vlm train training/recipes/mini-icons.toml --out runs/mini-icons --resume auto
	$(BIN)/python -m training.average runs/mini-picture-words=0.2 runs/mini-icons=0.8 --out runs/mini-average
	$(BIN)/vlm train training/recipes/mini-full-size.toml --out runs/mini-full-size --resume auto
	$(BIN)/python -m training.average runs/mini-picture-words=0.15 runs/mini-icons=0.45 runs/mini-full-size=0.4 --out runs/mini-average-of-three
	$(BIN)/vlm train training/recipes/mini-last.toml --out runs/mini-last --resume auto
	$(BIN)/python -m training.average runs/mini-average-of-three=0.5 runs/mini-last=0.5 --out runs/mini

bench: $(READY)
	$(BIN)/python -m benchmarks

$(READY): pyproject.toml
	@echo "Setting up $(VENV): PyTorch and the rest, a few minutes and a few GB the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) runs build dist site .pytest_cache .ruff_cache
