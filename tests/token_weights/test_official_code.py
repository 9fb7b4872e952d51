"""What `authors` does as the official code: uniform first searches, counted over a resumed run."""

import torch

from tests.token_weights.groups import context_of, weigh
from transformers_qaig.calibration.steps import equalize
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.token_weights.official_code import UNIFORM_SEARCHES
from transformers_qaig.token_weights.registry import token_weights_of


def test_the_authors_first_searches_are_uniform_over_pictures_and_answers(case) -> None:
    recipe = recipe_of("authors")
    vision = {
        s: torch.arange(n)[None] < 3
        for entered in case[2]["self_attn"]
        for s, n in zip(entered.samples, entered.lengths)
    }
    block = case[0]
    weights = token_weights_of(recipe, known={block: {s: mask.float() for s, mask in vision.items()}})
    kinds = []
    for _ in range(UNIFORM_SEARCHES + 1):
        context, decisions = context_of(case, "mlp", "authors")
        weigh(weights, context, decisions)
        kinds.append({float(w) for entered in context.inputs for w in entered.token_weights.flatten()} == {0.0, 1.0})
    assert kinds == [True] * UNIFORM_SEARCHES + [False]
    # Rounded inputs are weighed from the first search on.
    context, decisions = context_of(case, "mlp", "authors", 8)
    weigh(token_weights_of(recipe), context, decisions)
    assert any(len(entered.token_weights.unique()) > 2 for entered in context.inputs)


def test_where_both_models_agree_the_authors_with_rounded_inputs_scale_nothing(case) -> None:
    context, decisions = context_of(case, "mlp", "authors", 8)
    for entered in context.inputs:
        entered.hidden_q = entered.hidden
    weigh(token_weights_of(context.recipe), context, decisions)
    assert all((entered.token_weights == 0).all() for entered in context.inputs)
    assert equalize(context, decisions) is None


def test_a_resumed_run_counts_the_searches_of_the_blocks_that_it_takes(case) -> None:
    recipe = recipe_of("authors")
    weights, again = token_weights_of(recipe), token_weights_of(recipe)
    for _ in range(UNIFORM_SEARCHES):
        weigh(weights, *context_of(case, "mlp", "authors"))
    again.restore(weights.state())
    for each in (weights, again):
        context, decisions = context_of(case, "mlp", "authors")
        weigh(each, context, decisions)
        assert any(len(entered.token_weights.unique()) > 2 for entered in context.inputs)
