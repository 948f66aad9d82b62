# Two commands do all set-up on a fresh machine: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
# Installed first: a range would pull the newest build with CUDA where a CPU build is at hand.
TORCH ?= torch==2.13.0
LOWEST_PYTEST ?= pytest==8.4.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Of what is installed few modules are ever imported; those are compiled then.
INSTALL := $(PIP) install --no-compile
SOURCES := pyproject.toml README.md LICENSE $(shell find pytest_inferperf -name '*.py' -o -name '*.json' -o -name '*.txt' -o -name 'page.*' -o -name py.typed)
# Tests run with the plugins of the project alone: what else is installed must not matter.
TESTS := $(BIN)/pytest tests

LOWEST := PYTHONPATH=$(VENV)/lowest $(VENV)/lowest/bin/pytest -p no:xdist

.PHONY: demo test check unit cluster unit-lowest install chromium clean

demo: install
	$(BIN)/python suites/embedded/demo.py

test: check unit cluster unit-lowest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The newest pytest, one worker for each of two cores: a test of real time was late with a third. Each gets neighbours, which
# share what a module or a folder prepares, until one has none left.
unit: install chromium
	$(TESTS) -n 2 --dist worksteal -m "not cluster"

# A Ray cluster of three nodes on this machine: beside nothing that would start another.
cluster: install
	$(TESTS)/cluster -m cluster

# The lowest pytest that is supported, in a folder before the environment's own, without xdist, on all tests in which pytest
# has a part. The rest tests the core, which knows no pytest (import-linter holds it to that), and the real engine, whose
# runs of pytest are like those here, and what is marked `newest`: the run above has them, and they'd take as long again.
unit-lowest: install $(VENV)/lowest
	$(LOWEST) tests/plugin $(filter-out $(wildcard tests/test_embedded_*.py),$(wildcard tests/test_*.py)) -m "not newest"

install: $(VENV)/.wheel

# The browser that opens the HTML report in tests. They fail, and say what they looked for, where none could be installed.
chromium:
	-@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install -qq -y chromium; }

$(VENV)/.packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) '$(TORCH)'
	$(INSTALL) '.[embedded,server,dev]'
	touch $@

# The wheel, not the working tree: what is tested is what is shipped.
$(VENV)/.wheel: $(VENV)/.packages $(SOURCES)
	rm -rf $(VENV)/wheel
	$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	$(INSTALL) --no-deps --force-reinstall $(VENV)/wheel/*.whl
	touch $@

$(VENV)/lowest: $(VENV)/.packages
	rm -rf $@
	$(INSTALL) --no-deps --target $@ '$(LOWEST_PYTEST)'

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks
