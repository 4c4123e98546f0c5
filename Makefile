# `make demo` and `make test` do all their set-up; both are safe to repeat and to interrupt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEMO_OUT ?= runs/demo
export MPLBACKEND := Agg

.PHONY: demo serve test check unit test-slow bench bench-peers format clean help

help:
	@echo "make demo       set up, then compare nine recommenders on a three-market world (about 3 minutes)"
	@echo "make serve      the demo, and then its best network as a service with a page to try it"
	@echo "make test       set up, then style, floors, types and tests"
	@echo "make test-slow  the rest: statistical checks over many small worlds, every graph, several processes (about 40 minutes)"
	@echo "make bench      speed and memory, as ratios in one run"
	@echo "make bench-peers  the same work in other libraries, which it installs beside the environment"
	@echo "make clean      remove the environment and what demo wrote"

demo: $(READY)
	@$(BIN)/isthmus demo --out $(DEMO_OUT)

serve: $(READY)
	@$(BIN)/isthmus demo --out $(DEMO_OUT) --serve

test: check unit

check: $(READY)
	@echo "== style (ruff)";                          $(BIN)/ruff check --no-cache .
	@echo "== floors: who may import whom (import-linter)"; $(BIN)/lint-imports --no-cache
	@echo "== Dockerfile (hadolint)";                 $(BIN)/hadolint Dockerfile
	@echo "== types (pyright)";                       $(BIN)/pyright --warnings

unit: $(READY)
	@echo "== tests (pytest)";                        OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

bench: $(READY)
	@$(BIN)/python benchmarks/suite.py prepare loader domains retrieval ranking measure ranks

bench-peers: $(READY)
	@$(BIN)/python benchmarks/suite.py multi_domain din sasrec two_tower

format: $(READY)
	@$(BIN)/ruff check --fix .

# The stamp is written last: an interrupted set-up is simply taken up again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Isthmus needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== environment in $(VENV) (PyTorch is large: this takes some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_OUT) build *.egg-info src/*.egg-info
