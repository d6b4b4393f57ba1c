# `make demo` and `make test` work alone on a fresh machine: each makes .venv when there is none.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Versions that we test with; `make test CONSTRAINTS=` takes the newest that the Python version has.
CONSTRAINTS ?= constraints.txt
PIN := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -q

.PHONY: demo test test-fast fuzz lint types docs setup clean

demo: setup
	$(BIN)/immiscible demo

# Two workers, one torch thread each: with both cores busy, two threads a process are far slower.
test: setup
	$(PYTEST) $(TESTFLAGS)

# About a minute: the mathematics.
test-fast: setup
	$(PYTEST) -m "not slow and not subprocess" tests/couplings tests/diffusion tests/metrics tests/utils

# Half an hour: changed files and odd command lines.
fuzz: setup
	$(PYTEST) -m nightly -s

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The site, into site/, without the network; the notice is of the theme's next release.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIN) --editable '.[train,sd,pusht,docs,dev]'
	# What we are tested against, without the trainers and plotters it would bring along.
	$(BIN)/python -m pip install --quiet $(PIN) --no-deps torchcfm POT $(if $(filter Linux,$(shell uname -s)),triton)
	touch $(STAMP)

clean:
	rm -rf $(VENV) build site src/*.egg-info
