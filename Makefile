# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Each makes the virtual environment that it needs, in .venv, from the pinned and hashed requirements.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
JOBS ?= auto
KILLS ?= 1000

.PHONY: demo test check bench slow crash build lock clean help

help: ## Show what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/run.stamp: requirements/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "casstore needs Python 3.11 or newer; run: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

demo: $(VENV)/run.stamp ## Run the main job on real files, from push to rollback to audit
	$(BIN)/casstore demo

test: $(VENV)/dev.stamp ## Run the tests (under five minutes on two cores)
	$(BIN)/python -m pytest $(TESTS) -m "not slow" -n $(JOBS)

slow: $(VENV)/dev.stamp ## Run the bounded long runs
	$(BIN)/python -m pytest $(TESTS) -m slow -n $(JOBS)

crash: $(VENV)/dev.stamp ## Kill a real server under load, KILLS times (1000)
	CASSTORE_KILLS=$(KILLS) $(BIN)/python -m pytest tests/crash/test_kill.py -m slow

check: $(VENV)/dev.stamp ## Lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.stamp ## Measure, beside the peers that are installed and the limit of this machine
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-only --benchmark-columns=min,median,max -p no:cacheprovider
	$(BIN)/python -m bench --build-peers

build: $(VENV)/dev.stamp ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build --no-isolation --outdir dist

lock: $(VENV)/dev.stamp ## Renew the pinned requirements (needs pip-tools)
	$(BIN)/python requirements/lock.py

clean: ## Remove what the other commands made
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
