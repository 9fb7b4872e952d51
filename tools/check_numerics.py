"""Runs the numeric tests as other processors and other random data would have them.

    python tools/check_numerics.py [arguments of pytest]

Each run limits the instructions that oneDNN, torch and MKL take, which changes the order of their sums, limits the
instruction set of this package's kernels, and draws other data (tests/seeds.py). Every limit, every instruction set
that this processor has and every draw comes up at least once; `make test` is the run without limits. Fails if a run
does.
"""

import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITS = (
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "DEFAULT"},
)
"""What the libraries are told; a processor without AMX does `AVX512_CORE` by default."""
DRAWS = ("1", "2", "3")
TESTS = (
    "tests/nn",
    "tests/formats",
    "tests/rounding",
    "tests/attribution",
    "tests/equalization",
    "tests/report/test_statistics.py",
    "tests/calibration/test_rotation.py",
    "tests/calibration/test_row_chunks.py",
    "tests/execution/test_sequential_onload.py",
    "tests/execution/test_group_inputs.py",
    "tests/execution/test_token_rows.py",
    "tests/calibration/test_block_quantizer.py",
    "tests/token_weights",
    "tests/kernels/cuda/test_gptq_columns.py",
    "tests/kernels/cuda/test_operators.py",
    "tests/plan/test_allocate.py",
    "tests/integration/test_mixed_bits.py",
    "tests/integration/test_paper.py",
    "tests/integration/test_quantizer.py",
    "tests/integration/test_saving.py",
    "tests/integration/test_damaged_embeddings.py",
    "tests/integration/test_out_of_memory.py",
    "tests/integration/test_packed_embeddings.py",
    "tests/integration/test_tied_embeddings.py",
    "tests/integration/test_whole_calibration.py",
    "tests/integration/test_whole_file.py",
)


def main() -> int:
    from transformers_qaig.kernels import extension

    isas = extension.cpu_isas() or (None,)
    count = max(len(LIMITS), len(DRAWS), len(isas))
    runs = [settings(*run) for _, *run in zip(range(count), cycle(LIMITS), cycle(isas), cycle(DRAWS), strict=False)]
    failed = [run for run in runs if not passes(run)]
    for run in failed:
        print(f"failed: {shown(run)}")
    return 1 if failed else 0


def settings(limits: dict[str, str], isa: str | None, draw: str) -> dict[str, str]:
    """The variables of one run."""
    found = {**limits, "QAIG_TEST_SEED": draw}
    return found if isa is None else {**found, "QAIG_CPU_ISA": isa}


def shown(variables: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items())


def passes(variables: dict[str, str]) -> bool:
    print(shown(variables), flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not slow and not gpu"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **variables}
    return subprocess.run([*command, *TESTS, *sys.argv[1:]], cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
