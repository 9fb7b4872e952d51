"""The costs of rounding errors, against what they are defined as, on a network small enough to do it the slow way."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from tests import seeds
from tests.tolerance import assert_close, rounding
from transformers_qaig.quantizer.bit_costs.draws import one_of_each
from transformers_qaig.quantizer.bit_costs.estimators import (
    fisher_losses,
    losses_alone,
    output_energies,
    perturbed,
    weight_path_shares,
)

PATHS = ("0", "2", "4")
TERMS = 8 + 7 + 7 + 2 * 5 + 6 * 5
"""That are added on the way to a loss: three linears, the softmax's and the loss' own sums over classes and tokens."""
KL = 6 * 2 * math.log(5)
"""Σ|terms| of a loss: p log p and p log q of six tokens."""


class Case:
    """Three linears, 6 tokens, 5 classes; the loss is the KL to the unperturbed network."""

    def __init__(self, scale: float = 0.3):
        torch.manual_seed(seeds.seed())
        self.net = nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 5))
        self.net.requires_grad_(False)
        self.x = torch.randn(6, 8)
        self.errors = {path: scale * torch.randn_like(self.net.get_submodule(path).weight) for path in PATHS}
        self.full = self.log_p()

    def log_p(self) -> Tensor:
        return log_softmax(self.net(self.x), -1)

    def loss(self) -> Tensor:
        return (self.full.exp() * (self.full - self.log_p())).sum()

    def loss_with(self, *paths: str) -> float:
        """The slow way: another network with other weights."""
        other = copy.deepcopy(self.net)
        for path in paths:
            other.get_submodule(path).weight += self.errors[path]
        return float((self.full.exp() * (self.full - log_softmax(other(self.x), -1))).sum())


def test_perturbed_is_another_weight_and_leaves_no_trace() -> None:
    case = Case()
    expected = case.loss_with("0", "4")
    with perturbed(case.net, case.errors, [1.0, 0.0, 1.0]):
        assert float(case.loss()) == pytest.approx(expected, abs=KL * rounding(torch.float32, TERMS))
    assert_close(case.log_p(), case.full, TERMS)


def test_weight_path_shares_sum_to_the_loss() -> None:
    case = Case()
    shares = weight_path_shares(case.net, case.errors, case.loss, nodes=12)
    assert shares.shape == (3,)
    assert float(shares.sum()) == pytest.approx(case.loss_with(*PATHS), rel=1e-4)


def test_two_nodes_are_complete_where_the_loss_is_nearly_quadratic() -> None:
    case = Case(scale=0.01)
    shares = weight_path_shares(case.net, case.errors, case.loss)
    assert float(shares.sum()) == pytest.approx(case.loss_with(*PATHS), rel=1e-2)


def test_a_share_is_the_integral_of_the_gradient_times_the_error() -> None:
    case, steps = Case(), 400
    slow = torch.zeros(3)
    for step in range(steps):
        other = copy.deepcopy(case.net)
        weights = [other.get_submodule(path).weight for path in PATHS]
        for weight, error in zip(weights, case.errors.values()):
            weight += (step + 0.5) / steps * error
            weight.requires_grad_()
        loss = (case.full.exp() * (case.full - log_softmax(other(case.x), -1))).sum()
        gradients = torch.autograd.grad(loss, weights)
        slow += torch.stack([(g * e).sum() for g, e in zip(gradients, case.errors.values())]) / steps
    torch.testing.assert_close(
        weight_path_shares(case.net, case.errors, case.loss, nodes=12), slow, rtol=1e-3, atol=1e-4
    )


def test_fisher_is_the_loss_of_a_small_error_alone() -> None:
    """Here each token is a position of its own, so that there are no cross terms to leave out."""
    case = Case(scale=1e-2)
    generator = seeds.generator()
    found = fisher_losses(case.net, case.errors, case.log_p, draws=1500, draw=partial(one_of_each, generator=generator))
    alone = torch.tensor([case.loss_with(path) for path in PATHS])
    torch.testing.assert_close(found, alone, rtol=0.15, atol=0)


def test_fisher_grows_with_the_square_of_the_error() -> None:
    case = Case()
    one, two = (
        fisher_losses(
            case.net,
            {path: factor * error for path, error in case.errors.items()},
            case.log_p,
            at=0,
            draw=partial(one_of_each, generator=seeds.generator()),
        )
        for factor in (1, 2)
    )
    assert_close(two, 4 * one, TERMS)


def test_fisher_halfway_is_fisher_of_the_network_with_half_the_errors() -> None:
    case, other = Case(), Case()
    for path, error in other.errors.items():
        other.net.get_submodule(path).weight += 0.5 * error
    found, expected = (
        fisher_losses(c.net, c.errors, c.log_p, at=at, draw=partial(one_of_each, generator=seeds.generator()))
        for c, at in ((case, 0.5), (other, 0.0))
    )
    assert_close(found, expected, TERMS)


def test_alone_is_the_loss_with_one_linear_replaced() -> None:
    case = Case()
    slow = torch.tensor([case.loss_with(path) for path in PATHS])
    assert_close(losses_alone(case.net, case.errors, case.loss), slow, TERMS, magnitude=KL)


def test_energies_are_of_the_output_without_bias() -> None:
    case = Case()
    energies = output_energies(case.net, case.errors, case.log_p)
    first: nn.Linear = case.net[0]  # type: ignore[assignment]
    assert_close(energies[0, 0], (case.x @ case.errors["0"].T).square().sum(), TERMS)
    assert_close(energies[1, 0], (case.x @ first.weight.T).square().sum(), TERMS)


def test_nothing_stays_hooked_after_an_error() -> None:
    case = Case()

    def broken() -> Tensor:
        raise RuntimeError("stop")

    for measure in (weight_path_shares, fisher_losses, losses_alone, output_energies):
        with pytest.raises(RuntimeError, match="stop"):
            measure(case.net, case.errors, broken)
    assert not any(module._forward_hooks for module in case.net.modules())


class Scaled(nn.Embedding):
    """Embeddings that scale what they look up, as Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 3.0


