# Every target makes the virtual environment on first use; afterwards that costs nothing.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/requirements.lock
export PATH := $(CURDIR)/$(BIN):$(PATH)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	    echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (once; several GB, a few minutes) ..."
	if command -v uv >/dev/null; then
	    uv venv --quiet --clear --python "$$(command -v $(PYTHON))" $(VENV)
	    uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	else
	    $(PYTHON) -m venv --clear $(VENV)
	    $(BIN)/python -m pip install --quiet --progress-bar off -r requirements.lock
	fi
	cp requirements.lock $@

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: repro
repro: $(STAMP)  ## Run the whole pipeline on the demo cohort; ends with the report's path
	python -m pipeline.commands.prune
	python -m pipeline.commands.inventory
	python -m pipeline.commands.fetch_weights
	dvc repro
	@echo "The report: $(CURDIR)/reports/html/index.html"

.PHONY: study
study: $(STAMP)  ## Run one study: make study STUDY=ct_contrast
	@test -n "$(STUDY)" || { echo "Which? make study STUDY=$$(ls studies | head -1)"; exit 2; }
	cd studies/$(STUDY)
	export PYTHONPATH=../../
	python -m pipeline.commands.prune
	python -m pipeline.commands.inventory
	python -m pipeline.commands.fetch_weights
	dvc repro
	@echo "The report: $(CURDIR)/studies/$(STUDY)/reports/html/index.html"

.PHONY: restore
restore: $(STAMP)  ## After a clone: results from DVC's remote; only what it lacks is computed (STUDY=... for a study)
	cd $(if $(STUDY),studies/$(STUDY),.)
	export PYTHONPATH=$(if $(STUDY),../../,.)
	python -m pipeline.commands.prune
	dvc pull
	python -m pipeline.commands.inventory
	python -m pipeline.commands.fetch_weights
	dvc repro

.PHONY: smoke
smoke: $(STAMP)  ## The whole graph on small params, in a temporary folder; minutes on a CPU
	python -m pipeline.commands.prune
	python -m pipeline.commands.fetch_weights
	python -m pipeline.commands.smoke

.PHONY: test
test: $(STAMP)  ## Lint, types and all tests but the slow ones, in parallel
	ruff check .
	ruff format --check .
	mypy
	pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: test-all
test-all: $(STAMP)  ## As test, with the slow ones
	pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m ''

.PHONY: check
check: $(STAMP)  ## Lint and types only
	ruff check .
	ruff format --check .
	mypy

.PHONY: report
report: $(STAMP)  ## Make the report again from the tables there are
	dvc repro report
	@echo "The report: $(CURDIR)/reports/html/index.html"

.PHONY: setup
setup: $(STAMP)  ## Make the environment and nothing else

.PHONY: pictures
pictures: $(STAMP)  ## Draw the README's pictures again, from the tables of studies/chestxray14_view
	cd studies/chestxray14_view
	PYTHONPATH=../../ python -m pipeline.commands.pictures --out ../../docs/images

.PHONY: partial
partial: $(STAMP)  ## Where stages failed: a page of what there is, which says first what is missing
	python -m pipeline.commands.partial

.PHONY: gate
gate: $(STAMP)  ## Compare the metrics with the committed baseline; fails on a regression
	python -m pipeline.commands.gate

.PHONY: fuzz
fuzz: $(STAMP)  ## 10,000 mutated files (MUTANTS=... for another number): each has one verdict
	MUTANTS=$${MUTANTS:-10000} pytest tests/end_to_end/test_fuzz.py -n 0 -s

.PHONY: bench
bench: $(STAMP)  ## Benchmarks, as ratios measured in one run
	OMP_WAIT_POLICY=PASSIVE pytest tests/benchmarks -n 0 -m '' -s

.PHONY: lock
lock:  ## Resolve the dependencies anew (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	    --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet -o requirements.lock

.PHONY: clean
clean:  ## Delete results and the environment; the cache of DVC stays
	rm -rf data reports .checkpoints studies/*/data studies/*/reports studies/*/.checkpoints .venv .mypy_cache .ruff_cache .hypothesis
