"""λ of `paper` and `authors`, reimplemented slowly by autograd, padding included."""

import copy

import torch
from torch import Tensor, nn

from tests.token_weights.groups import BITS, GROUP
from transformers_qaig.execution.group_inputs import GroupInputs


def round_weight(weight: Tensor, activation_bits: int) -> Tensor:
    if activation_bits == 8:  # W4 per output channel, symmetric
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-5) / 7
        return (weight / scale).round().clamp(-8, 7) * scale
    t = weight.reshape(-1, GROUP)
    low, high = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / (2**BITS - 1)
    zero = (-torch.round(low / scale)).clamp(0, 2**BITS - 1)
    return (((torch.round(t / scale) + zero).clamp(0, 2**BITS - 1) - zero) * scale).reshape(weight.shape)


def round_tokens(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (x / scale).round().clamp(-128, 127) * scale


class RoundsItsInput(nn.Module):
    """A linear that rounds its input per token, straight through."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + (round_tokens(x) - x).detach())


def _rounded(module: nn.Module, activation_bits: int) -> nn.Module:
    module = copy.deepcopy(module)
    for name, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear):
            linear.weight.data = round_weight(linear.weight.data, activation_bits)
            if activation_bits == 8 and name:
                module.set_submodule(name, RoundsItsInput(linear))
    return RoundsItsInput(module) if activation_bits == 8 and isinstance(module, nn.Linear) else module


def run(module: nn.Module, entered: GroupInputs, x: Tensor) -> Tensor:
    if len(entered.samples) > 1:
        return module(x)
    output = module(**{**entered.kwargs, "hidden_states": x}) if entered.kwargs else module(x)
    return output[0] if isinstance(output, tuple) else output


def slow_scores(case, module: str, entered: GroupInputs, activation_bits: int, authors: bool, nodes: int) -> Tensor:
    """mean_c |QIG| of every token, by autograd."""
    f = case[0].get_submodule(module)
    f_q = _rounded(f, activation_bits)
    x = entered.hidden
    x0 = entered.hidden_q
    if activation_bits == 8 and not authors:
        x0 = round_tokens(x0)
    if activation_bits == 16 and authors:
        x0 = torch.zeros_like(x)
    shares = torch.linspace(0, 1, 32) if authors else (torch.arange(nodes) + 0.5) / nodes
    total = torch.zeros_like(x)
    for share in shares:
        point = (x0 + share * (x - x0)).requires_grad_()
        other = run(f_q, entered, point)
        if activation_bits == 8 and authors:
            other = other.detach()
        (1000 * (run(f, entered, point) - other)).abs().mean(-1).sum().backward()
        total += point.grad
    return ((x - x0) * total / len(shares)).abs().mean(-1)


def _clipped(r: Tensor) -> Tensor:
    q1, q3 = torch.quantile(r, 0.25), torch.quantile(r, 0.75)
    return r.clamp(q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1))


def slow_weights(
    case, module: str, entered: GroupInputs, activation_bits: int, authors: bool, nodes: int
) -> list[Tensor]:
    """λ of each sequence."""
    scores = slow_scores(case, module, entered, activation_bits, authors, nodes).reshape(-1).split(entered.lengths)
    weights = []
    for r, real in zip(scores, entered.mask.reshape(-1).split(entered.lengths)):
        if authors:  # padding counts, the sum is 1, weights and activations: no clip
            r = r / r.sum()
            r = _clipped(r) if activation_bits == 16 else r
            weights.append(r / r.sum())
        else:
            weight = torch.zeros_like(r)
            clipped = _clipped(r[real])
            weight[real] = clipped / clipped.sum() * real.sum()
            weights.append(weight)
    return weights
