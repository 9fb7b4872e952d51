"""Predicts what rounding each linear costs the answers: attribution along the weight path, and three alternatives.

Notation. Linear m has weight w_m [N, K] and rounding error δ_m = w_m^q - w_m. All linears together stand on the path

    w(α) = w + α δ,   α from 0 (full precision) to 1 (everything rounded).

The loss is L(w) = Σ_t KL(p_t ‖ p_t(w)), in nats, over the answers' tokens t. It measures how far the model's
distribution has moved from full precision's p_t. L(w) = 0, and L is never negative.

**Weight-path integrated gradients** give linear m the share

    φ_m = ∫₀¹ ⟨∂L/∂w_m (w(α)), δ_m⟩ dα.

They are complete: Σ_m φ_m = L(w^q) - L(w) = L(w^q), because the integrand summed over m is dL(w(α))/dα. To second order
in δ, with H the Hessian of L, φ_m = ½ Σ_k δ_mᵀ H_mk δ_k. That is a linear's own loss plus half of what it shares with
every other. The integrand is then linear in α, so few Gauss-Legendre nodes do.

No gradient of a weight is ever held. With y_m = x w_mᵀ + s_m · x δ_mᵀ and one number s_m per linear, ∂L/∂s_m at s = α·1
**is** the integrand. So autograd needs the activations only, and those block by block
(`transformers_qaig.execution.sequential_onload`).

**Fisher.** H at w is the Fisher information E[g gᵀ], g = ∂ log p(ŷ)/∂w with ŷ drawn from the model itself. So L with
linear m alone rounded is about ½ E[⟨g_m, δ_m⟩²]. Over the positions u of a sample, ⟨g_m, δ_m⟩ = Σ_u ⟨∂ log p(ŷ)/∂y_mu,
x_mu δ_mᵀ⟩. Here each position is squared by itself, ½ E[Σ_u ⟨·⟩_u²]: a few hundred answers are too few to separate the
cross terms between positions from noise. On the one set tried, plans chosen with the cross terms lost more at 2.5 and 3
bits. Taking g halfway along the weight path instead, at w(½), made plans that were as good and no better.

**Relative output error** looks no further than the linear: Σ ‖x δ_mᵀ‖² / Σ ‖x w_mᵀ‖².

**One at a time** is the oracle: L with only linear m rounded, one forward pass per linear.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .draws import DRAWS, Draw, one_of_each

Errors = Mapping[str, Tensor]
"""Path of a linear, or of embeddings → δ [N, K], in any dtype and on any device."""


@contextmanager
def perturbed(model: nn.Module, errors: Errors, strengths: Tensor | Sequence[float]) -> Iterator[None]:
    """Makes linear m of `model` compute with the weight w_m + s_m δ_m, within the context.

    Args:
        model: holds an `nn.Linear` or an `nn.Embedding` at every path of `errors`.
        errors: δ.
        strengths: s [M], in the order of `errors`; gradients flow to it.
    """

    def hook(index: int, error: Callable[[], Tensor]) -> Callable[..., Any]:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            added = _product(*_change(module, args[0], error(), output))
            # One number a token: its gradient is then summed by tokens, not in parts as there are threads.
            strength = torch.as_tensor(strengths[index]).to(added).expand(*added.shape[:-1], 1)
            return output + strength * added

        return add

    with _hooked(model, errors, hook):
        yield


@contextmanager
def _hooked(
    model: nn.Module, errors: Errors, hook: Callable[[int, Callable[[], Tensor]], Callable[..., Any]]
) -> Iterator[None]:
    """Gives the linear at the i-th path the forward hook `hook(i, …)`, which asks for δ when it runs."""
    handles = [
        model.get_submodule(path).register_forward_hook(hook(index, partial(errors.__getitem__, path)))
        for index, path in enumerate(errors)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def weight_path_shares(model: nn.Module, errors: Errors, loss: Callable[[], Tensor], nodes: int = 2) -> Tensor:
    """Computes φ: integrated gradients of `loss` along the weight path, by Gauss-Legendre quadrature.

    Args:
        model: see [`perturbed`].
        errors: δ.
        loss: runs the model; a scalar.
        nodes: of the quadrature: n are exact for a loss of degree 2n along the path.

    Returns:
        fp32 [M], in the order of `errors`.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    shares = torch.zeros(len(errors))
    for point, weight in zip(points, weights):
        strengths = torch.full((len(errors),), float(point + 1) / 2, requires_grad=True)
        with torch.enable_grad(), perturbed(model, errors, strengths):
            (gradient,) = torch.autograd.grad(loss(), strengths)
        shares += float(weight) / 2 * gradient
    return shares


