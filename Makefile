# make demo: sets everything up and refaces the shipped sample head.     make test: lint, types and the tests
# make test-fast: the tests of the daily loop, within 2 minutes.         make test-slow: the sweeps that `test` leaves out
# make coverage: as test, and prints what the tests did not run.         make wheel: builds the wheel and tries it out
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# two processes of one thread each; a file's tests share what they prepare, so they stay in one process
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-fast test-slow coverage lint wheel benchmark clean
demo: $(READY)
	$(BIN)/refacecgan demo demo-output

test: $(READY) lint
	$(PYTEST) $(COVERAGE)

test-fast: $(READY)
	$(PYTEST) -m "not slow and not heads and not whole" $(addprefix --ignore=Testing/Python/,evaluation training)

test-slow: $(READY)
	$(PYTEST) -m slow

coverage:
	$(MAKE) test COVERAGE="--cov --cov-report=term:skip-covered"

lint: $(READY)
	$(BIN)/ruff check RefaceCGAN Testing
	$(BIN)/ruff format --check RefaceCGAN Testing
	$(BIN)/mypy

# The wheel in a fresh environment; what it depends on is that of $(VENV), so that nothing is downloaded twice
wheel: $(READY)
	rm -rf build dist
	mkdir dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	$(BIN)/python -m venv --without-pip dist/fresh
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > dist/fresh/dependencies.txt
	cp dist/fresh/dependencies.txt "$$(echo dist/fresh/lib/python3*/site-packages)/dependencies.pth"
	$(BIN)/pip --python dist/fresh/bin/python install --quiet --no-deps --ignore-installed dist/*.whl
	cd dist && fresh/bin/refacecgan models && fresh/bin/python -c 'import RefaceCGANLib; print(RefaceCGANLib.__file__)' | grep fresh

benchmark: $(READY)
	$(BIN)/python Testing/benchmarks/speed.py

# VTK draws without a screen through EGL; the libraries are the system's, not pip's
$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.12"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,train,evaluate]"
	@ldconfig -p 2>/dev/null | grep -q 'libEGL.so.1\|libOSMesa' || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install -y -qq libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri >/dev/null; } || \
	  echo "For pictures install OpenGL, on Debian and Ubuntu: libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri"
	touch $@

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
