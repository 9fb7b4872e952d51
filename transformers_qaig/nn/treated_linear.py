"""`TreatedLinear`: a packed layer's dense stand-in during calibration, which treats its input as the layer does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .visiting import visiting_linear


class TreatedLinear(nn.Linear):
    """A frozen dense linear whose input is rotated or rounded first.

    Args:
        weight: `[N, K]`, in the basis of treated inputs.
        bias: `[N]`, or None; shared.
        treat: makes of an input `[..., K]` what is multiplied, in the dtype of the product.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, treat: Callable[[Tensor], Tensor]):
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", bias)
        self.treat = treat

    def forward(self, x: Tensor) -> Tensor:
        """Treats the input, multiplies it and adds the bias."""
        treated = self.treat(x)
        bias = None if self.bias is None else self.bias.to(treated.dtype)
        return visiting_linear(treated, self.weight, bias).to(x.dtype)
