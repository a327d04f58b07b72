# Two commands do everything on a fresh machine with Python >= 3.11:
#   make demo   trains a CNN on real handwritten digits by Hessian-free Newton, next to Adam and SGD
#   make test   runs the tests
# and besides
#   make results        all comparisons that are tuned, and their page in docs/results; goes on where it was
#   make results-quick  the same with one seed and small budgets, in runs/results-quick
#   make tune           chooses the settings of the baselines, which takes hours; goes on where it was
#   DATA=DIR names the folder of the data sets for these three; without it they are looked for in a cache, or downloaded.
# Each makes its own virtual environment from pinned versions first, when it is not there.

# The first of these that runs and is new enough; a name on the PATH may be a shim for a version that is not there.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
TESTS ?= tests
# The fast tests and the quick results compile far more than they compute; all else is compiled as users' programs are.
COMPILE_FAST = XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=1"

# LAPACK's threads wait busily for cores that XLA's have.
export OPENBLAS_NUM_THREADS ?= 1

COMPARISONS = $(sort $(wildcard configs/compare/*.yaml))
DATA_DIR = $(if $(DATA),--data-dir $(DATA))

.PHONY: demo test test-core test-slow lint bench results results-quick tune constraints clean help

help:
	@sed -n 's/^#   //p' Makefile

demo: $(READY)
	$(RUN) -m experiments compare configs/digits_cnn.yaml

test: $(READY)
	$(COMPILE_FAST) $(RUN) -m pytest -n auto --maxprocesses 8 -m "not slow" $(TESTS)

# The package itself, without the experiments: what a second interpreter is checked with.
test-core: $(READY)
	$(COMPILE_FAST) $(RUN) -m pytest -n auto --maxprocesses 8 -m "not slow" --ignore tests/experiments tests

test-slow: $(READY)
	$(RUN) -m pytest -n auto --maxprocesses 8 -m slow tests

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(READY)
	$(RUN) -m experiments bench products

results: $(READY)
	$(RUN) -m experiments compare $(COMPARISONS) $(DATA_DIR) --out docs/results

results-quick: $(READY)
	$(COMPILE_FAST) $(RUN) -m experiments compare $(COMPARISONS) $(DATA_DIR) --quick --out runs/results-quick

tune: $(READY)
	$(RUN) -m experiments tune $(COMPARISONS) $(DATA_DIR)

# Python 3.11 gets the last JAX made for it, every later interpreter the newest JAX.
$(READY): pyproject.toml constraints/oldest.txt constraints/newest.txt
	@test -n "$(PYTHON)" || { echo "hfopt needs Python >= 3.11 and none was found on the PATH. If there is one, name it:" \
	  "make $(MAKECMDGOALS) PYTHON=path-to-python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[experiments,plots,peers,dev]' \
	  --constraint constraints/$$($(RUN) -c 'import sys; print("oldest" if sys.version_info < (3, 12) else "newest")').txt
	@touch $(READY)

# Writes down what the environment holds now, as the pins of the next one.
constraints: $(READY)
	$(RUN) -m pip freeze --exclude-editable > \
	  constraints/$$($(RUN) -c 'import sys; print("oldest" if sys.version_info < (3, 12) else "newest")').txt

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache
