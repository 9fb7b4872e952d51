"""Layers in graphs that torch.compile records, as Transformers does with a static cache."""

import pytest
import torch

from tests.gpu.test_cuda_kernels import layer_on_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("rows", [1, 16, 100])
def test_reduce_overhead(rows):
    """The recorder checks that no unknown memory stays allocated in its pool: not our semaphores, either."""
    torch.compiler.reset()
    layers = [layer_on_gpu(bits, 64, False, 512, 512, dtype=torch.float16) for bits in (2, 3, 4, 8)]

    def step(x):
        for layer in layers:
            x = torch.nn.functional.layer_norm(layer(x), (512,))
        return x

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(6):
            x = torch.randn(rows, 512, device="cuda").half()
            torch.testing.assert_close(compiled(x), step(x), rtol=1e-2, atol=1e-2)
