# make demo    quantize the trained tiny VLM and show what came out
# make test    the tests
# make check   what CI runs besides: lint, types, slow sweeps, the tests on the oldest supported transformers
PYTHON ?= python3
VENV ?= .venv
TRANSFORMERS ?= transformers
OLDEST := transformers==5.17.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Two test processes with a thread each: most tests are too small to use two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# Waiting threads sleep: spinning ones cost a busy machine three times the time.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check lint slow oldest clean

demo: $(VENV)/.demo
	$(BIN)/python examples/tiny-vlm/demo.py

test: $(VENV)/.test
	$(PYTEST) -m "not slow and not gpu"

check: lint slow oldest

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

slow: $(VENV)/.test
	$(PYTEST) -m "slow and not gpu"

oldest:
	$(MAKE) test VENV=.venv-oldest TRANSFORMERS="$(OLDEST)"

# torch first and alone: a later step must find it installed, not choose a build of its own.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) "$(TRANSFORMERS)" -e ".[demo]"
	touch $@

# torchvision has no CPU build; tests/conftest.py makes the CUDA wheel importable, from a folder only it looks into.
$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) "$(TRANSFORMERS)" -e ".[demo,test]"
	test -d $(VENV)/torchvision-cpu || $(PIP) --no-deps --target $(VENV)/torchvision-cpu torchvision==0.28.0
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-oldest out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
