"""The knapsack: exact, within its budget, and honest about what cannot be met."""

import itertools
import random

import numpy as np
import pytest

from tests import seeds
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.allocate import (
    SchemeOption,
    allocate,
    describe,
    front,
    fused_sets,
    knee,
    only_choice,
    reachable,
)

WIDTHS = (2, 3, 4, 8)


def _scheme(bits: int) -> WeightScheme:
    return WeightScheme(bits, 128)


def _options(count: int, seed: int = 0, widths: tuple[int, ...] = WIDTHS) -> dict[str, list[SchemeOption]]:
    rng = seeds.python_rng(seed)
    options = {}
    for index in range(count):
        weights, scale = rng.choice([1000, 3000, 7777]), rng.lognormvariate(0, 2)
        options[f"layers.{index}.w"] = [
            SchemeOption(_scheme(bits), weights * bits, scale * rng.uniform(0.5, 2) * 4.0**-bits) for bits in widths
        ]
    return options


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_best_of_all_choices(seed: int) -> None:
    options = _options(5, seed)
    least, most = reachable(options)
    for share in (0.0, 0.1, 0.35, 0.7, 1.0):
        budget = least + share * (most - least)
        fitting = [c for c in itertools.product(*options.values()) if sum(o.size for o in c) <= budget]
        best = min(sum(o.cost for o in choice) for choice in fitting)
        found = allocate(options, budget)
        assert found.size <= budget
        assert found.cost == pytest.approx(best, rel=1e-5)
        assert found.size == sum(
            next(o.size for o in options[path] if o.scheme == scheme) for path, scheme in found.schemes.items()
        )


def test_as_many_linears_as_eighty_layers_have() -> None:
    """No choice can be better than the linear relaxation, of which the exact answer is within one step."""
    options = _options(560)
    least, most = reachable(options)
    budget = least + 0.2 * (most - least)
    found = allocate(options, budget)
    assert list(found.schemes) == list(options)
    assert found.size <= budget
    multipliers = np.geomspace(1e-12, 1, 400)
    bound = max(
        sum(min(o.cost + m * o.size for o in choices) for choices in options.values()) - m * budget for m in multipliers
    )
    assert found.cost >= bound - 1e-9
    assert found.cost <= 1.02 * bound


