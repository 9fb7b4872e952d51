"""What tests of emulated kernels share."""

from collections.abc import Iterator

import pytest

from tests.cuda import emulated


@pytest.fixture(scope="module")
def emulator() -> Iterator[emulated.Emulator]:
    """All kernels on the emulator, on a device of three multiprocessors unless a test says otherwise."""
    emulator = emulated.build()
    yield emulator
    emulator.set_processors(3)
