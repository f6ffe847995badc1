# Two commands do everything on a fresh clone: `make train` and `make test`.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; name your own with `make PYTHON=/path/to/python ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
SETTINGS ?= deploy.yaml
ARGS ?=
# pinned: the versions in constraints.txt. newest, lowest: what pyproject.toml allows; install them
# into an environment of their own: `make pytest DEPENDENCIES=lowest VENV=.venv-lowest`.
DEPENDENCIES ?= pinned
CONSTRAINTS := $(or $(if $(filter pinned,$(DEPENDENCIES)),constraints.txt),\
	$(if $(filter newest,$(DEPENDENCIES)),/dev/null),\
	$(if $(filter lowest,$(DEPENDENCIES)),$(VENV)/lowest.txt),\
	$(error DEPENDENCIES is pinned, newest or lowest))
# On a terminal pip shows its progress, since installing takes minutes.
PIP := $(BIN)/python -m pip install $(if $(MAKE_TERMOUT),,--quiet) --disable-pip-version-check

.PHONY: help install dev train demo test lint types pytest test-parallel test-ray test-alone settings docs wheel cluster test-cluster \
	lock check-lock audit sbom image verify-backward reproduce chaos fuzz peers bench clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(VENV)/.precompiled ## Make .venv with pinned dependencies, enough to train.

dev: $(VENV)/.installed-dev $(VENV)/.precompiled ## Add the extras and the tools that tests need.

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; name it with 'make PYTHON=...'" >&2; exit 2; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/lowest.txt: pyproject.toml | $(BIN)/python
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --python $(BIN)/python --resolution lowest-direct --no-annotate \
		--extra export --extra s3 --extra serve-ray --extra tune --output-file $@ pyproject.toml

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.precompiled: $(VENV)/.installed
	$(BIN)/python -m maml_ray.runs.precompile
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) -c $(CONSTRAINTS) -e '.[$*]'
	@touch $@

demo: install ## Train an agent that adapts to running forward or backward (4 minutes of training), to a video and a report.
	$(BIN)/maml-ray train --preset direction --set run.name=demo $(ARGS)

train: install ## Train the default deploy.yaml to a policy, a video and a report (SETTINGS=, ARGS=).
	$(BIN)/maml-ray train $(SETTINGS) $(ARGS)

SELECTED := not learning and not soak and not cluster

# With two jobs the kernels are compiled while pip installs the extras.
test: ## Lint, types and tests: about 15 minutes on 2 cores.
	@$(MAKE) --no-print-directory --jobs 2 dev
	$(MAKE) lint
	$(MAKE) --jobs 2 types test-parallel
	$(MAKE) test-ray test-alone

pytest: test-parallel test-ray test-alone ## The tests without lint and types.

test-parallel: dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m '$(SELECTED) and not ray and not runs_alone'

# Each of the processes has a Ray of its own. The longest files, of tests/chaos, come first.
RAY_WORKERS ?= 2

test-ray: dev
	$(BIN)/python -m pytest -n $(RAY_WORKERS) --dist loadfile --no-loadscope-reorder \
		-m '$(SELECTED) and ray and not runs_alone'

test-alone: dev
	$(BIN)/python -m pytest -m '$(SELECTED) and runs_alone'

# The image's packages. Resolved for x86_64; aarch64 gets the same ones, and the hashes are of all files.
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock' --constraints constraints.txt
# Needed by PyTorch without CUDA as well: in base.txt.
TORCH_NEEDS := filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy typing-extensions

lock: $(VENV)/.installed-audit ## Write cluster/locks/ from constraints.txt, with the hashes of every file.
	$(LOCK) --extra s3 --extra serve --torch-backend cpu --no-emit-package torch \
		--output-file cluster/locks/base.txt pyproject.toml
	echo torch | $(LOCK) --no-deps --torch-backend cpu --output-file cluster/locks/cpu.txt -
	echo torch | $(LOCK) $(addprefix --no-emit-package ,$(TORCH_NEEDS)) --output-file cluster/locks/gpu.txt -
	echo hatchling | $(LOCK) --output-file cluster/locks/build.txt -

