"""The choice of one option a unit: the best one that fits, by trying all where there are few."""

import itertools

import numpy as np
import pytest

from tests import seeds
from transformers_qaig.plan.knapsack import knapsack


@pytest.mark.parametrize("number", range(5))
def test_the_cost_is_the_least_that_fits(number: int) -> None:
    rng = seeds.rng(number)
    sizes = [np.sort(rng.integers(1, 50, 4)).astype(float) for _ in range(5)]
    costs = [np.sort(rng.random(4))[::-1].copy() for _ in range(5)]
    budget = float(rng.uniform(sum(size[0] for size in sizes), sum(size[-1] for size in sizes)))
    chosen = knapsack(sizes, costs, budget)
    assert sum(size[option] for size, option in zip(sizes, chosen)) <= budget
    fitting = [
        picks for picks in itertools.product(range(4), repeat=5) if sum(s[p] for s, p in zip(sizes, picks)) <= budget
    ]
    least = min(sum(c[p] for c, p in zip(costs, picks)) for picks in fitting)
    cheapest = sum(cost.min() for cost in costs)
    assert sum(c[p] for c, p in zip(costs, chosen)) - cheapest == pytest.approx(least - cheapest, rel=1e-4, abs=1e-9)


def test_everything_cheapest_is_taken_where_it_fits() -> None:
    assert knapsack([np.array([1.0, 2.0])] * 3, [np.array([1.0, 0.5])] * 3, 6) == [1, 1, 1]