@pytest.mark.parametrize("alike", [False, True])
def test_the_relaxation_alone_solves_as_many_weights_as_experts_have(
    monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """128 experts in 48 layers would take a solver minutes. Before any weight is read all experts cost the same."""
    monkeypatch.setattr("transformers_qaig.plan.knapsack._highs", None)
    options = _options(18_000)
    if alike:
        options = dict.fromkeys(options, options["layers.0.w"])
    least, most = reachable(options)
    budget = least + 0.3 * (most - least)
    found = allocate(options, budget)
    assert 0.9999 * budget < found.size <= budget


@pytest.mark.parametrize("share", [0.03, 0.35])
def test_equals_dynamic_programming_at_the_size_of_a_large_model(share: float) -> None:
    """Eighty layers of a 7B model's shapes, all about equally sensitive: the kind that is hard for solvers."""
    rng = seeds.python_rng()
    shapes = [(3584, 3584), (512, 3584), (512, 3584), (3584, 3584), (18944, 3584), (18944, 3584), (3584, 18944)]
    options = {}
    for index in range(560):
        weights, scale = shapes[index % 7][0] * shapes[index % 7][1], rng.lognormvariate(0, 0.3)
        options[str(index)] = [
            SchemeOption(_scheme(b), weights * b + weights // 64 * (16 + b), scale * rng.uniform(0.9, 1.1) * 4.0**-b)
            for b in WIDTHS
        ]
    least, most = reachable(options)
    budget = least + share * (most - least)
    unit = 512 * 3584 // 64 * 65
    rooms = int(budget - least) // unit
    best = np.zeros(rooms + 1)  # the least cost within each room, for the linears so far
    for choices in options.values():
        steps = [((option.size - choices[0].size) // unit, option.cost) for option in choices]
        assert all((option.size - choices[0].size) % unit == 0 for option in choices)
        found = np.full((len(steps), rooms + 1), np.inf)
        for row, (size, cost) in zip(found, steps):
            row[size:] = best[: rooms + 1 - size] + cost
        best = found.min(0)
    allocation = allocate(options, budget)
    assert allocation.size <= budget
    assert best[-1] * (1 - 1e-12) <= allocation.cost <= best[-1] * (1 + 1e-5)


def test_negative_costs_are_costs_like_others() -> None:
    options = {"a": [SchemeOption(_scheme(2), 2, 0.0), SchemeOption(_scheme(4), 4, -1.0)]}
    assert allocate(options, 10).cost == -1.0


def test_a_budget_that_cannot_be_met_is_refused_with_the_range() -> None:
    options = _options(3)
    least, most = reachable(options)
    with pytest.raises(ValueError, match=f"{least:,} to {most:,}"):
        allocate(options, least - 1)
    assert allocate(options, least).size == least
    assert allocate(options, 10 * most).size <= most


def test_a_budget_that_leaves_every_cheapest_option_needs_no_solver() -> None:
    options = {name: [SchemeOption(_scheme(b), b, 0.0) for b in (2, 4)] for name in "abc"}
    options["a"] = [SchemeOption(_scheme(2), 2, 1.0), SchemeOption(_scheme(4), 4, 0.0)]
    assert allocate(options, 100).cost == 0.0


def test_costs_that_are_tiny_beside_others_leave_a_solution() -> None:
    """The relaxation's price of size then comes out below zero."""
    for seed in range(60):
        rng = random.Random(seed)
        units = [rng.choice([4096, 1024, 64, 96, 128]) for _ in range(28)]
        options = {
            f"{i}": [
                SchemeOption(_scheme(b), unit * b, rng.random() * rng.choice([1, 1e-6, 1e-9, 1e-12])) for b in WIDTHS
            ]
            for i, unit in enumerate(units)
        }
        least, most = reachable(options)
        budget = least + rng.random() * (most - least)
        assert allocate(options, budget).size <= budget


def test_a_cost_that_is_not_finite_names_its_weight() -> None:
    with pytest.raises(ValueError, match=r"'mlp\.up'"):
        allocate({"mlp.up": [SchemeOption(_scheme(2), 2, float("nan"))]}, 10)


def test_fused_linears_share_a_width_and_it_costs() -> None:
    paths = [f"layers.{i}.attn.{name}" for i in range(4) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    options = dict(zip(paths, _options(16, 3).values()))
    fused = fused_sets(options)
    assert fused == [[f"layers.{i}.attn.{n}" for n in ("q_proj", "k_proj", "v_proj")] for i in range(4)]
    budget = 1.3 * reachable(options, fused)[0]
    free, together = allocate(options, budget), allocate(options, budget, fused)
    assert together.size <= budget
    for group in fused:
        assert len({together.schemes[path].bits for path in group}) == 1
    assert any(len({free.schemes[path].bits for path in group}) > 1 for group in fused)
    assert together.cost > free.cost
    assert f"{free.cost:.3g}" in describe(together, options, budget, fused)


def test_linear_attention_has_fused_linears_too() -> None:
    """The export to vLLM asks for `fuse=True` where these differ."""
    paths = [
        f"layers.0.linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "conv1d")
    ]
    assert fused_sets(paths) == [paths[:2], paths[2:4]]


def test_fused_linears_without_a_common_entry_are_refused() -> None:
    options = {
        "a.gate_proj": [SchemeOption(_scheme(2), 2, 1.0)],
        "a.up_proj": [SchemeOption(_scheme(3), 3, 1.0)],
    }
    with pytest.raises(ValueError, match="no option in common"):
        allocate(options, 100, fused_sets(options))


def test_the_front_falls_from_the_smallest_choice_to_the_largest() -> None:
    options = _options(12)
    points = front(options)
    assert points[0].size == reachable(options)[0]
    assert all(a.size < b.size and a.cost > b.cost for a, b in itertools.pairwise(points))
    assert points[-1].cost == pytest.approx(sum(min(o.cost for o in c) for c in options.values()))


def test_the_knee_is_where_the_slope_changes() -> None:
    assert knee([2, 2.5, 3, 4, 5, 6], [1.0, 0.1, 0.01, 0.009, 0.008, 0.007]) == 2
    assert knee([1, 2], [1.0, 0.5]) == 0
    assert knee([1, 2, 3], [0.0, 0.0, 0.0]) == 0


def test_a_weight_may_stay_as_it_is_where_there_is_room() -> None:
    options = {
        "tower": [SchemeOption(_scheme(4), 400, 2.0, 100), SchemeOption(None, 1600, 0.0, 100)],
        "block": [SchemeOption(_scheme(2), 200, 1.0, 100), SchemeOption(_scheme(8), 800, 0.5, 100)],
    }
    small, large = allocate(options, 1200), allocate(options, 2399)
    assert (small.schemes, small.widths) == ({"tower": _scheme(4), "block": _scheme(8)}, {4: 1, 8: 1})
    assert (large.schemes, large.widths) == ({"block": _scheme(2)}, {2: 1, 16: 1})
    assert (large.size, large.cost) == (1800, 1.0)
    assert reachable(options) == (600, 2400)
    everything = only_choice(options, 2400)
    assert everything is not None
    assert everything.schemes == {"block": _scheme(8)}
    assert "1 x 16 bits" in describe(large, options, 2399)


def test_one_choice_is_left_where_nothing_larger_or_all_of_the_largest_fits() -> None:
    options = {name: [SchemeOption(_scheme(b), 10 * b, 0.0) for b in (2, 3)] for name in ("a", "b.k_proj", "b.v_proj")}
    options["c"] = [SchemeOption(_scheme(8), 80, 0.0)]
    fused = fused_sets(options)
    found = {budget: only_choice(options, budget, fused) for budget in (140, 149.5, 150, 169, 170)}
    widths = {budget: None if choice is None else choice.widths for budget, choice in found.items()}
    smallest, most = {2: 3, 8: 1}, {3: 3, 8: 1}
    assert widths == {140: smallest, 149.5: smallest, 150: None, 169: None, 170: most}
