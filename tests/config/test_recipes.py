import pytest

from transformers_qaig.config.recipes import NAMES, RECIPES, Recipe, recipe_of


def test_stages_change_a_recipe_and_nothing_else() -> None:
    chosen = recipe_of("fast", {"rounding": "gptq", "asymmetric": 1})
    assert (chosen.rounding, chosen.asymmetric) == ("gptq", 1)
    assert chosen.grid_points == RECIPES["fast"].grid_points
    assert recipe_of("fast") is not chosen
    assert recipe_of("fast") == RECIPES["fast"]


def test_every_recipe_comes_back_from_what_is_saved() -> None:
    assert tuple(RECIPES) == NAMES
    for recipe in (*RECIPES.values(), Recipe(rounding="gptq"), Recipe("fast", steps=7)):
        assert recipe_of(recipe.to_dict()) == recipe
    with pytest.raises(ValueError, match=r"`name` must be one of .*'custom', got 'bests'. Did you mean 'best'"):
        Recipe("bests")


def test_what_a_recipe_reads() -> None:
    assert not recipe_of("rtn").calibrates
    assert all(recipe_of(name).calibrates for name in RECIPES if name != "rtn")
    assert recipe_of("mbq").reads_answers
    assert not recipe_of("default").reads_answers


@pytest.mark.parametrize("value", [True, "0.5", -0.1, float("nan")])
def test_a_share_is_a_number_from_0_to_1(value: object) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        recipe_of("default", {"asymmetric": value})
