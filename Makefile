# make demo: sets everything up and refaces the shipped sample head.  make test: sets everything up and runs the tests.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name))))
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint benchmark clean
demo: $(READY)
	$(BIN)/refacecgan demo demo-output

test: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check RefaceCGAN Testing
	$(BIN)/mypy

benchmark: $(READY)
	$(BIN)/python Testing/benchmarks/speed.py

# VTK draws without a screen through EGL; the libraries are the system's, not pip's
$(READY): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.12"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test,train,evaluate]"
	@ldconfig -p 2>/dev/null | grep -q 'libEGL.so.1\|libOSMesa' || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install -y -qq libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri >/dev/null; } || \
	  echo "For pictures install OpenGL, on Debian and Ubuntu: libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri"
	touch $@

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
