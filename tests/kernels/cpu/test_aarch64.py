"""Which instruction set is taken on processors for aarch64 that the emulator knows."""

import pytest

from tests.kernels.cpu.conftest import emulated_aarch64

ISAS = {"cortex-a72": ["portable"], "neoverse-n1": ["portable", "neon-dotprod"]}
ISAS["max"] = [*ISAS["neoverse-n1"], "neon-i8mm"]


@pytest.mark.parametrize(("cpu", "isas"), ISAS.items())
def test_the_best_is_taken(cpu, isas):
    can_run, best, used, features, wrong = emulated_aarch64(cpu).ask().split("\n")[:5]
    assert (can_run.split(), best, used, wrong) == (isas, isas[-1], isas[-1], "")
    assert features.split() == ["asimddp", "i8mm"][: len(isas) - 1]


def test_the_environment_chooses():
    for isa in ISAS["max"]:
        assert emulated_aarch64("max").ask(QAIG_CPU_ISA=isa).split("\n")[1:3] == ["neon-i8mm", isa]
    assert "its best is neon-dotprod" in emulated_aarch64("neoverse-n1").ask(QAIG_CPU_ISA="neon-i8mm")
    assert "one of portable, neon-dotprod, neon-i8mm" in emulated_aarch64("max").ask(QAIG_CPU_ISA="avx2")
