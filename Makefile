# `make` prints this help. Every target makes what it needs; nothing is asked.
PYTHON ?= python3
# relative: a path with a space would be two words to make
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help install dev .repository repro check test bench lint format ui docs tensorboard lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 22

install: $(VENV)/.installed  ## make .venv with the pinned requirements of running
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv: some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	@# modules are compiled when they are first imported: most never are, and all of them take 350 MB
	$(PIP) --no-compile -r requirements.txt
	$(PIP) --no-deps --editable .
	@touch $@

dev: $(VENV)/.installed-dev  ## the same, and what tests and lint take besides
$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) --no-compile -r requirements-dev.txt
	@touch $@

repro: .repository install  ## fetch, split, train, evaluate: whatever is out of date
	@test ! -e .dvc/tmp/rwlock || python -m json.tool .dvc/tmp/rwlock > /dev/null 2>&1 || \
		{ echo "DVC's .dvc/tmp/rwlock is damaged, as by a kill. Where no dvc runs, type: rm -r .dvc/tmp/rwlock"; exit 1; }
	@test ! -d .dvc/tmp/lock || \
		{ echo "DVC's .dvc/tmp/lock must be a file and is a folder. Where no dvc runs, type: rm -r .dvc/tmp/lock"; exit 1; }
	dvc repro

.repository:  # which a ZIP file of the project has not; DVC itself does not say what to type
	@test -e .git || grep -qs 'no_scm = true' .dvc/config .dvc/config.local || \
		{ echo "DVC needs a git repository, and this folder is none. Type: git init && make repro"; exit 1; }

check: lint  ## lint and the unit tests
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadgroup -q tests/unit

test: dev  ## all tests
	# one thread a process: two tests run at once, and threads that wait for each other spin
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadgroup

bench: install  ## how good, how fast, and what tracking costs, beside plain PyTorch and Lightning (one to two hours)
	$(PIP) -c requirements.txt --editable '.[bench]'
	python benchmarks/default.py
	python benchmarks/default.py --experiment quick --no-theirs --out benchmarks/results/quick.json
	python benchmarks/default.py --experiment accurate --seeds 0 1 2 --no-theirs --out benchmarks/results/accurate.json
	python benchmarks/speed.py --picture docs/speed.png
	python benchmarks/tracking.py
	python benchmarks/flat.py
	python benchmarks/outages.py
	python benchmarks/sweeps.py
	python benchmarks/tables.py --write

lint: dev  ## ruff, mypy and the direction of the imports
	ruff check .
	ruff format --check .
	mypy
	PYTHONPATH=src lint-imports
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: dev  ## let ruff put the code in order
	ruff check --fix .
	ruff format .

ui: install  ## the MLflow UI and TensorBoard, on this machine alone
	@python -m bestepoch.ui $(if $(PORT),PORT=$(PORT)) $(if $(TENSORBOARD_PORT),TENSORBOARD_PORT=$(TENSORBOARD_PORT))

docs: install  ## the pages of docs/ as a site, in site/
	$(PIP) -c requirements.txt --editable '.[docs]'
	mkdocs build --strict

tensorboard: PORT = 6006
tensorboard: install  ## TensorBoard, on this machine alone
	tensorboard --logdir runs --host 127.0.0.1 --port $(PORT)

lock:  ## both files of requirements anew, from the ranges in pyproject.toml
	rm -rf .venv.lock && $(PYTHON) -m venv .venv.lock/dev && $(PYTHON) -m venv .venv.lock/run
	@# all of them first: what tests need narrows what running may take
	.venv.lock/dev/$(LOCK) torch==2.13.0 --editable '.[dev]'
	.venv.lock/dev/$(FREEZE) > .venv.lock/all.txt
	.venv.lock/run/$(LOCK) -c .venv.lock/all.txt --editable '.[sweep]'
	{ grep '^#' requirements.txt; .venv.lock/run/$(FREEZE); } > requirements.txt.new
	{ grep -E '^(#|-r)' requirements-dev.txt; grep -vxFf requirements.txt.new .venv.lock/all.txt; } > requirements-dev.txt.new
	mv requirements.txt.new requirements.txt && mv requirements-dev.txt.new requirements-dev.txt && rm -rf .venv.lock
lock: LOCK = bin/python -m pip install --quiet --disable-pip-version-check
lock: FREEZE = bin/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'

clean:  ## remove .venv and caches; data, results and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
