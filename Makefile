# Everything a fresh machine with Python 3.10+ and a C++ compiler needs: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.14.1
SOURCES := setup.py cuda_toolkit.py pyproject.toml gpseg/__init__.py $(shell find csrc -type f)
CXX_FILES := $$(find csrc tests/simt -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test simt bench lint format clean

demo: $(VENV)/.built
	$(BIN)/python -m gpseg
	$(BIN)/python -m gpseg.train
	@echo "Open the report.html named above."

# A process for each core, of one thread; one that has nothing left to do takes tests from another.
test: $(VENV)/.ttsem $(if $(filter 0,$(GPSEG_BUILD_CUDA)),,simt)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The CUDA kernels as a library for the CPU; CUDA's headers are all it needs of CUDA.
simt: $(VENV)/.built
	$(BIN)/python tests/simt/build.py

bench: $(VENV)/.built
	$(BIN)/python -m benchmarks

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The venv first, then torch alone (an extension must be built against the torch it will run with), then
# nvcc where there is none, then gpseg; torch is named again so that torchvision is chosen to fit it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" numpy ninja setuptools wheel
	touch $@

$(VENV)/.nvcc: $(VENV)/.torch cuda_toolkit.py requirements-nvcc.txt
	test "$$GPSEG_BUILD_CUDA" = 0 || $(BIN)/python cuda_toolkit.py || $(BIN)/pip install --quiet -r requirements-nvcc.txt
	touch $@

$(VENV)/.built: $(VENV)/.nvcc $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation "$(TORCH)" --editable ".[test,lint]"
	touch $@

# It asks for Python 3.12 and runs from 3.11 on; what it needs, torch and the tests bring.
$(VENV)/.ttsem: $(VENV)/.built requirements-ttsem.txt
	$(BIN)/pip install --quiet --ignore-requires-python --no-deps -r requirements-ttsem.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info gpseg/_C*.so gpseg/_cuda*.so
