# `make run` and `make test` are all that a fresh machine with Python 3.11 or newer and make needs.

BIN := .venv/bin
# Further arguments of a verb: make test ARGS="tests/wire -x".
ARGS ?=
# How many tests run at a time. They wait more than they work, so three occupy two cores; 0 is one process, as debuggers like it.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help run test check bench protos format lock clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.installed ## Start Headgate with config.yaml; ARGS="--port 9000" and the like are passed on
	@$(BIN)/headgate serve --config config.yaml $(ARGS)

test: .venv/.installed ## Run all tests; WORKERS=0 in one process
	@$(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadscope $(ARGS)

check: .venv/.installed ## Check format, lint, types and the Dockerfile
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile

bench: .venv/.installed ## Measure this machine: throughput, latency, memory
	@$(BIN)/python -m bench.run $(ARGS)

protos: .venv/.installed ## Generate the code beside protos/*.proto
	@$(BIN)/python -m protos.generate

format: .venv/.installed ## Format the code and apply safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: .venv/.installed ## Resolve pyproject.toml into requirements.lock; ARGS=--upgrade takes the newest of everything
	@$(BIN)/pip-compile --quiet --extra dev --extra embedded --strip-extras --unsafe-package pip \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--output-file requirements.lock $(ARGS) pyproject.toml

clean: ## Remove the virtual environment and everything that tools left behind
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than what it was made from exactly while the installation is up to date.
.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing what requirements.lock names (the first time takes a minute) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# 3.11 first: it is what the lock was resolved with. The test also skips launchers of versions that are not there.
.venv/bin/python:
	@for python in python3.11 python3.12 python3.13 python3.14 python3; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating .venv with $$($$python --version)"; \
			exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "Headgate needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv)." >&2; \
	exit 1
