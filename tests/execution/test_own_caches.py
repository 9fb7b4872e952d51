"""Blocks that write keys and values into a cache: a trial leaves the model's own as it is."""

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from transformers_qaig.execution.layer_inputs import forward
from transformers_qaig.execution.offload import sequential_onload
from transformers_qaig.execution.paused_forward import PausedForwards


class Attention(nn.Module):
    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: DynamicCache) -> Tensor:
        heads = self.proj(x)[:, None]
        keys, values = cache.update(heads, heads, self.layer)
        return x + (heads @ keys.transpose(-1, -2)).softmax(-1).matmul(values)[:, 0]


class PrefixThenRest(nn.Module):
    """As a robot's policy does: one part fills the cache of the prefix, another reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = nn.ModuleList(Attention(layer) for layer in range(2))
        self.rest = nn.ModuleList(Attention(layer) for layer in range(2))

    def forward(self, x: Tensor, y: Tensor, use_cache: bool = False) -> Tensor:
        cache = DynamicCache()
        for block in self.prefix:
            x = block(x, cache)
        for block in self.rest:
            y = block(y, cache)
        return y


@torch.no_grad()
def test_trials_leave_the_models_cache_alone() -> None:
    torch.manual_seed(0)
    model, sample = PrefixThenRest(), {"x": torch.randn(1, 5, 8), "y": torch.randn(1, 3, 8)}
    blocks = [*model.prefix, *model.rest]
    with PausedForwards(model, blocks, [sample], inputs_device="cpu") as paused:
        for index, block in enumerate(blocks):
            call = paused.inputs(index)[0]
            first, second = (forward(block, call) for _ in range(2))
            assert torch.equal(first, second)
            paused.resume(0, forward(block, call, on_trial=False))
        assert torch.equal(paused.outputs()[0], model(**sample))


def test_a_block_that_runs_again_for_its_gradient_writes_the_cache_once() -> None:
    torch.manual_seed(0)
    model = PrefixThenRest().requires_grad_(False)
    x, y = torch.randn(1, 5, 8, requires_grad=True), torch.randn(1, 3, 8, requires_grad=True)
    wanted = torch.autograd.grad(model(x, y).square().sum(), (x, y))
    with sequential_onload(model, [*model.prefix, *model.rest], None):
        found = torch.autograd.grad(model(x, y).square().sum(), (x, y))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other)
