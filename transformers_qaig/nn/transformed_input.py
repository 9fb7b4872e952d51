"""`TransformedInputLinear`: stands in for a packed layer during calibration, and transforms its input as that does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .onloaded_linear import onloaded_linear


class TransformedInputLinear(nn.Linear):
    """A frozen dense linear whose input is rotated or rounded first.

    Args:
        weight: `[N, K]`, in the basis of transformed inputs.
        bias: `[N]`, or None; shared.
        transform: makes of an input `[..., K]` what is multiplied, in the dtype of the product.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, transform: Callable[[Tensor], Tensor]):
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", bias)
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the input, multiplies it and adds the bias."""
        transformed = self.transform(x)
        bias = None if self.bias is None else self.bias.to(transformed.dtype)
        return onloaded_linear(transformed, self.weight, bias).to(x.dtype)
