"""Draws of a sample are the same whichever samples are drawn for before it."""

import pytest
import torch

from transformers_qaig.quantizer.bit_costs.draws import DRAWS, Draws, one_of_each

LENGTHS = (3, 0, 5, 2)


def drawn(seed: int, samples: tuple[int, ...]) -> dict[int, list[list[int]]]:
    draws, probabilities = Draws(seed, LENGTHS), torch.full((5, 50), 1 / 50)
    found = {}
    for sample in samples:
        draw = draws.of(sample)
        found[sample] = [draw(probabilities[: LENGTHS[sample]]).flatten().tolist() for _ in range(DRAWS)]
    return found


@pytest.mark.parametrize("samples", [(2, 3), (3,), (0, 3)])
def test_samples_that_another_process_has_are_skipped(samples: tuple[int, ...]) -> None:
    whole = drawn(7, (0, 2, 3))
    assert drawn(7, samples) == {sample: whole[sample] for sample in samples}


def test_samples_and_draws_and_seeds_differ() -> None:
    whole = drawn(7, (0, 2, 3))
    assert whole[2][0] != whole[2][1]
    assert whole[0] != [draw[:3] for draw in whole[2]]
    assert whole != drawn(8, (0, 2, 3))


def test_one_token_is_drawn_from_each_distribution() -> None:
    certain = torch.eye(4)[[2, 0, 3]]
    assert one_of_each(certain).tolist() == [[2], [0], [3]]
