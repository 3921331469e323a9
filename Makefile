# Two commands do all the set-up: `make demo` and `make test`. Both create .venv and install into it, once.
#
#   PYTHON=python3.12     the interpreter to make .venv with (3.11 or newer)
#   CONSTRAINTS=FILE      pins to install with; `CONSTRAINTS=` installs the newest of everything, e.g. a torch for your
#                         GPU. Use it in a fresh clone or after `make clean`, and in every later call.
#   WORKERS=4             test processes, one thread each

PYTHON      ?= python3
CONSTRAINTS ?= constraints.txt
WORKERS     ?= 2
VENV        ?= .venv

BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TAG    := $(if $(CONSTRAINTS),$(notdir $(CONSTRAINTS)),free)
PIP    := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
GUARD  := $(BIN)/python tools/check_environment.py $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
INPUTS := pyproject.toml tools/check_environment.py $(CONSTRAINTS)

.DEFAULT_GOAL := help
.PHONY: help install dev guard demo check lint types contract fast test test-slow bench-methods docs format clean

help:
	@echo "make demo       install, then tilt a shipped 5'UTR model and write a report (a few minutes)"
	@echo "make test       install, then all tests that are not slow"
	@echo "make test-slow  the slow tests"
	@echo "make bench-methods  all methods at equal oracle calls, WORKERS at a time (hours; goes on where it stopped)"
	@echo "make check      lint, format, types, import contract, fast tests (under 3 minutes)"
	@echo "make docs       run the notebooks that changed, WORKERS at a time, and build the site into site/"
	@echo "make format     sort imports and format"
	@echo "make clean      remove .venv and caches"

# Set-up. A stamp per set of packages and constraints; any change of the inputs installs again. pip compiles what it
# installs; the package itself is compiled here, because some environments forbid Python to do it at import.

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and "expected Python 3.11 or newer; got %d.%d; try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)

$(STAMP)-core-$(TAG): $(INPUTS) | $(BIN)/pip
	rm -f $(STAMP)-*
	$(PIP) -e .
	$(GUARD)
	$(BIN)/python -m compileall -q src
	touch $@

$(STAMP)-dev-$(TAG): $(INPUTS) | $(BIN)/pip
	rm -f $(STAMP)-*
	$(PIP) -e '.[dev]'
	$(GUARD)
	$(BIN)/python -m compileall -q src
	touch $(STAMP)-core-$(TAG) $@

$(STAMP)-docs-$(TAG): $(STAMP)-dev-$(TAG)
	$(PIP) -e '.[dev,docs]'
	$(GUARD)
	touch $@

install: $(STAMP)-core-$(TAG)
dev: $(STAMP)-dev-$(TAG)

guard: dev
	$(GUARD)

# Use

demo: install
	$(BIN)/difftilt demo

check: guard lint types contract fast

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/ty check --python $(VENV)

contract: dev
	$(BIN)/lint-imports

fast: dev
	$(PYTEST) -m "not slow and not gpu" tests/unit tests/conformance

test: dev
	$(PYTEST) -m "not slow"

test-slow: dev
	$(PYTEST) -m slow

bench-methods: dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/methods.py run --jobs $(WORKERS)
	$(BIN)/python benchmarks/methods.py table
	$(BIN)/python benchmarks/methods.py plot

# The site: strict, so it fails on a broken link, an undocumented public symbol, or a cell that raises. Results of
# notebooks are kept in .cache/docs; one is run again when it or a file that it uses changes (tools/docs/notebooks.py).
docs: $(STAMP)-docs-$(TAG)
	$(BIN)/python tools/docs/notebooks.py --jobs $(WORKERS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: dev
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
