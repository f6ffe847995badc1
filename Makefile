# Two commands do everything on a fresh clone: `make train` and `make test`.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; name your own with `make PYTHON=/path/to/python ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
SETTINGS ?= deploy.yaml
ARGS ?=

.PHONY: help install train test lint types cluster test-cluster verify-backward reproduce chaos fuzz peers bench clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(VENV)/.installed ## Create .venv with pinned dependencies.

$(VENV)/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; name it with 'make PYTHON=...'" >&2; exit 2; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m maml_ray.runs.precompile
	@touch $@

train: install ## Train the default deploy.yaml to a policy, a video and a report (SETTINGS=, ARGS=).
	$(BIN)/maml-ray train $(SETTINGS) $(ARGS)

SELECTED := not learning and not soak and not cluster

test: install lint types ## Lint, types and tests: about 11 minutes on 2 cores.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m '$(SELECTED) and not runs_alone'
	$(BIN)/python -m pytest -m '$(SELECTED) and runs_alone'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

cluster: install ## Train briefly on three Ray nodes on this machine, then stop them (ARGS=).
	cluster/local.sh $(ARGS)

test-cluster: install ## Test jobs, and nodes that come and go: about a quarter of an hour.
	$(BIN)/python -m pytest -m cluster

verify-backward: install ## Train seeds 0 to 2 in full and check the returns: about 10 minutes.
	$(BIN)/python -m pytest -m learning -s tests/runs/test_learning.py

reproduce: install ## Train and evaluate the papers' experiments: about three hours on 2 cores (QUICK=1: half of it).
	$(BIN)/python -m tests.reproduction $(if $(QUICK),--quick) $(ARGS)

chaos: install ## Inject 56 faults into a run and check that it ends with the same bits (20 minutes).
	$(BIN)/python -m pytest -m soak -s tests/chaos

fuzz: install ## Test ten times as many damaged settings, arguments and directories, newly drawn (FACTOR=).
	FUZZ=$(or $(FACTOR),10) $(BIN)/python -m pytest --timeout 3600 tests/bad_input $(ARGS)

peers: install ## Also install EnvPool and TorchRL, which make bench then measures.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt envpool==1.2.5 torchrl==0.14.1

bench: install ## Measure speed as ratios within one run (ARGS='--json FILE' to keep, '--against FILE' to compare).
	$(BIN)/python -m tests.benchmarks $(ARGS)

clean: ## Remove the environment and caches; runs/ is kept.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find maml_ray tests -name __pycache__ -type d -exec rm -rf {} +
