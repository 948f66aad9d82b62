# Two commands do all set-up on a fresh machine: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
# Installed first: a range would pull the newest build with CUDA where a CPU build is at hand.
TORCH ?= torch==2.13.0
LOWEST_PYTEST ?= pytest==8.4.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := pyproject.toml README.md LICENSE $(shell find pytest_inferperf -name '*.py' -o -name '*.json' -o -name '*.txt' -o -name 'page.*' -o -name py.typed)
# Tests run with the plugins of the project alone: what else is installed must not matter.
TESTS := $(BIN)/pytest tests

LOWEST := PYTHONPATH=$(VENV)/lowest $(VENV)/lowest/bin/pytest -p no:xdist
# Tests in which pytest has a part, dealt to two runs by size.
LOWEST_TESTS := $(shell ls -S tests/plugin/test_*.py $(filter-out $(wildcard tests/test_embedded_*.py),$(wildcard tests/test_*.py)))

.PHONY: demo test check unit cluster unit-lowest lowest-1 lowest-2 install chromium clean

demo: install
	$(BIN)/python suites/embedded/demo.py

test: check unit unit-lowest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The newest pytest, two workers.
unit: install chromium
	$(TESTS) -n 2 -m "not cluster"

# A Ray cluster of three nodes on this machine: beside nothing that would start another.
cluster: install
	$(TESTS)/cluster -m cluster

# The lowest pytest that is supported, in a folder before the environment's own, without xdist, on all tests in which pytest
# has a part. The rest tests the core, which knows no pytest (import-linter holds it to that), and the real engine, whose
# runs of pytest are like those here: the run above has them, and they'd take as long again.
# Two runs side by side: without xdist neither uses the second core. The cluster is with them, since it mostly waits.
unit-lowest: install $(VENV)/lowest
	$(MAKE) --no-print-directory -j 3 --output-sync=target cluster lowest-1 lowest-2

lowest-1 lowest-2: lowest-%:
	$(LOWEST) $(shell echo $(LOWEST_TESTS) | tr ' ' '\n' | awk 'NR % 2 == $* % 2')

install: $(VENV)/.wheel

# The browser that opens the HTML report in tests. They fail, and say what they looked for, where none could be installed.
chromium:
	-@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install -qq -y chromium; }

$(VENV)/.packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install '$(TORCH)'
	$(PIP) install '.[embedded,server,dev]'
	touch $@

# The wheel, not the working tree: what is tested is what is shipped.
$(VENV)/.wheel: $(VENV)/.packages $(SOURCES)
	rm -rf $(VENV)/wheel
	$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	$(PIP) install --no-deps --force-reinstall $(VENV)/wheel/*.whl
	touch $@

$(VENV)/lowest: $(VENV)/.packages
	rm -rf $@
	$(PIP) install --no-deps --target $@ '$(LOWEST_PYTEST)'

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks
