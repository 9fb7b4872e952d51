"""Sums of terms that several ranks have: as many terms a round as are of different ranks, added in their order."""

import torch

from transformers_qaig.distributed.terms import Terms, _rounds


def test_a_round_holds_one_term_of_a_rank_at_most_and_keeps_the_order() -> None:
    assert list(_rounds([0, 1, 2, 0, 1, 1, 2])) == [[0, 1, 2], [0, 1], [1, 2]]
    assert list(_rounds([0, 0])) == [[0], [0]]
    assert list(_rounds([])) == []


def test_one_process_has_every_term_and_adds_them_in_order() -> None:
    parts = [torch.tensor(2.0**24), torch.tensor(1.0), torch.tensor(1.0)]
    terms, total = Terms(parts).then(Terms([torch.tensor(-(2.0**24))])), torch.zeros(())
    for part in terms.in_rounds():
        assert part is not None
        terms.add(total, part)
    terms.complete(total)
    assert total == 0  # 2^24 + 1 is rounded to 2^24; another order gives 2
    assert terms.of_each(float) == [2.0**24, 1.0, 1.0, -(2.0**24)]
