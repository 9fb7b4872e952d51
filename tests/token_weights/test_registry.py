"""Every kind of token weights is made by its name."""

import pytest

from tests.token_weights.groups import context_of, weigh
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.token_weights.registry import KINDS, token_weights_of


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_token_weights_is_made_and_ignores_padding_or_says_so(case, kind: str) -> None:
    weights = token_weights_of(recipe_of("fast", {"token_weights": kind}))
    context, decisions = context_of(case, "mlp", "fast")
    weigh(weights, context, decisions)
    for entered in context.inputs:
        assert entered.token_weights.shape == entered.mask.shape
        assert weights.counts_padding or (entered.token_weights[~entered.mask] == 0).all()
