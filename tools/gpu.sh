#!/usr/bin/env bash
# What there is to do on a machine with a GPU, with the Python and torch that are there; nothing is installed.
#
#   PYTHON=python3 RESULTS=benchmarks/results [QAIG_CUDA_LIBRARY=...] tools/gpu.sh
#
# QAIG_CUDA_LIBRARY: a library built elsewhere (on a machine with nvcc: QAIG_CUDA_ARCHS=90 python -c "from
# transformers_qaig import extension; print(extension.build())"), used as a prebuilt one. Without it one is compiled here
# if nvcc is. The first failure of a check ends it; figures go to dated files under RESULTS.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} RESULTS=${RESULTS:-benchmarks/results}
export PYTHONPATH="$PWD"
prefix="$RESULTS/$(date +%F)-gpu"
mkdir -p "$RESULTS"
if [ -n "${QAIG_CUDA_LIBRARY:-}" ]; then
  trap 'rm -f transformers_qaig/_C.abi3.so' EXIT
  cp "$QAIG_CUDA_LIBRARY" transformers_qaig/_C.abi3.so
fi

"$PYTHON" -m transformers_qaig.env | tee "$prefix-env.txt"
"$PYTHON" tools/check_gpu.py
QAIG_CUDA=nvrtc "$PYTHON" tools/check_gpu.py || echo "gpu: NVRTC did not answer, see above; going on"
"$PYTHON" -m pytest -q -m gpu tests/gpu
"$PYTHON" benchmarks/gpu_gemm.py >"$prefix-gemm.jsonl"
"$PYTHON" benchmarks/gpu_generate.py >"$prefix-generate.jsonl"
