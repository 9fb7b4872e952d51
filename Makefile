# make demo    quantize the trained tiny VLM and show what came out
# make test    the tests
# make docs    the documentation, strictly, into out/site; its tables are compared with benchmarks/results
# make notebooks  runs the notebooks in examples
# make check   what CI runs besides: lint, types, slow sweeps, the numeric tests as on other processors and with other
#              data, the tests on the oldest supported transformers, sanitizers over the kernels, the kernels for aarch64
#              on an emulated processor, those for two GPU architectures compiled, the package built and installed in
#              clean environments
# make exhaustive  slow tests, numeric tests and the oldest transformers with what `make check` leaves out for time
# make vllm    a real vLLM engine on the CPU serves quantized folders over HTTP; makes .venv-vllm, which takes 3.5 GB.
#              make vllm-short is its short form, which does nothing where there is no .venv-vllm
# make gpu     on a machine with a GPU, with the Python and torch there (PYTHON=...): tests, then figures (tools/gpu.sh)
# make cross   the CPU kernels for aarch64, compiled by Debian's g++-aarch64-linux-gnu and run by its qemu-user
# make nvrtc   the tests that compile CUDA kernels without nvcc; installs 350 MB, needs no GPU
# make cuda    the CUDA kernels compiled for every architecture, and what their machine code holds; needs no GPU
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
TRANSFORMERS ?= transformers
OLDEST := transformers==5.17.0
# Some of what asks Transformers for something that a version may lack; `make exhaustive` runs all with the oldest.
TRANSFORMERS_TESTS := $(addprefix tests/,test_autoload.py config integrations/peft loading quantizer structure \
  $(addprefix integration/test_,experts.py hub.py quantizer.py saving.py tied_embeddings.py whole_file.py))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Two test processes with a thread each: most tests are too small to use two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# What the kernels are built with for `make sanitize` (-O3 takes minutes): flags of their own, hence a cache entry of
# their own. Checks are calls and scopes are not checked: GCC takes a third of the time for unrolled loops.
# AMX is emulated: csrc/cpu/amx/tiles.h. libstdc++ comes along: without it ASan cannot see exceptions.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1 -DQAIG_EMULATE_AMX \
  --param asan-instrumentation-with-call-threshold=0 -fno-sanitize-address-use-after-scope
SANITIZED = ASAN_OPTIONS=detect_leaks=0 QAIG_CXXFLAGS="$(SANITIZE)" LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)"
SERVED := OMP_NUM_THREADS=1 QAIG_VLLM_PYTHON="$(CURDIR)/.venv-vllm/bin/python"
CROSS := aarch64-linux-gnu-g++

# Waiting threads sleep: spinning ones cost a busy machine three times the time.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check lint docs notebooks slow exhaustive numerics oldest sanitize cross cuda nvrtc vllm vllm-short gpu package clean

demo: $(VENV)/.demo
	$(BIN)/python examples/tiny-vlm/demo.py

test: $(VENV)/.test
	$(PYTEST) -m "not slow and not gpu" $(ONLY)

# What uses one processor runs two at a time, once each has what it needs. CUDA code is the same from 80 on: the others
# differ in what the compiler makes of it, and `make cuda` compiles for all.
check: $(VENV)/.dev
	$(MAKE) $(VENV)/.docs
	$(MAKE) $(VENV)/.nvrtc
	$(MAKE) --jobs=2 --output-sync lint docs notebooks sanitize package nvrtc cross
	$(MAKE) slow
	$(MAKE) numerics
	$(MAKE) oldest
	$(MAKE) cuda ARCHS=75,90
	$(MAKE) vllm-short

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs
	$(BIN)/python benchmarks/tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.docs
	$(BIN)/jupyter execute examples/quickstart.ipynb examples/mixed_bits.ipynb

# Robustness tests fork by the thousand, which costs what the process holds: they come first, in processes of their own.
slow: $(VENV)/.test
	$(PYTEST) -m "slow and not gpu and not exhaustive" tests/robustness
	$(PYTEST) -m "slow and not gpu and not exhaustive" --ignore=tests/robustness

exhaustive: $(VENV)/.test
	QAIG_FUZZ_COUNT=1050 $(PYTEST) -m "slow and not gpu" tests/robustness
	$(PYTEST) -m "slow and not gpu" --ignore=tests/robustness
	$(BIN)/python tools/check_numerics.py --whole
	$(MAKE) test VENV=.venv-oldest TRANSFORMERS="$(OLDEST)"

