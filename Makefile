# Installation, quickstart and the gate. `make` alone lists the commands.
#
#   PYTHON=...          the Python (3.11 or newer) that .venv is made from; found if not given
#   TORCH_PIP_ARGS=...  how pip gets torch, e.g. "--index-url <index of the build for your driver>"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-all test-cluster test-data test-vllm test-ray lint format clean

PYTHON ?=
TORCH_PIP_ARGS ?=
STAMP := .venv/.installed
LOCKS := requirements-torch.lock requirements.lock
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_LOCK := tests/vllm/requirements.lock
RAY_VENV := .venv-ray
RAY_STAMP := $(RAY_VENV)/.installed
RAY_LOCK := tests/ray/requirements.lock
AZURITE := 3.35.0
# Two of pytest's workers, each with whole files: what a file's tests share is made once.
# One that dies is a failure by name; a third in its place would wait for its files for ever.
WORKERS := --numprocesses 2 --dist loadfile --max-worker-restart 0
SLOWEST := --durations 20 --durations-min 1

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# DeepSpeed compiles its operators at first use. Here they live in the venv, so `make setup` can
# build them ahead of the first run and `make clean` takes them away.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions
# Neither the quickstart nor a test needs the hub: a forgotten access fails at once, not by time-out.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# The tests start some hundred processes, each of which would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## Make .venv with the pinned versions; does nothing when it is up to date

quickstart: setup  ## Shards, ZeRO-3 GRPO of a tiny policy and a report, in out/quickstart
	@.venv/bin/python -m launch.quickstart

# mypy keeps one core busy for most of a minute: it runs beside the tests, and its verdict is behind theirs.
test: setup  ## Lint, types, floors and every test that is not slow (minutes)
	@.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	verdict=$$(mktemp)
	.venv/bin/mypy > "$$verdict" 2>&1 &
	mypy=$$!
	trap 'kill $$mypy 2> /dev/null || true; rm "$$verdict"' EXIT
	tests=0
	.venv/bin/pytest -m "not slow" $(WORKERS) $(SLOWEST) || tests=$$?
	types=0
	wait $$mypy || types=$$?
	sed 's/^/mypy: /' "$$verdict"
	exit $$((tests ? tests : types))

# Two ranks wait for each other much of the time, which another file's tests use. Only files with such tests
# are collected, and begun in their order: those that take longest are not left for the end. Ray has its own.
test-slow: setup  ## The tests that are marked slow, each for the reason beside its marker
	.venv/bin/pytest -m slow $(WORKERS) --no-loadscope-reorder $(SLOWEST) \
		$$(grep -rl --include='test_*.py' --exclude-dir=ray 'mark\.slow(' tests | sort)

test-all: test test-slow test-data  ## Everything that CI runs

test-cluster: setup  ## Two nodes in network namespaces and what fails there (root, pdsh, sshd; slurm; minutes)
	.venv/bin/pytest tests/cluster -m cluster

# Alone on the machine, an engine uses both cores.
test-vllm: export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VLLM_VENV)/torch_extensions
test-vllm: $(VLLM_STAMP)  ## Real vLLM engines on the CPU, in a venv of their own (minutes)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm $(SLOWEST)

test-ray: export PYTHONPATH := $(CURDIR):$(CURDIR)/tools
test-ray: $(RAY_STAMP)  ## A Ray cluster of three nodes on loopback, in a venv of its own (minutes)
	$(RAY_VENV)/bin/python -m pytest tests/ray $(SLOWEST)

test-data:  ## The tests that need no torch, on Python 3.10 where there is one
	@.ci/data_half

lint: setup  ## ruff, mypy --strict and the floors (import-linter)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: setup  ## Format the code and apply ruff's safe fixes
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

