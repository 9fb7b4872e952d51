"""What tests of the compiled CPU kernels share."""

import pytest

from transformers_qaig.kernels import extension


@pytest.fixture(params=extension.CPU_ISAS)
def isa(request):
    """Runs a test in one instruction set after the other."""
    before = extension.cpu_isa()
    if request.param not in extension.cpu_isas():
        pytest.skip(f"this processor has no {request.param}")
    extension.set_cpu_isa(request.param)
    yield request.param
    extension.set_cpu_isa(before)