numerics: $(VENV)/.test
	$(BIN)/python tools/check_numerics.py

oldest:
	$(MAKE) test VENV=.venv-oldest TRANSFORMERS="$(OLDEST)" ONLY="$(TRANSFORMERS_TESTS)"

# The library is built before ASan is preloaded: the compiler needs no watching.
sanitize: $(VENV)/.test
	QAIG_CXXFLAGS="$(SANITIZE)" $(BIN)/python -c "from transformers_qaig.kernels import compilation; compilation.build()"
	$(SANITIZED) $(BIN)/python -c "from transformers_qaig.kernels import extension; assert extension.load()"
	$(SANITIZED) $(BIN)/python -m pytest -q -m "not slow" tests/nn/test_cpu_kernels.py tests/nn/test_cpu_kernel_values.py tests/nn/test_cpu_dequantize.py tests/nn/test_kernel_layout.py tests/rounding/test_gptq_columns.py
	$(SANITIZED) $(BIN)/python -m pytest -q tests/robustness/test_operators.py

cross: $(VENV)/.test
	@if ! command -v $(CROSS) >/dev/null; then echo "cross: skipped, there is no $(CROSS)"; \
	elif ! command -v qemu-aarch64 >/dev/null; then echo "cross: skipped, there is no qemu-aarch64"; \
	else set -ex; mkdir -p out/aarch64; \
	  for file in $$(find csrc/cpu -name '*.cpp') tests/kernels/cpu/harness.cpp; do \
	    $(CROSS) -std=c++17 -O2 -fPIC -Wall -Wextra -Werror -Icsrc -c $$file -o out/aarch64/$$(echo $$file | tr / -).o; done; \
	  $(CROSS) -static out/aarch64/*.o -o out/aarch64/harness; rm out/aarch64/*.o; \
	  QAIG_AARCH64_HARNESS=out/aarch64/harness $(BIN)/python -m pytest -q -m "not slow" tests/kernels/cpu; fi

cuda: $(VENV)/.dev
	$(BIN)/python tools/check_cuda.py $(if $(ARCHS),--archs $(ARCHS))

nvrtc: $(VENV)/.nvrtc
	$(BIN)/python -m pytest -q tests/kernels/cuda/test_nvrtc.py

vllm: $(VENV)/.test .venv-vllm/.made
	$(SERVED) $(BIN)/python -m pytest -q tests/integrations/vllm

vllm-short: $(VENV)/.test
	@if test -e .venv-vllm/.made; then $(SERVED) QAIG_VLLM_SHORT=1 $(BIN)/python -m pytest -q tests/integrations/vllm; \
	else echo "vllm-short: skipped, there is no .venv-vllm"; fi

gpu:
	PYTHON="$(PYTHON)" STEPS="$(STEPS)" GEMM="$(GEMM)" GENERATE="$(GENERATE)" tools/gpu.sh

package: $(VENV)/.dev
	PYTHON="$(BIN)/python" tools/check_package.sh

# torch first and alone: a later step must find it installed, not choose a build of its own.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) "$(TRANSFORMERS)" -e ".[demo]"
	$(BIN)/python -m transformers_qaig env
	touch $@

# torchvision has no CPU build; tests/torchvision_on_cpu.py makes the CUDA wheel importable, from a folder only it looks into.
# timm, which asks for torchvision, is there too: three families of the sweep have towers of its.
$(VENV)/.test: $(VENV)/.torch pyproject.toml setup.py transformers_qaig_optimum.pth
	$(PIP) "$(TRANSFORMERS)" -e ".[demo,test]"
	test -d $(VENV)/torchvision-cpu/timm || $(PIP) --no-deps --target $(VENV)/torchvision-cpu $(TORCHVISION) timm
	$(BIN)/python -m transformers_qaig env
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e ".[dev]"
	touch $@

.venv-vllm/.made: tools/vllm-requirements.txt tools/make_vllm.sh
	PYTHON="$(PYTHON)" tools/make_vllm.sh .venv-vllm
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) -e ".[docs]"
	touch $@

$(VENV)/.nvrtc: $(VENV)/.test
	$(PIP) cuda-bindings==13.0.3 nvidia-cuda-nvrtc==13.0.88
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-vllm out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
