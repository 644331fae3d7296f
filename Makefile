# make train   install, train TRPO on CartPole-v1 through the RL Zoo; e.g. make train ALGO=ppopenalty ENV=LunarLander-v3
# make test    install, run the tests; make test-slow: those that train to a score
PYTHON ?= python3
VENV ?= .venv
ALGO ?= trpo
ENV ?= CartPole-v1
ARGS ?=
RUNS ?= runs

bin := $(VENV)/bin
installed := $(VENV)/.installed

.PHONY: train test test-slow lint types bench clean

train: $(installed)
	$(bin)/sb3-trust train --algo $(ALGO) --env $(ENV) --progress --log-folder $(RUNS) --log-interval 10 $(ARGS)

test: $(installed)
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n auto $(ARGS)

test-slow: $(installed)
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n auto -m slow $(ARGS)

lint: $(installed)
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: $(installed)
	$(bin)/mypy sb3_trust

bench: $(installed)
	OMP_NUM_THREADS=1 $(bin)/python benchmarks/microbenchmarks.py
	OMP_NUM_THREADS=1 $(bin)/python benchmarks/speed.py $(ARGS)

$(installed): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sb3-trust needs Python 3.10 or newer")'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --constraint constraints.txt torch
	$(bin)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