def fisher_losses(
    model: nn.Module,
    errors: Errors,
    log_probabilities: Callable[[], Tensor],
    draws: int = DRAWS,
    at: float = 0.0,
    draw: Draw | None = None,
) -> Tensor:
    """Predicts, to second order, the loss with linear m alone rounded.

    This is ½ E[Σ_u ⟨∂ log p(ŷ)/∂y_mu, x_mu δ_mᵀ⟩²], see the notes on Fisher above.

    Args:
        model: see [`perturbed`].
        errors: δ.
        log_probabilities: runs the model; log p at the answers' tokens [A, V].
        draws: of ŷ for every token.
        at: α, where on the weight path the scores are taken; 0 is full precision.
        draw: draws ŷ, int64 `[A, 1]`, from probabilities `[A, V]` on the CPU; None: by torch's own generator.

    Returns:
        fp32 [M], in the order of `errors`; summed over the tokens.
    """
    tally = torch.zeros(len(errors))
    anchor = torch.zeros((), requires_grad=True)

    def hook(index: int, error: Callable[[], Tensor]) -> Callable[..., Any]:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return _Tally.apply(output, *_change(module, args[0], error(), output), at, anchor, tally[index])

        return add

    with torch.enable_grad(), _hooked(model, errors, hook):
        log_p = log_probabilities()
        for number in range(draws):
            answer = (draw or one_of_each)(log_p.detach().exp().cpu()).to(log_p.device)
            score = log_p.gather(1, answer).sum()
            torch.autograd.grad(score, anchor, retain_graph=number < draws - 1)
    return tally / (2 * draws)


class _Tally(torch.autograd.Function):
    """Adds α x δᵀ on the way forward; on the way back, adds up what the rounding changes in the score, per position.

    The input and the error are saved for that the way autograd saves tensors, so that checkpointing sees them.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor | None, error: Tensor, at: float, anchor: Tensor, tally: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, error)
        ctx.at, ctx.tally = at, tally
        # A copy: models add to what a linear returns, in place.
        return output + at * _product(x, error) if at else output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, error = ctx.saved_tensors
        ctx.tally += (gradient * _product(x, error)).sum(-1).square().sum().to(ctx.tally)
        along_x = ctx.at * gradient @ error if ctx.at and ctx.needs_input_grad[1] else None
        return gradient, along_x, None, None, gradient.new_zeros((), device=ctx.tally.device), None


def _change(module: nn.Module, x: Tensor, error: Tensor, output: Tensor) -> tuple[Tensor | None, Tensor]:
    """Returns what [`_product`] takes: the input and the error, or for embeddings what the error adds to the output.

    Embeddings look up the error as their own rows, because some scale what they look up.
    """
    if not isinstance(module, nn.Embedding):
        return x, error.to(output)
    rows, places = x.unique(return_inverse=True)
    lookup = copy.copy(module)
    lookup._parameters = {"weight": nn.Parameter(error[rows.to(error.device)].to(output), requires_grad=False)}
    lookup.padding_idx = None
    return None, type(module).forward(lookup, places)


def _product(x: Tensor | None, error: Tensor) -> Tensor:
    """Returns what an error adds to the output: x δᵀ of a linear; of embeddings it is given."""
    return error if x is None else linear(x, error)


@torch.no_grad()
def losses_alone(model: nn.Module, errors: Errors, loss: Callable[[], Tensor]) -> Tensor:
    """Measures the loss with one linear rounded at a time: fp32 [M] in the order of `errors`.

    This is the slow oracle: it runs M forward passes.
    """
    losses = []
    for path, error in errors.items():
        with perturbed(model, {path: error}, [1.0]):
            losses.append(float(loss()))
    return torch.tensor(losses)


@torch.no_grad()
def output_energies(model: nn.Module, errors: Errors, run: Callable[[], object]) -> Tensor:
    """Sums the energy that rounding adds to each linear's output, and the energy of the output itself.

    The first is Σ ‖x δ_mᵀ‖², the second Σ ‖x w_mᵀ‖², without bias.

    Args:
        model: see [`perturbed`].
        errors: δ.
        run: runs the model.

    Returns:
        fp32 [2, M], in the order of `errors`.
    """
    energies = torch.zeros(2, len(errors))

    def hook(index: int, error: Callable[[], Tensor]) -> Callable[..., Any]:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            bias = getattr(module, "bias", None)
            own = output if bias is None else output - bias.to(output)
            for row, values in enumerate((_product(*_change(module, args[0], error(), output)), own)):
                energies[row, index] += float(values.float().square().sum(-1).sum())

        return add

    with _hooked(model, errors, hook):
        run()
    return energies
