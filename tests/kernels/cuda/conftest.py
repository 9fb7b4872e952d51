"""What tests of emulated kernels share."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tools.emulator import emulated
from tools.emulator.emulated_driver import PROCESSORS, CpuDevice, EmulatedDriver
from transformers_qaig.kernels.cuda.driver import Driver
from transformers_qaig.kernels.cuda.operators import Operators


@pytest.fixture(scope="module")
def emulator() -> Iterator[emulated.Emulator]:
    """All kernels on the emulator, on a device of three multiprocessors unless a test says otherwise."""
    emulator = emulated.build()
    yield emulator
    emulator.set_processors(PROCESSORS)


@pytest.fixture
def machine(emulator) -> SimpleNamespace:
    """The operators that Python launches, their driver, and its calls."""
    emulator.set_processors(PROCESSORS)
    api = EmulatedDriver(emulator.library)
    driver = Driver(api, lambda kernel, capability: kernel.encode())
    operators = Operators(driver, lambda device: CpuDevice(0, 80, PROCESSORS))
    return SimpleNamespace(api=api, operators=operators, driver=driver)


@pytest.fixture(scope="module")
def operators() -> Iterator[emulated.Emulator]:
    """Registers `torch.ops.qaig_emulated`, with the schemas of `torch.ops.qaig`."""
    with emulated.registered_operators() as emulator:
        yield emulator
