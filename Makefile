# Everything a fresh machine with Python 3.10+ and a C++ compiler needs: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.14.1
SOURCES := setup.py pyproject.toml gpseg/__init__.py $(shell find csrc -type f)

.PHONY: demo test bench lint format clean

demo: $(VENV)/.built
	$(BIN)/python -m gpseg
	$(BIN)/python -m gpseg.train
	@echo "Open the report.html named above."

test: $(VENV)/.built
	$(BIN)/python -m pytest

bench: $(VENV)/.built
	$(BIN)/python -m benchmarks

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')

# The venv first, then torch alone (an extension must be built against the torch it will run with), then gpseg.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" numpy ninja setuptools wheel
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

$(VENV)/.linters: $(VENV)/.built
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info gpseg/_C*.so
