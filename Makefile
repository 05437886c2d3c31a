# make demo     train a diffusion model on handwritten digits, look at what it draws
# make test     the tests
# make lint     ruff and pyright
# make parity   beside PyTorch and diffusers
# make quality  slow checks: kills, full disks
#
# Each makes its own environment, in .venv, with PYTHON.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint parity quality real_data
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/aigc train ddpm_digits

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

parity: $(VENV)/parity
	$(BIN)/python -m pytest -q -n $(JOBS) -m parity

quality: $(VENV)/installed
	$(BIN)/python -m pytest -q -m quality

# TFDS_DATA_DIR names the TFDS folder, as TFDS has it.
real_data: $(VENV)/installed
	$(BIN)/python -m pytest -q -m "real_data and not quality"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

# PyTorch first and by its exact version: left to choose, diffusers would bring CUDA along.
$(VENV)/parity: $(VENV)/installed
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,parity]'
	touch $@
