# `make help` lists the targets.  Everything is set up on first use; see scripts/setup.sh for what that is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
PY := .venv/bin/python
export PYTHON

ROOT := $(shell [ "$$(id -u)" = 0 ] && echo yes)
C_SOURCES = $(wildcard bpf/*.bpf.c bpf/*.c bpf/include/*.h tests/fuzz/native/*.[ch])

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

.PHONY: setup
setup: ## system packages (as root), .venv and .venv-envoy; quick when they are there
	@scripts/setup.sh

.PHONY: venv
venv: ## only .venv: XLB and its development tools
	@scripts/setup.sh venv

.PHONY: build
build: setup ## compile the BPF objects into bpf/build
	@if command -v clang-19 >/dev/null; then $(PY) -m bpf.build; \
	else echo "build: clang-19 is missing: run 'make setup' as root once; BPF objects not compiled"; fi

.PHONY: lint
lint: venv ## ruff, ruff format, mypy --strict, clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@if command -v clang-format-19 >/dev/null; then clang-format-19 --dry-run --Werror $(C_SOURCES); \
	else echo "lint: clang-format-19 is missing: C sources not checked"; fi

.PHONY: format
format: venv ## let ruff and clang-format rewrite what `make lint` would refuse
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	clang-format-19 -i $(C_SOURCES)

.PHONY: test
test: setup build lint ## everything: lint and all tests (as root; else what needs no root)
	@$(if $(ROOT),,echo "test: not root: tests that need BPF, cgroups or network namespaces are skipped";) \
	$(PY) -m pytest $(PYTEST_ARGS)

.PHONY: test-unit
test-unit: venv ## only the tests that need nothing but Python
	$(PY) -m pytest tests/unit $(PYTEST_ARGS)

.PHONY: needs-root
needs-root:
	@if [ "$$(id -u)" != 0 ]; then \
		echo "This needs root (BPF, cgroups, network namespaces): run it as root. 'make test' runs what needs none." >&2; \
		exit 1; \
	fi

.PHONY: demo
demo: needs-root setup build ## bookinfo end to end; STAY=1 keeps it running to try things
	@$(PY) -m demo $(if $(STAY),--stay)

.PHONY: bench
bench: needs-root setup build ## XLB beside its peers: a table and bench-results/*.json; LONG=1: 10,000 switches
	@$(PY) -m tests.bench $(if $(LONG),--long)

.PHONY: oracle
oracle: needs-root setup build ## SCENARIOS=DIR [ONLY=name]: what Envoy did with captured configuration, and what we do
	@$(PY) -m tests.oracle $(if $(SCENARIOS),$(SCENARIOS),tests/data/scenarios) $(if $(ONLY),--only $(ONLY))

.PHONY: fuzz
fuzz: setup ## the parser of requests: libFuzzer, then a real Envoy beside it; FUZZ_SECONDS=300 FUZZ_SEED=0
	@nice -n 10 $(PY) -m tests.fuzz.run

.PHONY: clean
clean: ## remove what was built and installed into this folder
	rm -rf .venv .venv-envoy bpf/build build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
