# `make quickstart` and `make test` do all set-up in a fresh clone: a .venv with the package and its console script.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test lint clean

quickstart: .venv/installed
	$(BIN)/pocketformer quickstart --out runs/quickstart

# Two processes, each file of tests in one of them.
test: .venv/with-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: .venv/with-tests
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing (PyTorch is large: one to several minutes) ..."
	$(PIP) -e .
	@touch $@

.venv/with-tests: .venv/installed
	@echo "installing the tests' own packages (OpenVINO, ExecuTorch and others: about 700 MB) ..."
	$(PIP) -e ".[test]"
	@touch $@

clean:
	rm -rf .venv runs