check-lock: lock ## Fail if make lock changes a version or a hash of what is committed; further files may join.
	@for lock in cluster/locks/*.txt; do \
		comm -23 <(git show "HEAD:$$lock" | tr -d ' \\' | sort) <(tr -d ' \\' <"$$lock" | sort); \
	done | if grep .; then echo "no longer what 'make lock' writes: see above" >&2; exit 1; fi

audit: $(VENV)/.installed-audit ## Look the pinned versions up in the database of known vulnerabilities.
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement cluster/locks/gpu.txt

sbom: $(VENV)/.installed-audit ## Write dist/sbom.json: the image's packages and hashes (CycloneDX).
	mkdir -p dist
	cat cluster/locks/base.txt cluster/locks/gpu.txt | $(BIN)/cyclonedx-py requirements \
		--pyproject pyproject.toml --mc-type application --output-reproducible --output-file dist/sbom.json -

DEVICE ?= cpu
IMAGE ?= maml-ray:2.60.0-$(DEVICE)

image: ## Build the container image, and train in it with a read-only file system (DEVICE=cpu or gpu; needs Docker).
	docker build -f cluster/Dockerfile --build-arg DEVICE=$(DEVICE) -t $(IMAGE) .
	docker run --rm --read-only --tmpfs /tmp:exec --env HOME=/tmp --shm-size 1g $(IMAGE) \
		maml-ray train --preset point-navigation --set run.iterations=3 --run-dir /tmp/run

settings: dev ## Write deploy.yaml, docs/settings.md and the JSON schema from the settings' definitions.
	$(BIN)/python -m tests.config.generated_files

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## Build the documentation's site in site/.
	$(BIN)/python -m mkdocs build --quiet --strict --config-file .github/mkdocs.yml

wheel: dev ## Build dist/, and train with the wheel in a new environment and an empty folder.
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv --clear $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd "$$(mktemp -d)" && $(abspath $(VENV))/wheel/bin/maml-ray train --preset point-navigation --set run.iterations=3

cluster: install ## Train briefly on three Ray nodes on this machine, then stop them (ARGS=).
	cluster/local.sh $(ARGS)

test-cluster: dev ## Test jobs, and nodes that come and go: about a quarter of an hour.
	$(BIN)/python -m pytest -m cluster

verify-backward: dev ## Train seeds 0 to 2 in full and check the returns: about 10 minutes.
	$(BIN)/python -m pytest -m learning -s tests/runs/test_learning.py

reproduce: install ## Train, evaluate and draw the experiments of docs/results.md, for hours; resumes (QUICK=1: one seed; ARGS="--only NAME").
	$(BIN)/python -m tests.reproduction $(if $(QUICK),--quick) $(ARGS)

chaos: dev ## Inject 56 faults into a run, which must end with the same bits, and attack a service (35 minutes).
	$(BIN)/python -m pytest -m soak -s tests/chaos

fuzz: dev ## Test ten times as many damaged settings, arguments and directories, newly drawn (FACTOR=).
	FUZZ=$(or $(FACTOR),10) $(BIN)/python -m pytest --timeout 3600 tests/bad_input $(ARGS)

peers: dev ## Also install EnvPool, PufferLib and TorchRL, which make bench then measures.
	$(PIP) -c $(CONSTRAINTS) envpool==1.2.5 torchrl==0.14.1
	$(PIP) --no-deps pufferlib-core==3.0.23  # it asks for another PyTorch, to train with

bench: dev ## Measure speed as ratios within one run (ARGS='--json FILE' to keep, '--against FILE' to compare; PART=recovery).
	$(BIN)/python -m tests.benchmarks$(addprefix .,$(PART)) $(ARGS)

clean: ## Remove the environment and caches; runs/ is kept.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find maml_ray tests -name __pycache__ -type d -exec rm -rf {} +
