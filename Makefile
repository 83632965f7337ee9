# The two commands: `make run` and `make test`. Everything else is a part of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help run test check unit property simulation integration e2e chaos-short package chaos soak-sim fuzz lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.ready: requirements/dev.lock pyproject.toml
	@echo "Making $(VENV) from requirements/dev.lock (once, about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make run PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(VENV)/.ready  ## the whole system on this machine: Kafka, Redis, a skald, three example tasks and a status page
	@$(BIN)/skalds-streams dev $(ARGS)

test: check unit property simulation integration e2e chaos-short package  ## every check and every test
	@echo "all checks and tests passed"

check: $(VENV)/.ready  ## ruff, mypy, import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit property simulation integration e2e chaos-short: $(VENV)/.ready  ## one layer of tests
	@tests/layer $@

chaos: $(VENV)/.ready  ## a system of real processes with random faults for MINUTES (default 3), LEASE_MS (default 20000); adds to chaos.jsonl
	@$(BIN)/python -m skalds_streams.testing.chaos --minutes $(or $(MINUTES),3) --lease-ms $(or $(LEASE_MS),20000) $(if $(SEED),--seed $(SEED))

soak-sim: $(VENV)/.ready  ## simulate for HOURS (default 8), resumable; results are appended to soak-sim.jsonl
	@$(BIN)/python -m skalds_streams.testing.simulator --soak soak-sim.jsonl --hours $(or $(HOURS),8)

fuzz: $(VENV)/.ready  ## fuzz the wire parser for SECONDS (default 600), resumable; what raises is kept in tests/histories
	@$(BIN)/python -m tests.fuzz -max_total_time=$(or $(SECONDS),600)

package: $(VENV)/.ready  ## sdist → wheel → an empty environment: every module imports
	@tests/package

lock: $(VENV)/.ready  ## write requirements/dev.lock anew
	@requirements/lock

clean:  ## remove what the build and the tests left
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