class Text:
    """Scaled embeddings and a head, and ids of which some come twice."""

    def __init__(self) -> None:
        torch.manual_seed(seeds.seed())
        self.net = nn.Sequential(Scaled(9, 8, padding_idx=0), nn.Tanh(), nn.Linear(8, 5)).requires_grad_(False)
        self.ids = torch.tensor([1, 0, 4, 4, 8, 1])
        self.errors = {"0": 1e-2 * torch.randn(9, 8)}
        self.full = self.log_p()

    def log_p(self, net: nn.Module | None = None) -> Tensor:
        return log_softmax((net or self.net)(self.ids), -1)

    def loss(self, net: nn.Module | None = None) -> Tensor:
        return (self.full.exp() * (self.full - self.log_p(net))).sum()

    def slow(self) -> float:
        other = copy.deepcopy(self.net)
        other[0].weight += self.errors["0"]  # type: ignore[operator]
        return float(self.loss(other))


def test_every_cost_reads_an_error_of_embeddings_as_the_embeddings_look_it_up() -> None:
    text = Text()
    expected = text.slow()
    with perturbed(text.net, text.errors, [1.0]):
        assert float(text.loss()) == pytest.approx(expected, rel=1e-2)
    assert float(losses_alone(text.net, text.errors, text.loss)) == pytest.approx(expected, rel=1e-2)
    assert float(weight_path_shares(text.net, text.errors, text.loss)) == pytest.approx(expected, rel=2e-2)
    draw = partial(one_of_each, generator=seeds.generator())
    assert float(fisher_losses(text.net, text.errors, text.log_p, draws=1500, draw=draw)) == pytest.approx(
        expected, rel=0.15
    )
    error, own = output_energies(text.net, text.errors, text.log_p)[:, 0]
    assert_close(error, (3 * text.errors["0"][text.ids]).square().sum(), TERMS)
    assert_close(own, (3 * text.net[0].weight[text.ids]).square().sum(), TERMS)  # type: ignore[index]


def test_fisher_bears_a_model_that_adds_to_a_linears_output_in_place() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).add_(1.0))

    net, x = Net().requires_grad_(False), torch.randn(5, 6)
    errors = {name: 0.1 * torch.randn_like(net.get_submodule(name).weight) for name in ("first", "last")}
    found = fisher_losses(net, errors, lambda: log_softmax(net(x), -1), draws=2)
    assert (found > 0).all()
