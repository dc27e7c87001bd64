# `make demo` and `make test` each work as the only command typed in a fresh clone: they build .venv
# themselves, and rebuild it when pyproject.toml or constraints.txt change.

VENV := .venv
BIN := $(VENV)/bin
# The first Python >= 3.11 that really starts. Choose another with: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	echo $$p; break; fi; done)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Extra arguments of the command: make demo ARGS=--quick
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench clean

help: ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1  - \2/'

demo: $(VENV)/.runtime ## post-train the bundled model by self-play and print the honest table
	$(BIN)/unigame demo $(ARGS)

test: $(VENV)/.dev ## run every test (minutes on 2 cores, no network)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.dev ## style, formatting, types and directions of imports, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## mend style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## build the site with the API reference in site/; a dead link or an unlisted page fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Next: open site/index.html"

bench: $(VENV)/.runtime ## time a UniGame step against an SFT step on this machine
	$(BIN)/python benchmarks/step_cost.py --json runs/bench/step_cost.json $(ARGS)

clean: ## remove caches and builds (keeps .venv and runs/)
	rm -rf build dist site *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
	echo "make: no Python >= 3.11 found; install one, or name it: make demo PYTHON=/path/to/python3.12" >&2; \
	exit 2; }
	@echo "Creating $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that no later requirement can pull another build of it.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing unigame into $(VENV) (the first time takes a few minutes)"
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e ".[docs]"
	@touch $@
