#!/usr/bin/env bash
# What there is to do on a machine with a GPU, with the Python and torch that are there; nothing is installed.
#
#   [STEPS="check gemm"] [GEMM="--m 1 16"] [GENERATE="--size 3b"] PYTHON=python3 RESULTS=benchmarks/results
#   [QAIG_CUDA_LIBRARY=...] tools/gpu.sh
#
# STEPS: which of these, in this order; all of them unless it says otherwise
#   env       what this machine runs, and why not more
#   check     whether the kernels load and launch
#   nvrtc     the same with NVRTC's; goes on where that is not there
#   tests     tests/gpu; needs pytest and greenlet
#   gemm      benchmarks/gpu_gemm.py, with the options in GEMM
#   generate  benchmarks/gpu_generate.py, with the options in GENERATE; needs greenlet, to calibrate
#
# QAIG_CUDA_LIBRARY: a library built elsewhere, used as a prebuilt one (on a machine with nvcc: QAIG_CUDA_ARCHS=90
# python -c "from transformers_qaig.kernels import compilation; print(compilation.build())"). Without it one is compiled
# here if nvcc is. The first failure of a check ends it; figures go to dated files under RESULTS.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} RESULTS=${RESULTS:-benchmarks/results}
ALL="env check nvrtc tests gemm generate"
STEPS=${STEPS:-$ALL}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

for step in $STEPS; do
  case " $ALL " in
    *" $step "*) ;;
    *) echo "gpu: STEPS has $step; there are: $ALL" >&2; exit 2 ;;
  esac
done
has() { case " $STEPS " in *" $1 "*) ;; *) return 1 ;; esac; }

needed="torch transformers accelerate safetensors huggingface_hub filelock numpy PIL scipy tqdm"
if has tests; then needed="$needed pytest greenlet"; fi
if has generate; then needed="$needed greenlet"; fi
missing=$("$PYTHON" -c '
import sys
from importlib.util import find_spec
print(*dict.fromkeys("pillow" if name == "PIL" else name for name in sys.argv[1:] if find_spec(name) is None))' $needed)
if [ -n "$missing" ]; then
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  cat >&2 <<TEXT
gpu: $PYTHON lacks $missing, which the steps $STEPS need. Either
  $PYTHON -m pip install $missing
or, where no registry can be reached, on another machine
  python3 -m pip install --target build/gpu --python-version $version --only-binary :all: --no-deps $missing
and here, with that folder, PYTHONPATH=build/gpu before the same command. Or leave steps out with STEPS.
TEXT
  exit 2
fi

prefix="$RESULTS/$(date +%F)-gpu"
mkdir -p "$RESULTS"
if [ -n "${QAIG_CUDA_LIBRARY:-}" ]; then
  trap 'rm -f transformers_qaig/_C.abi3.so' EXIT
  cp "$QAIG_CUDA_LIBRARY" transformers_qaig/_C.abi3.so
fi

if has env; then "$PYTHON" -m transformers_qaig env | tee "$prefix-env.txt"; fi
if has check; then "$PYTHON" tools/check_gpu.py; fi
if has nvrtc; then
  QAIG_CUDA=nvrtc "$PYTHON" tools/check_gpu.py || echo "gpu: NVRTC did not answer, see above; going on"
fi
if has tests; then "$PYTHON" -m pytest -q -m gpu tests/gpu; fi
if has gemm; then "$PYTHON" benchmarks/gpu_gemm.py ${GEMM:-} >"$prefix-gemm.jsonl"; fi
if has generate; then "$PYTHON" benchmarks/gpu_generate.py ${GENERATE:-} >"$prefix-generate.jsonl"; fi
