"""What a packed linear layer computes, in plain torch: the oracle of every kernel and the fallback on every device.

    W[n, k] = (code[n, k] - zero[n, k // group_size]) * scale[n, k // group_size]

evaluated in float32 and then rounded once to the requested dtype. Without zero points (symmetric) zero is 2^(bits - 1).
Nothing here checks its arguments: `ops.py` does, before it calls.

`linear` expands the weight a few rows at a time: less than 64 MB of it exists at once, whatever the size of the layer.
The chunks depend only on the shape of the weight, so equal arguments give equal bits.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import row_chunks, unpack, unpack_zero_point


def dequantize(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight a packed layer stands for.

    Args:
        packed (`Tensor`): int32 `[N, ceil(K * bits / 32)]`, see `packing.pack`.
        scale (`Tensor`): floating `[N, G]`.
        zero (`Tensor`, *optional*): int32 `[ceil(N * bits / 32), G]`, see `packing.pack_zero_point`; None if symmetric.
        out_features (`int`): N.
        in_features (`int`): K.
        bits (`int`): 2 to 8.
        group_size (`int`): input channels per group, or -1 for one group per row.
        dtype (`torch.dtype`): dtype of the result; the arithmetic is float32 either way.

    Returns:
        `Tensor`: `[N, K]` of `dtype`.
    """
    weight = torch.empty(out_features, in_features, dtype=dtype, device=packed.device)
    for start, stop, rows in _dequantized_rows(packed, scale, zero, in_features, bits, dtype):
        weight[start:stop] = rows
    return weight


def linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    bits: int,
) -> Tensor:
    """x @ W.T + bias for x `[..., K]`: `[..., N]` in the dtype of x, to which W and the bias are rounded first."""
    in_features = x.shape[-1]
    flat = x.reshape(-1, in_features)
    bias = None if bias is None else bias.to(x.dtype)
    out = x.new_empty(flat.shape[0], out_features)
    for start, stop, rows in _dequantized_rows(packed, scale, zero, in_features, bits, x.dtype):
        out[:, start:stop] = F.linear(flat, rows, None if bias is None else bias[start:stop])
    return out.view(*x.shape[:-1], out_features)


def linear_grad_input(
    grad: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    in_features: int,
    bits: int,
) -> Tensor:
    """grad @ W for grad `[..., N]`: `[..., K]` in the dtype of grad. Sums over chunks of N are kept in >= float32."""
    flat = grad.reshape(-1, grad.shape[-1])
    total = torch.zeros(
        flat.shape[0], in_features, dtype=torch.promote_types(grad.dtype, torch.float32), device=grad.device
    )
    for start, stop, rows in _dequantized_rows(packed, scale, zero, in_features, bits, grad.dtype):
        total += flat[:, start:stop] @ rows
    return total.to(grad.dtype).view(*grad.shape[:-1], in_features)


def _dequantized_rows(
    packed: Tensor, scale: Tensor, zero: Tensor | None, in_features: int, bits: int, dtype: torch.dtype
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields `(start, stop, weight[start:stop])` until every row has come. The group size is K / G."""
    out_features, groups = scale.shape
    zeros = None if zero is None else unpack_zero_point(zero, bits, out_features)
    for start, stop in row_chunks(out_features, in_features):
        codes = unpack(packed[start:stop], bits, in_features).view(stop - start, groups, -1)
        weight = codes.to(torch.float32)
        weight -= 2 ** (bits - 1) if zeros is None else zeros[start:stop, :, None]
        weight *= scale[start:stop, :, None]
        yield start, stop, weight.view(stop - start, in_features).to(dtype)
