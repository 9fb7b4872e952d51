"""Dense stand-ins of packed layers compute what the layers compute."""

import pytest
import torch
from torch import nn

from tests import seeds
from tests.nn.random_layers import K, random_layer
from tests.tolerance import rounding
from transformers_qaig.execution import dense_copy as copying
from transformers_qaig.execution.dense_copy import dense_copy, dense_linear, fast_to_run
from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT
from transformers_qaig.formats.reference import linear
from transformers_qaig.nn.transformed_input import TransformedInputLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("rotation", [None, Rotation(32, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_linear_is_the_reference(
    dtype: torch.dtype, activation_bits: int, rotation: Rotation | None, bias: bool
) -> None:
    torch.manual_seed(seeds.seed(1))
    layer = random_layer(bias=bias, dtype=dtype, rotation=rotation)
    layer.activation_bits = activation_bits
    x = torch.randn(3, 5, K).to(dtype)
    out = dense_linear(layer)(x)
    expected = linear(x, layer._weight(), layer.bias, rotation, activation_bits)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), expected.float(), rtol=0, atol=float(expected.abs().max()) * rounding(dtype, K))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.router = nn.LayerNorm(K), random_layer(), nn.Linear(K, 4)


def test_only_packed_linears_of_an_accelerators_block_become_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block().to("meta")  # what stands for an accelerator here
    dense = dense_copy(block)
    assert type(dense.up) is TransformedInputLinear
    assert dense.router.weight is block.router.weight
    assert dense.norm.weight is block.norm.weight
    assert type(block.up) is not TransformedInputLinear
    assert type(dense_copy(block.up)) is TransformedInputLinear
    monkeypatch.setattr(copying, "MAX_BYTES", 4 * block.up.out_features * K - 1)
    assert dense_copy(block) is block


@pytest.mark.parametrize("tokens", [1, 40])
def test_on_the_cpu_a_block_runs_in_the_kernels_layout_for_the_time(tokens: int) -> None:
    torch.manual_seed(seeds.seed(2))
    block = Block().bfloat16()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    x = torch.randn(tokens, K).bfloat16()
    with torch.no_grad():
        wanted = block.up(x)
        with fast_to_run(block) as running:
            assert running is block
            assert block.up.layout != CHECKPOINT_LAYOUT
            assert torch.equal(running.up(x), wanted)
    assert block.up.layout == CHECKPOINT_LAYOUT
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_an_error_while_a_block_runs_leaves_it_as_it_was() -> None:
    block = Block()
    with pytest.raises(RuntimeError, match="stopped"), fast_to_run(block):
        raise RuntimeError("stopped")
    assert block.up.layout == CHECKPOINT_LAYOUT


def test_an_accelerators_block_runs_dense() -> None:
    block = Block().to("meta")
    with fast_to_run(block) as running:
        assert type(running.up) is TransformedInputLinear
