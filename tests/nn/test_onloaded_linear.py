import pytest
import torch

from transformers_qaig.nn.onloaded_linear import onloaded_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_as_a_linear_with_its_gradients(dtype: torch.dtype, with_bias: bool) -> None:
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(3, 8).to(dtype).requires_grad_()
    bias = torch.randn(3) if with_bias else None
    y = onloaded_linear(x, weight, bias)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight.float(), bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().float().sum(0).expand(5, -1))
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(3, -1).to(dtype))


def test_nothing_is_kept_of_a_weight_that_comes_from_elsewhere() -> None:
    x, weight = torch.randn(5, 8, device="meta"), torch.randn(3, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.device.type), lambda _: None):
        y = onloaded_linear(x, weight)
    assert y.is_meta
    assert y.shape == (5, 3)
    assert "meta" not in kept[1:]  # only x is there
