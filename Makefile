# make demo: a red mushroom in 3D.  make test: the tests.  make lint: style and types.
# make test-kernels: the GPU's kernels, interpreted on the CPU (installs Triton, 1 GB, Linux only).
# Needs Python 3.11 to 3.13, make and the network; everything is installed into .venv.
#   PYTHON=python3.12      another interpreter
#   TORCH_FLAGS="..."      options of pip for torch alone, for example an index with the wheel for your GPU
#   PROMPT="a blue cube"   another demo

SHELL := /bin/sh
PROMPT ?= a red mushroom
TORCH_FLAGS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& command -v "$$p" && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-kernels lint clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/python launch.py preset=quick_tiny prompt="$(PROMPT)"

test: .venv/tools
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-kernels: .venv/kernels
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto -m "kernels or gpu" tests/scenes/kernels

lint: .venv/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info

.venv/made:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	touch $@

# torch alone and first, so that no other package can choose its build
.venv/torch: .venv/made requirements.txt
	$(PIP) install $(TORCH_FLAGS) "$$(grep '^torch==' requirements.txt)"
	touch $@

.venv/installed: .venv/torch requirements.txt pyproject.toml
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps -e .
	touch $@

.venv/tools: .venv/installed
	$(PIP) install -e ".[test]"
	touch $@

# torch's own Triton, where it brings one, stays
.venv/kernels: .venv/tools
	$(PIP) install -e ".[kernels]"
	touch $@
