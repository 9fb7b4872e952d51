"""Runs the numeric tests as other processors and other random data would have them.

    python tools/check_numerics.py [--whole] [arguments of pytest]

Each run limits the instructions that oneDNN, torch and MKL take, which changes the order of their sums, limits the
instruction set of this package's kernels, and draws other data (tests/seeds.py). Every limit that changes something on
this processor and every instruction set that it has comes up at least once; `make test` is the run without limits.
Instruction sets left when the limits are through run with the tests of the kernels alone. `--whole` runs all tests with
them, too, and adds tests of whole runs with the first setting. Fails if a run does.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
DEFAULT = {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}
KERNELS = ("tests/nn",)
"""What reads the instruction set of this package's kernels."""
TESTS = (
    *KERNELS,
    "tests/formats",
    "tests/rounding",
    "tests/quantizer/bit_costs/test_estimators.py",
    "tests/equalization",
    "tests/report/test_statistics.py",
    "tests/calibration/test_rotation.py",
    "tests/execution/test_targets.py",
    "tests/execution/test_sequential_onload.py",
    "tests/execution/test_group_inputs.py",
    "tests/execution/test_token_rows.py",
    "tests/calibration/test_block_quantizer.py",
    "tests/token_weights",
    "tests/kernels/cuda/test_gptq_columns.py",
    "tests/kernels/cuda/test_operators.py",
    "tests/plan/test_allocate.py",
)
"""Run with every limit of the libraries."""
WHOLE = (
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
"""Run with `--whole`: what they put together is tested above."""


def main() -> int:
    from torch.backends.cpu import get_cpu_capability
    from torch.cpu import _is_amx_tile_supported

    from transformers_qaig.kernels import extension

    whole = "--whole" in sys.argv
    runs = runs_of(extension.cpu_isas(), limits_of(get_cpu_capability(), _is_amx_tile_supported()), whole)
    failed = [run for run, tests in runs if not passes(run, tests)]
    for run in failed:
        print(f"failed: {shown(run)}")
    return 1 if failed else 0


def limits_of(capability: str, has_amx: bool) -> list[dict[str, str]]:
    """What the libraries are told, each of which changes something on such a processor."""
    if capability != "AVX512":
        return [DEFAULT]
    return [AVX2, WITHOUT_AMX, DEFAULT] if has_amx else [AVX2, DEFAULT]


def runs_of(
    isas: Sequence[str], limits: Sequence[dict[str, str]], whole: bool
) -> list[tuple[dict[str, str], tuple[str, ...]]]:
    """Lists the variables of each run and its tests.

    Args:
        isas: instruction sets of the kernels here, the best one, which `make test` runs with, last.
        limits: of the libraries.
        whole: all tests with every instruction set.
    """
    runs = []
    for number in range(max(len(limits), len(isas) if whole else len(isas) - 1)):
        variables = {**limits[number % len(limits)], "QAIG_TEST_SEED": str(number + 1)}
        if isas:
            variables["QAIG_CPU_ISA"] = isas[number % len(isas)]
        runs.append((variables, TESTS if whole or number < len(limits) else KERNELS))
    return [
        (variables, tests + WHOLE if whole and not number else tests) for number, (variables, tests) in enumerate(runs)
    ]


def shown(variables: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items())


def passes(variables: dict[str, str], tests: tuple[str, ...]) -> bool:
    print(shown(variables), flush=True)
    asked = [argument for argument in sys.argv[1:] if argument != "--whole"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not slow and not gpu"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **variables}
    return subprocess.run([*command, *tests, *asked], cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