# Other runs' checkpoints may be in out/ too: only what the quickstart made is removed.
clean:  ## Remove .venv, .venv-vllm, .venv-ray, out/quickstart and every cache
	rm -rf .venv $(VLLM_VENV) $(RAY_VENV) out/quickstart build dist *.egg-info tests/vllm/cpu_plugin/*.egg-info .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	if [ -d out ]; then rmdir --ignore-fail-on-non-empty out; fi
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the folder that .venv was made in: a venv does not survive being moved.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): $(LOCKS) pyproject.toml
	@python="$$(tools/find_python $(PYTHON))"
	if [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ] || ! .venv/bin/python -c '' 2>/dev/null; then
		echo "setup 1/4: .venv with $$("$$python" --version) ($$python)"
		"$$python" -m venv --clear .venv
	fi
	rm -f $@
	npm=
	if command -v npm > /dev/null; then
		# Beside the rest: an Azure server for tests, which is no Python package.
		npm install --global --prefix .venv --no-audit --no-fund --fetch-retries=1 azurite@$(AZURITE) \
			> .venv/azurite.log 2>&1 &
		npm=$$!
	fi
	echo "setup 2/4: torch (several GB where the default build is the one for CUDA)"
	.venv/bin/pip install $(if $(MAKE_TERMOUT),,-qq) $(TORCH_PIP_ARGS) -r requirements-torch.lock
	echo "setup 3/4: $$(grep -c == requirements.lock) pinned packages and this project"
	.venv/bin/pip install -qq -r requirements.lock -r requirements-torch.lock
	.venv/bin/pip install -qq --no-deps --no-build-isolation --editable .
	echo "setup 4/4: DeepSpeed's operator for communication on CPU (about a minute, once)"
	.venv/bin/python -m grpo_stream.train.cluster.operator_lock \
		> .venv/operator.log 2>&1 || { cat .venv/operator.log >&2; exit 1; }
	if [ -z "$$npm" ] || ! wait "$$npm"; then
		echo "setup: no azurite (npm is missing or failed: .venv/azurite.log); tests of az:// will be skipped"
	fi
	echo "$(CURDIR)" > $@
	echo "setup: done in $$SECONDS s; to use it outside of make: . .venv/bin/activate"

ifneq ($(shell cat $(VLLM_STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(VLLM_STAMP)
endif

# vLLM pins versions that the project's own venv has newer.
$(VLLM_STAMP): export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VLLM_VENV)/torch_extensions
$(VLLM_STAMP): $(VLLM_LOCK) requirements-torch.lock $(wildcard tests/vllm/cpu_plugin/*.*)
	@python="$$(tools/find_python $(PYTHON))"
	echo "test-vllm: $(VLLM_VENV) with $$("$$python" --version): torch, then $$(grep -c == $(VLLM_LOCK)) packages"
	"$$python" -m venv --clear $(VLLM_VENV)
	pip="$(VLLM_VENV)/bin/pip install $(if $(MAKE_TERMOUT),,-qq)"
	$$pip $(TORCH_PIP_ARGS) -r requirements-torch.lock
	$$pip --no-deps -r $(VLLM_LOCK)
	$(VLLM_VENV)/bin/python tests/vllm/torchvision_without_cuda.py
	$$pip --no-deps --no-build-isolation --editable . --editable tests/vllm/cpu_plugin
	$(VLLM_VENV)/bin/python -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()' \
		> $(VLLM_VENV)/operator.log 2>&1 || { cat $(VLLM_VENV)/operator.log >&2; exit 1; }
	echo "$(CURDIR)" > $@
	echo "test-vllm: installed in $$SECONDS s"

ifneq ($(shell cat $(RAY_STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(RAY_STAMP)
endif

# Ray unpacks to 240 MB, for one executor of one command.
$(RAY_STAMP): $(RAY_LOCK)
	@python="$$(tools/find_python $(PYTHON))"
	"$$python" -m venv --clear $(RAY_VENV)
	$(RAY_VENV)/bin/pip install $(if $(MAKE_TERMOUT),,-qq) --no-deps -r $(RAY_LOCK)
	echo "$(CURDIR)" > $@
	echo "test-ray: installed in $$SECONDS s"

# A recipe is one script.
.ONESHELL:
